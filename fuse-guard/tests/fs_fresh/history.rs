//! A random history of one directory that two sides take in turn: what is changed, what is looked at, when it changes hands.
//!
//! Names are few, so that they collide; a step that makes no sense at its moment (removing what is not there) fails and is none.
//! Files called `m` are mapped: their size is the same for ever, so that a mapping never reaches beyond its file's end.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

/// Size of the files that are mapped: two pages.
pub const MAPPED: usize = 8192;
/// The directories of a history, below its own; the first is that.
pub const DIRS: [&str; 3] = ["", "d", "e"];
/// The names in each of them. `m`: mapped.
pub const NAMES: [&str; 3] = ["f", "m", "l"];
/// A plain file, to begin with.
pub const F: u8 = 0;
/// The mapped one.
pub const M: u8 = 1;
/// What may be a symlink.
const L: u8 = 2;

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub dir: u8,
    pub name: u8,
}

impl Place {
    pub fn all() -> impl Iterator<Item = Place> {
        (0..DIRS.len() as u8).flat_map(|dir| (0..NAMES.len() as u8).map(move |name| Place { dir, name }))
    }
    /// Below the history's own directory.
    pub fn below(self, root: &Path) -> PathBuf {
        dir_below(root, self.dir).join(NAMES[self.name as usize])
    }
    pub fn is_mapped(self) -> bool {
        self.name == M
    }
}

/// A directory below the history's own.
pub fn dir_below(root: &Path, dir: u8) -> PathBuf {
    match dir {
        0 => root.to_owned(),
        n => root.join(DIRS[n as usize]),
    }
}

/// What the holder does.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Over what is there. `times_back`: and then its time is set back, so that only its change time tells.
    Write {
        at: Place,
        byte: u8,
        len: u16,
        times_back: bool,
    },
    Append {
        at: Place,
        byte: u8,
    },
    Cut {
        at: Place,
        len: u16,
    },
    /// As an editor does: a new file, renamed over the old.
    Save {
        at: Place,
        byte: u8,
    },
    /// Through a shared mapping, and no msync.
    Map {
        at: Place,
        byte: u8,
    },
    Remove {
        at: Place,
    },
    /// Only among mapped files, or among others.
    Rename {
        from: Place,
        to: Place,
    },
    Exchange {
        from: Place,
        to: Place,
    },
    Link {
        from: Place,
        to: Place,
    },
    Symlink {
        at: Place,
        to: u8,
    },
    MakeDir(u8),
    RemoveDir(u8),
    RenameDir(u8, u8),
    Mode {
        at: Place,
        bits: u8,
    },
    Attribute {
        at: Place,
        byte: u8,
    },
}

/// What a side looks at, through its mount: so that its kernel believes to know.
#[derive(Debug, Clone, Copy)]
pub enum Look {
    Stat(Place),
    Read(Place),
    List(u8),
    Attribute(Place),
    /// Opens it for reading and keeps it open, read.
    Keep(Place),
    /// Maps it and keeps it mapped, every page touched.
    KeepMapped(Place),
    /// Opens a directory and keeps it open, listed.
    KeepDir(u8),
    /// Everything that has a name.
    All,
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Change(Change),
    /// By the holder, or by the other side.
    Look {
        holder: bool,
        at: Look,
    },
    /// To the other side. `waiter`: one of its programs waits for the lease, to append to that file.
    HandOver {
        waiter: Option<Place>,
    },
    /// The holder gives it back and gets it again, in the same run.
    Again,
}

/// A history, and the number that says in which order everything is looked at after a handover.
#[derive(Debug, Clone)]
pub struct History {
    pub steps: Vec<Step>,
    pub order: u64,
}

fn dir() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 2 => Just(1), 1 => Just(2)]
}

fn place() -> impl Strategy<Value = Place> {
    (dir(), 0..NAMES.len() as u8).prop_map(|(dir, name)| Place { dir, name })
}

fn plain() -> impl Strategy<Value = Place> {
    place().prop_map(|at| if at.is_mapped() { Place { name: F, ..at } } else { at })
}

fn mapped() -> impl Strategy<Value = Place> {
    dir().prop_map(|dir| Place { dir, name: M })
}

/// Two names of files that may take each other's place.
fn pair() -> impl Strategy<Value = (Place, Place)> {
    prop_oneof![3 => (plain(), plain()), 1 => (mapped(), mapped())]
}

fn change() -> impl Strategy<Value = Change> {
    let byte = || b'a'..=b'z';
    prop_oneof![
        8 => (place(), byte(), 0u16..6000, any::<bool>())
            .prop_map(|(at, byte, len, times_back)| Change::Write { at, byte, len, times_back }),
        2 => (plain(), byte()).prop_map(|(at, byte)| Change::Append { at, byte }),
        2 => (plain(), 0u16..6000).prop_map(|(at, len)| Change::Cut { at, len }),
        3 => (place(), byte()).prop_map(|(at, byte)| Change::Save { at, byte }),
        3 => (mapped(), byte()).prop_map(|(at, byte)| Change::Map { at, byte }),
        3 => place().prop_map(|at| Change::Remove { at }),
        3 => pair().prop_map(|(from, to)| Change::Rename { from, to }),
        1 => pair().prop_map(|(from, to)| Change::Exchange { from, to }),
        2 => pair().prop_map(|(from, to)| Change::Link { from, to }),
        1 => (dir(), 0u8..4).prop_map(|(dir, to)| Change::Symlink { at: Place { dir, name: L }, to }),
        2 => dir().prop_map(Change::MakeDir),
        1 => dir().prop_map(Change::RemoveDir),
        2 => (dir(), dir()).prop_map(|(a, b)| Change::RenameDir(a, b)),
        1 => (place(), 0u8..8).prop_map(|(at, bits)| Change::Mode { at, bits }),
        1 => (place(), byte()).prop_map(|(at, byte)| Change::Attribute { at, byte }),
    ]
}

fn look() -> impl Strategy<Value = Look> {
    prop_oneof![
        3 => place().prop_map(Look::Stat),
        3 => place().prop_map(Look::Read),
        3 => dir().prop_map(Look::List),
        1 => place().prop_map(Look::Attribute),
        3 => place().prop_map(Look::Keep),
        2 => mapped().prop_map(Look::KeepMapped),
        2 => dir().prop_map(Look::KeepDir),
        1 => Just(Look::All),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => change().prop_map(Step::Change),
        4 => (any::<bool>(), look()).prop_map(|(holder, at)| Step::Look { holder, at }),
        2 => prop::option::weighted(0.15, plain()).prop_map(|waiter| Step::HandOver { waiter }),
        1 => Just(Step::Again),
    ]
}

/// Short ones, so that thousands can be played. Each ends with a handover.
pub fn history() -> impl Strategy<Value = History> {
    (prop::collection::vec(step(), 1..24), any::<u64>()).prop_map(|(mut steps, order)| {
        steps.push(Step::HandOver { waiter: None });
        History { steps, order }
    })
}
