//! How this node's part in the agreement stands, in numbers: for metrics and readiness.
//!
//! Promises: reading them waits for nobody, neither for openraft nor for the state's lock. They decide nothing.

use std::time::Duration;

use super::{Consensus, Standing};
use crate::lease::Holdings;

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauges {
    /// Whether this node leads and a quorum has answered it lately.
    pub leads: bool,
    /// How it stands among the others.
    pub standing: Standing,
    /// Of the agreement.
    pub term: u64,
    /// Of the last entry applied here.
    pub applied: u64,
    /// Of the last entry in the snapshot here.
    pub snapshot: u64,
    /// How long ago a quorum has answered this leader.
    pub quorum_ack: Option<Duration>,
    /// Messages of other nodes that were turned away.
    pub turned_away: u64,
}

impl Consensus {
    /// As it is now.
    pub fn gauges(&self) -> Gauges {
        let (leads, standing, turned_away) = (self.leads(), self.standing(), self.peers.turned_away_count());
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        Gauges {
            leads,
            standing,
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |id| id.index),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            quorum_ack: self.quorum_ack(&metrics),
            turned_away,
        }
    }

    /// What the state holds; `None` while an entry is being applied.
    pub fn holdings(&self) -> Option<Holdings> {
        // Counted on a copy: the next entry does not wait until all trees are.
        let state = self.published.try_state().map(|state| state.clone());
        state.map(|state| state.holdings())
    }
}
