//! The end of one tree's lease, step by step (DESIGN 5): wait for a good moment, push, close, flush, release.
//!
//! Pure: the daemon feeds in what happened and does what [`Handoff::poll_step`] says. It promises, and its tests walk random
//! inputs for it:
//!
//! - A release is asked for only after the gate was closed, every permit had ended and the flush had returned 0: the server's
//!   "clean" is true (I2).
//! - Once a release or a surrender has left the daemon, [`Step::Reopen`] never comes, whatever the answer (DESIGN 3): coming
//!   back needs a new grant.
//! - The first flush error, and a flush that takes too long, end in [`Step::Surrender`]: the kernel reports such an error once,
//!   so nothing that comes later may call the epoch clean.
//! - Every step has a limit, and [`Handoff::describe`] says to the person who waits which one is under way.
//!
//! | step | the daemon does | and answers with |
//! |---|---|---|
//! | [`Step::LookForMoment`] | looks for run holds, unfinished work, the last mutation | [`Handoff::handle_moment`] |
//! | [`Step::PushMapped`], [`Step::PushAgain`] | pushes mapped pages | [`Handoff::handle_pushed`] |
//! | [`Step::CloseStageOne`] | publishes the closing standing | nothing: the next step follows at once |
//! | [`Step::CloseStageTwo`] | publishes the closed standing, waits for permits | [`Handoff::handle_drained`] |
//! | [`Step::Flush`] | makes everything of the epoch durable | [`Handoff::handle_flushed`] |
//! | [`Step::Release`], [`Step::Surrender`] | lets go of the locks, sends the command | [`Handoff::handle_released`] |
//! | [`Step::Decline`], [`Step::Reopen`] | says so; publishes the open standing | nothing |
//!
//! It does not know what a gate, a file or a server is.

use std::time::Duration;

use treelease_client::words::id::SideName;
use treelease_client::words::time::{BootTime, format_duration};

pub mod moment;
mod step;
#[cfg(test)]
mod tests;

pub use moment::Moment;
use moment::Verdict;
pub use step::{Answered, Limits, Outcome, Step, Why};

/// How long one wait for permits in flight takes before the daemon looks again; after `flush_limit` the tree is surrendered.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long pushing mapped pages may take: what is not down by then is refused, counted and named once the gate is shut.
pub const PUSH_LIMIT: Duration = Duration::from_secs(5);
/// How often a busy tree is looked at again.
pub const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// First pause before a release with an unknown outcome is asked again; doubled up to [`ASK_AGAIN_MAX`].
pub const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// Longest such pause. It is asked until it is answered, or the session has ended: the gate stays shut meanwhile.
pub const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// Where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    /// Waiting for a good moment; `look_at`: when to look again, `None` while a look is under way.
    Waiting { look_at: Option<BootTime> },
    /// Pushing with the gate open.
    Pushing { until: BootTime },
    /// Pushed: is the moment still good?
    LookingOnceMore { until: BootTime },
    /// Stage one is published; pushing again.
    PushingAgain { until: BootTime },
    /// Stage two is published; permits are ending.
    Draining { until: BootTime },
    /// Flushing.
    Flushing { until: BootTime },
    /// A release or a surrender has left; `again_at`: when it is asked again, `None` while an answer is awaited.
    Letting { again_at: Option<BootTime> },
    /// Over.
    Over,
}

/// One tree's end of lease under way.
#[derive(Debug, Clone)]
pub struct Handoff {
    why: Why,
    limits: Limits,
    /// When the wait for a good moment ends.
    moment_limit: BootTime,
    /// Since when nothing but plain writes was in the way.
    only_writes_since: Option<BootTime>,
    /// What the last look found.
    busy: Vec<String>,
    at: At,
    /// Steps that the daemon has not taken yet, in order.
    steps: std::collections::VecDeque<Step>,
    /// Pushes given up on whose answer is still to come: it must not count for the next one.
    pushes_owed: u32,
    /// The daemon may have closed the gate.
    closed: bool,
    /// The wish was taken back while the flush was running.
    cancelled: bool,
    flushed: (u64, u64),
    /// What has left the daemon: a release (with whom it was for) or a surrender.
    letting: Option<Step>,
    request: u32,
    pause: Duration,
    not_to: Option<String>,
    outcome: Option<Outcome>,
}

impl Handoff {
    /// Begins. The first step is there at once.
    pub fn begin(why: Why, limits: Limits, now: BootTime) -> Self {
        let mut this = Self {
            moment_limit: now.after(limits.handoff_wait),
            only_writes_since: None,
            busy: Vec::new(),
            at: At::Waiting { look_at: None },
            steps: std::collections::VecDeque::new(),
            pushes_owed: 0,
            closed: false,
            cancelled: false,
            flushed: (0, 0),
            letting: None,
            request: 0,
            pause: ASK_AGAIN_MIN,
            not_to: None,
            outcome: None,
            why,
            limits,
        };
        if this.why == (Why::Release { now: true }) {
            this.push(now);
        } else {
            this.steps.push_back(Step::LookForMoment);
        }
        this
    }

    /// What the daemon is to do next. Each step comes once; `None`: wait for an answer or for [`Self::next_deadline`].
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn next_deadline(&self) -> Option<BootTime> {
        match &self.at {
            At::Waiting { look_at } => Some(look_at.map_or(self.moment_limit, |at| at.min(self.moment_limit))),
            At::Pushing { until }
            | At::LookingOnceMore { until }
            | At::PushingAgain { until }
            | At::Draining { until }
            | At::Flushing { until } => Some(*until),
            At::Letting { again_at } => *again_at,
            At::Over => None,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Why it began.
    pub fn why(&self) -> &Why {
        &self.why
    }

    /// Whether the gate may ever open again under this epoch: no release or surrender was sent.
    pub fn may_reopen(&self) -> bool {
        self.letting.is_none() && !matches!(self.outcome, Some(Outcome::Gone { .. }))
    }

    /// What is going on, for the person who waits.
    pub fn describe(&self) -> String {
        match &self.at {
            At::Waiting { .. } | At::LookingOnceMore { .. } if self.busy.is_empty() => "looking for a good moment".into(),
            At::Waiting { .. } | At::LookingOnceMore { .. } => format!("waiting for {}", self.busy.join(", ")),
            At::Pushing { .. } => "pushing mapped pages to the storage".into(),
            At::PushingAgain { .. } => "closing the gate".into(),
            At::Draining { .. } => "waiting for writes in flight".into(),
            At::Flushing { .. } => {
                format!("flushing to the storage, at most {}", format_duration(self.limits.flush_limit))
            }
            At::Letting { .. } => match self.letting {
                Some(Step::Surrender { .. }) => "surrendering the tree".into(),
                _ => "releasing at the server".into(),
            },
            At::Over => match self.outcome.as_ref().expect("an outcome is set before it is over") {
                Outcome::Released { files, bytes, .. } => format!("released clean: {files} files, {bytes} bytes flushed"),
                Outcome::Surrendered { why } => format!("surrendered, unclean: {why}"),
                Outcome::Declined { busy } => format!("not now: {}", busy.join(", ")),
                Outcome::Cancelled => "taken back: the lease stays here".into(),
                Outcome::Gone { why } => format!("the lease is gone: {why}"),
            },
        }
    }

    /// What a look found.
    pub fn handle_moment(&mut self, moment: Moment, now: BootTime) {
        if !matches!(self.at, At::Waiting { .. } | At::LookingOnceMore { .. }) {
            return;
        }
        let once_more = matches!(self.at, At::LookingOnceMore { .. });
        self.busy = moment.busy();
        if self.busy.is_empty() {
            self.only_writes_since.get_or_insert(now);
        } else {
            self.only_writes_since = None;
        }
        match moment.judge(self.limits.quiet, self.only_writes_since, now) {
            // What was written since the push goes down in stage one: quiet is asked for once.
            Verdict::Good | Verdict::NotQuiet { .. } if once_more => self.close(now),
            Verdict::Good => self.push(now),
            Verdict::Busy if self.why == Why::Idle => self.end(Outcome::Declined { busy: self.busy.clone() }),
            Verdict::NotQuiet { .. } if self.why == Why::Idle => {
                self.end(Outcome::Declined { busy: vec!["plain writes".into()] });
            }
            Verdict::NotQuiet { good_at } => self.at = At::Waiting { look_at: Some(good_at) },
            Verdict::Busy => self.at = At::Waiting { look_at: Some(now.after(LOOK_AGAIN)) },
        }
        self.handle_timeout(now);
    }

    /// A push has ended, well or badly: what is still dirty is refused later, counted and named.
    pub fn handle_pushed(&mut self, now: BootTime) {
        if self.pushes_owed > 0 {
            self.pushes_owed -= 1;
            return;
        }
        match self.at {
            At::Pushing { .. } => self.pushed(now),
            At::PushingAgain { .. } => self.close_for_all(now),
            _ => {}
        }
    }

    /// The wait for permits has ended; `true`: none is left.
    pub fn handle_drained(&mut self, drained: bool, now: BootTime) {
        let At::Draining { until } = self.at else { return };
        if drained {
            self.steps.push_back(Step::Flush);
            self.at = At::Flushing { until };
        } else if now >= until {
            self.handle_timeout(now);
        } else {
            let left = until.since(now);
            self.steps.push_back(Step::CloseStageTwo(self.limits.drain.min(left)));
        }
    }

    /// The flush has returned: files and bytes, or the first error.
    pub fn handle_flushed(&mut self, flushed: Result<(u64, u64), String>, _now: BootTime) {
        if !matches!(self.at, At::Flushing { .. }) {
            return;
        }
        match flushed {
            Err(why) => self.surrender(format!("the flush failed: {why}")),
            Ok(_) if self.cancelled => self.reopen(),
            Ok(flushed) => {
                self.flushed = flushed;
                let to = if let Why::To { to, .. } = &self.why { Some(to.clone()) } else { None };
                self.release(to);
            }
        }
    }

    /// The server's answer to a release or a surrender.
    pub fn handle_released(&mut self, answered: Answered, now: BootTime) {
        if !matches!(self.at, At::Letting { again_at: None }) {
            return;
        }
        match (answered, self.letting.clone().expect("set when it left")) {
            (Answered::Done, Step::Surrender { why, .. }) => self.end(Outcome::Surrendered { why }),
            (Answered::Done, _) => {
                let (files, bytes) = self.flushed;
                let not_to = self.not_to.take();
                self.end(Outcome::Released { files, bytes, not_to });
            }
            (Answered::Unknown, _) => {
                self.at = At::Letting { again_at: Some(now.after(self.pause)) };
                self.pause = (self.pause * 2).min(ASK_AGAIN_MAX);
            }
            // The side that was named has no session. The gate stays shut under this epoch, so nobody is served by keeping
            // the lease: it is released for whoever waits.
            (Answered::Refused(why), Step::Release { to: Some(_), .. }) => {
                self.not_to = Some(why);
                self.release(None);
            }
            (Answered::Refused(why), _) => self.end(Outcome::Gone { why }),
        }
    }

    /// The lease ended otherwise: it expired, was broken, or the session ended. The gate stays shut.
    pub fn handle_gone(&mut self, why: impl Into<String>, _now: BootTime) {
        if self.at != At::Over {
            self.end(Outcome::Gone { why: why.into() });
        }
    }

    /// The wish is taken back. Does nothing once a release or a surrender was sent.
    pub fn handle_cancelled(&mut self, _now: BootTime) {
        match self.at {
            At::Over | At::Letting { .. } => {}
            // Its error, if there is one, is reported once: it has to be heard before anything reopens.
            At::Flushing { .. } => self.cancelled = true,
            _ => self.reopen(),
        }
    }

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: BootTime) {
        if self.next_deadline().is_none_or(|at| now < at) {
            return;
        }
        match self.at {
            At::Waiting { look_at } if now >= self.moment_limit => self.at_the_moment_limit(look_at.is_none(), now),
            At::Waiting { .. } => {
                self.at = At::Waiting { look_at: None };
                self.steps.push_back(Step::LookForMoment);
            }
            At::Pushing { .. } => {
                self.pushes_owed += 1;
                self.pushed(now);
            }
            At::LookingOnceMore { .. } => self.at_the_moment_limit(true, now),
            At::PushingAgain { .. } => {
                self.pushes_owed += 1;
                self.close_for_all(now);
            }
            At::Draining { .. } => {
                let limit = format_duration(self.limits.flush_limit);
                self.surrender(format!("writes in flight did not end within {limit} (flush_limit)"));
            }
            At::Flushing { .. } => {
                let limit = format_duration(self.limits.flush_limit);
                self.surrender(format!("the flush took longer than {limit} (flush_limit)"));
            }
            At::Letting { .. } => {
                self.steps.push_back(self.letting.clone().expect("set when it left"));
                self.at = At::Letting { again_at: None };
            }
            At::Over => {}
        }
    }

    fn at_the_moment_limit(&mut self, still_looking: bool, now: BootTime) {
        self.steps.retain(|s| *s != Step::LookForMoment);
        let only_writes = !still_looking && self.busy.is_empty() && self.only_writes_since.is_some();
        if self.why.goes_on_at_the_limit() || only_writes {
            match self.at {
                At::LookingOnceMore { .. } => self.close(now),
                _ => self.push(now),
            }
            return;
        }
        if still_looking && self.busy.is_empty() {
            self.busy.push("the look at locks and unfinished work, which does not return (does the storage hang?)".into());
        }
        let busy = self.busy.clone();
        if self.why != Why::Idle {
            self.steps.push_back(Step::Decline { busy: busy.clone() });
        }
        self.end(Outcome::Declined { busy });
    }

    fn push(&mut self, now: BootTime) {
        self.steps.push_back(Step::PushMapped);
        self.at = At::Pushing { until: now.after(PUSH_LIMIT) };
    }

    /// After the push a transaction may have begun: it is better waited for than cut off, within the same limit.
    fn pushed(&mut self, now: BootTime) {
        self.steps.retain(|s| *s != Step::PushMapped);
        if self.why == (Why::Release { now: true }) || now >= self.moment_limit {
            return self.close(now);
        }
        self.steps.push_back(Step::LookForMoment);
        self.at = At::LookingOnceMore { until: self.moment_limit };
    }

    fn close(&mut self, now: BootTime) {
        self.closed = true;
        self.steps.extend([Step::CloseStageOne, Step::PushAgain]);
        self.at = At::PushingAgain { until: now.after(PUSH_LIMIT) };
    }

    fn close_for_all(&mut self, now: BootTime) {
        // A daemon slower than the limit has not published stage one yet: stage two includes it.
        self.steps.retain(|s| *s != Step::PushAgain && *s != Step::CloseStageOne);
        self.steps.push_back(Step::CloseStageTwo(self.limits.drain.min(self.limits.flush_limit)));
        self.at = At::Draining { until: now.after(self.limits.flush_limit) };
    }

    fn release(&mut self, to: Option<SideName>) {
        self.request += 1;
        let (files, bytes) = self.flushed;
        self.let_go(Step::Release { files, bytes, to, request: self.request });
    }

    fn surrender(&mut self, why: String) {
        self.request += 1;
        // What the daemon has not begun yet is overtaken, but for the closing itself.
        self.steps.retain(|s| matches!(s, Step::CloseStageTwo(_)));
        self.let_go(Step::Surrender { why, request: self.request });
    }

    fn let_go(&mut self, step: Step) {
        self.letting = Some(step.clone());
        self.steps.push_back(step);
        self.pause = ASK_AGAIN_MIN;
        self.at = At::Letting { again_at: None };
    }

    fn reopen(&mut self) {
        debug_assert!(self.may_reopen(), "I6: after a release was sent the gate never opens under that epoch");
        self.steps.clear();
        if self.closed {
            self.steps.push_back(Step::Reopen);
        }
        self.end(Outcome::Cancelled);
    }

    fn end(&mut self, outcome: Outcome) {
        self.steps.retain(|s| matches!(s, Step::Decline { .. } | Step::Reopen));
        self.steps.push_back(Step::Done);
        self.outcome = Some(outcome);
        self.at = At::Over;
    }
}
