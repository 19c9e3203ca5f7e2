//! I4 in one function, and the proof beside it: until when this side may write.

use crate::words::time::{BootTime, Ttl};

/// Until when a side may write a tree, by the renewal that listed it: sent at `sent`, answered with `ttl`.
///
/// *Why no other side is granted before then (from I3, I4, I5).* The leader acknowledged the renewal after it arrived, and so
/// after it was sent; from the acknowledgement on it waits a full TTL on its own clock before it expires the session. Two
/// honest clocks differ in rate by less than the drift term. So when `sent + TTL × (1 − drift)` has passed here, less than a
/// TTL has passed there since `sent`, and even less since the acknowledgement. The margin is for the system calls that were
/// admitted just before; the grace comes on top of it at the server. The answer's own TTL counts, because that is what the
/// server waits; counting from the *arrival* of the answer would add the whole round trip, which has no bound.
///
/// The result keeps the suspends that `sent` knew of: `now.suspended_since(until)` tells that the machine slept since, and
/// then the gate is closed whatever the time is.
pub fn write_until(sent: BootTime, ttl: Ttl) -> BootTime {
    sent.after(ttl.shortened_by_drift().saturating_sub(ttl.margin()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn i4_the_default_ttl_gives_fifteen_seconds_less_drift_and_margin() {
        let sent = BootTime { elapsed: Duration::from_secs(100), suspended: Duration::from_secs(3) };
        let until = write_until(sent, Ttl::DEFAULT);
        assert_eq!(until.since(sent), Duration::from_millis(15_000 - 150 - 1_000));
        assert_eq!(until.suspended, sent.suspended);
    }

    #[test]
    fn i4_a_ttl_shorter_than_its_margin_gives_no_time_at_all() {
        let sent = BootTime::default();
        assert_eq!(write_until(sent, Ttl::new(Duration::from_millis(100))), sent);
    }
}
