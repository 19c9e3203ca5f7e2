//! Trying a fence agent without a fence (`treelease fence test`).
//!
//! It promises that a trial changes nothing but the history: no lease, no fence, no side; and that there is one at a time for each
//! tree. The leader runs it (`crate::fencing`); the next one runs it again if that is lost meanwhile.

use serde::{Deserialize, Serialize};
use treelease_proto::command::{Answer, Event, EventKind, Leadership, Outcome};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{SideName, TreeId, TreeName};
use treelease_proto::policy::Fence;
use treelease_proto::refusal::Code;

use super::history::Context;
use super::{State, ignore, no_such_tree, refuse};

/// A trial that an operator has asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Trial {
    /// The log index of the request.
    number: u64,
    /// Whom the agent is told.
    side: SideName,
}

/// A trial that a leader is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialDue {
    /// Of which tree's agent.
    pub tree: TreeId,
    /// Its name.
    pub name: TreeName,
    /// Whom the agent is told.
    pub side: SideName,
    /// Of the tree's last grant.
    pub epoch: Epoch,
    /// Which agent.
    pub agent: String,
    /// Tells trials of one tree apart.
    pub number: u64,
}

impl State {
    /// Every trial that has not ended.
    pub fn trials(&self) -> Vec<TrialDue> {
        let due = |id: &TreeId| {
            let tree = self.trees.get(id)?;
            let trial = tree.trial.as_ref()?;
            // An agent that the policy names no more: then the trial ends with that word.
            let agent = match &tree.policy.fence {
                Fence::Exec(agent) => agent.clone(),
                other => other.to_string(),
            };
            let (tree, name, epoch) = (id.clone(), tree.name.clone(), tree.last_epoch);
            Some(TrialDue { tree, name, side: trial.side.clone(), epoch, agent, number: trial.number })
        };
        self.fences.iter().filter_map(due).collect()
    }

    /// An operator wants to see whether the tree's agent works.
    pub(super) fn fence_test(&mut self, id: &TreeId, side: &SideName, index: u64, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        let name = &tree.name;
        let Fence::Exec(agent) = &tree.policy.fence else {
            let why = format!(
                "{name} has fence={}: there is no agent to try; `treelease tree set {name} fence=exec:NAME`",
                tree.policy.fence
            );
            return refuse(Code::Config, why);
        };
        if tree.trial.is_some() {
            return refuse(Code::Busy, format!("the agent `{agent}` is being tried on {name} already"));
        }
        let reason = format!("test: the agent `{agent}` is tried on {side}");
        tree.trial = Some(Trial { number: index, side: side.clone() });
        let event = Event { side: Some(side.clone()), session: None, reason, ..tree.event(EventKind::Fencing, context) };
        context.happened(event);
        Answer::Done
    }

    /// It has ended, says the leader that ran it.
    pub(super) fn fence_tested(
        &mut self,
        id: &TreeId,
        number: u64,
        outcome: Outcome,
        detail: &str,
        under: Leadership,
        context: &mut Context,
    ) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership ran this");
        }
        let Some(tree) = self.trees.get_mut(id) else { return ignore("there is no such tree") };
        let Some(trial) = tree.trial.take_if(|trial| trial.number == number) else {
            return ignore(format!("that test on {} is over", tree.name));
        };
        let how = match outcome {
            Outcome::Succeeded => "succeeded",
            Outcome::Untouched => "did nothing",
            Outcome::Failed => "failed",
        };
        let reason = format!("test: the agent {how}: {detail}");
        let event = Event { side: Some(trial.side), session: None, reason, ..tree.event(EventKind::Fencing, context) };
        context.happened(event);
        Answer::Done
    }
}
