//! Renew: the one call on which the right to write stands (I4, I5).
//!
//! Promises, and the argument for each. A renewal is acknowledged only
//! 1. after the leadership was confirmed by a quorum *after the renewal arrived*: `confirm` is called here, and serves only
//!    callers that came before its round ([`crate::consensus::confirm`]); it also waits until the state is applied up to
//!    the index that was committed then;
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

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Status;
use treelease_proto::command::{Command, Grant, Leadership};
use treelease_proto::id::SessionId;
use treelease_proto::time::{BootTime, Ttl};
use treelease_proto::wire;
use treelease_proto::wire::forward_answer::Kind;
use treelease_proto::wire::forward_request::Call;

use super::Service;
use super::nonce::{Arrival, Verdict};
use super::peers::Word;

/// How long a renewal waits for the outcome of an expiry.
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);

/// What both machines are told.
const COPIED: &str = "two machines renew this session: one is a copy of the other (a cloned or restored machine)";

/// A living session, as one look found it.
struct Alive {
    session: SessionId,
    at: BootTime,
    leadership: Leadership,
    ttl: Ttl,
    pairs: Vec<Grant>,
}

/// What one look at state and timers finds.
enum Look {
    Alive { leadership: Leadership, ttl: Ttl, pairs: Vec<Grant> },
    Ended { leadership: Leadership, why: String },
    Doomed,
    NotLeading,
}

impl Service {
    /// Here if this node may lead, else at the leader's: its clock and its confirmation count, whoever was asked.
    pub(super) async fn renew_session(&self, request: wire::RenewRequest, limit: Duration) -> Result<wire::RenewAnswer, Status> {
        let Some(leader) = self.api.consensus.leader_elsewhere() else { return self.renew_here(request).await };
        match self.ask_leader(leader, Call::Renew(request), limit).await {
            Word::Said(Kind::Renewed(answer)) => Ok(answer),
            Word::No(status) => Err(status),
            Word::Said(_) => Err(Status::unavailable("the leader's answer is of another version")),
            // Nothing is logged by a renewal: not to know its outcome is the same as not to have asked.
            Word::Unknown(why) => Err(Status::unavailable(why)),
        }
    }

    /// At the leader, or refused.
    pub(super) async fn renew_here(&self, request: wire::RenewRequest) -> Result<wire::RenewAnswer, Status> {
        self.ready()?;
        let at = self.api.clock.now();
        self.same_cluster(&request.cluster)?;
        let session: SessionId = request.session.parse().map_err(|e| Status::invalid_argument(format!("session: {e}")))?;
        // Taken before the look: no change after the look is missed.
        let mut applied = self.api.consensus.applied();
        let mut turned = self.api.seat.turned();
        self.api.consensus.confirm().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let until = Instant::now() + OUTCOME_LIMIT;
        loop {
            applied.mark_unchanged();
            turned.mark_unchanged();
            match self.look(&session, request.incarnation) {
                Look::Alive { leadership, ttl, pairs } => {
                    let alive = Alive { session, at, leadership, ttl, pairs };
                    return self.answer_alive(&request, alive).await;
                }
                Look::Ended { leadership, why } => return Ok(self.ended(&request, leadership, why)),
                Look::NotLeading => return Err(Status::unavailable("this node does not lead at the moment; ask again")),
                Look::Doomed => {}
            }
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
        Look::Alive { leadership, ttl, pairs: state.held_by(session) }
    }

    /// The session lives: what its number and nonce say decides what it is told.
    async fn answer_alive(&self, request: &wire::RenewRequest, alive: Alive) -> Result<wire::RenewAnswer, Status> {
        let Alive { session, at, leadership, ttl, pairs } = alive;
        let arrival = Arrival { incarnation: request.incarnation, number: request.number, nonce: request.nonce, at, ttl };
        let verdict = {
            let mut nonces = self.nonces.lock().expect("nothing panics while it holds the nonces");
            let verdict = nonces.arrive(leadership, &session, arrival);
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
        match verdict {
            Verdict::Fine { nonce, elapsed } => {
                self.api.counts.renewals.add();
                Ok(answer(nonce, false, elapsed, &pairs))
            }
            Verdict::GivenUp { nonce } => {
                self.api.counts.renewals_given_up.add();
                Ok(answer(nonce, true, None, &[]))
            }
            Verdict::Over => Err(Status::unavailable("this node has begun a new leadership meanwhile; ask again")),
            Verdict::Copied => {
                self.end_copied(&session, request).await?;
                Ok(self.ended(request, leadership, COPIED.into()))
            }
        }
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
