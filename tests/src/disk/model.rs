//! Files and names, each as programs see them now and as they were when they were last synced, and the changes between.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::world::rng::Rng;

/// What a disk writes as a whole or not at all.
const SECTOR: u64 = 512;
/// The top directory.
pub const ROOT: u64 = 1;

/// Names of a directory.
pub type Names = BTreeMap<OsString, u64>;

/// Which part of the cache a cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Each sector, each change of a length and each change of names with a chance of one half.
    Any,
    /// What came before some moment; of the write at that moment the first sectors.
    First,
    /// All of it.
    All,
}

impl Left {
    /// All of them.
    pub const ALL: [Left; 4] = [Left::Nothing, Left::Any, Left::First, Left::All];
}

/// What an inode is.
#[derive(Debug, Clone)]
enum Content {
    File { now: Vec<u8>, kept: Vec<u8> },
    Dir { now: Names, kept: Names },
}

/// A change that is only in the cache.
#[derive(Debug, Clone)]
enum Change {
    Write {
        ino: u64,
        offset: u64,
        data: Vec<u8>,
    },
    Resize {
        ino: u64,
        len: u64,
    },
    /// One or two names in one step: directory, name, what it leads to.
    Names(Vec<(u64, OsString, Option<u64>)>),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// The power is off.
    Power,
    /// It could not be kept.
    Broken,
    /// There is no such thing.
    Entry,
    /// There is one already.
    Exists,
    /// It is no directory.
    NotDir,
    /// It is one.
    IsDir,
    /// It is not empty.
    NotEmpty,
}

/// The disk.
#[derive(Debug, Clone)]
pub struct Model {
    inodes: BTreeMap<u64, Content>,
    next: u64,
    cache: Vec<Change>,
    /// Changes and syncs so far.
    pub changes: u64,
    /// The number of the change before which the power goes.
    pub dies_at: Option<u64>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty disk.
    pub fn new() -> Self {
        let root = Content::Dir { now: Names::new(), kept: Names::new() };
        Self { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, cache: Vec::new(), changes: 0, dies_at: None }
    }

    /// Whether the power is on.
    pub fn has_power(&self) -> bool {
        self.dies_at.is_none_or(|at| self.changes < at)
    }

    /// Counts a change, if there is power for it.
    fn change(&mut self) -> Result<(), No> {
        if !self.has_power() {
            return Err(No::Power);
        }
        self.changes += 1;
        Ok(())
    }

    /// What a name leads to.
    pub fn lookup(&self, dir: u64, name: &OsStr) -> Result<u64, No> {
        self.names(dir)?.get(name).copied().ok_or(No::Entry)
    }

    /// The names of a directory.
    pub fn names(&self, dir: u64) -> Result<&Names, No> {
        match self.inodes.get(&dir) {
            Some(Content::Dir { now, .. }) if self.has_power() => Ok(now),
            Some(Content::File { .. }) => Err(No::NotDir),
            _ if !self.has_power() => Err(No::Power),
            _ => Err(No::Entry),
        }
    }

    /// Whether it is a directory, and how long.
    pub fn stat(&self, ino: u64) -> Result<(bool, u64), No> {
        if !self.has_power() {
            return Err(No::Power);
        }
        match self.inodes.get(&ino) {
            Some(Content::File { now, .. }) => Ok((false, now.len() as u64)),
            Some(Content::Dir { .. }) => Ok((true, 0)),
            None => Err(No::Entry),
        }
    }

    /// Bytes of a file; fewer at its end.
    pub fn read(&self, ino: u64, offset: u64, len: usize) -> Result<&[u8], No> {
        if !self.has_power() {
            return Err(No::Power);
        }
        let Some(Content::File { now, .. }) = self.inodes.get(&ino) else { return Err(No::Entry) };
        let from = (offset as usize).min(now.len());
        Ok(&now[from..from.saturating_add(len).min(now.len())])
    }

    /// Makes a file or a directory.
    pub fn make(&mut self, dir: u64, name: &OsStr, is_dir: bool) -> Result<u64, No> {
        if self.names(dir)?.contains_key(name) {
            return Err(No::Exists);
        }
        self.change()?;
        let ino = self.next;
        self.next += 1;
        let made = if is_dir {
            Content::Dir { now: Names::new(), kept: Names::new() }
        } else {
            Content::File { now: Vec::new(), kept: Vec::new() }
        };
        self.inodes.insert(ino, made);
        self.rename_all(vec![(dir, name.to_owned(), Some(ino))]);
        Ok(ino)
    }

    /// Removes a name.
    pub fn remove(&mut self, dir: u64, name: &OsStr, is_dir: bool) -> Result<(), No> {
        let ino = self.lookup(dir, name)?;
        match self.names(ino) {
            Ok(_) if !is_dir => return Err(No::IsDir),
            Ok(names) if !names.is_empty() => return Err(No::NotEmpty),
            Err(_) if is_dir => return Err(No::NotDir),
            _ => {}
        }
        self.change()?;
        self.rename_all(vec![(dir, name.to_owned(), None)]);
        Ok(())
    }

    /// Renames, over what is there.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), No> {
        let ino = self.lookup(from.0, from.1)?;
        self.names(to.0)?;
        self.change()?;
        self.rename_all(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(ino))]);
        Ok(())
    }

    fn rename_all(&mut self, steps: Vec<(u64, OsString, Option<u64>)>) {
        for (dir, name, ino) in &steps {
            if let Some(Content::Dir { now, .. }) = self.inodes.get_mut(dir) {
                point(now, name, *ino);
            }
        }
        self.cache.push(Change::Names(steps));
    }

    /// Writes to a file.
    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8]) -> Result<(), No> {
        self.change()?;
        let Some(Content::File { now, .. }) = self.inodes.get_mut(&ino) else { return Err(No::Entry) };
        put(now, offset, data);
        self.cache.push(Change::Write { ino, offset, data: data.to_owned() });
        Ok(())
    }

    /// Sets a file's length.
    pub fn resize(&mut self, ino: u64, len: u64) -> Result<(), No> {
        self.change()?;
        let Some(Content::File { now, .. }) = self.inodes.get_mut(&ino) else { return Err(No::Entry) };
        now.resize(len as usize, 0);
        self.cache.push(Change::Resize { ino, len });
        Ok(())
    }

    /// Keeps a file's content, or a directory's names.
    pub fn sync(&mut self, ino: u64) -> Result<(), No> {
        self.change()?;
        let cache = std::mem::take(&mut self.cache);
        for change in cache {
            let is_its = match &change {
                Change::Write { ino: of, .. } | Change::Resize { ino: of, .. } => *of == ino,
                Change::Names(steps) => steps.iter().any(|(dir, ..)| *dir == ino),
            };
            if is_its {
                self.keep(&change, &mut |_| true);
            } else {
                self.cache.push(change);
            }
        }
        Ok(())
    }

    /// Makes a change durable; of a write, the sectors that `survives` names by their place in it.
    fn keep(&mut self, change: &Change, survives: &mut impl FnMut(u64) -> bool) {
        match change {
            Change::Write { ino, offset, data } => {
                let Some(Content::File { kept, .. }) = self.inodes.get_mut(ino) else { return };
                let end = offset + data.len() as u64;
                let mut from = *offset;
                let mut place = 0;
                while from < end {
                    let to = (from / SECTOR * SECTOR + SECTOR).min(end);
                    if survives(place) {
                        put(kept, from, &data[(from - offset) as usize..(to - offset) as usize]);
                    }
                    (from, place) = (to, place + 1);
                }
            }
            Change::Resize { ino, len } => {
                if let Some(Content::File { kept, .. }) = self.inodes.get_mut(ino) {
                    kept.resize(*len as usize, 0);
                }
            }
            Change::Names(steps) => {
                for (dir, name, ino) in steps {
                    if let Some(Content::Dir { kept, .. }) = self.inodes.get_mut(dir) {
                        point(kept, name, *ino);
                    }
                }
            }
        }
    }

    /// The disk when the power is back.
    pub fn after_cut(&self, left: Left, rng: &mut Rng) -> Model {
        let mut after = self.clone();
        let cache = std::mem::take(&mut after.cache);
        let end = rng.below(cache.len() + 1);
        for (n, change) in cache.iter().enumerate() {
            let is_write = matches!(change, Change::Write { .. });
            match left {
                Left::Nothing => {}
                Left::All => after.keep(change, &mut |_| true),
                Left::First if n < end => after.keep(change, &mut |_| true),
                Left::First if n == end && is_write => {
                    let sectors = rng.below(9) as u64;
                    after.keep(change, &mut |place| place < sectors);
                }
                Left::First => {}
                Left::Any if is_write => after.keep(change, &mut |_| rng.chance(50)),
                Left::Any if rng.chance(50) => after.keep(change, &mut |_| true),
                Left::Any => {}
            }
        }
        for content in after.inodes.values_mut() {
            match content {
                Content::File { now, kept } => now.clone_from(kept),
                Content::Dir { now, kept } => now.clone_from(kept),
            }
        }
        after.forget_unnamed();
        (after.changes, after.dies_at) = (0, None);
        after
    }

    fn forget_unnamed(&mut self) {
        let mut found = BTreeSet::from([ROOT]);
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            if let Some(Content::Dir { now, .. }) = self.inodes.get(&dir) {
                dirs.extend(now.values().filter(|ino| found.insert(**ino)));
            }
        }
        self.inodes.retain(|ino, _| found.contains(ino));
    }
}

fn point(names: &mut Names, name: &OsStr, ino: Option<u64>) {
    match ino {
        Some(ino) => names.insert(name.to_owned(), ino),
        None => names.remove(name),
    };
}

fn put(file: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + data.len());
    if file.len() < to {
        file.resize(to, 0);
    }
    file[from..to].copy_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    /// Every way of a cut, with several seeds.
    fn cuts(model: &Model) -> impl Iterator<Item = (Left, Model)> {
        Left::ALL.into_iter().flat_map(move |left| (0..40).map(move |seed| (left, model.after_cut(left, &mut Rng::new(seed)))))
    }

    #[test]
    fn what_was_synced_survives_every_cut() {
        let mut model = Model::new();
        let file = model.make(ROOT, name("a"), false).unwrap();
        model.write(file, 0, &[7; 3000]).unwrap();
        model.sync(file).unwrap();
        model.sync(ROOT).unwrap();
        model.write(file, 1000, &[8; 1000]).unwrap();
        model.make(ROOT, name("b"), false).unwrap();
        for (left, after) in cuts(&model) {
            let file = after.lookup(ROOT, name("a")).unwrap();
            let content = after.read(file, 0, 9000).unwrap();
            assert_eq!(content.len(), 3000, "{left:?}");
            assert!(content[..1000].iter().chain(&content[2000..]).all(|byte| *byte == 7), "{left:?}");
            assert!(content[1000..2000].iter().all(|byte| *byte == 7 || *byte == 8), "{left:?}");
        }
    }

    #[test]
    fn what_was_not_synced_is_lost_kept_and_torn_at_sectors() {
        let mut model = Model::new();
        let file = model.make(ROOT, name("a"), false).unwrap();
        model.sync(ROOT).unwrap();
        model.write(file, 0, &[7; 2048]).unwrap();
        let lens = |wanted: Left| {
            let read = |after: Model| after.read(after.lookup(ROOT, name("a")).unwrap(), 0, 9000).unwrap().to_vec();
            cuts(&model).filter(move |(left, _)| *left == wanted).map(move |(_, after)| read(after)).collect::<Vec<_>>()
        };
        assert!(lens(Left::Nothing).iter().all(Vec::is_empty));
        assert!(lens(Left::All).iter().all(|content| *content == [7; 2048]));
        let torn = |content: &Vec<u8>| content.contains(&7) && *content != [7; 2048];
        assert!(
            lens(Left::Any).iter().any(|content| torn(content) && content.contains(&0)),
            "a later sector without an earlier one"
        );
        assert!(lens(Left::First).iter().any(torn));
        assert!(
            lens(Left::Any).iter().all(|content| content.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])))
        );
    }

    #[test]
    fn a_name_is_lost_until_its_directory_is_synced_and_a_rename_is_one_step() {
        let mut model = Model::new();
        let file = model.make(ROOT, name("new"), false).unwrap();
        model.write(file, 0, b"content").unwrap();
        model.sync(file).unwrap();
        model.rename((ROOT, name("new")), (ROOT, name("a"))).unwrap();
        assert!(cuts(&model).any(|(_, after)| after.names(ROOT).unwrap().is_empty()));
        assert!(cuts(&model).any(|(_, after)| after.lookup(ROOT, name("a")).is_ok()));
        for (_, after) in cuts(&model) {
            assert!(after.names(ROOT).unwrap().len() <= 1);
        }
        model.sync(ROOT).unwrap();
        for (left, after) in cuts(&model) {
            let file = after.lookup(ROOT, name("a")).unwrap();
            assert_eq!(after.read(file, 0, 99).unwrap(), b"content", "{left:?}");
        }
    }

    #[test]
    fn without_power_nothing_changes_and_nothing_answers() {
        let mut model = Model::new();
        let file = model.make(ROOT, name("a"), false).unwrap();
        model.dies_at = Some(model.changes + 1);
        model.write(file, 0, b"x").unwrap();
        assert_eq!(model.sync(file), Err(No::Power));
        assert_eq!(model.write(file, 0, b"y"), Err(No::Power));
        assert_eq!(model.lookup(ROOT, name("a")), Err(No::Power));
    }
}
