//! The filesystem: each operation carried out on the lower tree, by descriptors beneath its root, never following a symlink.
//!
//! One family of operations per file: [`attr`], [`names`] (lookup, create, rename, links), [`io`], [`dir`], [`xattr`]; what they
//! work on: [`inode`], [`node`], [`handle`], [`caller`], [`dirty`], [`write_back`], [`status_dir`].
//!
//! # Promises
//!
//! - Order: the face asks the gate, calls here, and asks the permit again. Nothing here admits or refuses by the lease, with
//!   two exceptions that belong to a file, not to the standing: another tree's directory (EROFS), a replaced node (ESTALE, I6).
//! - Nothing is answered from what was known under another serial: the first touch in a new one asks the storage itself
//!   (`statx` with `AT_STATX_FORCE_SYNC`: complete on NFS); who does not hold the lease asks every time.
//! - Every answer carries the standing under which it was computed, and nobody keeps it ([`caching`]) if that is no longer the
//!   present one.
//! - Marker and stamps are not there: not listed, ENOENT by name, EPERM to create.
//!
//! # Does not know
//!
//! FUSE's replies; the server; why this side may write.

pub mod absent;
pub mod attr;
pub mod authors;
pub mod caching;
pub mod caller;
pub mod descriptors;
pub mod dir;
pub mod dirty;
pub mod error;
pub mod faults;
pub mod first_reads;
mod flushing;
pub mod handle;
pub mod inode;
pub mod io;
mod lacking;
pub mod late;
pub mod names;
pub mod node;
mod revalidate;
pub mod status_dir;
#[cfg(test)]
mod tests;
pub mod write_back;
pub mod writers;
pub mod xattr;

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Mode as Bits, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::path::DecInt;
use treelease_client::words::policy::Mode;

use crate::gate::{Gate, Opened, Standing};
use crate::sync::Arc;
use absent::Absent;
use attr::Attr;
use authors::Authors;
use caching::{Kept, READER_TTL};
use caller::{ActingAs, Caller, Callers};
use dir::Listings;
use dirty::{Dirty, Unfinished};
use error::{Errno, Result, reason};
use faults::Faults;
use first_reads::FirstReads;
use handle::Handles;
use inode::{Node, Nodes, ROOT};
use lacking::Which;
use late::LateFiles;
use status_dir::StatusDir;
use write_back::WriteBack;
use writers::Writers;

/// The marker's name; a directory that has one of its own belongs to another tree.
pub const MARKER: &str = ".treelease-tree";

/// One guarded tree.
pub struct Fs {
    /// Its gate.
    pub gate: Gate,
    /// What the kernel knows.
    pub nodes: Nodes,
    /// What is open.
    pub handles: Handles,
    /// What was written in this epoch.
    pub dirty: Dirty,
    /// What of it the storage has not confirmed, where it is far.
    pub write_back: Arc<WriteBack>,
    /// Locks and journals seen.
    pub unfinished: Unfinished,
    /// Who made or wrote which file, and when (I6).
    pub authors: Authors,
    /// Who wrote lately.
    pub writers: Writers,
    /// What the storage's client must drop before it is read.
    pub first_reads: FirstReads,
    /// Files of which pages were refused.
    pub late: LateFiles,
    /// The virtual `.treelease/`.
    pub status: StatusDir,
    /// Names that the kernel was told are not there.
    pub absent: Absent,
    /// Rules that a control has switched off.
    pub faults: Faults,
    callers: Callers,
    listings: Listings,
    /// Whether the lower files may change without this kernel.
    network: bool,
}

/// A name that was found or made.
pub struct Entry {
    /// The node; its lookup is counted.
    pub node: Arc<Node>,
    /// Its attributes.
    pub attr: Attr,
    /// The standing at the answer's start.
    pub seen: Standing,
}

/// Attributes of a node.
pub struct Attributes {
    /// They.
    pub attr: Attr,
    /// What the kernel may do with them.
    pub kept: Kept,
    /// The standing at the answer's start.
    pub seen: Standing,
}

/// Opens what an `O_PATH` descriptor stands for. Only for files and directories: opening a FIFO would wait.
pub fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
    let flags = (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW;
    match own_descriptors() {
        // Two names fewer to walk than by the whole path.
        Some(own) => rustix::fs::openat(own, DecInt::new(fd.as_raw_fd()), flags, Bits::empty()),
        None => rustix::fs::open(proc_path(fd), flags, Bits::empty()),
    }
}

/// An `O_PATH` descriptor of what another descriptor stands for.
pub(crate) fn path_only(fd: &OwnedFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    // Kernels before 5.2 and some containers do not let us.
    rustix::mount::open_tree(fd, "", flags).or_else(|_| reopen(fd, OFlags::PATH))
}

/// chmod(2) of what a descriptor stands for.
fn chmod(fd: &OwnedFd, mode: u32) -> Result<()> {
    let mode = Bits::from_raw_mode(mode & 0o7777);
    match own_descriptors() {
        Some(own) => rustix::fs::chmodat(own, DecInt::new(fd.as_raw_fd()), mode, AtFlags::empty()),
        None => rustix::fs::chmod(proc_path(fd), mode),
    }
}

/// This process's descriptors by their numbers, as /proc has them; None where that cannot be opened.
fn own_descriptors() -> Option<&'static OwnedFd> {
    static OWN: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let open = || rustix::fs::open("/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Bits::empty()).ok();
    OWN.get_or_init(open).as_ref()
}

/// A path that leads to what the descriptor stands for, for calls that take no descriptor. Follows no symlink of the tree.
pub fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether a name is the marker's or a stamp's.
pub fn is_hidden(name: &OsStr) -> bool {
    treelease_client::marker::is_ours(name)
}

/// Whether a filesystem is this kernel's own: an open file keeps its inode number from being used again. What is not
/// known to be, is not.
pub(crate) fn is_local(magic: u64) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    const ZFS: u64 = 0x2fc1_2fc1;
    const F2FS: u64 = 0xf2f5_2010;
    matches!(magic & 0xffff_ffff, EXT | XFS | BTRFS | TMPFS | ZFS | F2FS)
}

/// Whether a filesystem is layers of others. Its writes go to one on this machine, as far as anybody uses it.
fn is_layered(magic: u64) -> bool {
    const OVERLAY: u64 = 0x794c_7630;
    magic & 0xffff_ffff == OVERLAY
}

impl Fs {
    /// Over an opened root.
    pub fn new(root: OwnedFd, gate: Gate) -> Result<Self> {
        let root = rustix::fs::openat(&root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Bits::empty())?;
        let magic = rustix::fs::fstatfs(&root)?.f_type as u64;
        let network = !is_local(magic);
        let write_back = WriteBack::new(gate.clone(), network && !is_layered(magic));
        Ok(Fs {
            network,
            gate,
            nodes: Nodes::new(root)?,
            handles: Handles::default(),
            dirty: Dirty::default(),
            write_back,
            unfinished: Unfinished::default(),
            authors: Authors::default(),
            writers: Writers::default(),
            first_reads: FirstReads::default(),
            late: LateFiles::default(),
            status: StatusDir::default(),
            absent: Absent::default(),
            faults: Faults::default(),
            callers: Callers::new(),
            listings: Listings::default(),
        })
    }

    /// Whether the storage is not this machine's own.
    pub fn is_far(&self) -> bool {
        self.network
    }

    /// Whether acting as the caller works here.
    pub fn can_act(&self) -> bool {
        self.callers.try_out(self.gate.now())
    }

    /// Acts as the caller until the value is dropped.
    pub(crate) fn act(&self, caller: Caller) -> Result<ActingAs<'_>> {
        self.callers.act(caller, self.gate.now())
    }

    /// Refusals that belong to the file and not to the standing, told before anything waits for the lease.
    pub fn vet(&self, on: u64, name: Option<&OsStr>) -> Result<()> {
        if StatusDir::has(on) {
            return Err(reason::READ_ONLY);
        }
        let node = self.nodes.get(on)?;
        if node.is_foreign() {
            return Err(reason::READ_ONLY);
        }
        match name {
            Some(name) if is_hidden(name) => Err(reason::OURS),
            Some(name) if on == ROOT && name == status_dir::NAME => Err(reason::OURS),
            _ => Ok(()),
        }
    }

    /// Whether this standing is the holder's, so that what was revalidated under it may be believed.
    fn believes(&self, node: &Node, seen: &Standing) -> bool {
        node.is_fresh(seen.serial) && seen.caches(self.gate.now()) && !node.is_foreign()
    }

    /// The same of a node that was found by its lower inode's number: a file's descriptor keeps its number on this machine alone, so
    /// one that has been removed since may be dead at the storage, and its number a new file's.
    fn believes_found(&self, node: &Node, seen: &Standing) -> bool {
        self.believes(node, seen) && !(self.network && node.has_no_name())
    }

    /// Whether it is known that the node has no such attribute.
    fn lacks(&self, node: &Node, which: Which, seen: &Standing) -> bool {
        node.lacking.has_none(which, seen.serial) && self.believes(node, seen) && !node.is_replaced()
    }

    /// Revalidates a directory or file at the storage, where that was not done under this standing.
    fn freshen(&self, node: &Node, seen: &Standing) -> Result<()> {
        if !self.believes(node, seen) {
            inode::stat_fd(&node.fd, true)?;
            node.set_fresh(seen.serial);
        }
        Ok(())
    }

    /// The same for what is open already, where the storage's client may have kept something old of it: a page of a mapping is read
    /// with no other question before it. Without the lease once in [`READER_TTL`]: so soon what the other side writes is seen.
    pub(crate) fn freshen_open(&self, node: &Node) -> Result<()> {
        if !self.network || self.faults.no_first_touch {
            return Ok(());
        }
        let (seen, now) = (self.gate.standing(), self.gate.now());
        if self.believes(node, &seen) {
            return Ok(());
        }
        if seen.caches(now) || !node.is_fresh(seen.serial) || !node.asked_within(READER_TTL, now) {
            inode::stat_fd(&node.fd, true)?;
            node.set_fresh(seen.serial);
            node.set_asked(now);
        }
        Ok(())
    }

    /// A node whose contents or attributes are to change: not a replaced one.
    fn changeable(&self, id: u64) -> Result<Arc<Node>> {
        if StatusDir::has(id) {
            return Err(reason::READ_ONLY);
        }
        let node = self.nodes.get(id)?;
        if node.is_replaced() {
            return Err(reason::STALE);
        }
        Ok(node)
    }

    /// I4: right before a call that changes the storage. The looks that prepare it go to the storage too, and may have hung for
    /// longer than the right lasts under which it was admitted.
    fn still_in_time(&self, seen: &Standing) -> Result<()> {
        match seen.right.until() {
            Some(until) if seen.mode == Mode::Enforce && !self.gate.in_time(until) && !self.faults.no_last_look => {
                Err(reason::READ_ONLY)
            }
            _ => Ok(()),
        }
    }

    /// What a handle that is opened for writing now remembers.
    fn opened(&self, seen: &Standing) -> Opened {
        Opened { epoch: seen.epoch }
    }

    /// The epoch under which a handle was opened for writing, for the gate.
    pub fn opened_under(&self, fh: u64) -> Option<Opened> {
        match &*self.handles.get(fh).ok()? {
            handle::Open::File(file) => file.opened,
            _ => None,
        }
    }

    /// For people: a node's path, with a name below it.
    pub fn describe(&self, on: u64, name: Option<&OsStr>) -> String {
        let above = match self.nodes.get(on) {
            Ok(node) => self.nodes.path_of(&node),
            Err(_) => format!("node {on}"),
        };
        match name {
            None => above,
            Some(name) if above == "." => name.to_string_lossy().into_owned(),
            Some(name) => format!("{above}/{}", name.to_string_lossy()),
        }
    }

    /// The kernel has forgotten `n` lookups of a node.
    pub fn forget(&self, id: u64, n: u64) {
        if let Some(node) = self.nodes.forget(id, n) {
            self.dirty.forgotten(&node);
            self.write_back.forgotten(&node);
        }
    }

    /// An fsync or a close: an error of the storage, whichever it is, is remembered for the epoch.
    fn confirmed(&self, node: &Node, result: Result<()>) -> Result<()> {
        match result {
            // Of the call, not of the storage.
            Err(Errno::BADF | Errno::INVAL | Errno::INTR | Errno::ROFS | Errno::NOSYS | Errno::OPNOTSUPP) | Ok(()) => {}
            Err(why) => self.dirty.failed(self.nodes.path_of(node), why),
        }
        // An error that only our own call was told of is this one's too.
        result.and_then(|()| self.write_back.intact(node))
    }
}
