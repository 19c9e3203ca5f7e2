//! One file, directory or other thing that the kernel knows: its descriptor, its names, and what has happened to it.
//!
//! # Promises
//!
//! - Its descriptor is `O_PATH`, beneath the root: it leads to the same lower inode as long as the node lives.
//! - Names that were found to lead elsewhere in the latest run stay among those of which the kernel is told ([`Node::names`]), and are none of those that
//!   lead to it ([`Node::known_names`]).
//! - That it was replaced, and the earliest epoch under which it was opened for writing, is never taken back (I6).
//!
//! # Does not know
//!
//! Which node is whose ([`super::inode`]); who may write.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::Errno;
use treelease_client::words::time::BootTime;

use super::error::Result;
use super::inode::ROOT;
use super::lacking::Lacking;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// The file type bits of a mode.
pub const TYPE_BITS: u32 = 0o170_000;

/// Which lower inode: device and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl Key {
    #[cfg(test)]
    pub(super) fn raw(dev: u64, ino: u64) -> Self {
        Key { dev, ino }
    }

    /// Of a file whose status was read.
    pub fn of(stat: &Statx) -> Self {
        Key { dev: (u64::from(stat.stx_dev_major) << 32) | u64::from(stat.stx_dev_minor), ino: stat.stx_ino }
    }
}

/// The writable side of a node.
#[derive(Default)]
pub struct Writable {
    /// Open handles that may write.
    pub handles: usize,
    /// A plain read-write descriptor for the kernel's page-cache writes: never one with `O_APPEND`.
    pub pages: Option<Arc<OwnedFd>>,
}

/// The names by which the kernel may know a node.
#[derive(Default)]
pub(super) struct Names {
    /// Parent and name.
    pub(super) known: BTreeSet<(u64, OsString)>,
    /// The run in which each of them was found to lead to the node ([`super::revalidate`]); 0: not all of them, in none.
    pub(super) run: u64,
    /// The last one was found to lead elsewhere, and none has come since.
    pub(super) moved: bool,
    /// Those that were found to lead elsewhere in the run `lost_in`: the kernel may still believe them, and must be told.
    pub(super) lost: BTreeSet<(u64, OsString)>,
    pub(super) lost_in: u64,
}

/// One file, directory or other thing that the kernel knows.
pub struct Node {
    /// What the kernel calls it.
    pub id: u64,
    /// Another one for each node that ever was.
    pub generation: u64,
    /// Its lower inode.
    pub key: Key,
    /// Its file type bits.
    pub kind: u32,
    /// Whether a directory above it, or it itself, is called `.git`.
    pub in_git: bool,
    /// `O_PATH`, beneath the root.
    pub fd: OwnedFd,
    /// Whether it may be written; taken with no other lock.
    pub writable: Mutex<Writable>,
    /// The generation of the dirty set that it is in.
    pub dirty_in: AtomicU64,
    pub(super) lookups: AtomicU64,
    pub(super) names: Mutex<Names>,
    pub(super) below_foreign: bool,
    /// Its own marker: 0 not looked, 1 none, 2 there is one.
    pub(super) marker: AtomicU64,
    pub(super) replaced: AtomicBool,
    /// The earliest epoch in which a writable handle of it was opened.
    pub(super) written_since: AtomicU64,
    /// Serial under which it was last revalidated, plus one.
    pub(super) fresh: AtomicU64,
    /// When that was asked for last without the lease, in milliseconds, plus one; 0: never.
    pub(super) asked: AtomicU64,
    /// The kernel may have pages of it that the storage has not taken.
    pub(super) spoiled: AtomicBool,
    /// Its last name was removed through this mount.
    pub(super) nameless: AtomicBool,
    /// Extended attributes that it is known not to have.
    pub lacking: Lacking,
}

impl Node {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == 0o040_000
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == 0o100_000
    }
    /// Whether another side has had a turn since it could be written (I6).
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }
    /// Whether it was revalidated under this serial.
    pub fn is_fresh(&self, serial: u64) -> bool {
        self.fresh.load(Ordering::Acquire) == serial.wrapping_add(1)
    }
    /// It was revalidated under this serial.
    pub fn set_fresh(&self, serial: u64) {
        self.fresh.store(serial.wrapping_add(1), Ordering::Release);
    }
    /// The storage did not take pages that the kernel has of it.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Release);
    }
    /// Whether it did not; the kernel is about to drop them.
    pub fn unspoil(&self) -> bool {
        self.spoiled.load(Ordering::Acquire) && self.spoiled.swap(false, Ordering::AcqRel)
    }
    /// The storage was asked about it at this time, by who does not hold the lease.
    pub fn set_asked(&self, now: BootTime) {
        self.asked.store(millis(now).wrapping_add(1), Ordering::Release);
    }
    /// Whether that was less than `limit` ago.
    pub fn asked_within(&self, limit: Duration, now: BootTime) -> bool {
        match self.asked.load(Ordering::Acquire) {
            0 => false,
            asked => u128::from(millis(now).wrapping_sub(asked - 1)) < limit.as_millis(),
        }
    }
    /// Its last name was removed. The kernel links no file that has none; if it has one after all, [`Node::add_name`] takes this back.
    pub fn lost_its_last_name(&self) {
        self.nameless.store(true, Ordering::Release);
    }
    /// Whether it is gone from the tree, as far as is known or the storage says.
    pub fn is_nameless(&self) -> bool {
        self.nameless.load(Ordering::Acquire) || stat_fd(&self.fd, false).is_ok_and(|stat| stat.stx_nlink == 0)
    }
    /// Whether any handle may write now.
    pub fn has_writers(&self) -> bool {
        lock(&self.writable).handles > 0
    }
    /// Whether it lies below a directory with another tree's marker, or is one. Looked up once for each directory.
    pub fn is_foreign(&self) -> bool {
        if self.below_foreign || self.id == ROOT || !self.is_dir() {
            return self.below_foreign;
        }
        match self.marker.load(Ordering::Relaxed) {
            0 => {
                let (there, known) = match rustix::fs::statat(&self.fd, super::MARKER, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => (true, true),
                    Err(Errno::NOENT) => (false, true),
                    // Whoever may not look is told nothing of it; the next one may.
                    Err(Errno::ACCESS | Errno::PERM) => (false, false),
                    // Nobody knows: no mutation, and nothing is kept, until somebody does.
                    Err(_) => (true, false),
                };
                if known {
                    self.marker.store(if there { 2 } else { 1 }, Ordering::Relaxed);
                }
                there
            }
            n => n == 2,
        }
    }
    /// The names by which the kernel may know it, parent and name, those too that were found to lead elsewhere: for telling it.
    pub fn names(&self) -> Vec<(u64, OsString)> {
        let names = lock(&self.names);
        names.known.union(&names.lost).cloned().collect()
    }
    /// The names that lead to it, as far as is known.
    pub fn known_names(&self) -> Vec<(u64, OsString)> {
        lock(&self.names).known.iter().cloned().collect()
    }
    /// Whether no name is known to lead to it: where the storage is far, its number may be another file's by now.
    pub fn has_no_name(&self) -> bool {
        self.id != ROOT && lock(&self.names).known.is_empty()
    }
    /// Whether the kernel may know it by another name than this one.
    pub fn has_other_names(&self, parent: u64, name: &OsStr) -> bool {
        lock(&self.names).known.iter().any(|(p, n)| *p != parent || n != name)
    }
    /// It has this name: found in the run `run`, or (0) in no run of ours.
    pub fn add_name(&self, parent: u64, name: &OsStr, run: u64) {
        let mut names = lock(&self.names);
        let new = !names.known.iter().any(|(p, n)| *p == parent && n == name);
        if new {
            names.known.insert((parent, name.to_owned()));
        }
        names.moved = false;
        self.nameless.store(false, Ordering::Release);
        if names.known.len() == 1 && run != 0 {
            names.run = run;
        } else if new && names.run != run {
            names.run = 0;
        }
    }
    /// It has this name no more.
    pub fn drop_name(&self, parent: u64, name: &OsStr) {
        lock(&self.names).known.remove(&(parent, name.to_owned()));
    }
    /// This name leads elsewhere, as was found in the run `run`. What was lost in an earlier one the kernel has been told.
    pub fn lose_name(&self, parent: u64, name: &OsStr, run: u64) {
        let mut names = lock(&self.names);
        let name = (parent, name.to_owned());
        names.known.remove(&name);
        names.moved = names.known.is_empty();
        if names.lost_in != run {
            names.lost_in = run;
            names.lost.clear();
        }
        names.lost.insert(name);
    }
    /// Whether all its names lead elsewhere.
    pub fn is_moved(&self) -> bool {
        lock(&self.names).moved
    }
    /// Whether every name of it was found to lead to it in this run.
    pub fn named_in(&self, run: u64) -> bool {
        lock(&self.names).run == run
    }
    /// These names lead to it, in this run. False: it has got others meanwhile.
    pub fn set_named(&self, found: &[(u64, OsString)], run: u64) -> bool {
        let mut names = lock(&self.names);
        let all = names.known.iter().all(|name| found.contains(name));
        if all {
            names.run = run;
        }
        all
    }
}

fn millis(now: BootTime) -> u64 {
    now.elapsed.as_millis() as u64
}

/// The status of what a descriptor stands for. `sync`: as the storage has it, not as a client's cache does.
pub fn stat_fd(fd: &OwnedFd, sync: bool) -> Result<Statx> {
    let mode = if sync { AtFlags::STATX_FORCE_SYNC } else { AtFlags::empty() };
    statx(fd, "", AtFlags::EMPTY_PATH | mode, StatxFlags::BASIC_STATS)
}
