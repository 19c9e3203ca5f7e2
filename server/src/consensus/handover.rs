//! Giving the leadership away, so that nobody waits for an election when a leader ends in order.
//!
//! openraft 0.9 has no such call. What it has: a node can be told to stand for election at once, and a leader that has led for
//! longer than its own lease gives it its vote; with three nodes these two are the quorum. So: the leader proposes nothing new,
//! waits until the best of the others has all that it has itself, and asks that one to stand. With more nodes the others refuse
//! while they still trust the old leader, at most one election time-out, and the one who stands asks again.
//!
//! Promises: it is only about time, never about safety: who leads is decided by votes, as always, and a new leadership begins
//! with its own `Lead` and all timers anew (I3). Everything has a limit, and after it the node simply goes. A candidate stands
//! only on the word of the node that it takes for the leader.

use std::future::Future;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use openraft::ServerState;
use tokio::time::{Instant, timeout};
use treelease_proto::id::NodeId;
use treelease_proto::wire;

use super::Consensus;
use super::incoming::{Answered, TurnedAway};

/// How long giving the leadership away may take: longer than the default election time-out, for which other voters may refuse.
pub const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);
/// How long one of the others may take until it leads, if there is another one to ask.
const ONE_LIMIT: Duration = Duration::from_millis(2_500);
/// How often a candidate that did not win stands again.
const STAND_AGAIN: Duration = Duration::from_millis(400);

/// The term whose leadership is being given away, and until when at most: then nothing is proposed in it.
#[derive(Debug, Default)]
pub(super) struct Leaving(Mutex<Option<(u64, Instant)>>);

impl Leaving {
    /// Whether the leadership of this term is being given away.
    pub fn is(&self, term: u64) -> bool {
        self.read().is_some_and(|(leaving, until)| leaving == term && Instant::now() < until)
    }

    /// Gives it away. Whoever still leads afterwards goes on: after a failure, when nobody waits for it any more (a caller who
    /// has gone takes the task along), and after the limit in any case, also if the task never gets another turn.
    async fn give<T>(&self, term: u64, limit: Duration, giving: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        *self.read() = Some((term, Instant::now() + limit));
        let mut stays = Stays(Some(self));
        let given = timeout(limit, giving).await;
        let given = given.unwrap_or_else(|_| Err(format!("nobody took it within {} s", limit.as_secs())));
        if given.is_ok() {
            // This term is over, whenever this node hears of it; one that it may lead later has another number.
            stays.0 = None;
        }
        given
    }

    fn read(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.0.lock().expect("nothing panics while it holds the term")
    }
}

/// Ends the giving away.
struct Stays<'a>(Option<&'a Leaving>);

impl Drop for Stays<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|leaving| *leaving.read() = None);
    }
}

impl Consensus {
    /// Gives the leadership to another voter, the one that has most of the log; nothing is proposed here from now on. The error
    /// says why nobody took it, and this node goes on as it was.
    pub async fn hand_over(&self) -> Result<NodeId, String> {
        let term = self.raft.metrics().borrow().current_term;
        self.leaving.give(term, HAND_OVER_LIMIT, self.give_away(Instant::now() + HAND_OVER_LIMIT)).await
    }

    /// Whether that is under way, in the term that this node leads.
    pub fn is_handing_over(&self) -> bool {
        let term = self.raft.metrics().borrow().current_term;
        self.leaving.is(term)
    }

    async fn give_away(&self, limit: Instant) -> Result<NodeId, String> {
        let mut why = "there is no other voter that answers".to_owned();
        for to in self.heirs() {
            match self.until_it_has_all(to).await {
                Some(true) => {}
                Some(false) => {
                    why = format!("node {to} does not catch up");
                    continue;
                }
                None => return Err("this node does not lead".into()),
            }
            let left = limit.saturating_duration_since(Instant::now()).min(ONE_LIMIT);
            match self.network.take_over(to, left).await {
                Ok(()) => return Ok(to),
                Err(e) => {
                    tracing::info!("node {to} did not take the leadership: {e}");
                    why = e;
                }
            }
        }
        Err(why)
    }

    /// Other voters that answer, the one with most of the log first.
    fn heirs(&self) -> Vec<NodeId> {
        let (members, live, behind) = (self.members(), self.live(), self.behind());
        let goal = members.configs.last().cloned().unwrap_or_default();
        let mut heirs: Vec<NodeId> = goal.into_iter().filter(|id| *id != self.node && live.contains(id)).collect();
        heirs.sort_by_key(|id| behind.get(id).copied().unwrap_or(u64::MAX));
        heirs
    }

    /// Until it has every entry that this leader has, and all of them are applied here. `None`: this node does not lead.
    async fn until_it_has_all(&self, node: NodeId) -> Option<bool> {
        let mut metrics = self.raft.metrics();
        let all = metrics.wait_for(|m| {
            let has = m.replication.as_ref().and_then(|all| all.get(&node).copied().flatten()).map(|id| id.index);
            let applied = m.last_applied.map(|id| id.index);
            m.state != ServerState::Leader || (has >= m.last_log_index && applied >= m.last_log_index)
        });
        let leads = timeout(ONE_LIMIT / 2, all).await.map(|found| found.is_ok_and(|m| m.state == ServerState::Leader));
        match leads {
            Ok(true) => Some(true),
            Ok(false) => None,
            Err(_) => Some(false),
        }
    }

    /// The leader asks this node to lead.
    pub async fn receive_take_over(&self, request: wire::TakeOverRequest) -> Answered<wire::TakeOverAnswer> {
        let stamp = self.let_in(request.stamp.as_ref())?;
        let from = request.stamp.as_ref().map_or(0, |stamp| stamp.node);
        let why_not = match self.leader_elsewhere() {
            Some(leader) if leader == from => self.stand().await?.err().unwrap_or_default(),
            Some(leader) => format!("node {leader} leads, as far as this node knows"),
            None => "this node knows no leader".into(),
        };
        Ok(wire::TakeOverAnswer { stamp: Some(stamp), why_not })
    }

    /// Stands for election until it leads, or somebody else does.
    async fn stand(&self) -> Answered<Result<(), String>> {
        let until = Instant::now() + ONE_LIMIT;
        let mut metrics = self.raft.metrics();
        let before = metrics.borrow_and_update().current_term;
        while Instant::now() < until {
            self.raft.trigger().elect().await.map_err(|e| TurnedAway::Ending(super::network::fatal(&e)))?;
            let decided = metrics.wait_for(|m| m.current_term > before && m.current_leader.is_some());
            let decided = timeout(STAND_AGAIN, decided).await.map(|found| found.ok().and_then(|m| m.current_leader));
            match decided {
                Ok(Some(leader)) if leader == self.node => return Ok(Ok(())),
                Ok(Some(leader)) => return Ok(Err(format!("node {leader} was elected"))),
                Ok(None) => return Err(TurnedAway::Ending("this node is ending".into())),
                Err(_) => {}
            }
        }
        Ok(Err(format!("it was not elected within {} ms", ONE_LIMIT.as_millis())))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const TERM: u64 = 7;

    #[tokio::test]
    async fn a_leadership_that_was_given_away_proposes_nothing_more_in_its_term() {
        let leaving = Leaving::default();
        assert!(!leaving.is(TERM));
        assert_eq!(leaving.give(TERM, LONG, ready(Ok(2))).await, Ok(2));
        assert!(leaving.is(TERM) && !leaving.is(TERM + 1));
    }

    #[tokio::test]
    async fn whoever_found_no_heir_goes_on() {
        let leaving = Leaving::default();
        assert_eq!(leaving.give::<()>(TERM, LONG, ready(Err("nobody".into()))).await, Err("nobody".into()));
        assert!(!leaving.is(TERM));
        leaving.give::<()>(TERM, Duration::from_millis(1), pending()).await.unwrap_err();
        assert!(!leaving.is(TERM));
    }

    #[tokio::test]
    async fn a_giving_away_that_nobody_waits_for_any_more_is_over() {
        let leaving = Leaving::default();
        // As a caller that hangs up: the future is dropped where it stands.
        let mut giving = Box::pin(leaving.give::<()>(TERM, LONG, pending()));
        assert!(futures::poll!(giving.as_mut()).is_pending() && leaving.is(TERM));
        drop(giving);
        assert!(!leaving.is(TERM));
    }

    #[tokio::test]
    async fn a_giving_away_that_never_gets_another_turn_is_over_at_its_limit() {
        let leaving = Leaving::default();
        let mut giving = Box::pin(leaving.give::<()>(TERM, Duration::from_millis(50), pending()));
        assert!(futures::poll!(giving.as_mut()).is_pending());
        let end = Instant::now() + Duration::from_secs(60);
        while leaving.is(TERM) {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(giving);
    }
}
