//! Renew: the one call on which the right to write stands (I4, I5).
//!
//! Promises, and the argument for each. A renewal is acknowledged only
//! 1. after the leadership was confirmed by a quorum *after the renewal arrived*: `confirm` is called here, and serves only
//!    callers that came before its round ([`crate::consensus::confirm`]), also those that let others come first; it also
//!    waits until the state is applied up to the index that was committed then;
//! 2. while the last `Lead` applied here is this node's own and is the leadership that the timers run under: so an expiry
//!    that another leader, or an earlier leadership of this node, decided is either in the state already or void;
//! 3. if the session is alive in that state, under this incarnation, and not doomed: looked at under the state's lock and
//!    the timers' lock together, so that no expiry is decided between the look and the next line;
//! 4. after the timers were told: whatever the side concludes from the answer, this leader counts a full TTL from a later
//!    moment (I3), and a later leader from its own `Lead`, which comes after the confirmation;
//! 5. if number and nonce do not show that two machines renew this session ([`super::nonce`]); if they do, it ends, logged.
//!
//! The pairs are read under the same locks: they are what the session holds at that index. Nothing else is logged. It does not
//! decide until when a side may write: the side does, from its own send time.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};
use treelease_proto::command::{Command, Grant, Leadership};
use treelease_proto::id::SessionId;
use treelease_proto::time::{BootTime, Ttl};
use treelease_proto::wire;
use treelease_proto::wire::renewal_answered::Word;

use super::nonce::{Arrival, Verdict};
use super::{Service, talk, time_given};
use crate::consensus::confirm::Asks;
use crate::consensus::network::Lost;

/// How long a renewal waits for the outcome of an expiry.
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);

/// What both machines are told.
const COPIED: &str = "two machines renew this session: one is a copy of the other (a cloned or restored machine)";

/// A renewal that came in, and when.
struct Arrived {
    request: wire::RenewRequest,
    session: SessionId,
    at: BootTime,
}

/// What a look at a confirmed renewal brings.
enum Found {
    /// Its answer, or why it has none.
    Said(Result<wire::RenewAnswer, Status>),
    /// The session's expiry is being decided.
    Doomed,
    /// Two machines renew it: that has to be logged first.
    Copied(Leadership),
}

/// A living session, as one look found it.
struct Alive {
    leadership: Leadership,
    ttl: Ttl,
    pairs: Vec<Grant>,
}

/// What one look at state and timers finds.
enum Look {
    Alive(Alive),
    Ended { leadership: Leadership, why: String },
    Doomed,
    NotLeading,
}

type Step = talk::Step<wire::RenewalAnswered>;

impl Service {
    /// Here if this node may lead, else at the leader's: its clock and its confirmation count, whoever was asked.
    pub(super) async fn renew_session(&self, request: wire::RenewRequest, limit: Duration) -> Result<wire::RenewAnswer, Status> {
        let Some(leader) = self.api.consensus.leader_elsewhere() else { return self.renew_here(request).await };
        self.api.counts.forwarded.add();
        match self.api.consensus.relay(leader, request, limit).await {
            Ok(Word::Renewed(answer)) => Ok(answer),
            Ok(Word::Failed(failed)) => Err(Status::new(Code::from(failed.code as i32), failed.message)),
            Err(Lost::NotSent(why)) => Err(super::peers::not_reached(leader, &why)),
            // Nothing is logged by a renewal: not to know its outcome is the same as not to have asked.
            Err(Lost::Perhaps(why)) => Err(Status::unavailable(super::peers::no_word(leader, &why))),
        }
    }

    /// At the leader, or refused.
    pub(super) async fn renew_here(&self, request: wire::RenewRequest) -> Result<wire::RenewAnswer, Status> {
        let arrived = self.arrived(request)?;
        self.api.consensus.confirm(asks([&arrived])).await.map_err(|e| Status::unavailable(e.to_string()))?;
        self.outcome(&arrived, self.find(&arrived)).await
    }

    /// Some that arrived together, now, at the leader: one round confirms them. Whatever has to be waited for beyond that comes later,
    /// and holds up none of the others.
    pub(super) fn renew_together(self: Arc<Self>, asked: Vec<wire::RenewalAsked>) -> impl Future<Output = Step> + Send + 'static {
        let began = Instant::now();
        let (mut step, mut waiting) = (Step::default(), Vec::new());
        for wire::RenewalAsked { tag, limit_ms, renewal } in asked {
            match self.arrived(renewal.unwrap_or_default()) {
                Ok(arrived) => waiting.push((tag, began + time_given(limit_ms), arrived)),
                Err(status) => step.answered.push(self.answered(tag, Err(status))),
            }
        }
        async move {
            let Some(until) = waiting.iter().map(|(_, until, _)| *until).max() else { return step };
            let asks = asks(waiting.iter().map(|(_, _, arrived)| arrived));
            let confirmed = timeout_at(until, self.api.consensus.confirm(asks)).await;
            let now = Instant::now();
            for (tag, until, arrived) in waiting {
                match &confirmed {
                    Ok(Ok(())) if now < until => match self.find(&arrived) {
                        Found::Said(said) => step.answered.push(self.answered(tag, said)),
                        found => step.later.push(self.clone().later(tag, until, arrived, found).boxed()),
                    },
                    Ok(Err(e)) => step.answered.push(self.answered(tag, Err(Status::unavailable(e.to_string())))),
                    _ => step.answered.push(self.answered(tag, Err(too_late()))),
                }
            }
            step
        }
    }

    async fn later(self: Arc<Self>, tag: u64, until: Instant, arrived: Arrived, found: Found) -> Step {
        let said = timeout_at(until, self.outcome(&arrived, found)).await.unwrap_or_else(|_| Err(too_late()));
        Step { answered: vec![self.answered(tag, said)], later: Vec::new() }
    }

    /// One of some that another node is asked for.
    pub(super) async fn renew_elsewhere(self: Arc<Self>, asked: wire::RenewalAsked) -> Step {
        let wire::RenewalAsked { tag, limit_ms, renewal } = asked;
        let limit = time_given(limit_ms);
        let said = timeout(limit, self.renew_session(renewal.unwrap_or_default(), limit)).await;
        Step { answered: vec![self.answered(tag, said.unwrap_or_else(|_| Err(too_late())))], later: Vec::new() }
    }

    /// One that fails is counted as a call of its own would be.
    fn answered(&self, tag: u64, said: Result<wire::RenewAnswer, Status>) -> wire::RenewalAnswered {
        let word = match said {
            Ok(answer) => Word::Renewed(answer),
            Err(status) => {
                self.api.counts.answered(status.code() as usize);
                Word::Failed(wire::CallFailed { code: status.code() as u32, message: status.message().into() })
            }
        };
        wire::RenewalAnswered { tag, word: Some(word) }
    }

    /// Whether it is a renewal of this cluster at all.
    fn arrived(&self, request: wire::RenewRequest) -> Result<Arrived, Status> {
        self.ready()?;
        let at = self.api.clock.now();
        self.same_cluster(&request.cluster)?;
        let session = request.session.parse().map_err(|e| Status::invalid_argument(format!("session: {e}")))?;
        Ok(Arrived { request, session, at })
    }

    /// What there is to wait for after the first look.
    async fn outcome(&self, arrived: &Arrived, mut found: Found) -> Result<wire::RenewAnswer, Status> {
        let until = Instant::now() + OUTCOME_LIMIT;
        // Taken before the look that follows: no change after that look is missed.
        let mut changes: Option<(watch::Receiver<u64>, _)> = None;
        loop {
            match found {
                Found::Said(said) => return said,
                Found::Copied(leadership) => {
                    self.end_copied(&arrived.session, &arrived.request).await?;
                    return Ok(self.ended(&arrived.request, leadership, COPIED.into()));
                }
                Found::Doomed => {}
            }
            let Some((applied, turned)) = &mut changes else {
                changes = Some((self.api.consensus.applied(), self.api.seat.turned()));
                found = self.find(arrived);
                continue;
            };
            let changed = async {
                tokio::select! {
                    changed = applied.changed() => changed.is_ok(),
                    changed = turned.changed() => changed.is_ok(),
                }
            };
            if !timeout_at(until, changed).await.unwrap_or(false) {
                return Err(Status::unavailable(
                    "the session's expiry is being decided and the outcome is not known yet; ask again",
                ));
            }
            applied.mark_unchanged();
            turned.mark_unchanged();
            found = self.find(arrived);
        }
    }

    /// One look at a renewal whose leadership is confirmed.
    fn find(&self, arrived: &Arrived) -> Found {
        match self.look(&arrived.session, arrived.request.incarnation) {
            Look::Alive(alive) => self.find_alive(arrived, alive),
            Look::Ended { leadership, why } => Found::Said(Ok(self.ended(&arrived.request, leadership, why))),
            Look::Doomed => Found::Doomed,
            Look::NotLeading => Found::Said(Err(Status::unavailable("this node does not lead at the moment; ask again"))),
        }
    }

    /// State and timers together; tells the timers if the session is alive.
    fn look(&self, session: &SessionId, incarnation: u64) -> Look {
        let state = self.api.consensus.state();
        let mut timers = self.api.seat.timers();
        let own = self.api.consensus.node();
        let leadership = match state.leadership() {
            Some((leadership, node)) if node == own && timers.leading() == Some(leadership) => leadership,
            _ => return Look::NotLeading,
        };
        let Some(found) = state.session(session) else {
            return Look::Ended { leadership, why: "the session has ended".into() };
        };
        if found.incarnation() != incarnation {
            let why = format!(
                "the session goes on in run {} of the daemon, this request is of run {incarnation}: is the daemon running twice?",
                found.incarnation()
            );
            return Look::Ended { leadership, why };
        }
        if timers.is_doomed(session) {
            return Look::Doomed;
        }
        let ttl = found.ttl();
        let now = self.api.clock.now();
        // What was applied since the last tick is not armed yet: a new session, or a longer time to live that the answer names.
        timers.follow(&state, now);
        if !timers.renewed(session, now) {
            return Look::Doomed;
        }
        Look::Alive(Alive { leadership, ttl, pairs: state.held_by(session) })
    }

    /// The session lives: what its number and nonce say decides what it is told.
    fn find_alive(&self, arrived: &Arrived, alive: Alive) -> Found {
        let (Arrived { request, session, at }, Alive { leadership, ttl, pairs }) = (arrived, alive);
        let arrival = Arrival { incarnation: request.incarnation, number: request.number, nonce: request.nonce, at: *at, ttl };
        let verdict = {
            let mut nonces = self.nonces.lock().expect("nothing panics while it holds the nonces");
            let verdict = nonces.arrive(leadership, session, arrival);
            if nonces.wants_sweep() {
                // The state's lock is not held here, so taking it after the nonces' lock is no circle.
                let state = self.api.consensus.state();
                nonces.sweep(|session| state.session(session).is_some());
            }
            verdict
        };
        let answer = |nonce, given_up, elapsed: Option<Duration>, pairs: &[Grant]| wire::RenewAnswer {
            number: request.number,
            nonce,
            ttl_ms: ttl.as_millis(),
            cluster: self.cluster().to_string(),
            alive: true,
            pairs: pairs.iter().map(wire::HeldPair::from).collect(),
            // At least 1: 0 means unknown.
            elapsed_us: elapsed.map_or(0, |d| (d.as_micros() as u64).max(1)),
            leadership: leadership.0,
            why_not: String::new(),
            given_up,
            leader_at: self.api.consensus.own_address(),
        };
        Found::Said(match verdict {
            Verdict::Fine { nonce, elapsed } => {
                self.api.counts.renewals.add();
                Ok(answer(nonce, false, elapsed, &pairs))
            }
            Verdict::GivenUp { nonce } => {
                self.api.counts.renewals_given_up.add();
                Ok(answer(nonce, true, None, &[]))
            }
            Verdict::Over => Err(Status::unavailable("this node has begun a new leadership meanwhile; ask again")),
            Verdict::Copied => return Found::Copied(leadership),
        })
    }

    /// Two machines renew this session: it ends for both, by a logged command. As long as that is not committed neither is
    /// acknowledged, and each further renewal asks again.
    async fn end_copied(&self, session: &SessionId, request: &wire::RenewRequest) -> Result<(), Status> {
        tracing::warn!(%session, number = request.number, "two machines renew one session: it ends");
        self.api.counts.copied.add();
        let command = Command::EndCopied { session: session.clone(), incarnation: request.incarnation };
        match self.api.consensus.propose_own(command, self.api.clock.wall(), OUTCOME_LIMIT).await {
            Ok(_) => Ok(()),
            Err(e) => Err(Status::unavailable(format!("{COPIED}; its end is not known to be logged ({e})"))),
        }
    }

    fn ended(&self, request: &wire::RenewRequest, leadership: Leadership, why: String) -> wire::RenewAnswer {
        wire::RenewAnswer {
            number: request.number,
            nonce: 0,
            ttl_ms: 0,
            cluster: self.cluster().to_string(),
            alive: false,
            pairs: Vec::new(),
            elapsed_us: 0,
            leadership: leadership.0,
            why_not: why,
            given_up: false,
            leader_at: String::new(),
        }
    }
}

/// What a round is asked for.
fn asks<'a>(all: impl IntoIterator<Item = &'a Arrived>) -> Asks {
    let (mut asks, mut whose) = (Asks { renewals: 0, can_wait: true, whose: 0 }, DefaultHasher::new());
    for arrived in all {
        asks.renewals += 1;
        asks.can_wait &= arrived.request.can_wait;
        arrived.session.as_str().hash(&mut whose);
    }
    Asks { whose: whose.finish(), ..asks }
}

fn too_late() -> Status {
    Status::deadline_exceeded("the caller's time is over")
}
