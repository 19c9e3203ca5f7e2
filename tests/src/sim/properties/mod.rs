//! What must be true after every step of true time, one property in each file.
//!
//! | property | invariant |
//! |---|---|
//! | [`one_gate`] | at most one side's gate admits for a tree, and from a grant on no other one's (I4) |
//! | [`epochs_grow`] | I1 |
//! | [`waits_are_kept`] | I2: no grant before the end before it and its waits |
//! | [`expiry_is_not_early`] | I3 |
//! | [`linear`] | I5: acquire, renew and release are as if each happened at one moment between question and answer |
//! | [`one_history`] | I7: all nodes apply the same, and what was acknowledged is kept |
//! | [`nobody_is_accused`] | I2: no honest session is taken for that of two machines |
//! | [`clean_means_shut`] | I2: the holder's word is true |

pub mod clean_means_shut;
pub mod epochs_grow;
pub mod expiry_is_not_early;
pub mod linear;
pub mod nobody_is_accused;
pub mod one_gate;
pub mod one_history;
pub mod waits_are_kept;

use std::time::Duration;

use treelease_proto::epoch::Epoch;

/// A property that does not hold; the sentence is for a person.
pub type Broken = String;

/// The last grant of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its number.
    pub epoch: Epoch,
    /// To which machine's daemon, by its place among all.
    pub side: usize,
    /// When.
    pub at: Duration,
}
