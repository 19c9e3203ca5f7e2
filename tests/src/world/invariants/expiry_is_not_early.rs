//! I3: a session expires only when a full TTL has passed since the last acknowledged renewal of it.
//!
//! It counts from when the quorum confirmed the leader that acknowledged it: a leader that is stopped between that and its answer
//! acknowledges long after another one has begun to count, and harms nobody, since the side counts from an earlier moment still.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_proto::id::SessionId;

use super::Broken;

/// When the leader of each session's last acknowledged renewal was confirmed.
#[derive(Debug, Default)]
pub struct Acknowledged(BTreeMap<SessionId, Duration>);

impl Acknowledged {
    /// Some leader, confirmed then, acknowledged a renewal.
    pub fn note(&mut self, session: SessionId, at: Duration) {
        let last = self.0.entry(session).or_default();
        *last = at.max(*last);
    }

    /// A session's lease expired. Clocks may be 1 % wrong.
    pub fn check(&self, session: &SessionId, ttl: Duration, at: Duration) -> Result<(), Broken> {
        let Some(acknowledged) = self.0.get(session) else { return Ok(()) };
        let passed = at.saturating_sub(*acknowledged);
        if passed < ttl - ttl / 100 {
            return Err(format!("a session expired {passed:?} after its last acknowledged renewal; its ttl is {ttl:?}"));
        }
        Ok(())
    }
}
