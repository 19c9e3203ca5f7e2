//! I3: a session expires only when a full TTL has passed since the last renewal of it that was acknowledged.
//!
//! Seen from outside it counts from when that renewal was sent: it was acknowledged later.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_proto::id::SessionId;

use super::Broken;

/// When each session's last acknowledged renewal was sent.
#[derive(Debug, Default)]
pub struct Acknowledged(BTreeMap<SessionId, Duration>);

impl Acknowledged {
    /// A renewal that was sent then has been acknowledged.
    pub fn note(&mut self, session: &SessionId, sent: Duration) {
        let last = self.0.entry(session.clone()).or_default();
        *last = sent.max(*last);
    }

    /// A session's lease has expired. Clocks may be 1 % wrong.
    pub fn check(&self, session: &SessionId, ttl: Duration, at: Duration) -> Result<(), Broken> {
        let Some(sent) = self.0.get(session) else { return Ok(()) };
        let passed = at.saturating_sub(*sent);
        if passed < ttl - ttl / 100 {
            return Err(format!("a session expired {passed:?} after an acknowledged renewal was sent; its ttl is {ttl:?}"));
        }
        Ok(())
    }
}
