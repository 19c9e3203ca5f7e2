//! One side of a history: its mount, what it keeps open, and whether what it is shown is what lies below.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use nix::libc::{ESTALE, O_DIRECTORY, O_NOFOLLOW};
use rustix::fs::{CWD, RawDir, RenameFlags, SeekFrom, XattrFlags, renameat_with};

use super::fs_support::{Mapping, Tree, eventually};
use super::history::{Change, DIRS, F, Look, M, MAPPED, Place, dir_below};

/// What a side may keep open of each kind.
const KEPT: usize = 4;
const SYMLINKS: [&str; 4] = ["f", "d/f", "e", "nowhere"];
const NOTE: &str = "user.note";

/// Through which cache something old was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    /// A name that is gone.
    Names,
    /// The absence of a name that is there.
    NegativeNames,
    Attributes,
    Listings,
    /// Of a file that is opened now.
    Data,
    Symlinks,
    ExtendedAttributes,
    /// Data or attributes, through a handle from before.
    OpenFiles,
    /// Listings or names, through a handle from before.
    OpenDirectories,
    MappedPages,
    /// What a call saw that had waited for the lease.
    Waiter,
}

/// Something that is not as it lies below.
#[derive(Debug, Clone)]
pub struct Wrong {
    pub cache: Cache,
    pub what: String,
}

fn error<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|why| why.raw_os_error().unwrap_or(-1))
}

/// What `stat` tells, without what reading changes and what the guard may number anew.
fn facts(meta: &fs::Metadata) -> [i64; 9] {
    let (size, links) = (meta.size() as i64, meta.nlink() as i64);
    let (mode, uid, gid) = (meta.mode().into(), meta.uid().into(), meta.gid().into());
    [mode, size, links, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), uid, gid]
}

fn stat(path: &Path) -> Result<[i64; 9], i32> {
    error(fs::symlink_metadata(path).map(|meta| facts(&meta)))
}

fn open_dir(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path)
}

fn list(dir: &File) -> Result<BTreeSet<(Vec<u8>, u32)>, i32> {
    let os = |why: rustix::io::Errno| why.raw_os_error();
    rustix::fs::seek(dir, SeekFrom::Start(0)).map_err(os)?;
    let mut buf = vec![MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(dir, &mut buf);
    let mut found = BTreeSet::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(os)?;
        found.insert((entry.file_name().to_bytes().to_owned(), entry.file_type().as_raw_mode()));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, i32> {
    error(OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path)).and_then(|file| read_all(&file))
}

fn read_all(file: &File) -> Result<Vec<u8>, i32> {
    let mut data = vec![0; 3 * MAPPED];
    let mut len = 0;
    loop {
        match error(file.read_at(&mut data[len..], len as u64))? {
            0 => break,
            n => len += n,
        }
    }
    data.truncate(len);
    Ok(data)
}

fn note(path: &Path) -> Result<Vec<u8>, i32> {
    let mut value = [0; 16];
    let got = rustix::fs::lgetxattr(path, NOTE, &mut value[..]).map_err(|why| why.raw_os_error())?;
    Ok(value[..got].to_owned())
}

/// What is looked at after a handover.
#[derive(Clone, Copy)]
enum Probe {
    Stat(Place),
    StatDir(u8),
    List(u8),
    Read(Place),
    Symlink(Place),
    Note(Place),
    File(usize),
    Map(usize),
    Dir(usize),
}

/// One side. What it keeps is kept twice: through its mount and below.
pub struct Side {
    pub tree: Tree,
    files: Vec<(Place, File, File)>,
    maps: Vec<(Place, Mapping, File)>,
    dirs: Vec<(u8, File, File)>,
}

impl Side {
    pub fn new(tree: Tree) -> Side {
        Side { tree, files: Vec::new(), maps: Vec::new(), dirs: Vec::new() }
    }

    /// Where a history's own directory lies on this side.
    pub fn path(&self, root: &str) -> PathBuf {
        self.tree.at.join(root)
    }

    /// Closes what it keeps.
    pub fn close(&mut self) {
        self.files.clear();
        self.maps.clear();
        self.dirs.clear();
    }

    /// Changes something through the mount; what makes no sense fails.
    pub fn change(&mut self, root: &str, what: Change) {
        let _made_no_sense = self.try_change(&self.path(root), &self.tree.lower.join(root), what);
    }

    fn try_change(&mut self, at: &Path, low: &Path, what: Change) -> std::io::Result<()> {
        match what {
            Change::Write { at: place, byte, len, times_back } => {
                let file = OpenOptions::new().write(true).create(true).truncate(false).open(place.below(at))?;
                let before = file.metadata()?.modified()?;
                let len = if place.is_mapped() { MAPPED } else { len.into() };
                file.write_all_at(&vec![byte; len], 0)?;
                if times_back {
                    file.set_modified(before)?;
                }
            }
            Change::Append { at: place, byte } => {
                OpenOptions::new().append(true).open(place.below(at))?.write_all(&[byte; 10])?;
            }
            Change::Cut { at: place, len } => OpenOptions::new().write(true).open(place.below(at))?.set_len(len.into())?,
            Change::Save { at: place, byte } => {
                let (new, len) = (at.join("new~"), if place.is_mapped() { MAPPED } else { 1000 });
                fs::write(&new, vec![byte; len])?;
                fs::rename(&new, place.below(at))?;
            }
            Change::Map { at: place, byte } => {
                let path = place.below(at);
                let file = OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW).open(&path)?;
                if file.metadata()?.len() == MAPPED as u64 {
                    let map = Mapping::of(&file, MAPPED);
                    map.put(0, byte);
                    map.put(MAPPED - 1, byte);
                    self.keep_map(place, map, File::open(place.below(low))?);
                }
            }
            Change::Remove { at: place } => fs::remove_file(place.below(at))?,
            Change::Rename { from, to } => rename(&from.below(at), &to.below(at))?,
            Change::Exchange { from, to } => renameat_with(CWD, from.below(at), CWD, to.below(at), RenameFlags::EXCHANGE)?,
            Change::Link { from, to } => fs::hard_link(from.below(at), to.below(at))?,
            Change::Symlink { at: place, to } => symlink(SYMLINKS[to as usize], place.below(at))?,
            Change::MakeDir(dir) => fs::create_dir(dir_below(at, dir))?,
            Change::RemoveDir(dir) => fs::remove_dir(dir_below(at, dir.max(1)))?,
            Change::RenameDir(from, to) => rename(&dir_below(at, from.max(1)), &dir_below(at, to.max(1)))?,
            Change::Mode { at: place, bits } => {
                fs::set_permissions(place.below(at), fs::Permissions::from_mode(0o600 | u32::from(bits)))?;
            }
            Change::Attribute { at: place, byte } => {
                rustix::fs::lsetxattr(place.below(at), NOTE, &[byte; 4], XattrFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Looks at something through the mount, whatever it is shown. `sure`: its kernel knows what is true, so what is kept is the
    /// file below, whatever number it has.
    pub fn look(&mut self, root: &str, at: Look, sure: bool) {
        let (up, low) = (self.path(root), self.tree.lower.join(root));
        match at {
            Look::Stat(place) => _ = stat(&place.below(&up)),
            Look::Read(place) => _ = read(&place.below(&up)),
            Look::List(dir) => _ = open_dir(&dir_below(&up, dir)).map(|dir| list(&dir)),
            Look::Attribute(place) => _ = note(&place.below(&up)),
            Look::Keep(place) => {
                let open = |root: &Path| OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(place.below(root));
                if let (Ok(up), Ok(low)) = (open(&up), open(&low))
                    && (sure || same(&up, &low))
                {
                    let _warm = read_all(&up);
                    keep(&mut self.files, (place, up, low));
                }
            }
            Look::KeepMapped(place) => {
                let open = |root: &Path| OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(place.below(root));
                if let (Ok(up), Ok(low)) = (open(&up), open(&low))
                    && (sure || same(&up, &low))
                    && up.metadata().is_ok_and(|meta| meta.len() == MAPPED as u64)
                {
                    let map = Mapping::to_read(&up, MAPPED);
                    let _warm = (map.get(0), map.get(MAPPED - 1));
                    self.keep_map(place, map, low);
                }
            }
            Look::KeepDir(dir) => {
                if let (Ok(up), Ok(low)) = (open_dir(&dir_below(&up, dir)), open_dir(&dir_below(&low, dir)))
                    && (sure || same(&up, &low))
                {
                    let _warm = list(&up);
                    keep(&mut self.dirs, (dir, up, low));
                }
            }
            Look::All => {
                for dir in 0..DIRS.len() as u8 {
                    self.look(root, Look::List(dir), sure);
                }
                for place in Place::all() {
                    self.look(root, Look::Stat(place), sure);
                    self.look(root, Look::Read(place), sure);
                }
            }
        }
    }

    /// Fills every cache that there is, and keeps something of each kind open.
    pub fn warm(&mut self, root: &str) {
        self.look(root, Look::All, false);
        for dir in 0..2 {
            self.look(root, Look::KeepDir(dir), false);
            self.look(root, Look::Keep(Place { dir, name: F }), false);
            self.look(root, Look::KeepMapped(Place { dir, name: M }), false);
        }
    }

    fn keep_map(&mut self, place: Place, map: Mapping, low: File) {
        keep(&mut self.maps, (place, map, low));
    }

    /// A program of this side that waits for the lease to append to a file: what it finds its size to be, once it goes on; and
    /// the size now.
    pub fn wait(&self, root: &str, place: Place) -> (JoinHandle<Result<u64, i32>>, Option<u64>) {
        let path = place.below(&self.path(root));
        let now = fs::metadata(place.below(&self.tree.lower.join(root)));
        let now = now.ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
        self.tree.free();
        let append = move || {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            let size = file.metadata()?.len();
            file.write_all(b"one more")?;
            Ok(size)
        };
        let waiter = std::thread::spawn(move || error(append()));
        eventually("it waits, or has found nothing to open", || self.tree.mount.waiting() == 1 || waiter.is_finished());
        (waiter, now)
    }

    /// Everything that this side is shown, against what lies below, in an order of its own: what is asked first must not help
    /// what is asked next.
    pub fn wrong(&self, root: &str, order: u64) -> Vec<Wrong> {
        let (up, low) = (self.path(root), self.tree.lower.join(root));
        let mut probes: Vec<Probe> = Vec::new();
        for place in Place::all() {
            probes.extend([Probe::Stat(place), Probe::Read(place), Probe::Symlink(place), Probe::Note(place)]);
        }
        probes.extend((0..DIRS.len() as u8).flat_map(|dir| [Probe::StatDir(dir), Probe::List(dir)]));
        probes.extend((0..self.files.len()).map(Probe::File));
        probes.extend((0..self.maps.len()).map(Probe::Map));
        probes.extend((0..self.dirs.len()).map(Probe::Dir));
        let mut dice = order | 1;
        for n in (1..probes.len()).rev() {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            probes.swap(n, (dice >> 33) as usize % (n + 1));
        }
        // What is kept open shows what the kernel believes only until somebody has opened the file anew: so it comes first often.
        if order & 2 == 0 {
            probes.sort_by_key(|probe| !matches!(probe, Probe::File(_) | Probe::Map(_) | Probe::Dir(_)));
        }
        probes.into_iter().filter_map(|probe| self.probe(&up, &low, probe)).collect()
    }

    fn probe(&self, up: &Path, low: &Path, probe: Probe) -> Option<Wrong> {
        match probe {
            Probe::Stat(place) => named(&place.below(up), &place.below(low)),
            Probe::StatDir(dir) => named(&dir_below(up, dir), &dir_below(low, dir)),
            Probe::List(dir) => {
                let list = |root: &Path| error(open_dir(&dir_below(root, dir))).and_then(|dir| list(&dir));
                differ(Cache::Listings, &format!("the listing of {:?}", dir_below(up, dir)), list(up), list(low))
            }
            Probe::Read(place) => differ(
                Cache::Data,
                &format!("{:?}", place.below(up)),
                brief(read(&place.below(up))),
                brief(read(&place.below(low))),
            ),
            Probe::Symlink(place) => {
                let lead = |root: &Path| error(fs::read_link(place.below(root)));
                differ(Cache::Symlinks, &format!("{:?}", place.below(up)), lead(up), lead(low))
            }
            Probe::Note(place) => {
                let what = format!("the attribute of {:?}", place.below(up));
                differ(Cache::ExtendedAttributes, &what, note(&place.below(up)), note(&place.below(low)))
            }
            Probe::File(n) => {
                let (place, up, low) = &self.files[n];
                let what = format!("{place:?}, open since before");
                let data = || differ(Cache::OpenFiles, &what, brief(read_all(up)), brief(read_all(low)));
                let stat = |file: &File| error(file.metadata().map(|meta| facts(&meta)));
                data().or_else(|| differ(Cache::OpenFiles, &what, stat(up), stat(low)))
            }
            Probe::Map(n) => {
                let (place, map, low) = &self.maps[n];
                let there = read_all(low).ok()?;
                let wrong = [0, 4095, 4096, MAPPED - 1].into_iter().find(|at| there.get(*at) != Some(&map.get(*at)))?;
                let what = format!("byte {wrong} of {place:?}, mapped since before");
                Some(Wrong { cache: Cache::MappedPages, what })
            }
            Probe::Dir(n) => {
                let (dir, up, low) = &self.dirs[n];
                let what = format!("the directory {dir}, open since before");
                let there = list(low);
                // A removed directory has no listing.
                if there.is_err() {
                    return None;
                }
                let name = |dir: &File| {
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    ["f", "m", "l", "d", "e"].map(|name| {
                        let stat = rustix::fs::statat(dir, name, flags).map_err(|why| why.raw_os_error());
                        stat.map(|stat| (stat.st_size, stat.st_mode, stat.st_ctime, stat.st_ctime_nsec))
                    })
                };
                differ(Cache::OpenDirectories, &what, list(up), there)
                    .or_else(|| differ(Cache::OpenDirectories, &what, name(up), name(low)))
            }
        }
    }
}

/// rename, by another process where this one may not: what it wrote in an earlier run it does not move into place.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(from, to) {
        Err(why) if why.raw_os_error() == Some(ESTALE) => {
            Command::new("mv").args(["-f", "-T"]).args([from, to]).stderr(std::process::Stdio::null()).status().map(|_| ())
        }
        other => other,
    }
}

fn same(up: &File, low: &File) -> bool {
    matches!((up.metadata(), low.metadata()), (Ok(up), Ok(low)) if up.ino() == low.ino())
}

fn keep<T>(all: &mut Vec<T>, one: T) {
    if all.len() == KEPT {
        all.remove(0);
    }
    all.push(one);
}

fn named(up: &Path, low: &Path) -> Option<Wrong> {
    let (shown, there) = (stat(up), stat(low));
    let cache = match (&shown, &there) {
        (Ok(_), Err(_)) => Cache::Names,
        (Err(_), Ok(_)) => Cache::NegativeNames,
        _ => Cache::Attributes,
    };
    differ(cache, &format!("{up:?}"), shown, there)
}

fn differ<T: PartialEq + std::fmt::Debug>(cache: Cache, what: &str, shown: T, there: T) -> Option<Wrong> {
    (shown != there).then(|| Wrong { cache, what: format!("{what}: shown {shown:?}, below it is {there:?}") })
}

/// Bytes as runs, for people.
fn brief(data: Result<Vec<u8>, i32>) -> Result<Vec<(u8, usize)>, i32> {
    data.map(|data| data.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect())
}
