//! Giving the lease up: by request, because somebody asks, or because nothing goes on here and somebody waits.
//!
//! The order of the steps is [`crate::handoff`]'s; this file says when they begin and what their end means for the tree.

use std::time::Duration;

use treelease_client::words::command::Answer;
use treelease_client::words::id::SideName;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;

use super::{Effect, Phase, TreeSide};
use crate::handoff::{Answered, DRAIN_LIMIT, Handoff, Limits, Moment, Outcome, Step, Why};

/// How long `down` waits for a good moment at most: a pod's or a machine's end does not wait longer.
pub const DOWN_WAIT: Duration = Duration::from_secs(5);
/// After a declined or a taken-back handoff nobody is given way to for so long.
pub const DECLINE_PAUSE: Duration = Duration::from_secs(1);

/// Why a lease is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndRequest {
    /// `treelease release`.
    Release {
        /// Without waiting for a good moment.
        now: bool,
    },
    /// `treelease handoff --to`.
    To {
        /// Whom.
        side: SideName,
        /// Past what is busy.
        force: bool,
    },
    /// Somebody asked.
    Asked,
    /// Somebody waits, and nothing goes on here.
    Idle,
    /// The daemon ends.
    Down,
}

/// What the closing gate still lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateStage {
    /// Everything.
    Open,
    /// Page-cache writes only.
    Closing,
    /// Nothing.
    Closed,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndResult {
    /// Clean.
    Released {
        /// Files made durable.
        files: u64,
        /// Bytes written under this lease.
        bytes: u64,
        /// The side that it was meant for could not be granted, and why.
        not_to: Option<String>,
    },
    /// The lease stays here.
    Kept(Refusal),
    /// Unclean.
    Surrendered(String),
}

impl TreeSide {
    /// Begins to give the lease up. Not held here: the result says so at once.
    pub fn begin_end(&mut self, request: EndRequest, now: BootTime) {
        if !matches!(self.phase, Phase::Open { .. }) {
            let refusal = Refusal::new(Code::Busy, format!("\"{}\" is not held by {}", self.name, self.me));
            self.effects.push_back(Effect::EndResult(EndResult::Kept(refusal)));
            return;
        }
        if !self.awake_for_end(&request, now) {
            return;
        }
        let Phase::Open { grant, opened } = &self.phase else { return };
        let why = match &request {
            EndRequest::Release { now } => Why::Release { now: *now },
            EndRequest::To { side, force } => Why::To { to: side.clone(), force: *force },
            EndRequest::Asked => Why::Asked { force: false },
            EndRequest::Idle => Why::Idle,
            EndRequest::Down => Why::Down,
        };
        let limits = Limits {
            quiet: self.policy.quiet,
            handoff_wait: if request == EndRequest::Down {
                self.policy.handoff_wait.min(DOWN_WAIT)
            } else {
                self.policy.handoff_wait
            },
            flush_limit: self.policy.flush_limit,
            drain: DRAIN_LIMIT,
        };
        let (grant, opened) = (grant.clone(), *opened);
        let handoff = Box::new(Handoff::begin(why, limits, now));
        self.effects.push_back(Effect::EndProgress(handoff.describe()));
        self.end_no += 1;
        self.phase = Phase::Ending { grant, opened, stage: GateStage::Open, handoff };
        self.drive_ending(now);
    }

    /// Whether an end is under way.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. }) || self.end_when_awake.is_some()
    }

    /// The number of the end that is under way, or was last: what is done for it comes back with it.
    pub fn end_no(&self) -> u64 {
        self.end_no
    }

    /// Feeds the handoff, then does what it says next. What was done for an earlier end (`no`) counts for nothing: a flush of
    /// another lease says nothing about what was written under this one (I2).
    pub fn feed_ending(&mut self, no: u64, feed: impl FnOnce(&mut Handoff, BootTime), now: BootTime) {
        if no != self.end_no {
            return;
        }
        if let Phase::Ending { handoff, .. } = &mut self.phase {
            feed(handoff, now);
            self.drive_ending(now);
        }
    }

    /// What goes on here, for the look at whether this is a good moment; `unfinished` comes from the mount.
    pub fn moment(&self, unfinished: Vec<String>) -> Moment {
        Moment { run_holds: self.run_holds(), unfinished, last_mutation: self.last_mutation }
    }

    /// When a mutation last went through here.
    pub fn note_mutation(&mut self, at: Option<BootTime>) {
        self.last_mutation = at.max(self.last_mutation);
    }

    pub(super) fn timeout_ending(&mut self, now: BootTime) {
        if let Phase::Ending { handoff, .. } = &mut self.phase {
            handoff.handle_timeout(now);
            self.drive_ending(now);
        }
    }

    fn drive_ending(&mut self, now: BootTime) {
        loop {
            let Phase::Ending { grant, stage, handoff, .. } = &mut self.phase else { return };
            let Some(step) = handoff.poll_step() else { return };
            match &step {
                Step::CloseStageOne => *stage = GateStage::Closing,
                Step::CloseStageTwo(_) | Step::Surrender { .. } => *stage = GateStage::Closed,
                Step::Reopen => *stage = GateStage::Open,
                _ => {}
            }
            let epoch = grant.epoch;
            if matches!(step, Step::CloseStageOne | Step::CloseStageTwo(_)) && !self.mounted {
                self.lose_holds("the lease is being handed over", false);
            }
            match step {
                // Commands in the place of permits. If they do not end within `flush_limit`, the handoff surrenders.
                Step::CloseStageTwo(_) if self.may_still_write() => {
                    self.drain_owed = Some(self.end_no);
                    self.change_kind();
                    let waits = "waiting for the commands under the lease to end";
                    self.effects.push_back(Effect::EndProgress(waits.into()));
                }
                Step::CloseStageOne | Step::Reopen => self.change_kind(),
                Step::Done => {
                    let Phase::Ending { handoff, .. } = &self.phase else { return };
                    let outcome = handoff.outcome().cloned().unwrap_or(Outcome::Cancelled);
                    return self.finish_ending(outcome, now);
                }
                step => {
                    if matches!(step, Step::CloseStageTwo(_) | Step::Surrender { .. }) {
                        self.change_kind();
                    }
                    if matches!(step, Step::Release { .. } | Step::Surrender { .. }) {
                        // From here on the gate never opens under this epoch again, whatever the answer.
                        self.closed_upto = self.closed_upto.max(epoch);
                    }
                    if let Phase::Ending { handoff, .. } = &self.phase {
                        self.effects.push_back(Effect::EndProgress(handoff.describe()));
                    }
                    self.effects.push_back(Effect::Step(step));
                }
            }
        }
    }

    fn finish_ending(&mut self, outcome: Outcome, now: BootTime) {
        let kept = match &outcome {
            Outcome::Declined { busy } => Some(format!("\"{}\" is busy: {}", self.name, busy.join(", "))),
            Outcome::Cancelled => Some(format!("the handoff of \"{}\" was taken back", self.name)),
            _ => None,
        };
        if let Some(why) = kept {
            let Phase::Ending { grant, opened, .. } = &self.phase else { return };
            let (grant, opened) = (grant.clone(), *opened);
            self.declined_until = Some(now.after(DECLINE_PAUSE));
            self.phase = Phase::Open { grant, opened };
            if self.lock_is_loose() {
                self.demand_active();
            }
            self.change_kind();
            self.effects.push_back(Effect::EndResult(EndResult::Kept(Refusal::new(Code::Busy, why))));
            if self.right_lives(now) {
                self.grant_pending_holds();
            }
            return;
        }
        self.right = None;
        self.lock_gone();
        self.set_phase(Phase::Reader);
        self.effects.push_back(Effect::RefuseWaiters);
        self.effects.push_back(Effect::DropCaches);
        let (result, lost) = match outcome {
            Outcome::Released { files, bytes, not_to } => {
                (EndResult::Released { files, bytes, not_to }, "the lease was handed over".into())
            }
            Outcome::Surrendered { why } | Outcome::Gone { why } => (EndResult::Surrendered(why.clone()), why),
            Outcome::Declined { .. } | Outcome::Cancelled => return,
        };
        self.effects.push_back(Effect::EndResult(result));
        self.lose_holds(&lost, true);
        self.pump(now);
    }

    /// The servers' answer to a release or a surrender; `Err`: nobody knows, and the handoff asks again with the same key.
    pub fn handle_end_answer(&mut self, no: u64, answer: Result<Answer, String>, now: BootTime) {
        let answered = match answer {
            Ok(Answer::Done) => Answered::Done,
            // Not current: it had ended otherwise (broken), so nothing was released clean.
            Ok(Answer::Ignored { why }) => Answered::Refused(why),
            Ok(Answer::Refused(refusal)) => Answered::Refused(refusal.message),
            Ok(other) => Answered::Refused(format!("unexpected answer: {other:?}")),
            Err(_) => Answered::Unknown,
        };
        self.feed_ending(no, |handoff, now| handoff.handle_released(answered, now), now);
    }

    pub(super) fn fail_ending(&mut self, why: &str) {
        let was_ending = self.is_ending();
        self.end_when_awake = None;
        if was_ending {
            self.effects.push_back(Effect::EndResult(EndResult::Surrendered(why.to_owned())));
        }
    }

    /// Hands over if somebody waits and this is the time: when asked, or when nothing has gone on here for `idle`.
    pub(super) fn give_way(&mut self, now: BootTime) {
        let Phase::Open { opened, .. } = &self.phase else { return };
        if self.down && self.end_when_awake.is_none() {
            return self.begin_end(EndRequest::Down, now);
        }
        if !self.right_lives(now) || now.since(*opened) < self.policy.min_hold || self.end_when_awake.is_some() {
            return;
        }
        // Also for who only waits: what was in the way of an idle tree's handoff (an flock held for hours) is there still, and a
        // look each time that anything is looked at would keep the tree from ever coming to rest.
        if self.declined_until.is_some_and(|until| now < until) {
            return;
        }
        let asked = self.others().any(|w| w.asked);
        let anybody = self.others().next().is_some();
        if asked {
            self.declined_until = None;
            self.begin_end(EndRequest::Asked, now);
        } else if anybody
            && self.holds.is_empty()
            && now.since(self.last_mutation.unwrap_or(*opened).max(*opened)) >= self.policy.idle
        {
            self.begin_end(EndRequest::Idle, now);
        }
    }

    /// Whether it is worth looking soon whether to give way.
    pub fn somebody_waits(&self) -> bool {
        matches!(self.phase, Phase::Open { .. }) && self.others().next().is_some()
    }
}
