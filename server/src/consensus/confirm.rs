//! Read-index, batched: one confirmation of leadership for all who wait for it (I5).
//!
//! Promises: [`Confirmer::confirm`] resolves with `Ok` only from a round that *started after* the call. The argument: one
//! task makes one round after the other; a caller puts itself into the queue; the task empties the queue and only then
//! starts a round for those it took out. Who comes while a round runs stays in the queue for the next. A round is
//! openraft's `ensure_linearizable`: a quorum has confirmed this leader, and this node's state has been applied up to the
//! index that was committed then. It writes nothing to the log. It does not know what is read afterwards.

use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Callers who wait for the next round; more are turned away.
const WAITING_MAX: usize = 16_384;
/// A round that takes longer has failed.
const ROUND_LIMIT: Duration = Duration::from_secs(2);

/// Why leadership is not confirmed. The sentence is for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unconfirmed(pub String);

type Answer = oneshot::Sender<Result<(), Unconfirmed>>;

/// The way to the task that makes the rounds.
#[derive(Debug, Clone)]
pub struct Confirmer {
    queue: mpsc::Sender<Answer>,
}

impl Confirmer {
    /// Starts the task. `round` asks the quorum once.
    pub fn start<R, F>(round: R) -> Self
    where
        R: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), Unconfirmed>> + Send + 'static,
    {
        Self::with_limit(round, ROUND_LIMIT)
    }

    fn with_limit<R, F>(round: R, limit: Duration) -> Self
    where
        R: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), Unconfirmed>> + Send + 'static,
    {
        let (queue, inbox) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(inbox, round, limit));
        Self { queue }
    }

    /// See the module's header.
    pub async fn confirm(&self) -> Result<(), Unconfirmed> {
        let (tx, rx) = oneshot::channel();
        match self.queue.try_send(tx) {
            Ok(()) => rx.await.unwrap_or_else(|_| Err(Unconfirmed("the node is stopping".into()))),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Unconfirmed(format!("more than {WAITING_MAX} renewals wait for a confirmation; try again later")))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Unconfirmed("the node is stopping".into())),
        }
    }
}

async fn run<R, F>(mut inbox: mpsc::Receiver<Answer>, round: R, limit: Duration)
where
    R: Fn() -> F,
    F: Future<Output = Result<(), Unconfirmed>>,
{
    let mut waiting = Vec::new();
    while inbox.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let too_long = || Unconfirmed(format!("no quorum answered within {} ms", limit.as_millis()));
        let result = tokio::time::timeout(limit, round()).await.unwrap_or_else(|_| Err(too_long()));
        for caller in waiting.drain(..) {
            // A caller that has gone needs no answer.
            let _ = caller.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn a_caller_is_never_served_by_a_round_that_started_before_it_came() {
        let (confirmer, rounds, gate) = gated();
        let call = || {
            let confirmer = confirmer.clone();
            tokio::spawn(async move { confirmer.confirm().await })
        };
        let first = call();
        until(|| rounds.load(Ordering::SeqCst) == 1).await;
        let late: Vec<_> = (0..10).map(|_| call()).collect();
        until(|| confirmer.queue.capacity() == WAITING_MAX - 10).await;

        gate.add_permits(1);
        first.await.unwrap().unwrap();
        until(|| rounds.load(Ordering::SeqCst) == 2).await;
        assert!(late.iter().all(|l| !l.is_finished()), "the first round does not count for those who came later");

        gate.add_permits(1);
        for caller in late {
            caller.await.unwrap().unwrap();
        }
        assert_eq!(rounds.load(Ordering::SeqCst), 2, "one round serves all who waited for it");
    }

    #[tokio::test]
    async fn a_round_that_takes_too_long_is_no_confirmation() {
        let confirmer = Confirmer::with_limit(std::future::pending, Duration::from_millis(5));
        assert!(confirmer.confirm().await.is_err());
    }

    fn gated() -> (Confirmer, Arc<AtomicU32>, Arc<Semaphore>) {
        let rounds = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let confirmer = Confirmer::start({
            let (rounds, gate) = (rounds.clone(), gate.clone());
            move || {
                let (rounds, gate) = (rounds.clone(), gate.clone());
                async move {
                    rounds.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    Ok(())
                }
            }
        });
        (confirmer, rounds, gate)
    }

    async fn until(condition: impl Fn() -> bool) {
        for _ in 0..100_000 {
            if condition() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the condition never came true");
    }
}
