//! One renewal: whom it is sent to, when to others too, and what the answers mean.
//!
//! Promises: it is sent to each server once at most, and nothing is sent again in its name: number and send time belong together (I4).
//! It does not know over which call it goes ([`super::line`]).

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::failed::{Failed, classify};
use super::{CallError, Servers, Target, bad, not_understood, same_cluster};
use crate::session::{Answered, Renewal};
use crate::words::command::HeldPair;
use crate::words::id::ClusterId;
use crate::words::time::Ttl;
use crate::words::wire;

/// A renewal goes to all other servers, too, when the first has not answered for so long.
const HEDGE: Duration = Duration::from_millis(300);

impl Servers {
    /// One renewal. Sent once to each server at most: to the leader's node first, as far as that is known; to all others, too,
    /// when it is late, and to the next one at once when it failed. A refusal counts only if nobody answers: a single node may
    /// have a wrong token or be of another cluster.
    pub async fn renew(&self, renewal: &Renewal, cluster: Option<&ClusterId>) -> Result<Answered, CallError> {
        let request = wire::RenewRequest {
            session: renewal.session.to_string(),
            incarnation: renewal.incarnation,
            number: renewal.number,
            nonce: renewal.nonce,
            cluster: cluster.map(ClusterId::to_string).unwrap_or_default(),
            can_wait: renewal.can_wait,
        };
        let began = Instant::now();
        let targets = self.targets()?;
        let limit = self.timeout;
        let one = |target: Target| {
            let request = request.clone();
            async move {
                let answer = self.inner.renewals.ask(&target, request, limit).await;
                (target.address, answer)
            }
        };
        let mut waiting = targets.clone().into_iter();
        let mut tries: FuturesUnordered<_> = waiting.next().into_iter().map(&one).collect();
        let late = tokio::time::sleep(HEDGE);
        tokio::pin!(late);
        let mut last = String::new();
        let mut refused = None;
        loop {
            let (address, answer) = tokio::select! {
                Some(ended) = tries.next() => ended,
                () = &mut late, if waiting.len() > 0 => {
                    tries.extend(waiting.by_ref().map(&one));
                    continue;
                }
                else => break,
            };
            match answer {
                Ok(answer) => {
                    let leader_at = answer.leader_at.clone();
                    match answered(answer, cluster) {
                        Err(CallError::Refused(refusal)) => refused = Some(refusal),
                        taken => {
                            self.prefer_leader(&leader_at, &address);
                            return taken;
                        }
                    }
                }
                Err(status) => match classify(&status) {
                    Failed::Refused(refusal) => refused = Some(refusal),
                    Failed::NotSent(text) | Failed::Perhaps(text) => last = text,
                },
            }
            tries.extend(waiting.next().map(&one));
        }
        if let Some(refusal) = refused {
            return Err(CallError::Refused(refusal));
        }
        // Nothing is logged by a renewal: not to know its outcome is the same as not to have reached anybody.
        let tried = targets.into_iter().map(|target| target.address).collect();
        Err(CallError::Unreachable { tried, waited: began.elapsed(), last })
    }
}

fn answered(answer: wire::RenewAnswer, cluster: Option<&ClusterId>) -> Result<Answered, CallError> {
    let from = answer.cluster.parse().map_err(|e| bad("cluster", e))?;
    same_cluster(cluster, &from)?;
    let pairs = answer.pairs.into_iter().map(HeldPair::try_from).collect::<Result<_, _>>().map_err(not_understood)?;
    Ok(Answered {
        number: answer.number,
        nonce: answer.nonce,
        ttl: Ttl::new(Duration::from_millis(answer.ttl_ms)),
        alive: answer.alive,
        pairs,
        server_elapsed: (answer.elapsed_us != 0).then(|| Duration::from_micros(answer.elapsed_us)),
        why_not: answer.why_not,
        given_up: answer.given_up,
    })
}
