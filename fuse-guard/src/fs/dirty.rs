//! What was written in this epoch and is to be made durable before the lease goes; and what looks unfinished.
//!
//! # Promises
//!
//! [`Dirty::flush`] says yes only when, since [`Dirty::begin`], every file that was written has been fsynced without an error,
//! no fsync of an application has failed, and `syncfs`, on descriptors opened when the epoch began, of the root's filesystem and of each mounted below it, has returned 0. *Why both:*
//! each reports write-back errors that the other does not (m, NFS.md), and the kernel reports each such error once to each
//! descriptor that was open when it happened. So an error is remembered for the epoch, whoever's flush met it (also that at a
//! deadline, whose lease goes on afterwards), and one flush waits for the one before: its error must not come after the yes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, fsync, openat, statat, syncfs};
use rustix::io::Errno;
use treelease_client::words::epoch::Epoch;

use super::inode::Node;
use super::{flushing, reopen};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// Failed files that are named; more are only counted.
const NAMED: usize = 64;
/// Names of locks and journals that are followed; beyond, the oldest directory's are dropped.
const FOLLOWED: usize = 16_384;
/// What a hot rollback journal of SQLite begins with.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The files written in one epoch.
pub struct Dirty {
    generation: AtomicU64,
    files: Mutex<BTreeMap<u64, Arc<Node>>>,
    /// What a flush under way has taken from it.
    taken: Mutex<BTreeMap<u64, Arc<Node>>>,
    /// Files that were flushed in this epoch, for the history's count.
    flushed: Mutex<BTreeSet<u64>>,
    bytes: AtomicU64,
    /// The epoch that began last.
    begun: Mutex<Epoch>,
    failed: Mutex<Vec<String>>,
    /// One flush at a time. Held while the storage hangs: then no other flush says yes.
    flushing: Mutex<()>,
    /// One for each filesystem.
    storage: Mutex<Arc<Vec<OwnedFd>>>,
}

impl Default for Dirty {
    fn default() -> Self {
        Dirty {
            generation: AtomicU64::new(1),
            files: Mutex::default(),
            taken: Mutex::default(),
            flushed: Mutex::default(),
            bytes: AtomicU64::new(0),
            begun: Mutex::default(),
            failed: Mutex::default(),
            flushing: Mutex::default(),
            storage: Mutex::default(),
        }
    }
}

impl Dirty {
    /// A new epoch begins: nothing is dirty, and the descriptor for `syncfs` is opened. `below`: open directories of the
    /// filesystems that are mounted below the root; what a daemon that was killed had written there has nobody else to be
    /// confirmed by.
    ///
    /// A thread that hung on the storage may come with an epoch that is long over: it must not clear what a later one wrote. Then the
    /// answer is false.
    pub fn begin(&self, root: &OwnedFd, below: Vec<OwnedFd>, epoch: Epoch) -> Result<bool, Errno> {
        let mut storage = below;
        storage.push(openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        let mut files = lock(&self.files);
        let mut begun = lock(&self.begun);
        if epoch < *begun {
            return Ok(false);
        }
        *begun = epoch;
        *lock(&self.storage) = Arc::new(storage);
        self.generation.fetch_add(1, Ordering::SeqCst);
        files.clear();
        lock(&self.taken).clear();
        lock(&self.flushed).clear();
        self.bytes.store(0, Ordering::Relaxed);
        lock(&self.failed).clear();
        Ok(true)
    }

    /// A file is written.
    pub fn wrote(&self, node: &Arc<Node>, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let generation = self.generation.load(Ordering::SeqCst);
        if node.dirty_in.swap(generation, Ordering::SeqCst) != generation {
            lock(&self.files).insert(node.generation, node.clone());
        }
    }

    /// The kernel has forgotten the node. A file without a name needs no flush, and must not be kept on the disk.
    pub fn forgotten(&self, node: &Node) {
        if node.dirty_in.load(Ordering::Relaxed) != 0 && node.is_nameless() {
            lock(&self.files).remove(&node.generation);
            lock(&self.taken).remove(&node.generation);
            lock(&self.flushed).remove(&node.generation);
        }
    }

    /// An fsync, a close or a flush failed: the kernel reports such an error once, so it is remembered for the epoch.
    pub fn failed(&self, path: String, why: Errno) {
        let mut failed = lock(&self.failed);
        if failed.len() < NAMED {
            failed.push(format!("{path}: {}", describe(why)));
        }
    }

    /// Makes everything durable. Returns files and bytes, or the names that may be lost. May hang with the storage: call it
    /// on a thread that may be lost.
    ///
    /// `shut`: no write is admitted or in flight now. Then what was flushed is dirty no more, unless it is written again. An error is
    /// remembered for the epoch: the kernel reports it once, and every later flush has to know of it.
    pub fn flush(&self, path_of: impl Fn(&Node) -> String + Sync, shut: impl Fn() -> bool) -> Result<(u64, u64), Vec<String>> {
        let _one = lock(&self.flushing);
        // First the new generation, then one look whether the gate is shut. *Why so:* if it is, what was written before the look
        // has been written whole, and is in one of the two sets; what is written after it is dirty in the new generation, and stays
        // in the set whatever this flush has seen of it.
        {
            let mut files = lock(&self.files);
            self.generation.fetch_add(1, Ordering::SeqCst);
            *lock(&self.taken) = std::mem::take(&mut *files);
        }
        let was_shut = shut();
        let files = self.unconfirmed();
        let all: Vec<&Arc<Node>> = files.values().collect();
        flushing::each(&all, |node| self.flush_one(node, &path_of));
        let storage = lock(&self.storage).clone();
        for fd in storage.iter() {
            if let Err(why) = syncfs(fd) {
                self.failed("the filesystem as a whole".into(), why);
            }
        }
        let failed = lock(&self.failed).clone();
        let mut dirty = lock(&self.files);
        let taken = std::mem::take(&mut *lock(&self.taken));
        // Without those that were removed and forgotten meanwhile.
        let confirmed: Vec<u64> = files.into_keys().filter(|node| taken.contains_key(node) || dirty.contains_key(node)).collect();
        if !failed.is_empty() || !was_shut {
            dirty.extend(taken);
        }
        if !failed.is_empty() {
            return Err(failed);
        }
        let mut flushed = lock(&self.flushed);
        flushed.extend(confirmed);
        Ok((flushed.len() as u64, self.bytes.load(Ordering::Relaxed)))
    }

    /// Descriptors run short, and each file in the set keeps one: where there are `many` or more, half of them, of those that nobody
    /// has open for writing, are made durable and leave the set.
    ///
    /// *Why nothing is missed:* a write needs a writable handle, and says that it comes before it comes. So what is written to a file
    /// after it was taken out, with no such handle, puts it in again; what was written before is in the fsync. An error is
    /// remembered for the epoch. No flush goes on meanwhile.
    pub fn relieve(&self, many: u64, path_of: impl Fn(&Node) -> String + Sync) {
        let _one = lock(&self.flushing);
        let some: Vec<Arc<Node>> = {
            let mut files = lock(&self.files);
            if (files.len() as u64) < many {
                return;
            }
            let half = files.len().div_ceil(2);
            let unused = |node: &Arc<Node>| {
                // One whose last handle is being closed may take long, and everybody who writes waits for this list.
                let Ok(writable) = node.writable.try_lock() else { return false };
                let unused = writable.handles == 0;
                if unused {
                    node.dirty_in.store(0, Ordering::SeqCst);
                }
                unused
            };
            let ids: Vec<u64> = files.iter().filter(|(_, node)| unused(node)).map(|(id, _)| *id).take(half).collect();
            ids.iter().filter_map(|id| files.remove(id)).collect()
        };
        // First all at once: then each one's own has nothing to write.
        let storage = lock(&self.storage).clone();
        for fd in storage.iter() {
            if let Err(why) = syncfs(fd) {
                self.failed("the filesystem as a whole".into(), why);
            }
        }
        flushing::each(&some, |node| self.flush_one(node, &path_of));
        lock(&self.flushed).extend(some.iter().map(|node| node.generation));
    }

    fn flush_one(&self, node: &Node, path_of: impl Fn(&Node) -> String) {
        if let Err(why) = confirm(node) {
            self.failed(path_of(node), why);
        }
    }

    /// Written and not confirmed, what a flush has taken too.
    fn unconfirmed(&self) -> BTreeMap<u64, Arc<Node>> {
        let dirty = lock(&self.files);
        lock(&self.taken).iter().chain(dirty.iter()).map(|(n, node)| (*n, node.clone())).collect()
    }

    /// Names of the files written in this epoch, some of them.
    pub fn names(&self, path_of: impl Fn(&Node) -> String) -> Vec<String> {
        self.unconfirmed().values().take(NAMED).map(|node| path_of(node)).collect()
    }
}

fn describe(why: Errno) -> String {
    std::io::Error::from(why).to_string()
}

fn confirm(node: &Node) -> Result<(), Errno> {
    // A descriptor of our own: on a program's, it would take the error away that the kernel keeps for that program's own fsync.
    let opened = reopen(&node.fd, OFlags::RDONLY).or_else(|_| reopen(&node.fd, OFlags::WRONLY));
    match opened {
        Ok(fd) => fsync(&fd),
        // Nobody can open it by its mode any more, or no descriptor is left: `syncfs` covers what has no other one.
        Err(Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE) => {
            let pages = lock(&node.writable).pages.clone();
            pages.map_or(Ok(()), |fd| fsync(&*fd))
        }
        // Deleted, here or by nobody else (this side holds the lease): nothing to lose.
        Err(Errno::STALE | Errno::NOENT) => Ok(()),
        Err(why) => Err(why),
    }
}

/// Names that stand for unfinished work: git's locks, SQLite's journals.
#[derive(Default)]
pub struct Unfinished {
    names: Mutex<BTreeMap<(u64, OsString), Arc<Node>>>,
}

fn looks_unfinished(dir: &Node, name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    (dir.in_git && bytes.ends_with(b".lock")) || bytes.ends_with(b"-journal")
}

impl Unfinished {
    /// A name was seen or made.
    pub fn seen(&self, dir: &Arc<Node>, name: &OsStr) {
        if looks_unfinished(dir, name) {
            let mut names = lock(&self.names);
            if names.len() >= FOLLOWED {
                names.pop_first();
            }
            names.insert((dir.id, name.to_owned()), dir.clone());
        }
    }

    /// A name is gone.
    pub fn gone(&self, dir: &Node, name: &OsStr) {
        if looks_unfinished(dir, name) {
            lock(&self.names).remove(&(dir.id, name.to_owned()));
        }
    }

    /// What of it is still there, for people.
    pub fn report(&self, path_of: impl Fn(&Node) -> String) -> Vec<String> {
        let names: Vec<((u64, OsString), Arc<Node>)> = lock(&self.names).iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut found = Vec::new();
        for ((id, name), dir) in names {
            let path = || match path_of(&dir).as_str() {
                "." => name.to_string_lossy().into_owned(),
                above => format!("{above}/{}", name.to_string_lossy()),
            };
            let there = statat(&dir.fd, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
            if matches!(there, Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR)) {
                lock(&self.names).remove(&(id, name));
            } else if name.as_encoded_bytes().ends_with(b"-journal") {
                if is_hot(&dir, &name) {
                    found.push(format!("SQLite journal {}", path()));
                }
            } else {
                found.push(format!("git lock {}", path()));
            }
        }
        found
    }
}

/// A journal that was committed is gone, empty or (`journal_mode=persist`) has a zeroed head.
fn is_hot(dir: &Node, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = openat(&dir.fd, name, flags, Mode::empty()) else { return false };
    let mut head = [0u8; 8];
    rustix::io::pread(&fd, &mut head, 0).is_ok_and(|n| n == head.len()) && head == JOURNAL_MAGIC
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::fs::inode::Nodes;

    fn open(dir: &TempDir, flags: OFlags) -> OwnedFd {
        rustix::fs::open(dir.path(), flags | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// Files below a directory, none of them written since the lease began.
    fn begun() -> (TempDir, Nodes, Dirty) {
        let (dir, dirty) = (tempfile::tempdir().unwrap(), Dirty::default());
        let nodes = Nodes::new(open(&dir, OFlags::PATH)).unwrap();
        dirty.begin(&open(&dir, OFlags::RDONLY), Vec::new(), Epoch::from_raw(1)).unwrap();
        (dir, nodes, dirty)
    }

    #[test]
    fn an_error_that_one_flush_met_makes_every_later_one_of_the_epoch_fail() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(&dir, OFlags::RDONLY);
        let dirty = Dirty::default();
        let below = || vec![open(&dir, OFlags::RDONLY)];
        dirty.begin(&root, below(), Epoch::from_raw(1)).unwrap();
        // syncfs of an O_PATH descriptor fails: once, as the kernel tells of a write-back error.
        let bad = vec![open(&dir, OFlags::PATH), open(&dir, OFlags::RDONLY)];
        let good = std::mem::replace(&mut *lock(&dirty.storage), Arc::new(bad));
        assert!(dirty.flush(|_| String::new(), || true).is_err(), "as at a deadline");
        *lock(&dirty.storage) = good;
        assert!(dirty.flush(|_| String::new(), || true).is_err(), "the release that follows is not clean");
        dirty.begin(&root, below(), Epoch::from_raw(2)).unwrap();
        assert_eq!(dirty.flush(|_| String::new(), || true), Ok((0, 0)));
    }

    #[test]
    fn where_descriptors_run_short_a_file_leaves_the_set_only_confirmed_and_with_nobody_who_may_write() {
        let (dir, nodes, dirty) = begun();
        let node = nodes.root();
        let dirty_now = || lock(&dirty.files).len();
        dirty.wrote(node, 1);
        dirty.relieve(2, |_| String::new());
        assert_eq!(dirty_now(), 1, "few are left to the flush");
        lock(&node.writable).handles = 1;
        dirty.relieve(1, |_| String::new());
        assert_eq!(dirty_now(), 1, "a write may be on its way");
        lock(&node.writable).handles = 0;
        dirty.relieve(1, |_| String::new());
        assert_eq!(dirty_now(), 0, "confirmed");
        dirty.wrote(node, 1);
        assert_eq!(dirty_now(), 1, "written again, it is in the set again");
        assert_eq!(dirty.flush(|_| String::new(), || true), Ok((1, 2)));
        // syncfs of an O_PATH descriptor fails: once, as the kernel tells of a write-back error.
        dirty.wrote(node, 1);
        let good = std::mem::replace(&mut *lock(&dirty.storage), Arc::new(vec![open(&dir, OFlags::PATH)]));
        dirty.relieve(1, |_| String::new());
        *lock(&dirty.storage) = good;
        assert!(dirty.flush(|_| String::new(), || true).is_err(), "the release that follows is not clean");
    }

    #[test]
    fn a_file_that_is_written_while_another_flush_looks_is_dirty_afterwards() {
        let (_dir, nodes, dirty) = begun();
        let node = nodes.root();
        let dirty_now = || lock(&dirty.files).len();
        dirty.wrote(node, 1);
        dirty.flush(|_| String::new(), || true).unwrap();
        assert_eq!(dirty_now(), 0, "confirmed");
        dirty.wrote(node, 1);
        // The gate opens for a write between two looks, and is shut again at each.
        let looks = std::cell::Cell::new(0);
        let write_between = || {
            if looks.replace(looks.get() + 1) == 0 {
                return true;
            }
            dirty.wrote(node, 1);
            true
        };
        dirty.flush(|_| String::new(), write_between).unwrap();
        // Whoever writes after the one look is in the next flush's set.
        if looks.get() == 1 {
            dirty.wrote(node, 1);
        }
        assert_eq!(dirty_now(), 1);
        dirty.flush(|_| String::new(), || false).unwrap();
        assert_eq!(dirty_now(), 1, "the gate was not shut: nothing is taken from the set");
    }

    #[test]
    fn of_many_files_the_one_that_could_not_be_made_durable_is_named() {
        const MANY: usize = 100;
        let (dir, nodes, dirty) = begun();
        let write = |name: &str| {
            let path = dir.path().join(name);
            let fd = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
            let stat = crate::fs::inode::stat_fd(&fd, false).unwrap();
            dirty.wrote(&nodes.enter(fd, &stat, nodes.root(), OsStr::new(name), 0), 1);
        };
        for n in 0..MANY {
            std::fs::write(dir.path().join(n.to_string()), b"x").unwrap();
            write(&n.to_string());
        }
        assert_eq!(dirty.flush(|node| nodes.path_of(node), || true), Ok((MANY as u64, MANY as u64)));
        (0..MANY).for_each(|n| write(&n.to_string()));
        // Nobody can open a socket to sync it.
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("bad")).unwrap();
        write("bad");
        let failed = dirty.flush(|node| nodes.path_of(node), || true).unwrap_err();
        assert!(failed.len() == 1 && failed[0].starts_with("bad: "), "{failed:?}");
    }

    #[test]
    fn a_flush_asks_on_a_descriptor_of_its_own_and_leaves_a_programs_error_to_that_program() {
        let (_dir, nodes, dirty) = begun();
        let node = nodes.root();
        // A program's descriptor has an error to tell, once: an fsync of a pipe always fails.
        let (program, _other_end) = std::io::pipe().unwrap();
        assert!(fsync(&program).is_err());
        lock(&node.writable).pages = Some(Arc::new(OwnedFd::from(program)));
        dirty.wrote(node, 1);
        assert_eq!(dirty.flush(|_| String::new(), || true), Ok((1, 1)), "it was not asked");
    }
}
