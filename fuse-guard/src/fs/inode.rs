//! The nodes: what the kernel knows of the tree, each with a descriptor of its lower inode.
//!
//! # Promises
//!
//! - A node is found by (device, inode number) of its lower file, so that all names of a hard-linked file are one node; and
//!   it stays the same file, since its `O_PATH` descriptor keeps the number from being used again on this machine.
//! - I6: a *replaced* node leaves that map, so that the next lookup makes a new node with another id. The old one keeps its
//!   handles and mappings until the kernel forgets it, shares no pages with the new one, and takes no write.
//! - A node's id is the lower inode number where that is free (programs compare inode numbers: git's index, `tar`), else one
//!   from a range of its own. *Why an id may come back:* only after the kernel has forgotten the node of that id, when no
//!   handle, mapping or name leads to it any more; and each node has another generation.
//!
//! # Does not know
//!
//! Who may write.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::Errno;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::time::BootTime;

use super::descriptors::Descriptors;
use super::error::{Result, reason};
use super::lacking::Lacking;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, RwLock, lock};

/// The root's id, by the protocol.
pub const ROOT: u64 = 1;
/// Ids from here on are ours, not lower inode numbers.
const OWN_IDS: u64 = 1 << 62;
/// Lower inode numbers below this are node ids as they are.
pub(super) const NATURAL_IDS: u64 = 1 << 61;
/// The file type bits of a mode.
pub const TYPE_BITS: u32 = 0o170_000;
/// How many steps up a path is followed when it is written down for people.
const DEPTH: usize = 128;

/// Which lower inode: device and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    dev: u64,
    ino: u64,
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
struct Names {
    /// Parent and name.
    known: BTreeSet<(u64, OsString)>,
    /// The run in which each of them was found to lead to the node ([`super::revalidate`]); 0: not all of them, in none.
    run: u64,
    /// The last one was found to lead elsewhere, and none has come since.
    moved: bool,
    /// Those that were found to lead elsewhere in the run `lost_in`: the kernel may still believe them, and must be told.
    lost: BTreeSet<(u64, OsString)>,
    lost_in: u64,
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
    lookups: AtomicU64,
    names: Mutex<Names>,
    below_foreign: bool,
    /// Its own marker: 0 not looked, 1 none, 2 there is one.
    marker: AtomicU64,
    replaced: AtomicBool,
    /// The earliest epoch in which a writable handle of it was opened.
    written_since: AtomicU64,
    /// Serial under which it was last revalidated, plus one.
    fresh: AtomicU64,
    /// When that was asked for last without the lease, in milliseconds, plus one; 0: never.
    asked: AtomicU64,
    /// The kernel may have pages of it that the storage has not taken.
    spoiled: AtomicBool,
    /// Its last name was removed through this mount.
    nameless: AtomicBool,
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

#[derive(Default)]
struct Table {
    by_id: BTreeMap<u64, Arc<Node>>,
    by_key: BTreeMap<Key, u64>,
    next_own: u64,
    generation: u64,
    /// Replaced nodes that the kernel still knows.
    replaced: usize,
    /// Of the last [`Nodes::replace_written`]: what is opened for writing under an earlier epoch comes too late.
    stale_below: Epoch,
}

/// All nodes of a mount.
pub struct Nodes {
    table: RwLock<Table>,
    root: Arc<Node>,
    /// How short the process is of descriptors.
    pub descriptors: Descriptors,
}

fn millis(now: BootTime) -> u64 {
    now.elapsed.as_millis() as u64
}

/// The status of what a descriptor stands for. `sync`: as the storage has it, not as a client's cache does.
pub fn stat_fd(fd: &OwnedFd, sync: bool) -> Result<Statx> {
    let mode = if sync { AtFlags::STATX_FORCE_SYNC } else { AtFlags::empty() };
    statx(fd, "", AtFlags::EMPTY_PATH | mode, StatxFlags::BASIC_STATS)
}

impl Nodes {
    /// With the root alone.
    pub fn new(root: OwnedFd) -> Result<Self> {
        let stat = stat_fd(&root, true)?;
        let node = Arc::new(Node {
            id: ROOT,
            generation: 0,
            key: Key::of(&stat),
            kind: u32::from(stat.stx_mode) & TYPE_BITS,
            in_git: false,
            fd: root,
            writable: Mutex::default(),
            dirty_in: AtomicU64::new(0),
            lookups: AtomicU64::new(1),
            names: Mutex::default(),
            below_foreign: false,
            marker: AtomicU64::new(1),
            replaced: AtomicBool::new(false),
            written_since: AtomicU64::new(u64::MAX),
            fresh: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            spoiled: AtomicBool::new(false),
            nameless: AtomicBool::new(false),
            lacking: Lacking::default(),
        });
        let mut table = Table { next_own: OWN_IDS, generation: 1, ..Table::default() };
        table.by_id.insert(ROOT, node.clone());
        table.by_key.insert(node.key, ROOT);
        Ok(Nodes { table: RwLock::new(table), root: node, descriptors: Descriptors::default() })
    }

    /// The root.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The node of that id.
    pub fn get(&self, id: u64) -> Result<Arc<Node>> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        self.read().by_id.get(&id).cloned().ok_or(reason::UNKNOWN)
    }

    /// The node of that lower inode, if the kernel knows it.
    pub fn by_key(&self, key: Key) -> Option<Arc<Node>> {
        let table = self.read();
        table.by_key.get(&key).and_then(|id| table.by_id.get(id)).cloned()
    }

    /// Takes the node of a lower inode out of the map if its descriptor says that this file is gone from the storage.
    pub fn drop_if_dead(&self, key: Key) {
        let Some(node) = self.by_key(key) else { return };
        if node.id == ROOT || stat_fd(&node.fd, true).is_ok() {
            return;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.by_key.get(&key) == Some(&node.id) {
            table.by_key.remove(&key);
        }
    }

    /// The kernel is about to learn of this file under this name: counts one lookup.
    ///
    /// `run`: of ours, in which the name was found; 0 if this side has none.
    pub fn enter(&self, fd: OwnedFd, stat: &Statx, dir: &Node, name: &OsStr, run: u64) -> Arc<Node> {
        let (key, kind) = (Key::of(stat), u32::from(stat.stx_mode) & TYPE_BITS);
        // Before the table's lock: may look at the lower tree, once for each directory.
        let below_foreign = dir.is_foreign();
        self.descriptors.opened(&fd);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let known = table.by_key.get(&key).and_then(|id| table.by_id.get(id)).cloned();
        if let Some(node) = known
            && node.kind == kind
        {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            drop(table);
            node.add_name(dir.id, name, run);
            return node;
        }
        let natural = key.dev == self.root.key.dev && key.ino > ROOT && key.ino < NATURAL_IDS;
        let id = if natural && !table.by_id.contains_key(&key.ino) {
            key.ino
        } else {
            table.next_own += 1;
            table.next_own
        };
        table.generation += 1;
        let node = Arc::new(Node {
            id,
            generation: table.generation,
            key,
            kind,
            in_git: dir.in_git || name == ".git",
            fd,
            writable: Mutex::default(),
            dirty_in: AtomicU64::new(0),
            lookups: AtomicU64::new(1),
            names: Mutex::new(Names { known: BTreeSet::from([(dir.id, name.to_owned())]), run, ..Names::default() }),
            below_foreign,
            marker: AtomicU64::new(0),
            replaced: AtomicBool::new(false),
            written_since: AtomicU64::new(u64::MAX),
            fresh: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            spoiled: AtomicBool::new(false),
            nameless: AtomicBool::new(false),
            lacking: Lacking::default(),
        });
        table.by_id.insert(id, node.clone());
        table.by_key.insert(key, id);
        node
    }

    /// As [`Nodes::enter`], of a node that the kernel knows already; None: it does not.
    pub fn enter_known(&self, stat: &Statx, dir: &Node, name: &OsStr, run: u64) -> Option<Arc<Node>> {
        let kind = u32::from(stat.stx_mode) & TYPE_BITS;
        let node = {
            // The count moves under the table's lock: a forget that takes the node away comes before or after.
            let table = self.read();
            let node = table.by_key.get(&Key::of(stat)).and_then(|id| table.by_id.get(id)).filter(|node| node.kind == kind)?;
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node.clone()
        };
        node.add_name(dir.id, name, run);
        Some(node)
    }

    /// The kernel has forgotten `n` lookups. Some(node) if that was the last.
    pub fn forget(&self, id: u64, n: u64) -> Option<Arc<Node>> {
        if id == ROOT {
            return None;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let node = table.by_id.get(&id)?;
        let left = node.lookups.load(Ordering::Relaxed).saturating_sub(n);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
        let node = table.by_id.remove(&id)?;
        if node.is_replaced() {
            table.replaced = table.replaced.saturating_sub(1);
        }
        if table.by_key.get(&node.key) == Some(&id) {
            table.by_key.remove(&node.key);
        }
        Some(node)
    }

    /// A writable handle of this node, opened under `epoch`, is about to be used. ESTALE: another side has had a turn since, over
    /// which the open hung. *Why under the table's lock:* either [`Nodes::replace_written`] comes later and finds the node, or it
    /// has come, and is found here.
    pub fn note_writable(&self, node: &Node, epoch: Epoch) -> Result<()> {
        let table = self.read();
        if epoch < table.stale_below {
            return Err(reason::STALE);
        }
        node.written_since.fetch_min(epoch.get(), Ordering::AcqRel);
        Ok(())
    }

    /// I6: every file of which a writable handle was opened under an epoch before `stale_below` gets another node at its next
    /// lookup. Handles that are closed count too, until the kernel forgets the node: their pages may be mapped still.
    pub fn replace_written(&self, stale_below: Epoch) -> usize {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.stale_below = table.stale_below.max(stale_below);
        let stale = |node: &Node| node.written_since.load(Ordering::Acquire) < stale_below.get() && !node.is_replaced();
        let written: Vec<Arc<Node>> = table.by_id.values().filter(|node| stale(node)).cloned().collect();
        for node in &written {
            node.replaced.store(true, Ordering::Release);
            if table.by_key.get(&node.key) == Some(&node.id) {
                table.by_key.remove(&node.key);
            }
        }
        table.replaced += written.len();
        written.len()
    }

    /// I6: a name of this file leads elsewhere since another side's turn: who comes with the old node is told ESTALE and looks
    /// up again, and then finds this file under another node, where it still has a name.
    pub fn replace(&self, node: &Node) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if node.id == ROOT || node.replaced.swap(true, Ordering::AcqRel) || !table.by_id.contains_key(&node.id) {
            return;
        }
        if table.by_key.get(&node.key) == Some(&node.id) {
            table.by_key.remove(&node.key);
        }
        table.replaced += 1;
    }

    /// Nodes of that lower inode that belong to an earlier run and that the kernel still knows.
    pub fn replaced_of(&self, key: Key) -> Vec<Arc<Node>> {
        let table = self.read();
        if table.replaced == 0 {
            return Vec::new();
        }
        table.by_id.values().filter(|node| node.key == key && node.is_replaced()).cloned().collect()
    }

    /// All nodes, by id.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.read().by_id.values().cloned().collect()
    }

    /// How many the kernel knows.
    pub fn len(&self) -> usize {
        self.read().by_id.len()
    }

    /// Never: there is the root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A path below the root by which the kernel knew the node; for people.
    pub fn path_of(&self, node: &Node) -> String {
        let mut parts = Vec::new();
        let mut at = lock(&node.names).known.first().cloned();
        while let Some((parent, name)) = at {
            parts.push(name.to_string_lossy().into_owned());
            if parent == ROOT || parts.len() > DEPTH {
                break;
            }
            at = self.get(parent).ok().and_then(|up| lock(&up.names).known.first().cloned());
        }
        if parts.is_empty() {
            return if node.id == ROOT { ".".into() } else { format!("inode {}", node.key.ino) };
        }
        parts.reverse();
        parts.join("/")
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}
