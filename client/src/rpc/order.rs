//! Which server is asked first: the leader's node, as far as answers have named it.
//!
//! Promises: a hint moves a configured server to the front and removes none, so nobody's word makes a call impossible. A named
//! leader that could not be reached, or was silent, is not moved to the front again by the word of another node for
//! [`DISTRUST`]: a hint that is old or wrong costs one try, not one with every call. Whoever answers is trusted anew.
//!
//! Does not know: who leads, and what was asked.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use super::{CallError, Endpoint, Servers, Target};

/// How long the word of others does not count for a server that was tried in vain: long enough that a way which is cut costs
/// next to nothing, short enough that a leader which came back is asked directly again soon. Meanwhile others pass calls on.
const DISTRUST: Duration = Duration::from_secs(10);

/// The order, as the calls so far have made it.
#[derive(Debug, Default)]
pub(super) struct Order {
    first: Option<String>,
    /// Tried in vain, and when: at most one entry for each address ever used, a handful.
    failed: BTreeMap<String, Instant>,
}

impl Order {
    /// Whether this one is asked before all others.
    pub(super) fn is_first(&self, address: &str) -> bool {
        self.first.as_deref() == Some(address)
    }

    /// `address` has answered, and says that the leader's node is at `leader_at` (`HOST:PORT`; empty: it does not say). That one is
    /// first now if it is configured under this name, else the one that answered.
    fn answered(&mut self, address: &str, leader_at: &str, configured: impl FnOnce(&str) -> bool, now: Instant) {
        self.failed.remove(address);
        let named = match Endpoint::from_address(leader_at) {
            // Most answers are the leader's own, or say nothing new.
            _ if leader_at.is_empty() || address.strip_prefix("http://") == Some(leader_at) => None,
            Ok(leader) => Some(leader.to_string()),
            Err(_) => None,
        };
        let trusted = |leader: &String| {
            let failed = self.failed.get(leader);
            failed.is_none_or(|at| now.saturating_duration_since(*at) >= DISTRUST) && configured(leader)
        };
        let first = named.filter(trusted).unwrap_or_else(|| address.to_owned());
        self.first = Some(first);
    }

    /// There was no way to `address`, or no answer in time.
    fn failed(&mut self, address: &str, now: Instant) {
        self.failed.insert(address.to_owned(), now);
    }
}

impl Servers {
    /// A call whose answer says nothing of the leader: who answered is asked first from then on.
    pub(super) async fn call<T, F>(&self, changes: bool, one: impl FnMut(Target, Duration) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.call_following(changes, |_| "", one).await
    }

    /// The leader's node is asked first, if it is one of ours by this name; else who answered.
    pub(super) fn prefer_leader(&self, leader_at: &str, answered: &str) {
        let configured = |leader: &str| self.endpoints().iter().any(|endpoint| endpoint == leader);
        self.order().answered(answered, leader_at, configured, Instant::now());
    }

    /// This one was tried in vain.
    pub(super) fn doubt(&self, address: &str) {
        self.order().failed(address, Instant::now());
    }

    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        self.inner.order.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "http://a:7420";
    const THERE: &str = "http://b:7420";

    fn answered(order: &mut Order, address: &str, leader_at: &str, now: Instant) -> &'static str {
        order.answered(address, leader_at, |leader| [HERE, THERE].contains(&leader), now);
        [HERE, THERE].into_iter().find(|address| order.is_first(address)).expect("whoever answers is one of them")
    }

    #[test]
    fn the_named_leader_is_first_and_one_that_is_not_configured_is_not() {
        let (mut order, now) = (Order::default(), Instant::now());
        assert!(!order.is_first(HERE) && !order.is_first(THERE));
        assert_eq!(answered(&mut order, HERE, "b:7420", now), THERE);
        assert_eq!(answered(&mut order, THERE, "b:7420", now), THERE);
        for nobodys in ["", "c:7420", "b:7421", "b@:7420", "http://b:7420"] {
            assert_eq!(answered(&mut order, HERE, nobodys, now), HERE, "{nobodys}");
        }
    }

    #[test]
    fn a_named_leader_that_failed_is_first_again_only_by_its_own_answer_or_after_a_while() {
        let (mut order, now) = (Order::default(), Instant::now());
        let just_before = now + DISTRUST - Duration::from_millis(1);
        assert_eq!(answered(&mut order, HERE, "b:7420", now), THERE);
        order.failed(THERE, now);
        assert_eq!(answered(&mut order, HERE, "b:7420", just_before), HERE, "its word costs one try");
        assert_eq!(answered(&mut order, HERE, "b:7420", now + DISTRUST), THERE);
        order.failed(THERE, just_before);
        assert_eq!(answered(&mut order, THERE, "", just_before), THERE);
        assert_eq!(answered(&mut order, HERE, "b:7420", just_before), THERE, "it has answered since");
    }
}
