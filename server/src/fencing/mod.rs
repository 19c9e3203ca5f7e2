//! Fence agents at the leader: what [`State::fences_due`] says is run here, one attempt after the other, each logged before and after.
//!
//! ```text
//! state ─▶ plan (pure: when) ─▶ FenceAttempt logged ─▶ runner ─▶ watchdog (a process) ─▶ agent ─▶ FenceResult logged
//! ```
//!
//! Promises: no agent is started for an attempt that is not in the log under the present leadership; its deadline counts from before
//! the attempt was proposed; its end is proposed once. When the leadership ends, its agents are left to their watchdogs, and what they
//! do is nobody's word any more. It decides nothing about leases.
//!
//! | part | is |
//! |---|---|
//! | [`agents`] | which agents this node knows; that each can be run |
//! | [`plan`] | when: pauses, deadlines of earlier leaders |
//! | [`runner`] | one run, and what its end means |
//! | [`watchdog`] | the process that ends an agent at its deadline |

pub mod agents;
pub mod plan;
pub mod runner;
pub mod watchdog;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use treelease_proto::command::{Answer, AttemptRef, Command, Leadership, Outcome};
use treelease_proto::id::TreeId;
use treelease_proto::policy::Fence;
use treelease_proto::time::BootTime;

use self::plan::{AGENTS_MAX, Plan, Step};
use self::runner::{Run, Runner};
use crate::lease::{FenceDue, State};

/// The agents of one leadership.
pub struct Fences<'a> {
    runner: &'a Runner,
    leadership: Leadership,
    plan: Plan,
    /// Proposed, and until when each may act.
    proposed: BTreeMap<AttemptRef, (FenceDue, Duration)>,
    /// Trials that run here, or whose end is proposed.
    trying: BTreeSet<(TreeId, u64)>,
    running: FuturesUnordered<BoxFuture<'a, (Of, Outcome, String)>>,
}

/// What an agent runs for.
#[derive(Debug, Clone)]
enum Of {
    Attempt(AttemptRef),
    Trial(TreeId, u64),
}

impl<'a> Fences<'a> {
    /// This leadership begins. Says which trees name an agent that this node does not know.
    pub fn begin(runner: &'a Runner, leadership: Leadership, state: &State) -> Self {
        for (_, tree) in state.trees() {
            if let Fence::Exec(agent) = &tree.policy().fence
                && runner.agents().get(agent).is_none()
            {
                let tree = tree.name();
                tracing::warn!(%tree, agent, "this node leads and has no such fence agent: its configuration needs [fence.{agent}]");
            }
        }
        Self {
            runner,
            leadership,
            plan: Plan::new(leadership),
            proposed: BTreeMap::new(),
            trying: BTreeSet::new(),
            running: FuturesUnordered::new(),
        }
    }

    /// What is to be proposed now, each once.
    pub fn due(&mut self, state: &State, now: BootTime) -> Vec<Command> {
        for trial in state.trials() {
            if self.running.len() < AGENTS_MAX && self.trying.insert((trial.tree.clone(), trial.number)) {
                let until = self.runner.until(self.runner.deadline(&trial.agent));
                self.start(Of::Trial(trial.tree.clone(), trial.number), Run::from(&trial), until);
            }
        }
        let decided_under = self.leadership;
        let steps = self.plan.steps(state.fences_due(decided_under), state.fences_open(), now);
        let command = |step| match step {
            Step::Begin(due) => {
                let deadline = self.runner.deadline(&due.agent);
                let command = Command::FenceAttempt {
                    attempt: due.attempt.clone(),
                    verb: due.verb,
                    agent: due.agent.clone(),
                    deadline_ms: deadline.as_millis() as u64,
                    decided_under,
                };
                self.proposed.insert(due.attempt.clone(), (due, self.runner.until(deadline)));
                command
            }
            Step::Lapse(attempt) => Command::FenceLapsed { attempt, decided_under },
        };
        steps.into_iter().map(command).collect()
    }

    /// A command of ours is in the log, and this is what the state said to it: an attempt that counts is run now.
    pub fn answered(&mut self, command: &Command, answer: &Answer, now: BootTime) {
        match command {
            Command::FenceAttempt { attempt, .. } => match (self.proposed.remove(attempt), answer) {
                (Some((due, until)), Answer::Done) => {
                    self.plan.begun(attempt);
                    self.start(Of::Attempt(attempt.clone()), Run::from(&due), until);
                }
                _ => self.plan.refused(attempt, now),
            },
            Command::FenceLapsed { attempt, .. } => match answer {
                Answer::Done => self.plan.ended(attempt),
                _ => self.plan.refused(attempt, now),
            },
            Command::FenceResult { attempt, .. } => self.plan.ended(attempt),
            Command::FenceTested { tree, number, .. } => {
                self.trying.remove(&(tree.clone(), *number));
            }
            _ => {}
        }
    }

    fn start(&mut self, of: Of, run: Run, until: Duration) {
        let (side, verb, agent) = (&run.side, run.verb, &run.agent);
        tracing::info!(tree = %run.name, %side, verb, agent, attempt = run.attempt, "a fence agent is run");
        let runner = self.runner;
        self.running.push(Box::pin(async move {
            let (outcome, detail) = runner.run(&run, until).await;
            (of, outcome, detail)
        }));
    }

    /// The end of an agent, to be proposed; `None` while none runs.
    pub async fn next(&mut self) -> Option<Command> {
        let (of, outcome, detail) = self.running.next().await?;
        tracing::info!(?of, outcome = outcome.as_str(), detail, "a fence agent has ended");
        let decided_under = self.leadership;
        Some(match of {
            Of::Attempt(attempt) => Command::FenceResult { attempt, outcome, detail, decided_under },
            Of::Trial(tree, number) => Command::FenceTested { tree, number, outcome, detail, decided_under },
        })
    }
}
