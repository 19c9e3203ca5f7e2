//! What a node does while it leads: begin a leadership, keep the timers, propose what is due.
//!
//! Promises (I3): a leadership begins with a `Lead` entry of this node, committed and applied here, also after a restart in
//! the same term; its index is the number that every expiry carries, so that what was decided under an earlier one is
//! ignored. All timers start in full when that entry is applied. What is due is proposed, never forwarded. When the outcome
//! of an expiry is not known in time, this node begins a new leadership, which voids it (I5): its entry stands in the log
//! before or after the new `Lead`; before, it counted; after, its number is not the current one. A late tick only makes
//! timers late, which is the safe direction. Fence agents are run by the leader too, and their ends proposed as its own word
//! (`fencing`). It decides nothing about leases: that is `expiry` and `lease`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use treelease_proto::clock::Clock;
use treelease_proto::command::{Answer, Command, Leadership};

use crate::consensus::Consensus;
use crate::expiry::{TICK, Timers};
use crate::fault::{Fault, Faults};
use crate::fencing::Fences;
use crate::fencing::runner::Runner;
use crate::telemetry::Telemetry;

/// How long the outcome of an expiry may stay unknown before a new leadership voids it.
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);
/// How long a `Lead` may take before it is proposed again.
const LEAD_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a `Lead` that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Expiries on their way at the same time; the others wait here.
const IN_FLIGHT_MAX: usize = 256;

/// The leader's timers, shared with those who answer renewals. Lock order: the state first, then these.
pub struct Seat {
    timers: Mutex<Timers>,
    turned: watch::Sender<u64>,
}

impl Seat {
    /// Nobody leads yet.
    pub fn new() -> Self {
        Self { timers: Mutex::new(Timers::new()), turned: watch::channel(0).0 }
    }
    /// The timers. Held briefly, never across a wait.
    pub fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().expect("nothing panics while it holds the timers")
    }
    /// Changes when a leadership begins or ends, or a doom has had its outcome.
    pub fn turned(&self) -> watch::Receiver<u64> {
        self.turned.subscribe()
    }
    fn turn(&self) {
        self.turned.send_modify(|n| *n += 1);
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self::new()
    }
}

/// The task that leads when this node is the leader.
pub struct Leader {
    /// The agreement.
    pub consensus: Arc<Consensus>,
    /// The timers.
    pub seat: Arc<Seat>,
    /// A server's clock.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub counts: Arc<Telemetry>,
    /// Fence agents.
    pub runner: Arc<Runner>,
    /// Rules that are left out.
    pub faults: Faults,
}

impl Leader {
    /// Leads whenever this node is the leader, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.one_leadership() => {}
            }
            self.stand_down();
        }
        self.stand_down();
    }

    fn stand_down(&self) {
        if !self.faults.has(Fault::TimersGoOn) {
            self.seat.timers().demote();
        }
        self.seat.turn();
    }

    /// From the wait for the lead to its end.
    async fn one_leadership(&self) {
        self.until_leader().await;
        let Some(leadership) = self.begin().await else {
            sleep(RETRY).await;
            return;
        };
        tracing::info!(node = self.consensus.node(), leadership = leadership.0, "leading");
        let why = self.keep(leadership).await;
        tracing::info!(node = self.consensus.node(), leadership = leadership.0, why, "this leadership has ended");
    }

    async fn until_leader(&self) {
        while !self.consensus.leads() {
            if self.faults.has(Fault::TimersGoOn) {
                self.keep_idle_timers();
            }
            // The age of the quorum's last answer changes without a change of standing: look again after a while.
            tokio::select! {
                () = self.consensus.standing_changed() => {}
                () = sleep(TICK) => {}
            }
        }
    }

    /// A control's: the timers of a node that does not lead, which hear of no renewal.
    fn keep_idle_timers(&self) {
        let (state, now) = (self.consensus.state(), self.clock.now());
        let mut timers = self.seat.timers();
        if timers.leading().is_none() {
            timers.promote(&state, Leadership::default(), now);
        }
        timers.go_on(Leadership::default());
        timers.follow(&state, now);
        timers.tick(now);
    }

    /// A committed `Lead` of our own, and all timers from the start.
    async fn begin(&self) -> Option<Leadership> {
        let node = self.consensus.node();
        match self.consensus.propose_own(Command::Lead { node }, self.clock.wall(), LEAD_LIMIT).await {
            Ok(Answer::Done) => {}
            // A control's: the term has not changed, so its number has not.
            Ok(Answer::Ignored { .. }) if self.faults.has(Fault::TermsForLeaderships) => {}
            Ok(other) => {
                tracing::error!(?other, "the state refused to let this node lead");
                return None;
            }
            Err(e) => {
                tracing::warn!("this node could not begin to lead: {e}");
                return None;
            }
        }
        let state = self.consensus.state();
        // It may be a later `Lead` of ours than the one just answered; then its number is the right one.
        let leadership = state.leadership().filter(|(_, who)| *who == node)?.0;
        if self.faults.has(Fault::TimersGoOn) {
            self.seat.timers().go_on(leadership);
        } else {
            self.seat.timers().promote(&state, leadership, self.clock.now());
        }
        drop(state);
        self.seat.turn();
        Some(leadership)
    }

    /// Keeps the timers until this leadership ends, and says why it did.
    async fn keep(&self, leadership: Leadership) -> &'static str {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: VecDeque<Command> = self.longer_ttl().into_iter().collect();
        let mut in_flight = FuturesUnordered::new();
        let mut fences = Fences::begin(&self.runner, leadership, &self.consensus.state());
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if !self.consensus.leads() {
                        return "this node does not lead any more";
                    }
                    match self.due(leadership) {
                        Some(due) => waiting.extend(due),
                        None => return "another leadership has begun",
                    }
                    waiting.extend(fences.due(&self.consensus.state(), self.clock.now()));
                }
                Some(ended) = fences.next() => waiting.push_back(ended),
                Some((command, outcome)) = in_flight.next() => {
                    match outcome {
                        Ok(answer) => {
                            fences.answered(&command, &answer, self.clock.now());
                            self.settle(&command, &answer);
                        }
                        Err(e) => {
                            tracing::warn!("the outcome of an expiry is not known: {e}");
                            return "the outcome of an expiry is not known";
                        }
                    }
                }
            }
            while in_flight.len() < IN_FLIGHT_MAX {
                let Some(command) = waiting.pop_front() else { break };
                in_flight.push(self.propose(command));
            }
        }
    }

    /// More nodes than there were, or a slower pace: no failover may be the end of a session (I3). Never shorter by itself: the
    /// others may still run at the slower pace.
    fn longer_ttl(&self) -> Option<Command> {
        let least = self.consensus.least_ttl(self.consensus.members().voters().len());
        let state = self.consensus.state();
        (state.cluster().is_some() && state.limits().0 < least).then_some(Command::RaiseTtl { ttl_min: least })
    }

    async fn propose(&self, command: Command) -> (Command, Result<Answer, crate::consensus::proposer::ProposeError>) {
        let outcome = self.consensus.propose_own(command.clone(), self.clock.wall(), OUTCOME_LIMIT).await;
        (command, outcome)
    }

    /// What is due now; `None` if the last `Lead` is not the one of this leadership.
    fn due(&self, leadership: Leadership) -> Option<Vec<Command>> {
        let state = self.consensus.state();
        if state.leadership() != Some((leadership, self.consensus.node())) {
            return None;
        }
        let mut timers = self.seat.timers();
        let now = self.clock.now();
        timers.follow(&state, now);
        Some(timers.due(now))
    }

    /// An expiry has had its outcome: whoever waits for it looks again.
    fn settle(&self, command: &Command, answer: &Answer) {
        match (command, answer) {
            (Command::ExpireSession { session, .. }, Answer::Done) => {
                self.counts.expired.add();
                tracing::info!(%session, "session expired");
                self.seat.timers().ended(session);
            }
            (Command::EndGrace { tree, epoch, .. }, Answer::Done) => {
                self.counts.graces.add();
                tracing::info!(%tree, %epoch, "grace ended");
            }
            // It was applied and did nothing. If what it named is gone, the next tick forgets it; else it is due again.
            (Command::ExpireSession { session, .. }, _) => self.seat.timers().undoom(session),
            (Command::EndGrace { tree, .. }, _) => self.seat.timers().ungrace(tree),
            (Command::SettleTtl { session, .. }, answer) if *answer != Answer::Done => self.seat.timers().unsettle(session),
            _ => {}
        }
        self.seat.turn();
    }
}
