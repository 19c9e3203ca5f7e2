//! One error for the filesystem: what the application is told. And the only table from our reasons to errors.

/// What the system calls said, or one of [`reason`].
pub use rustix::io::Errno;

/// What a filesystem operation answers.
pub type Result<T> = std::result::Result<T, Errno>;

/// Our own reasons.
pub mod reason {
    use super::Errno;

    /// This side does not hold the lease, or the directory belongs to another tree.
    pub const READ_ONLY: Errno = Errno::ROFS;
    /// Another side has had a turn since the handle was opened or the file was mapped (I6).
    pub const STALE: Errno = Errno::STALE;
    /// A process holds an exclusive lock on the file since before another side's turn: it believes that it is alone (I6).
    pub const LOCKED: Errno = Errno::BUSY;
    /// The system call finished after the deadline (I4).
    pub const LATE: Errno = Errno::IO;
    /// The marker's names are the guard's own.
    pub const OURS: Errno = Errno::PERM;
    /// Marker and stamps are not there.
    pub const HIDDEN: Errno = Errno::NOENT;
    /// The kernel named a node or a handle that was forgotten.
    pub const UNKNOWN: Errno = Errno::STALE;
}
