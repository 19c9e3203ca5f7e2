//! Random histories of two sides on one tree: after each handover nothing is read, through no cache of the kernel, that was there
//! before (DESIGN, *Handing over*). Attributes, names, names that were not there, listings, contents through old and new handles,
//! and mapped pages. The other side's changes cannot be told by their times. Needs /dev/fuse.

mod fs_support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fs_support::{Mapping, Tree};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use treelease_guard::fs::faults::Faults;

/// Names in each of the two directories: few, so that they are used again.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const DIRS: [&str; 2] = ["", "dir"];
/// Turns in one history.
const TURNS: u64 = 6;
/// Changes in one turn.
const CHANGES: usize = 6;
/// Longest contents.
const SIZE: usize = 6000;

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
    fn path(&mut self, under: &Path) -> PathBuf {
        under.join(DIRS[self.below(DIRS.len())]).join(NAMES[self.below(NAMES.len())])
    }
}

/// One side changes something, by whatever path it has to the tree.
fn change(dice: &mut Dice, under: &Path) {
    let (one, other) = (dice.path(under), dice.path(under));
    let text = vec![b'a' + dice.below(26) as u8; 1 + dice.below(SIZE)];
    // What is not possible is not done.
    let _done = match dice.below(6) {
        0 | 1 => fs::write(&one, text),
        2 => fs::remove_file(&one),
        3 => fs::rename(&one, &other),
        4 => fs::hard_link(&one, &other),
        _ => File::options().write(true).open(&one).and_then(|file| file.write_all_at(&text[..text.len().min(10)], 0)),
    };
}

/// All times become those of every turn of the other side: nothing can be told by them.
fn level(under: &Path) {
    let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for dir in DIRS {
        let dir = under.join(dir);
        for name in NAMES {
            let _there = rustix::fs::utimensat(CWD, dir.join(name), &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        rustix::fs::utimensat(CWD, &dir, &times, AtFlags::empty()).unwrap();
    }
}

/// What can be seen of the tree by a path to it: each name with its contents, or that it is not there; each listing; sizes.
fn look(under: &Path) -> BTreeMap<PathBuf, Option<(u64, Vec<u8>)>> {
    let mut seen = BTreeMap::new();
    for dir in DIRS {
        let listed: Vec<_> = fs::read_dir(under.join(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        for name in NAMES {
            let path = under.join(dir).join(name);
            let size = fs::metadata(&path).ok().map(|meta| meta.len());
            let text = fs::read(&path).ok();
            assert_eq!(listed.iter().any(|n| n == name), size.is_some(), "{}: its listing says otherwise", path.display());
            seen.insert(Path::new(dir).join(name), size.zip(text));
        }
    }
    seen
}

/// Handles and mappings that stay open from turn to turn, by the mount and by the raw tree, opened at the same moment.
struct Held {
    above: (File, Mapping),
    below: File,
}

impl Held {
    fn on(t: &Tree, name: &Path) -> Option<Held> {
        let file = File::open(t.at.join(name)).ok()?;
        let map = Mapping::to_read(&file, 4096);
        Some(Held { above: (file, map), below: File::open(t.lower.join(name)).unwrap() })
    }

    fn same(&self) -> bool {
        let read = |file: &File| {
            let mut text = vec![0; SIZE];
            let n = file.read_at(&mut text, 0).unwrap();
            text.truncate(n);
            text
        };
        let below = read(&self.below);
        // A page beyond the end cannot be touched.
        read(&self.above.0) == below && (below.is_empty() || self.above.1.get(0) == below[0])
    }
}

/// Plays a history. False: something was read that was there before.
fn play(seed: u64, faults: Faults) -> Result<(), String> {
    let dice = &mut Dice(seed);
    let t = Tree::with(faults, None, true, |lower| fs::create_dir(lower.join("dir")).unwrap());
    let mut held: Vec<Held> = Vec::new();
    let mut check = |t: &Tree, dice: &mut Dice, when: &str| {
        if look(&t.at) != look(&t.lower) {
            return Err(format!("seed {seed}: {when}: {:?} is read, {:?} is there", look(&t.at), look(&t.lower)));
        }
        if let Some(at) = held.iter().position(|held| !held.same()) {
            return Err(format!("seed {seed}: {when}: the handle or mapping {at} shows what was there before"));
        }
        if held.len() < 4 {
            held.extend(Held::on(t, &dice.path(Path::new(""))));
        }
        Ok(())
    };
    for turn in 0..TURNS {
        let epoch = 1 + 2 * turn;
        t.hold(epoch, epoch);
        check(&t, dice, "after the grant")?;
        for _ in 0..1 + dice.below(CHANGES) {
            change(dice, &t.at);
        }
        check(&t, dice, "as the holder")?;
        t.release();
        t.elsewhere(epoch + 1);
        for _ in 0..1 + dice.below(CHANGES) {
            change(dice, &t.lower);
        }
        level(&t.lower);
    }
    Ok(())
}

fn seeds() -> u64 {
    if std::env::var_os("TREELEASE_LONG").is_some() { 2000 } else { 60 }
}

#[test]
fn after_a_handover_nothing_is_read_that_was_there_before_on_random_histories() {
    for seed in 0..seeds() {
        play(seed, Faults::default()).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn control_if_the_kernel_is_not_told_to_forget_some_history_shows_it() {
    let off = Faults { no_forgetting: true, ..Faults::default() };
    let shown = |seed| std::panic::catch_unwind(|| play(seed, off)).map_or(true, |played| played.is_err());
    assert!((0..20).any(shown));
}
