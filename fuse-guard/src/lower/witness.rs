//! The marker's lock: by it the storage itself tells who is connected (DESIGN 3, the storage is a witness).
//!
//! One byte of the marker, far beyond any data, is locked exclusively by an open-file-description lock: it belongs to the
//! descriptor, not to the process, so neither another thread nor another descriptor's close lets go of it. The kernel does, when
//! the last thread of the process is gone: a call that it had in flight has ended by then.
//!
//! # Promises
//!
//! - A lock that is given out is on the inode that the marker's *name* leads to, looked at after locking: one on an inode that was
//!   replaced meanwhile would exclude nobody.
//! - [`Lock::let_go`] does nothing when the lock was asked for again since ([`Lock::next_turn`]): a flush that comes back late never
//!   opens the hand of who has reopened its gate.
//! - Closing lets go too, so nothing closes it that must keep it: [`Lock::keep`] leaves it to the process's end.
//! - It is called a witness ([`Lock::marker`]) only on filesystems of this kernel that are listed here, by the opened descriptor.
//!   *Why a list:* overlay, FUSE and CIFS keep or replay locks by themselves, and of an unknown one nothing is known; on NFSv4 the
//!   marker's lock alone does not reach far enough, since the lower files have none yet.
//!
//! The descriptor is closed on exec, and never put where it outlives the process. All of this may hang with the storage: it is
//! called on threads that may be lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use rustix::fs::{fstat, fstatfs};
use treelease_client::marker;
use treelease_client::place;
use treelease_client::words::id::{LockKind, MarkerLock};

use crate::sync::lock;

/// The byte: beyond the end of any marker, and within what every filesystem and NFS server can lock.
const BYTE: i64 = 1 << 40;
/// How often a lock that somebody has is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How much is read for the look at the storage: a block of any disk, as O_DIRECT asks for.
const BLOCK: usize = 4096;
/// How often the name may lead elsewhere in one try: it is replaced by `tree takeover` only.
const REPLACED_MAX: usize = 3;

/// ext2 to ext4, XFS, Btrfs, tmpfs, F2FS, ZFS, bcachefs: locks are this kernel's own, and end with the process.
const LOCAL: [u64; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// A rule left out for a test's control (`TREELEASE_TEST_FAULT`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// No lock is taken.
    NoLock,
    /// The lock is let go at once, and called held.
    OnlySays,
}

/// What became of a try.
#[derive(Debug)]
pub enum Tried {
    /// It is ours.
    Got(Lock),
    /// Somebody has it.
    Taken,
    /// There are no such locks here, or this user may not take one.
    Impossible(String),
}

/// The marker's lock in this process's hand.
#[derive(Debug)]
pub struct Lock {
    file: OwnedFd,
    inode: u64,
    marker: Option<MarkerLock>,
    /// One more with each time that it is asked for: what was to be let go of before is not any more.
    turn: AtomicU64,
    /// Whether it is locked; held while the lock is changed.
    locked: Mutex<bool>,
    keep: AtomicBool,
    fault: Fault,
}

/// Tries once. Does not wait.
pub fn try_lock(root: BorrowedFd<'_>, fault: Fault) -> Tried {
    if fault == Fault::NoLock {
        return Tried::Impossible("a test says so".into());
    }
    for _ in 0..REPLACED_MAX {
        let file = match marker::open_to_lock(root) {
            Ok(file) => file,
            Err(e) => return Tried::Impossible(e.to_string()),
        };
        match set(file.as_fd(), true) {
            Ok(()) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Tried::Taken,
            Err(e) => return Tried::Impossible(format!("{} cannot be locked: {e}", marker::MARKER)),
        }
        match marker::leads_to(root, file.as_fd()) {
            Ok(true) => return lock_of(file, fault),
            Ok(false) => {}
            Err(e) => return Tried::Impossible(e.to_string()),
        }
    }
    Tried::Impossible(format!("{} is replaced again and again", marker::MARKER))
}

/// Tries until it is ours, at most so long.
pub fn lock_within(root: BorrowedFd<'_>, limit: Duration, fault: Fault) -> Tried {
    let mut waited = Duration::ZERO;
    loop {
        match try_lock(root, fault) {
            Tried::Taken if waited < limit => {
                std::thread::sleep(LOOK_AGAIN);
                waited += LOOK_AGAIN;
            }
            tried => return tried,
        }
    }
}

fn lock_of(file: OwnedFd, fault: Fault) -> Tried {
    // So that the look asks the storage and not this machine's memory; where it is not known, a plain read has to do.
    let flags = OFlag::O_RDWR | OFlag::O_DIRECT;
    let _where_known = fcntl(file.as_fd(), FcntlArg::F_SETFL(flags));
    let inode = match fstat(&file) {
        Ok(stat) => stat.st_ino,
        Err(e) => return Tried::Impossible(format!("cannot look at {}: {e}", marker::MARKER)),
    };
    let marker = is_local(file.as_fd()).then(|| place::of(&file).ok()).flatten().map(|place| MarkerLock {
        kind: LockKind::Local,
        place,
        inode,
    });
    if fault == Fault::OnlySays {
        let _a_test = set(file.as_fd(), false);
    }
    Tried::Got(Lock {
        file,
        inode,
        marker,
        turn: AtomicU64::new(1),
        locked: Mutex::new(true),
        keep: AtomicBool::new(false),
        fault,
    })
}

fn is_local(file: BorrowedFd<'_>) -> bool {
    fstatfs(file).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

/// Locks or unlocks the byte; does not wait.
fn set(file: BorrowedFd<'_>, locked: bool) -> nix::Result<()> {
    let kind = if locked { libc::F_WRLCK } else { libc::F_UNLCK };
    let byte = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: BYTE,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte)).map(|_| ())
}

impl Lock {
    /// What it is to the servers; `None`: no witness.
    pub fn marker(&self) -> Option<&MarkerLock> {
        self.marker.as_ref()
    }

    /// The number of its present turn, for [`Lock::let_go`].
    pub fn turn(&self) -> u64 {
        self.turn.load(Ordering::SeqCst)
    }

    /// From now on what was to be let go of stays. Never waits.
    pub fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::SeqCst);
    }

    /// Unlocks, unless a later turn has begun or it is to be kept. Whether it is free now.
    pub fn let_go(&self, turn: u64) -> bool {
        let mut locked = lock(&self.locked);
        if self.turn() != turn || self.keep.load(Ordering::SeqCst) {
            return false;
        }
        *locked = set(self.file.as_fd(), false).is_err();
        !*locked
    }

    /// It stays until the process ends: something that was written under it could not be confirmed.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// Whether [`Lock::keep`] was said.
    pub fn is_kept(&self) -> bool {
        self.keep.load(Ordering::SeqCst)
    }

    /// Locks it once more through the same descriptor, and looks whether the storage answers and the name still leads here.
    pub fn take_again(&self, root: BorrowedFd<'_>) -> Result<(), String> {
        let mut locked = lock(&self.locked);
        if self.fault != Fault::OnlySays {
            set(self.file.as_fd(), true).map_err(|e| format!("the marker cannot be locked again: {e}"))?;
        }
        *locked = true;
        drop(locked);
        self.look()?;
        match marker::leads_to(root, self.file.as_fd()) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the marker was replaced".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Reads a byte through the locked descriptor, from the storage itself where it can.
    pub fn look(&self) -> Result<(), String> {
        let mut room = vec![0u8; 2 * BLOCK];
        let from = room.as_ptr().align_offset(BLOCK).min(BLOCK);
        match rustix::io::pread(&self.file, &mut room[from..from + BLOCK], 0) {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{} cannot be read: {e}", marker::MARKER)),
        }
    }

    /// The inode that is locked.
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl Drop for Lock {
    /// Closing would let go: what is to be kept is left open, for the process's end to close.
    fn drop(&mut self) {
        if self.is_kept()
            && let Ok(file) = self.file.try_clone()
        {
            std::mem::forget(file);
        }
    }
}

/// Processes on this machine that have the lock of the marker in this root, by `/proc`: `treelease-guard (pid 12)`.
pub fn holders(root: BorrowedFd<'_>) -> Vec<String> {
    let Ok(Some(inode)) = marker::read(root).map(|found| found.map(|f| f.inode)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        for fd in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let ours = std::fs::read_link(fd.path()).is_ok_and(|to| to.file_name().is_some_and(|name| name == marker::MARKER));
            let info = || std::fs::read_to_string(entry.path().join("fdinfo").join(fd.file_name())).unwrap_or_default();
            if ours && locks(&info(), inode) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                let me = if pid == std::process::id() { "this side's own daemon, " } else { "" };
                found.push(format!("{me}{} (pid {pid})", name.trim()));
            }
        }
    }
    found
}

/// `lock: 1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 1099511627776 1099511627776`
fn locks(fdinfo: &str, inode: u64) -> bool {
    fdinfo.lines().filter_map(|line| line.strip_prefix("lock:")).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, place) = (fields.next(), fields.nth(3));
        kind == Some("OFDLCK") && place.and_then(|p| p.rsplit(':').next()).is_some_and(|n| n.parse() == Ok(inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use treelease_client::marker::Marker;
    use treelease_client::words::id::{ClusterId, RootId, TreeId};

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let root = marker::open_root(dir.path()).unwrap();
        let made = Marker::new(ClusterId::random(), TreeId::random(), "dev".parse().unwrap(), RootId::random(), vec![]);
        marker::create(root.as_fd(), &made).unwrap();
        (dir, root)
    }

    fn got(root: &OwnedFd) -> Lock {
        match try_lock(root.as_fd(), Fault::None) {
            Tried::Got(lock) => lock,
            other => panic!("{other:?}"),
        }
    }

    fn is_taken(root: &OwnedFd) -> bool {
        matches!(try_lock(root.as_fd(), Fault::None), Tried::Taken)
    }

    #[test]
    fn one_descriptor_has_it_and_others_of_the_same_process_do_not_get_it() {
        let (_dir, root) = root();
        let lock = got(&root);
        assert!(is_taken(&root));
        // Another descriptor's close lets go of nothing, unlike a POSIX lock.
        drop(marker::read(root.as_fd()).unwrap());
        assert!(is_taken(&root));
        lock.look().unwrap();
        assert!(lock.let_go(lock.turn()));
        assert!(!is_taken(&root));
    }

    #[test]
    fn what_was_to_be_let_go_of_stays_once_it_was_asked_for_again() {
        let (_dir, root) = root();
        let lock = got(&root);
        let early = lock.turn();
        lock.next_turn();
        lock.take_again(root.as_fd()).unwrap();
        assert!(!lock.let_go(early), "a flush of before the gate reopened");
        assert!(is_taken(&root));
    }

    #[test]
    fn a_lock_that_is_kept_outlives_its_owner() {
        let (_dir, root) = root();
        let lock = got(&root);
        lock.keep();
        assert!(!lock.let_go(lock.turn()));
        drop(lock);
        assert!(is_taken(&root));
    }

    #[test]
    fn a_marker_that_was_replaced_is_locked_anew_and_the_old_lock_is_worth_nothing() {
        let (_dir, root) = root();
        let old = got(&root);
        let there = marker::read(root.as_fd()).unwrap().unwrap().marker;
        marker::replace(root.as_fd(), &there).unwrap();
        assert!(old.take_again(root.as_fd()).is_err());
        let new = got(&root);
        assert_ne!(old.inode(), new.inode());
    }

    #[test]
    fn two_locks_on_one_marker_are_told_to_be_the_same_and_two_on_different_ones_are_not() {
        let ((_a, root_a), (_b, root_b)) = (root(), root());
        let first = got(&root_a);
        let local = first.marker().cloned();
        first.let_go(first.turn());
        assert_eq!(got(&root_a).marker().cloned(), local);
        if local.is_some() {
            assert_ne!(got(&root_b).marker().cloned(), local);
        }
    }

    #[test]
    fn who_has_it_is_named() {
        let (_dir, root) = root();
        assert_eq!(holders(root.as_fd()), Vec::<String>::new());
        let _lock = got(&root);
        let named = holders(root.as_fd());
        assert!(named.len() == 1 && named[0].contains(&std::process::id().to_string()), "{named:?}");
    }
}
