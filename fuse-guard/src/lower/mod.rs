//! What the guard itself does to the storage below a mount, and to the processes that reach it past the guard.
//!
//! | file | is |
//! |---|---|
//! | [`mountinfo`] | the kernel's list of mounts, read |
//! | [`below`] | the filesystems that are mounted below the root |
//! | [`fstype`] | what kind of filesystem the lower root lies on, and what is refused there |
//! | [`inside`] | who is inside the raw tree before the guard covers it |
//! | [`leftovers`] | what the last holder left behind |
//! | [`bypass`] | who changes it past the guard |
//! | [`checks`] | looking whether it is sound, after an unclean end |
//! | [`witness`] | the marker's lock, by which the storage tells who is connected |
//!
//! All of it may hang with the storage (NFS.md): the daemon calls it on threads that may be lost. Nothing here changes a file
//! below the lower root, so nothing here needs a permit.

pub mod below;
pub mod bypass;
pub mod checks;
pub mod fstype;
pub mod inside;
pub mod leftovers;
pub mod mountinfo;
pub mod witness;
