//! When the leader runs which agent: one at a time for each side, again with a growing pause after what did not succeed; and until
//! when an earlier leader's agent may still act.
//!
//! Pure and volatile, one for each leadership: a new leader waits every deadline anew, in full, because it does not know when the
//! earlier one began. *Why that is long enough:* an attempt's deadline counts from before it was proposed, and it was proposed before
//! this leadership's `Lead`, which is before this plan was made; the clocks differ by less than 1 %, and the watchdog kills by then.
//!
//! What is to be run, and whether it still is, the replicated state says (`crate::lease`); here is only when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treelease_proto::command::{AttemptRef, Leadership};
use treelease_proto::time::BootTime;

use crate::lease::{FenceDue, FenceOpen};

/// Agents that this node runs at the same time: each is a process or three, and a storage that is asked by many answers none.
pub const AGENTS_MAX: usize = 16;
/// The pause after the first attempt that did not succeed; it doubles with each further one.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause: a storage that comes back after a weekend is fenced soon enough, and the history still holds days of attempts.
pub const PAUSE_MAX: Duration = Duration::from_secs(600);
/// What is waited beyond a deadline: the watchdog's own slowness, and what two clocks differ by on a short one.
pub const LAPSE_MARGIN: Duration = Duration::from_secs(2);

/// What is due now, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Have the attempt logged, then run the agent.
    Begin(FenceDue),
    /// Have logged that it cannot act any more.
    Lapse(AttemptRef),
}

/// One leadership's plan.
#[derive(Debug, Clone)]
pub struct Plan {
    leadership: Leadership,
    /// Not before when each attempt begins that is due.
    due: BTreeMap<AttemptRef, Duration>,
    /// Until when each attempt of an earlier leadership may act.
    open: BTreeMap<AttemptRef, Duration>,
    /// Proposed, and the answer is not known yet.
    asked: BTreeSet<AttemptRef>,
    /// Whose agents run here.
    running: BTreeSet<AttemptRef>,
}

impl Plan {
    /// This leadership begins.
    pub fn new(leadership: Leadership) -> Self {
        Self { leadership, due: BTreeMap::new(), open: BTreeMap::new(), asked: BTreeSet::new(), running: BTreeSet::new() }
    }

    /// Looks at what the state says now.
    pub fn steps(&mut self, due: Vec<FenceDue>, open: Vec<FenceOpen>, now: BootTime) -> Vec<Step> {
        let mut steps = Vec::new();
        let wanted: BTreeSet<AttemptRef> = due.iter().map(|due| due.attempt.clone()).collect();
        self.due.retain(|attempt, _| wanted.contains(attempt));
        for due in due {
            let first = now.elapsed.saturating_add(pause(due.failures));
            let at = *self.due.entry(due.attempt.clone()).or_insert(first);
            if now.elapsed >= at && self.is_idle(&due.attempt) && self.asked.len() + self.running.len() < AGENTS_MAX {
                self.asked.insert(due.attempt.clone());
                steps.push(Step::Begin(due));
            }
        }
        let foreign: BTreeMap<AttemptRef, Duration> = open
            .into_iter()
            .filter(|open| open.leadership != self.leadership)
            .map(|open| (open.attempt, lapses_after(open.deadline)))
            .collect();
        self.open.retain(|attempt, _| foreign.contains_key(attempt));
        for (attempt, length) in foreign {
            let at = *self.open.entry(attempt.clone()).or_insert(now.elapsed.saturating_add(length));
            if now.elapsed >= at && self.is_idle(&attempt) {
                self.asked.insert(attempt.clone());
                steps.push(Step::Lapse(attempt));
            }
        }
        steps
    }

    fn is_idle(&self, attempt: &AttemptRef) -> bool {
        !self.asked.contains(attempt) && !self.running.contains(attempt)
    }

    /// The attempt is in the log, and its agent is run from now on.
    pub fn begun(&mut self, attempt: &AttemptRef) {
        self.asked.remove(attempt);
        self.running.insert(attempt.clone());
    }

    /// It was logged and did nothing: the state has moved on, or it is asked again after a pause.
    pub fn refused(&mut self, attempt: &AttemptRef, now: BootTime) {
        self.asked.remove(attempt);
        let later = now.elapsed.saturating_add(PAUSE_FIRST);
        for timer in [self.due.get_mut(attempt), self.open.get_mut(attempt)].into_iter().flatten() {
            *timer = later;
        }
    }

    /// Its end is in the log, or its agent does not run any more.
    pub fn ended(&mut self, attempt: &AttemptRef) {
        self.asked.remove(attempt);
        self.running.remove(attempt);
    }
}

/// After so many attempts in a row that did not succeed.
pub fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => PAUSE_FIRST.saturating_mul(1 << (n - 1).min(16)).min(PAUSE_MAX),
    }
}

/// How long after this leadership's begin nothing of an earlier one's attempt acts any more: twice the drift of two clocks.
pub fn lapses_after(deadline: Duration) -> Duration {
    deadline.saturating_add(deadline / 50).saturating_add(LAPSE_MARGIN)
}

#[cfg(test)]
mod tests {
    use treelease_proto::command::Verb;
    use treelease_proto::epoch::Epoch;

    use super::*;

    const OURS: Leadership = Leadership(7);

    fn at(ms: u64) -> BootTime {
        BootTime { elapsed: Duration::from_millis(ms), suspended: Duration::ZERO }
    }
    fn attempt(side: &str, number: u32) -> AttemptRef {
        let tree = "aaa00000-0000-4000-8000-000000000001".parse().unwrap();
        AttemptRef { tree, side: side.parse().unwrap(), epoch: Epoch::from_raw(1), number }
    }
    fn due(side: &str, number: u32, failures: u32) -> FenceDue {
        let attempt = attempt(side, number);
        FenceDue { attempt, name: "dev".parse().unwrap(), verb: Verb::Fence, agent: "nas".into(), host: String::new(), failures }
    }
    fn open(number: u32, leadership: Leadership) -> FenceOpen {
        FenceOpen { attempt: attempt("a", number), leadership, deadline: Duration::from_secs(100) }
    }

    #[test]
    fn what_is_due_begins_at_once_and_only_once() {
        let mut plan = Plan::new(OURS);
        let wanted = || vec![due("a", 1, 0)];
        assert_eq!(plan.steps(wanted(), vec![], at(0)), [Step::Begin(due("a", 1, 0))]);
        assert_eq!(plan.steps(wanted(), vec![], at(100)), [], "its answer is not known yet");
        plan.begun(&attempt("a", 1));
        assert_eq!(plan.steps(wanted(), vec![open(1, OURS)], at(1_000_000)), [], "it runs, and tells its end itself");
        plan.ended(&attempt("a", 1));
        assert_eq!(plan.steps(vec![], vec![], at(1_000_100)), []);
    }

    #[test]
    fn after_what_did_not_succeed_the_next_attempt_waits_longer_each_time_up_to_a_limit() {
        for (failures, ms) in [(1, 1_000), (2, 2_000), (3, 4_000), (10, 512_000), (11, 600_000), (u32::MAX, 600_000)] {
            let mut plan = Plan::new(OURS);
            let wanted = || vec![due("a", 9, failures)];
            assert_eq!(plan.steps(wanted(), vec![], at(50)), [], "{failures}");
            assert_eq!(plan.steps(wanted(), vec![], at(49 + ms)), [], "{failures}");
            assert_eq!(plan.steps(wanted(), vec![], at(50 + ms)).len(), 1, "{failures}");
        }
    }

    #[test]
    fn what_the_state_ignored_is_asked_again_after_a_pause_not_in_a_hot_loop() {
        let mut plan = Plan::new(OURS);
        let wanted = || vec![due("a", 1, 0)];
        plan.steps(wanted(), vec![], at(0));
        plan.refused(&attempt("a", 1), at(10));
        assert_eq!(plan.steps(wanted(), vec![], at(1_009)), []);
        assert_eq!(plan.steps(wanted(), vec![], at(1_010)).len(), 1);
    }

    #[test]
    fn an_earlier_leaders_attempt_lapses_only_a_full_deadline_after_this_leadership_saw_it() {
        let mut plan = Plan::new(OURS);
        let theirs = || vec![open(1, Leadership(6))];
        assert_eq!(plan.steps(vec![], theirs(), at(5_000)), []);
        let full = 5_000 + 100_000 + 2_000 + 2_000;
        assert_eq!(plan.steps(vec![], theirs(), at(full - 1)), []);
        assert_eq!(plan.steps(vec![], theirs(), at(full)), [Step::Lapse(attempt("a", 1))]);
        assert_eq!(plan.steps(vec![], theirs(), at(full + 100)), [], "each once");
        plan.refused(&attempt("a", 1), at(full + 100));
        assert_eq!(plan.steps(vec![], theirs(), at(full + 1_100)).len(), 1);
    }

    #[test]
    fn so_many_agents_run_at_once_and_the_others_wait() {
        let mut plan = Plan::new(OURS);
        let wanted = |from: usize| (from..AGENTS_MAX + 3).map(|n| due(&format!("s{n}"), 1, 0)).collect::<Vec<_>>();
        assert_eq!(plan.steps(wanted(0), vec![], at(0)).len(), AGENTS_MAX);
        let first = attempt("s0", 1);
        plan.begun(&first);
        assert_eq!(plan.steps(wanted(0), vec![], at(100)).len(), 0);
        plan.ended(&first);
        assert_eq!(plan.steps(wanted(1), vec![], at(200)).len(), 1);
    }
}
