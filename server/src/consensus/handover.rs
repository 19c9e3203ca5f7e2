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

use std::sync::atomic::{AtomicU64, Ordering};
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

/// Ends the giving away.
struct Stays<'a>(Option<&'a AtomicU64>);

impl Drop for Stays<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|leaving| leaving.store(0, Ordering::SeqCst));
    }
}

impl Consensus {
    /// Gives the leadership to another voter, the one that has most of the log; nothing is proposed here from now on. The error
    /// says why nobody took it, and this node goes on as it was.
    pub async fn hand_over(&self) -> Result<NodeId, String> {
        let term = self.raft.metrics().borrow().current_term;
        self.leaving.store(term, Ordering::SeqCst);
        // However this ends, also if nobody waits for it any more: who still leads goes on.
        let mut stays = Stays(Some(&self.leaving));
        let limit = Instant::now() + HAND_OVER_LIMIT;
        let given = timeout(HAND_OVER_LIMIT, self.give_away(limit)).await;
        let given = given.unwrap_or_else(|_| Err(format!("nobody took it within {} s", HAND_OVER_LIMIT.as_secs())));
        if given.is_ok() {
            // This term is over, whenever this node hears of it; one that it may lead later has another number.
            stays.0 = None;
        }
        given
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
