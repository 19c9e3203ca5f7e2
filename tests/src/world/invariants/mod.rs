//! What must be true at every moment of true time, one property in each file.
//!
//! | property | invariant |
//! |---|---|
//! | [`one_gate`] | at no moment do the gates of two sides admit (I4) |
//! | [`no_write_after_another_was_granted`] | from the moment a side is granted, no other one's write is admitted or ends (I4, I2) |
//! | [`epochs_grow`] | I1 |
//! | [`expiry_is_not_early`] | I3 |
//! | [`grace_is_kept`] | I2 |
//! | [`clean_means_shut`] | I2: the holder's word is true |
//! | [`stale_stays_stale`] | I6 |
//! | [`uncovered_means_shut`] | what is left after a pause that no clock showed |

pub mod clean_means_shut;
pub mod epochs_grow;
pub mod expiry_is_not_early;
pub mod grace_is_kept;
pub mod no_write_after_another_was_granted;
pub mod one_gate;
pub mod stale_stays_stale;
pub mod uncovered_means_shut;

use std::time::Duration;

use treelease_proto::epoch::Epoch;
use treelease_proto::id::SideName;

/// A property that does not hold; the sentence is for a person.
pub type Broken = String;

/// A side's gate at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Which side.
    pub side: usize,
    /// Our process runs there, and its gate would let a write through.
    pub admits: bool,
    /// Its machine was paused and cannot know it yet.
    pub deluded: Option<Duration>,
}

/// The last grant.
#[derive(Debug, Clone)]
pub struct Granted {
    /// Its number.
    pub epoch: Epoch,
    /// To whom.
    pub side: SideName,
    /// When.
    pub at: Duration,
}
