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
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use rustix::fs::Statx;
use treelease_client::words::epoch::Epoch;

use super::descriptors::Descriptors;
use super::error::{Result, reason};
use super::lacking::Lacking;
use super::node::Names;
pub use super::node::{Key, Node, TYPE_BITS, Writable, stat_fd};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, RwLock, lock};

/// The root's id, by the protocol.
pub const ROOT: u64 = 1;
/// Ids from here on are ours, not lower inode numbers.
const OWN_IDS: u64 = 1 << 62;
/// Lower inode numbers below this are node ids as they are.
pub(super) const NATURAL_IDS: u64 = 1 << 61;
/// How many steps up a path is followed when it is written down for people.
const DEPTH: usize = 128;

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
