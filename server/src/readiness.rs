//! Whether this node can serve, and else why not: one answer for `/readyz`, for gRPC's health service and for metrics.
//!
//! Promises: it waits for nobody, neither for openraft nor for the state's lock. It decides nothing: readiness is for load
//! balancers, and a node that is not ready still answers whatever it can.

use std::sync::{Arc, OnceLock};

use treelease_proto::id::ClusterId;

use crate::consensus::Consensus;
use crate::failure::FailStop;
use crate::leader::Seat;

/// Entries in the log that may wait to be applied on a node that is ready: what a busy leader has on its way.
const BEHIND_MAX: u64 = 1_000;

/// What the answer is made of.
#[derive(Clone)]
pub struct Readiness {
    /// The agreement.
    pub consensus: Arc<Consensus>,
    /// The leader's timers.
    pub seat: Arc<Seat>,
    /// The cluster, once this node belongs to one.
    pub cluster: Arc<OnceLock<ClusterId>>,
    /// Whether the node can not go on.
    pub fail: FailStop,
}

impl Readiness {
    /// Whether this node can serve, or else why not.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(failure) = self.fail.failed() {
            return Err(format!("this node is ending: {failure}"));
        }
        if self.cluster.get().is_none() {
            return Err(
                "this node belongs to no cluster yet: it waits until every listed node runs (its log says for which)".into()
            );
        }
        let gauges = self.consensus.gauges();
        if !gauges.standing.quorum {
            return Err(
                "this node hears no leader and no quorum within an election time-out: it shows what it knew last, marked, \
                        and refuses the rest"
                    .into(),
            );
        }
        if gauges.leads && self.seat.timers().leading().is_none() {
            return Err("this node has just been elected and begins to lead".into());
        }
        let behind = gauges.standing.last_log.saturating_sub(gauges.applied);
        if behind > BEHIND_MAX {
            return Err(format!("this node is catching up: {behind} entries of its log are not applied yet"));
        }
        Ok(())
    }
}
