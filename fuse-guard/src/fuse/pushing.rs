//! Pushing mapped pages: the kernel is made to write back and unmap the pages of files (DESIGN 5, steps 2 and 3).
//!
//! *Promises:* a write that waits at a closing gate keeps its own file's pages locked, and nobody else's: there is a thread for each that
//! waits, up to [`PUSHERS_MAX`], and one more. *Why it matters:* what is not pushed is refused later, and its process learns nothing.
//!
//! *Does not know* which files are mapped; a limit: its caller's thread may be lost.

use super::notify::Notify;
use crate::sync::{Mutex, lock};

/// Threads that push at the same time at most. Where more writes wait, in as many files, the push may end at its limit.
const PUSHERS_MAX: usize = 16;

/// Pushes these nodes' pages, while so many calls wait. Blocks as long as one of them is locked.
pub(super) fn push(notify: &Notify, nodes: Vec<u64>, waiting: usize) {
    let more = waiting.min(PUSHERS_MAX - 1).min(nodes.len().saturating_sub(1));
    let row = Mutex::new(nodes.into_iter());
    let next = || lock(&row).next();
    let work = || {
        while let Some(id) = next() {
            notify.inode(id);
        }
    };
    std::thread::scope(|threads| {
        for n in 0..more {
            let thread = std::thread::Builder::new().name(format!("push-{n}"));
            if let Err(why) = thread.spawn_scoped(threads, work) {
                tracing::warn!(%why, "fewer threads push mapped pages");
            }
        }
        work();
    });
}
