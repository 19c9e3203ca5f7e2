//! What the gate and the filesystem tell the daemon.

use std::time::Duration;

/// The daemon's ears. Called from FUSE threads: none of these may block or call back into the mount.
pub trait Hooks: Send + Sync {
    /// A mutation waits for the lease. Called once for each time that the row of waiters begins; in `observe`, where none waits, once
    /// in a while.
    fn wants_lease(&self);
    /// A system call that the gate admitted finished after the deadline.
    fn late_write(&self, what: LateWrite);
    /// An operation was refused; or would have been (`observe`), for the first time by this process on this file.
    fn refused(&self, what: Refused);
}

/// A system call that finished after the deadline: the guard itself was stopped between check and call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateWrite {
    /// Whose.
    pub pid: u32,
    /// Which kind.
    pub op: &'static str,
    /// On which path, below the tree's root.
    pub path: String,
    /// How long after the deadline.
    pub by: Duration,
}

/// A refused operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose.
    pub pid: u32,
    /// Of which user.
    pub uid: u32,
    /// Which kind.
    pub op: &'static str,
    /// On which path, below the tree's root.
    pub path: String,
    /// What the application was told, or would have been.
    pub errno: i32,
    /// Whether it was refused; false: `observe` let it through.
    pub enforced: bool,
}
