//! What a flush that belongs to no end of a lease says about the lease.
//!
//! *Promises:* only an error of the storage ends a lease before its time (it is reported once, so it counts for the epoch). A
//! storage that is only slow costs nobody the lease: what is not confirmed stays unconfirmed, and is asked for again.
//!
//! *Does not know* how a flush is made ([`crate::fuse::Mount::flush`]), nor when.

use crate::fuse::{FlushFailed, Flushed};

/// A flush before rest, in the words of [`super::tree::TreeSide::handle_settled`]: `Err(true)` is a write-back error.
pub(super) fn settled(flushed: Result<Flushed, FlushFailed>) -> Result<(), bool> {
    match flushed {
        Ok(_) => Ok(()),
        Err(failed) if failed.timed_out => {
            tracing::warn!(why = failed.why, "no rest yet: the storage is slow");
            Err(false)
        }
        Err(failed) => {
            tracing::error!(files = ?failed.files, why = failed.why, "a flush before rest has failed");
            Err(true)
        }
    }
}

/// The flush at a deadline: what was admitted before goes down at once, not only after writes in flight that may hang with the
/// storage; and once more when they have ended. `true`: nothing is unconfirmed.
pub(super) fn lapsed(
    flush: impl Fn() -> Result<Flushed, FlushFailed>,
    drain: impl FnOnce() -> bool,
) -> Result<bool, FlushFailed> {
    let first = flush();
    let drained = drain();
    match first {
        // The second one is tried all the same: it may be what gets the rest down.
        Err(failed) => flush().and(Err(failed)),
        Ok(_) => flush().map(|_| drained),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn failed(timed_out: bool) -> Result<Flushed, FlushFailed> {
        Err(FlushFailed { files: vec!["f".into()], why: "?".into(), timed_out })
    }

    #[test]
    fn at_a_deadline_the_flush_does_not_wait_for_writes_in_flight() {
        for (first, drained, second, expected) in [
            (true, true, true, Some(true)),
            (true, false, true, Some(false)),
            (true, true, false, None),
            (false, true, true, None),
        ] {
            let calls = RefCell::new(Vec::new());
            let flush = || {
                calls.borrow_mut().push("flush");
                let fine = if calls.borrow().len() == 1 { first } else { second };
                if fine { Ok(Flushed::default()) } else { failed(false) }
            };
            let drain = || {
                calls.borrow_mut().push("drain");
                drained
            };
            assert_eq!(lapsed(flush, drain).ok(), expected, "the lock is let go of only if all is confirmed");
            assert_eq!(*calls.borrow(), ["flush", "drain", "flush"]);
        }
    }

    #[test]
    fn a_slow_flush_before_rest_is_no_write_back_error() {
        assert_eq!(settled(failed(true)), Err(false), "it would end the lease under commands that run");
        assert_eq!(settled(failed(false)), Err(true));
        assert_eq!(settled(Ok(Flushed::default())), Ok(()));
    }
}
