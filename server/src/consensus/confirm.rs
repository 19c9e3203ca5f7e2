//! Read-index, batched: one confirmation of leadership for all who wait for it (I5).
//!
//! Promises: [`Confirmer::confirm`] resolves with `Ok` only from a round that *started after* the call. The argument: one
//! task makes one round after the other; a caller puts itself into the queue; the task empties the queue and only then
//! starts a round for those it took out. Who comes while a round runs stays in the queue for the next. A round is
//! openraft's `ensure_linearizable`: a quorum has confirmed this leader, and this node's state has been applied up to the
//! index that was committed then. It writes nothing to the log.
//!
//! A round costs two messages to each follower, so those who can wait let others come first ([`COMPANY`]). That makes the
//! begin of their round later, never earlier, so what is said above holds for it word by word. Nobody waits for company who
//! cannot, or when there is none to expect: when only one session has renewed lately, or a round costs nothing.
//!
//! It does not know what is read afterwards.

use std::future::Future;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::types::Raft;

/// Callers who wait for the next round; more are turned away.
const WAITING_MAX: usize = 16_384;
/// A round that takes longer has failed.
const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// How often a confirmation is asked again within its time, when the quorum did not answer at once.
const ROUNDS_MAX: u32 = 3;
/// How long those who can wait let others come. A side counts its right from the moment at which it sent the renewal, and renews
/// every fifth of its time to live, 400 ms at the least: ten of them cost it nothing that it could notice. A thousand sides that
/// renew every three seconds are three or four to a round.
pub const COMPANY: Duration = Duration::from_millis(10);
/// With so many renewals the price of a round is shared well enough: it begins.
const ENOUGH: usize = 8;

/// Why leadership is not confirmed. The sentence is for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unconfirmed(pub String);

/// What a confirmation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asks {
    /// So many renewals.
    pub renewals: usize,
    /// Nobody waits for the outcome: others may be let come first.
    pub can_wait: bool,
    /// Tells the renewals of one session from those of another.
    pub whose: u64,
}

impl Asks {
    /// Somebody waits for it.
    pub const AT_ONCE: Asks = Asks { renewals: 1, can_wait: false, whose: 0 };
}

struct Caller {
    answer: oneshot::Sender<Result<(), Unconfirmed>>,
    asks: Asks,
    came: Instant,
}

/// [`ROUND_LIMIT`] and [`COMPANY`], or a test's.
#[derive(Debug, Clone, Copy)]
struct Times {
    round: Duration,
    company: Duration,
}

/// The way to the task that makes the rounds.
#[derive(Debug, Clone)]
pub struct Confirmer {
    queue: mpsc::Sender<Caller>,
}

impl Confirmer {
    /// Starts the task. `round` asks the quorum once; `is_free`: it asks nobody but this node.
    pub fn start<R, F>(round: R, is_free: impl Fn() -> bool + Send + 'static) -> Self
    where
        R: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), Unconfirmed>> + Send + 'static,
    {
        Self::with(round, is_free, Times { round: ROUND_LIMIT, company: COMPANY })
    }

    fn with<R, F>(round: R, is_free: impl Fn() -> bool + Send + 'static, times: Times) -> Self
    where
        R: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), Unconfirmed>> + Send + 'static,
    {
        let (queue, inbox) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(inbox, round, is_free, times));
        Self { queue }
    }

    /// See the module's header.
    pub async fn confirm(&self, asks: Asks) -> Result<(), Unconfirmed> {
        let (answer, rx) = oneshot::channel();
        match self.queue.try_send(Caller { answer, asks, came: Instant::now() }) {
            Ok(()) => rx.await.unwrap_or_else(|_| Err(Unconfirmed("the node is stopping".into()))),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Unconfirmed(format!("more than {WAITING_MAX} renewals wait for a confirmation; try again later")))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Unconfirmed("the node is stopping".into())),
        }
    }
}

async fn run<R, F>(mut inbox: mpsc::Receiver<Caller>, round: R, is_free: impl Fn() -> bool, times: Times)
where
    R: Fn() -> F,
    F: Future<Output = Result<(), Unconfirmed>>,
{
    let (mut waiting, mut lately) = (Vec::new(), Lately::default());
    while inbox.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        lately.came(&waiting, times.company);
        if can_wait(&waiting) && lately.several(times.company) && !is_free() {
            let until = waiting[0].came + times.company;
            let mut noted = waiting.len();
            // A queue that has closed has nobody more in it.
            while can_wait(&waiting) && timeout_at(until, inbox.recv_many(&mut waiting, WAITING_MAX)).await.is_ok_and(|n| n > 0) {
                lately.came(&waiting[noted..], times.company);
                noted = waiting.len();
            }
        }
        // I5: whom this round serves is settled here, before it begins; who comes from now on is served by a later one.
        let too_long = || Unconfirmed(format!("no quorum answered within {} ms", times.round.as_millis()));
        let result = timeout(times.round, round()).await.unwrap_or_else(|_| Err(too_long()));
        for caller in waiting.drain(..) {
            // A caller that has gone needs no answer.
            let _ = caller.answer.send(result.clone());
        }
    }
}

/// Whether all of them can wait, and more would make a round cheaper for each.
fn can_wait(waiting: &[Caller]) -> bool {
    waiting.iter().all(|caller| caller.asks.can_wait) && waiting.iter().map(|caller| caller.asks.renewals).sum::<usize>() < ENOUGH
}

/// Who came lately: whether there is company to wait for.
#[derive(Debug, Default)]
struct Lately {
    last: Option<(u64, Instant)>,
    /// When two sessions renewed within the time for company, the second time.
    met: Option<Instant>,
}

impl Lately {
    fn came(&mut self, callers: &[Caller], company: Duration) {
        for Caller { asks, came, .. } in callers {
            let another = |(whose, at): (u64, Instant)| whose != asks.whose && came.saturating_duration_since(at) <= company;
            if asks.renewals > 1 || self.last.is_some_and(another) {
                self.met = Some(*came);
            }
            self.last = Some((asks.whose, *came));
        }
    }

    fn several(&self, company: Duration) -> bool {
        let (Some((_, last)), Some(met)) = (self.last, self.met) else { return false };
        last.saturating_duration_since(met) <= company
    }
}

/// One round of read-index.
pub(super) fn rounds(raft: Raft) -> impl Fn() -> BoxFuture<'static, Result<(), Unconfirmed>> + Send + 'static {
    move || {
        let raft = raft.clone();
        Box::pin(async move {
            // One blip of a peer, longer than a heartbeat, fails a round (STACK 1.5): it is asked again. Each try starts later
            // than the one before, so what is confirmed is confirmed after the call (I5).
            for _ in 0..ROUNDS_MAX {
                return match raft.ensure_linearizable().await {
                    Ok(_) => Ok(()),
                    Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => continue,
                    Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => Err(Unconfirmed(match to.leader_id {
                        Some(id) => format!("this node does not lead; node {id} does"),
                        None => "this node does not lead".into(),
                    })),
                    Err(e) => Err(Unconfirmed(e.to_string())),
                };
            }
            Err(Unconfirmed("no quorum of the nodes answered".into()))
        })
    }
}

#[cfg(test)]
#[path = "confirm_tests.rs"]
mod tests;
