//! I8's marker and stamps in a root: whose tree this is, and who was granted it last.
//!
//! # Promises
//!
//! A marker is made once, with O_EXCL, and is on the disk (file and directory) when [`create`] returns; a stamp likewise.
//! Nothing here overwrites or removes a marker, except [`replace`] (`tree takeover`, `--adopt` of a torn one), which puts the
//! new one in its place in one step. Everything is done beneath an open descriptor of the root, by plain names, and never
//! follows a symlink: what the path leads to meanwhile does not matter. A marker says its own inode number, so a copied tree is
//! told from the real one. A half-written file is found and named, and counts as no marker of anybody.
//!
//! # Does not know
//!
//! Locks, permits and the server: those are the guard's. Paths are used only to look *above* a directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, plain};
use crate::words::epoch::Epoch;
use crate::words::id::{ClusterId, RootId, SessionId, TreeId, TreeName};
use crate::words::refusal::Code;
use crate::words::tree::RootState;

mod above;
#[cfg(test)]
mod tests;

pub use above::{find_above, mismatch_failure, overlap};

/// The marker's name in a root.
pub const MARKER: &str = ".treelease-tree";
/// Between the marker's name and an epoch: a stamp.
const STAMP: &str = ".treelease-tree.";
/// What [`replace`] writes before it renames. No epoch is called so.
const NEW: &str = ".treelease-tree.new";
/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// A marker or stamp longer than this is none: a real one has a few hundred bytes.
const SIZE_MAX: u64 = 64 << 10;

/// Whose tree this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// Under which authority.
    pub cluster: ClusterId,
    /// Which tree.
    pub tree: TreeId,
    /// Its name when the marker was made; for people.
    pub name: TreeName,
    /// Which of the tree's roots this directory is.
    pub root: RootId,
    /// Where the cluster's servers listened; to join.
    pub endpoints: Vec<String>,
    /// Its own inode number; [`create`] and [`replace`] fill it in.
    pub inode: u64,
}

impl Marker {
    /// A marker for a new root; not yet on any disk.
    pub fn new(cluster: ClusterId, tree: TreeId, name: TreeName, root: RootId, endpoints: Vec<String>) -> Self {
        Self { format: FORMAT, cluster, tree, name, root, endpoints, inode: 0 }
    }
}

/// What an epoch's holder left beside the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // DESIGN 4, "Marker"
pub struct Stamp {
    pub epoch: Epoch,
    pub session: SessionId,
    pub cluster: ClusterId,
    pub root_state: RootState,
    pub endpoints: Vec<String>,
}

/// The largest stamp of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundStamp {
    /// By its name.
    pub epoch: Epoch,
    /// What it says; `None` if it is torn.
    pub stamp: Option<Stamp>,
}

/// A marker with the inode that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub marker: Marker,
    /// Where it lies.
    pub inode: u64,
}

/// What can be wrong with marker and stamps. `Failure::from` gives it code and hints.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// It cannot be read as one.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// The file.
        name: String,
        /// How.
        why: String,
        /// Whether it looks half written: whoever made it did not get to the end, so nobody has relied on it.
        torn: bool,
    },
    /// A later version wrote it.
    #[error("{name} has format {found}; this version reads up to {FORMAT}")]
    Later {
        /// The file.
        name: String,
        /// Its format.
        found: u32,
    },
    /// There is one already.
    #[error("{name} exists already")]
    Exists {
        /// The file.
        name: String,
    },
    /// The storage does not want it.
    #[error("{what}: {}", plain(source))]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl From<MarkerError> for Failure {
    fn from(e: MarkerError) -> Self {
        match &e {
            MarkerError::Damaged { torn: true, .. } => Failure::new(Code::Config, e.to_string())
                .hint("nobody can have used it: put a whole one in its place with `treelease mount TREE --adopt`"),
            MarkerError::Damaged { .. } => Failure::new(Code::Config, e.to_string())
                .hint("if this tree is yours, `treelease tree takeover DIR --reason TEXT` makes it so again"),
            MarkerError::Later { .. } => Failure::new(Code::Config, e.to_string()).hint("install a newer treelease on this side"),
            MarkerError::Exists { .. } => Failure::new(Code::Config, e.to_string()),
            MarkerError::Io { what, source } => match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::ROFS) => Failure::new(Code::Denied, e.to_string()),
                _ => Failure::io(what, source),
            },
        }
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> MarkerError {
    let what = what.into();
    move |e| MarkerError::Io { what, source: e.into() }
}

/// What a marker must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The cluster that this guard follows.
    pub cluster: &'a ClusterId,
    /// The tree to be mounted.
    pub tree: &'a TreeId,
    /// The live root, where the server knows one.
    pub root: Option<&'a RootId>,
}

/// How a marker is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// Another cluster's.
    Foreign {
        /// Whose.
        cluster: ClusterId,
    },
    /// Another tree's.
    OtherTree {
        /// Whose.
        tree: TreeId,
        /// Its name when the marker was made.
        name: TreeName,
    },
    /// A copy of the real one.
    Copied {
        /// The inode number that it names.
        noted: u64,
        /// The one that it has.
        actual: u64,
    },
    /// Another root of the same tree.
    OtherRoot {
        /// Which.
        root: RootId,
    },
}

/// I8's check: cluster, tree, the marker's own inode, root; in this order, since a copy of a foreign tree is foreign first.
pub fn check(found: &Found, expected: Expected<'_>) -> Result<(), Mismatch> {
    let marker = &found.marker;
    if marker.cluster != *expected.cluster {
        return Err(Mismatch::Foreign { cluster: marker.cluster.clone() });
    }
    if marker.tree != *expected.tree {
        return Err(Mismatch::OtherTree { tree: marker.tree.clone(), name: marker.name.clone() });
    }
    if marker.inode != found.inode {
        return Err(Mismatch::Copied { noted: marker.inode, actual: found.inode });
    }
    match expected.root {
        Some(root) if *root != marker.root => Err(Mismatch::OtherRoot { root: marker.root.clone() }),
        _ => Ok(()),
    }
}

/// The same for a side that follows a restored cluster by its user's word: the markers of those that it has grown from are
/// taken for its own. That the epochs on the storage are lower is seen to with the stamps.
pub fn check_following(found: &Found, expected: Expected<'_>, accepted: &BTreeSet<ClusterId>) -> Result<(), Mismatch> {
    match accepted.get(&found.marker.cluster) {
        Some(predecessor) => check(found, Expected { cluster: predecessor, ..expected }),
        None => check(found, expected),
    }
}

/// Opens a root directory for the functions below. Missing: `NotFound` (66).
pub fn open_root(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOTDIR => Failure::new(Code::NotFound, format!("{} is no directory", path.display())),
        e => Failure::io(format_args!("cannot open the directory {}", path.display()), &e.into()),
    })
}

/// Reads the marker; `Ok(None)`: there is none.
pub fn read(root: BorrowedFd<'_>) -> Result<Option<Found>, MarkerError> {
    let Some((text, inode)) = read_file(root, MARKER)? else { return Ok(None) };
    /// Only the format: the rest of a later one may look different.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    if let Ok(Head { format }) = serde_json::from_slice(&text)
        && format > FORMAT
    {
        return Err(MarkerError::Later { name: MARKER.into(), found: format });
    }
    let marker = serde_json::from_slice(&text).map_err(|e| damaged(MARKER, &text, &e))?;
    Ok(Some(Found { marker, inode }))
}

/// Opens the marker for who wants its lock: for writing, as an exclusive lock asks for, though nothing is ever written to it.
pub fn open_to_lock(root: BorrowedFd<'_>) -> Result<OwnedFd, MarkerError> {
    let as_owner = AsOwner::of_root(root)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(root, MARKER, flags, Mode::empty()).map_err(io(format!("cannot open {MARKER} to lock it")))?;
    drop(as_owner);
    let stat = rustix::fs::fstat(&fd).map_err(io(format!("cannot look at {MARKER}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MarkerError::Damaged { name: MARKER.into(), why: "it is no regular file".into(), torn: false });
    }
    Ok(fd)
}

/// Whether marker and stamps can be written, by whom they would be.
pub fn may_write(root: BorrowedFd<'_>) -> std::io::Result<()> {
    let dir = rustix::fs::fstat(root)?;
    let _owner = AsOwner::new(dir.st_uid, dir.st_gid);
    // The effective user: an ordinary look is the real one's, and that is a stranger where root is squashed.
    Ok(rustix::fs::accessat(root, ".", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS)?)
}

/// Whether the marker's name leads to this opened file.
pub fn leads_to(root: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<bool, MarkerError> {
    let opened = rustix::fs::fstat(file).map_err(io(format!("cannot look at {MARKER}")))?;
    match rustix::fs::statat(root, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(io(format!("cannot look at {MARKER}"))(e)),
    }
}

/// Creates it: O_EXCL, written, synced, and the directory too. Returns it with its inode number.
pub fn create(root: BorrowedFd<'_>, marker: &Marker) -> Result<Marker, MarkerError> {
    let written = write_new(root, MARKER, |inode| Marker { format: FORMAT, inode, ..marker.clone() })?;
    sync_dir(root)?;
    Ok(written)
}

/// Puts a marker in place of whatever is there, in one step (rename): takeover, and adopting where a torn one lies.
pub fn replace(root: BorrowedFd<'_>, marker: &Marker) -> Result<Marker, MarkerError> {
    let _owner = AsOwner::of_root(root)?;
    match rustix::fs::unlinkat(root, NEW, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(io(format!("cannot remove the leftover {NEW}"))(e)),
    }
    let written = write_new(root, NEW, |inode| Marker { format: FORMAT, inode, ..marker.clone() })?;
    rustix::fs::renameat(root, NEW, root, MARKER).map_err(io(format!("cannot rename {NEW} to {MARKER}")))?;
    sync_dir(root)?;
    Ok(written)
}

/// The largest stamp.
pub fn largest_stamp(root: BorrowedFd<'_>) -> Result<Option<FoundStamp>, MarkerError> {
    let Some(epoch) = stamps(root)?.into_iter().max() else { return Ok(None) };
    let stamp = match read_stamp(root, epoch) {
        Ok(stamp) => stamp,
        Err(MarkerError::Damaged { .. }) => None,
        Err(e) => return Err(e),
    };
    Ok(Some(FoundStamp { epoch, stamp }))
}

/// Writes this epoch's stamp: O_EXCL, synced. The same stamp there already is fine: a resumed daemon writes it again. Another
/// one, or a torn one, is [`MarkerError::Exists`]: that epoch's gate stays shut, and the next grant has another number.
pub fn write_stamp(root: BorrowedFd<'_>, stamp: &Stamp) -> Result<(), MarkerError> {
    let name = stamp_name(stamp.epoch);
    match write_new(root, &name, |_| stamp.clone()) {
        Err(MarkerError::Exists { name }) => {
            let by_us = |there: &Stamp| {
                (&there.session, &there.cluster, there.root_state) == (&stamp.session, &stamp.cluster, stamp.root_state)
            };
            match read_stamp(root, stamp.epoch) {
                Ok(Some(there)) if by_us(&there) => sync_dir(root),
                _ => Err(MarkerError::Exists { name }),
            }
        }
        Err(e) => Err(e),
        Ok(_) => sync_dir(root),
    }
}

/// Removes the stamps below an epoch; how many.
pub fn remove_older(root: BorrowedFd<'_>, epoch: Epoch) -> Result<usize, MarkerError> {
    let _owner = AsOwner::of_root(root)?;
    let mut removed = 0;
    for old in stamps(root)?.into_iter().filter(|old| *old < epoch) {
        let name = stamp_name(old);
        match rustix::fs::unlinkat(root, name.as_str(), AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(io(format!("cannot remove the old stamp {name}"))(e)),
        }
    }
    Ok(removed)
}

/// Whether a name in a root is ours: the marker, a stamp, what [`replace`] writes. The guard hides these.
pub fn is_ours(name: &OsStr) -> bool {
    name == MARKER || name.as_encoded_bytes().starts_with(STAMP.as_bytes())
}

fn stamp_name(epoch: Epoch) -> String {
    format!("{STAMP}{epoch}")
}

/// The epochs of all stamps, by their names.
fn stamps(root: BorrowedFd<'_>) -> Result<Vec<Epoch>, MarkerError> {
    let cannot = || io("cannot list the root");
    let mut epochs = Vec::new();
    for entry in Dir::read_from(root).map_err(cannot())? {
        let entry = entry.map_err(cannot())?;
        let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.strip_prefix(STAMP)) else { continue };
        // Only the one way in which we write a number.
        if let Some(n) = number.parse::<u64>().ok().filter(|n| n.to_string() == number) {
            epochs.push(Epoch::from_raw(n));
        }
    }
    Ok(epochs)
}

fn read_stamp(root: BorrowedFd<'_>, epoch: Epoch) -> Result<Option<Stamp>, MarkerError> {
    let name = stamp_name(epoch);
    let Some((text, _)) = read_file(root, &name)? else { return Ok(None) };
    let stamp: Stamp = serde_json::from_slice(&text).map_err(|e| damaged(&name, &text, &e))?;
    if stamp.epoch != epoch {
        let why = format!("it names epoch {}", stamp.epoch);
        return Err(MarkerError::Damaged { name, why, torn: false });
    }
    Ok(Some(stamp))
}

/// A file's text that ends too soon was never finished; anything else was changed by somebody.
fn damaged(name: &str, text: &[u8], e: &serde_json::Error) -> MarkerError {
    let torn = text.is_empty() || e.is_eof() || text.iter().all(|b| *b == 0);
    let why = if torn { "it is only half written".to_string() } else { e.to_string() };
    MarkerError::Damaged { name: name.into(), why, torn }
}

/// A regular file in the root, never through a symlink, with its inode number.
fn read_file(root: BorrowedFd<'_>, name: &str) -> Result<Option<(Vec<u8>, u64)>, MarkerError> {
    use std::io::Read;
    // NONBLOCK: opening a FIFO of that name must not wait for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let strange = |why: &str| MarkerError::Damaged { name: name.into(), why: why.into(), torn: false };
    let fd = match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(strange("it is a symlink")),
        Err(e) => return Err(io(format!("cannot open {name}"))(e)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(io(format!("cannot look at {name}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(strange("it is no regular file"));
    }
    if stat.st_size as u64 > SIZE_MAX {
        return Err(strange("it is too long"));
    }
    let mut text = Vec::new();
    let read = std::fs::File::from(fd).take(SIZE_MAX).read_to_end(&mut text);
    read.map_err(|source| MarkerError::Io { what: format!("cannot read {name}"), source })?;
    Ok(Some((text, stat.st_ino)))
}

/// Makes a file that was not there, with the root's own write bits, as the root's owner; written and synced.
fn write_new<T: Serialize>(root: BorrowedFd<'_>, name: &str, content: impl FnOnce(u64) -> T) -> Result<T, MarkerError> {
    use std::io::Write;
    let dir = rustix::fs::fstat(root).map_err(io("cannot look at the root"))?;
    let as_owner = AsOwner::new(dir.st_uid, dir.st_gid);
    // Whoever may write the tree may lock and stamp it.
    let mode = Mode::from_raw_mode(0o444 | (dir.st_mode & 0o222));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(root, name, flags, mode) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::EXIST) => return Err(MarkerError::Exists { name: name.into() }),
        Err(e) => return Err(io(format!("cannot create {name}"))(e)),
    };
    // Our own new file only, against the umask.
    rustix::fs::fchmod(&fd, mode).map_err(io(format!("cannot set the mode of {name}")))?;
    let inode = rustix::fs::fstat(&fd).map_err(io(format!("cannot look at {name}")))?.st_ino;
    let content = content(inode);
    let mut text = serde_json::to_vec_pretty(&content).expect("plain structs of texts and numbers become JSON");
    text.push(b'\n');
    let mut file = std::fs::File::from(fd);
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    drop(as_owner);
    written.map_err(|source| MarkerError::Io { what: format!("cannot write {name}"), source })?;
    Ok(content)
}

fn sync_dir(root: BorrowedFd<'_>) -> Result<(), MarkerError> {
    rustix::fs::fsync(root.as_fd()).map_err(io("cannot sync the root directory"))
}

/// While it lives, this thread touches files as the root directory's owner, if it runs as root: an export that squashes root
/// would not let root create anything, and what root made the owner could not stamp.
struct AsOwner {
    before: Option<(nix::unistd::Uid, nix::unistd::Gid)>,
}

impl AsOwner {
    fn of_root(root: BorrowedFd<'_>) -> Result<Self, MarkerError> {
        let dir = rustix::fs::fstat(root).map_err(io("cannot look at the root"))?;
        Ok(Self::new(dir.st_uid, dir.st_gid))
    }

    fn new(uid: u32, gid: u32) -> Self {
        use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
        if uid == 0 || !Uid::effective().is_root() {
            return Self { before: None };
        }
        // The group first: without root's fsuid it could not be set. Both return what was before.
        let gid = setfsgid(Gid::from_raw(gid));
        let uid = setfsuid(Uid::from_raw(uid));
        Self { before: Some((uid, gid)) }
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.before {
            nix::unistd::setfsuid(uid);
            nix::unistd::setfsgid(gid);
        }
    }
}
