//! The journal of a database that its process read before another side's turn (I6).
//!
//! SQLite writes into `NAME-journal` what the pages of `NAME` were before its transaction, and whoever opens the database next
//! and finds a journal puts them back. A transaction that had read before another side's turn, and makes its journal after it,
//! would leave the old pages there: its own writes are refused (ESTALE), and the next opener would undo the other side's
//! acknowledged commits with its journal. The same holds for a `NAME-wal` that it would make anew.
//!
//! # Promises
//!
//! While a process holds a lock, shared or exclusive, on a database through a node of an earlier run, it neither makes nor opens
//! for writing that database's journals: ESTALE. *Why that is enough:* SQLite holds a lock on the database from its first read
//! to its transaction's end; and a node that could be written is replaced before anything that waited is carried out.
//!
//! # Does not know
//!
//! What is a database: the names say so, and the lock.

use std::ffi::OsStr;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{Shared, locks};
use crate::fs::inode::Key;

/// What SQLite puts behind a database's name.
const ENDS: [&str; 2] = ["-journal", "-wal"];

impl Shared {
    /// Whether this name in a directory is the journal of a database that the caller has locked since before another side's turn.
    pub(super) fn undoes_a_turn(&self, thread: u32, parent: u64, name: &OsStr) -> bool {
        self.locked_before(thread, parent, name).unwrap_or(false)
    }

    /// The same for a file by any of its names.
    pub(super) fn opens_to_undo_a_turn(&self, thread: u32, id: u64) -> bool {
        let names = self.fs.nodes.get(id).map(|node| node.known_names()).unwrap_or_default();
        names.iter().any(|(parent, name)| self.undoes_a_turn(thread, *parent, name))
    }

    fn locked_before(&self, thread: u32, parent: u64, name: &OsStr) -> Option<bool> {
        let name = name.to_str()?;
        let database = ENDS.iter().find_map(|end| name.strip_suffix(end)).filter(|_| !self.fs.faults.no_lock_check)?;
        let dir = self.fs.nodes.get(parent).ok()?;
        let stat = statx(&dir.fd, database, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE | StatxFlags::INO).ok()?;
        let replaced = self.fs.nodes.replaced_of(Key::of(&stat));
        if replaced.is_empty() {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let process: i64 = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
        let held = locks::all(&std::fs::read_to_string("/proc/locks").ok()?, *self.device.get()?);
        Some(held.iter().any(|lock| lock.pid == process && replaced.iter().any(|old| old.id == lock.ino)))
    }
}
