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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(timed_out: bool) -> Result<Flushed, FlushFailed> {
        Err(FlushFailed { files: vec!["f".into()], why: "?".into(), timed_out })
    }

    #[test]
    fn a_slow_flush_before_rest_is_no_write_back_error() {
        assert_eq!(settled(failed(true)), Err(false), "it would end the lease under commands that run");
        assert_eq!(settled(failed(false)), Err(true));
        assert_eq!(settled(Ok(Flushed::default())), Ok(()));
    }
}
