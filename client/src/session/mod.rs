//! The session's life: when to renew, and until when this side may write each tree. Pure.
//!
//! The shell calls [`SessionCore::poll_action`] until it says `None`, sends what it was given, tells what came back with
//! [`SessionCore::handle_answer`] or [`SessionCore::handle_failure`], and sleeps until [`SessionCore::next_deadline`].
//!
//! # Promises
//!
//! I4. [`SessionCore::right`] answers for one (tree, epoch), and only from an acknowledged renewal that listed this pair,
//! counted from when that renewal was sent. *Why:* the send time is stamped in `poll_action`, before the request can enter
//! any queue; an answer is taken only for the number that it names, once, while that number is in flight; and only the answer
//! with the highest number counts, so that an old answer that comes late opens nothing and lengthens nothing. Neither a grant
//! nor a resumed session gives a right: only [`SessionCore::handle_answer`] makes one.
//!
//! After a suspend, after a clock that disagrees with the server's, and after the session's end there is no right until a
//! renewal *sent later* is acknowledged.
//!
//! # Does not know
//!
//! What a tree is, who else wants it, how a request travels. What time it is: the caller says.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::words::command::HeldPair;
use crate::words::epoch::Epoch;
use crate::words::id::{SessionId, TreeId};
use crate::words::time::{BootTime, DRIFT_PERMILLE, Ttl};

pub mod deadline;
#[cfg(test)]
mod tests;

use deadline::write_until;

/// Renewals that may be unanswered at once: at TTL/5 they span a whole TTL, and an older one could give no right any more.
pub const MAX_IN_FLIGHT: usize = 5;
/// The least time between a failed renewal and the next: a server that is away is not hammered.
pub const LEAST_RETRY: Duration = Duration::from_millis(100);
/// How many round trips are kept for `status -o wide`.
pub const ROUND_TRIPS_KEPT: usize = 16;
/// A side warns that writes stop when so much of its right is left (a third of a short TTL).
pub const WARN_BEFORE: Duration = Duration::from_secs(4);
/// By how much two clocks may disagree beside drift and round trip: what scheduling may add on either machine.
pub const CLOCK_SLACK: Duration = Duration::from_millis(50);

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this renewal now. Its send time has been stamped already.
    Renew(Renewal),
    /// Tell people.
    Warn(Warning),
    /// The server's clock and ours disagree about how much time passed (a paused or cloned virtual machine): every right is
    /// gone until a later renewal is acknowledged; drop all caches and report it.
    ClockDisagrees {
        /// What passed here between the two requests.
        own: Duration,
        /// What passed at the server between their arrivals.
        server: Duration,
    },
}

/// One renewal, as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Whose.
    pub session: SessionId,
    /// Which run of the daemon.
    pub incarnation: u64,
    /// Its number; the answer names it again.
    pub number: u64,
    /// Of an answer seen before it was sent, never an older one than a renewal before it named; 0 before the first.
    pub nonce: u64,
    /// It goes out because it is time, and all is well: nothing waits for its answer, which may be some milliseconds later. Its
    /// right counts from the sending all the same (I4).
    pub can_wait: bool,
}

/// What people should know before it is too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warning {
    /// No renewal has been acknowledged for more than one interval beyond what is usual.
    Late {
        /// How long it is overdue.
        by: Duration,
    },
    /// The right to write ends soon if nothing is acknowledged.
    WritesStopIn(Duration),
    /// Renewals are acknowledged again.
    Back {
        /// How long none was.
        after: Duration,
    },
}

/// A server's answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Which renewal this answers.
    pub number: u64,
    /// To be named by the next renewal.
    pub nonce: u64,
    /// The session's time to live, as the server now counts it.
    pub ttl: Ttl,
    /// Whether the session still lives.
    pub alive: bool,
    /// What it holds at the confirmed index.
    pub pairs: Vec<HeldPair>,
    /// The server's elapsed time between the arrivals of this request and of the one whose nonce it named.
    pub server_elapsed: Option<Duration>,
    /// Why the session does not live.
    pub why_not: String,
    /// Nothing is acknowledged: by the server's clock this side has given the request up. Only the nonce counts.
    pub given_up: bool,
}

/// An acknowledged renewal.
#[derive(Debug, Clone)]
struct Acked {
    number: u64,
    sent: BootTime,
    ttl: Ttl,
}

/// The nonce that the next renewal names, and the renewal whose answer brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nonce {
    value: u64,
    sent: BootTime,
    round_trip: Duration,
}

/// A renewal without an answer yet.
#[derive(Debug, Clone)]
struct InFlight {
    sent: BootTime,
    /// What it names.
    named: Option<Nonce>,
}

/// The session of one incarnation of the daemon.
#[derive(Debug, Clone)]
pub struct SessionCore {
    session: SessionId,
    incarnation: u64,
    ttl: Ttl,
    started: BootTime,
    next_number: u64,
    next_send: BootTime,
    /// The next one was asked for: something waits for it.
    hurry: bool,
    newest_sent: Option<BootTime>,
    in_flight: BTreeMap<u64, InFlight>,
    last: Option<Acked>,
    nonce: Option<Nonce>,
    listed: BTreeMap<TreeId, HeldPair>,
    /// Grants known from elsewhere: only renewals from this number on were sent after them.
    granted: BTreeMap<TreeId, (Epoch, u64)>,
    /// Nothing sent at or before this moment gives a right: the clock was found wrong then.
    distrust: Option<BootTime>,
    ended: Option<String>,
    late_told: bool,
    stop_told: bool,
    actions: VecDeque<Action>,
    round_trips: VecDeque<Duration>,
}

impl SessionCore {
    /// A session just opened or resumed. It has no right yet; the first renewal is due at once.
    pub fn new(session: SessionId, incarnation: u64, ttl: Ttl, now: BootTime) -> Self {
        Self {
            session,
            incarnation,
            ttl,
            started: now,
            next_number: 1,
            next_send: now,
            hurry: true,
            newest_sent: None,
            in_flight: BTreeMap::new(),
            last: None,
            nonce: None,
            listed: BTreeMap::new(),
            granted: BTreeMap::new(),
            distrust: None,
            ended: None,
            late_told: false,
            stop_told: false,
            actions: VecDeque::new(),
            round_trips: VecDeque::new(),
        }
    }

    /// Its id.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Which run of the daemon.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The time to live that the last answer named.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// Until when this (tree, epoch) may be written; `None`: not at all (I4).
    pub fn right(&self, tree: &TreeId, epoch: Epoch, now: BootTime) -> Option<BootTime> {
        let last = self.last.as_ref().filter(|_| self.ended.is_none())?;
        self.listed.get(tree).filter(|pair| pair.epoch == epoch)?;
        // The daemon heard of this grant after that renewal had gone out.
        if self.granted.get(tree).is_some_and(|(granted, from)| *granted == epoch && last.number < *from) {
            return None;
        }
        // How long the machine slept is never trusted: any sleep since the renewal was sent ends its right.
        if now.suspended_since(last.sent) || self.distrust.is_some_and(|since| last.sent.elapsed <= since.elapsed) {
            return None;
        }
        Some(write_until(last.sent, last.ttl)).filter(|until| now.elapsed < until.elapsed)
    }

    /// What the last answer (by number) listed; empty before the first, and after the end.
    pub fn listed(&self) -> &BTreeMap<TreeId, HeldPair> {
        &self.listed
    }

    /// The number of the renewal whose answer [`Self::listed`] is; 0 before the first.
    pub fn listed_by(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.number)
    }

    /// The number that the next renewal will have: an answer to it or to a later one was asked for after this moment.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Whether an answer to this renewal would count.
    pub fn waits_for(&self, number: u64) -> bool {
        self.in_flight.contains_key(&number)
    }

    /// Why the session has ended, by the server's word.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// When the last acknowledged renewal was sent.
    pub fn last_ack(&self) -> Option<BootTime> {
        self.last.as_ref().map(|last| last.sent)
    }

    /// By how much a renewal is overdue, if by more than one interval.
    pub fn late(&self, now: BootTime) -> Option<Duration> {
        let interval = self.ttl.renewal_interval();
        let age = now.since(self.late_since());
        (self.ended.is_none() && age >= interval * 2).then(|| age - interval)
    }

    /// The last renewals' round trips, oldest first.
    pub fn round_trips(&self) -> impl Iterator<Item = Duration> + '_ {
        self.round_trips.iter().copied()
    }

    /// The next poll sends a renewal at once, for instance after a grant.
    pub fn renew_now(&mut self, now: BootTime) {
        self.next_send = now;
        self.hurry = true;
    }

    /// The daemon was told of a grant: only a renewal sent from now on gives a right to it (I4). Implies a renewal at once.
    pub fn note_grant(&mut self, tree: &TreeId, epoch: Epoch, now: BootTime) {
        self.granted.insert(tree.clone(), (epoch, self.next_number));
        self.renew_now(now);
    }

    /// Time has passed: forgets requests that can give no right any more, and notices lateness. `poll_action` does it too.
    pub fn handle_timeout(&mut self, now: BootTime) {
        if self.ended.is_some() {
            return;
        }
        let ttl = self.ttl.get();
        self.in_flight.retain(|_, request| now.since(request.sent) < ttl);
        if let Some(by) = self.late(now).filter(|_| !self.late_told) {
            self.late_told = true;
            self.actions.push_back(Action::Warn(Warning::Late { by }));
        }
        if self.stop_warning_at().is_some_and(|at| at.elapsed <= now.elapsed) {
            self.stop_told = true;
            if let Some(until) = self.any_right(now) {
                self.actions.push_back(Action::Warn(Warning::WritesStopIn(until.since(now))));
            }
        }
    }

    /// What to do next; call it until it says `None`. A renewal's send time is `now`: the caller reads its clock for this call,
    /// before the request enters any queue.
    pub fn poll_action(&mut self, now: BootTime) -> Option<Action> {
        self.handle_timeout(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.ended.is_some() {
            return None;
        }
        // Timers stand still in suspend: waking up is a reason to renew at once.
        let woke = self.newest_sent.is_some_and(|sent| now.suspended_since(sent));
        if !woke && now.elapsed < self.next_send.elapsed {
            return None;
        }
        self.next_send = now.after(self.ttl.renewal_interval());
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            if !woke {
                return None;
            }
            self.in_flight.pop_first();
        }
        let all_is_well = self.last.as_ref().is_some_and(|last| last.number + 1 == self.next_number);
        let can_wait = !std::mem::take(&mut self.hurry) && !woke && all_is_well;
        let number = self.next_number;
        self.next_number += 1;
        self.newest_sent = Some(now);
        self.in_flight.insert(number, InFlight { sent: now, named: self.nonce });
        let nonce = self.nonce.map_or(0, |nonce| nonce.value);
        let (session, incarnation) = (self.session.clone(), self.incarnation);
        Some(Action::Renew(Renewal { session, incarnation, number, nonce, can_wait }))
    }

    /// An answer has come. It counts only for the request that it names, and only once.
    pub fn handle_answer(&mut self, answer: Answered, now: BootTime) {
        let Some(request) = self.in_flight.remove(&answer.number) else { return };
        if self.ended.is_some() {
            return;
        }
        if !answer.alive {
            self.ended = Some(answer.why_not);
            self.listed.clear();
            self.in_flight.clear();
            self.actions.clear();
            return;
        }
        let round_trip = now.since(request.sent);
        if self.round_trips.len() == ROUND_TRIPS_KEPT {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(round_trip);
        self.compare_clocks(&request, round_trip, answer.server_elapsed, now);
        // Only an answer to a request that named the nonce we have now brings the next one: the server made it later than that.
        // So what we name never goes back in the server's order, however answers overtake each other; it would look like a copy.
        if request.named == self.nonce {
            self.nonce = Some(Nonce { value: answer.nonce, sent: request.sent, round_trip });
        }
        // Somebody renews this session with higher numbers, since longer than a TTL: the next renewal will show who.
        if answer.given_up {
            self.retry_soon(now);
            return;
        }
        // An older answer never overrides a newer one: what it lists may be over, and its right ends sooner anyway.
        if self.last.as_ref().is_some_and(|last| last.number > answer.number) {
            return;
        }
        if self.late_told {
            let after = now.since(self.late_since());
            self.actions.push_back(Action::Warn(Warning::Back { after }));
        }
        (self.late_told, self.stop_told) = (false, false);
        self.ttl = answer.ttl;
        self.next_send = self.next_send.min(request.sent.after(answer.ttl.renewal_interval()));
        self.listed = answer.pairs.into_iter().map(|pair| (pair.tree.clone(), pair)).collect();
        self.granted.retain(|_, (_, from)| *from > answer.number);
        self.last = Some(Acked { number: answer.number, sent: request.sent, ttl: answer.ttl });
    }

    /// A renewal got no answer and will get none.
    pub fn handle_failure(&mut self, number: u64, now: BootTime) {
        if self.in_flight.remove(&number).is_some() {
            self.retry_soon(now);
        }
    }

    /// While a right may live, each try counts. When that is over nothing is lost by asking no more often than when all is well: a
    /// server that is away for hours costs an idle machine nothing.
    fn retry_soon(&mut self, now: BootTime) {
        let interval = self.ttl.renewal_interval();
        let in_a_hurry = now.since(self.late_since()) < self.ttl.get();
        let retry = if in_a_hurry { (interval / 4).max(LEAST_RETRY) } else { interval };
        self.hurry |= in_a_hurry;
        if self.next_send.elapsed > now.after(retry).elapsed {
            self.next_send = now.after(retry);
        }
    }

    /// When to look again; `None` once the session has ended.
    pub fn next_deadline(&self) -> Option<BootTime> {
        if self.ended.is_some() {
            return None;
        }
        if !self.actions.is_empty() {
            return Some(self.started);
        }
        let mut next = self.next_send;
        if !self.late_told {
            next = next.min(self.late_since().after(self.ttl.renewal_interval() * 2));
        }
        Some(self.stop_warning_at().map_or(next, |at| next.min(at)))
    }

    /// The server's time between two requests, against ours. What may differ: drift, the way there (at most a round trip) and
    /// what scheduling adds. More than that, and one of the clocks stood still: a virtual machine was paused or cloned.
    fn compare_clocks(&mut self, request: &InFlight, round_trip: Duration, server: Option<Duration>, now: BootTime) {
        let (Some(base), Some(server)) = (request.named, server) else { return };
        // A suspend that shows has closed the gate already, and its length is not trusted for a comparison either.
        if now.suspended_since(base.sent) {
            return;
        }
        let own = request.sent.since(base.sent);
        let drift = own.max(server) * DRIFT_PERMILLE / 1000;
        if own.abs_diff(server) > drift + round_trip.max(base.round_trip) + CLOCK_SLACK {
            self.distrust = Some(now);
            self.renew_now(now);
            self.actions.push_back(Action::ClockDisagrees { own, server });
        }
    }

    /// From when lateness counts.
    fn late_since(&self) -> BootTime {
        self.last.as_ref().map_or(self.started, |last| last.sent)
    }

    /// The right that all listed pairs share, if there is any.
    fn any_right(&self, now: BootTime) -> Option<BootTime> {
        self.listed.values().find_map(|pair| self.right(&pair.tree, pair.epoch, now))
    }

    /// When to say that writes stop soon; `None` if there is nothing to say, or it has been said.
    fn stop_warning_at(&self) -> Option<BootTime> {
        let last = self.last.as_ref().filter(|_| self.late_told && !self.stop_told && !self.listed.is_empty())?;
        let until = write_until(last.sent, last.ttl);
        let before = WARN_BEFORE.min(last.ttl.get() / 3);
        Some(BootTime { elapsed: until.elapsed.saturating_sub(before), ..until })
    }
}
