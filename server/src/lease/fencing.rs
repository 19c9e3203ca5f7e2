//! Fence agents, as the log knows them: attempts, their ends, and the sides that were fenced (DESIGN 3, Fences).
//!
//! It promises that an attempt counts once, under the number and the leadership under which it was logged; that a side is granted
//! nothing of a tree while an attempt against it may still act, nor, once one may have done something to it, before its access was
//! given back ([`Tree::is_fenced`]); and that nobody is fenced whose tree nobody else waits for, so that he may come back by himself.
//! It runs nothing and times nothing: the leader does (`crate::fencing`), and learns here what is to be run ([`State::fences_due`])
//! and what is to be timed ([`State::fences_open`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use treelease_proto::command::{Answer, AttemptRef, Event, EventKind, Leadership, Outcome, Verb};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{SideName, TreeId, TreeName};
use treelease_proto::policy::{Fence, Unfence};
use treelease_proto::refusal::Code;
use treelease_proto::time::{format_duration, millis};
use treelease_proto::tree::FencedSide;

use super::history::Context;
use super::restarted::Kernel;
use super::tree::{Fencing, TreeState};
use super::{State, Tree, cut, ignore, no_such_tree, refuse};

/// Most attempts against a side of whose end nobody has told: one for each leader that was lost since the first one's deadline began.
/// More of them wait until one has lapsed.
pub const OPEN_MAX: usize = 16;

/// A side against which an agent was run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fenced {
    /// Of the lease whose unclean end it was.
    pub epoch: Epoch,
    /// Which agent was run last.
    pub agent: String,
    /// Its host, as its daemon said.
    pub host: String,
    /// Attempts so far, of both verbs: the number of the last one.
    pub attempts: u32,
    /// Attempts in a row that did not succeed, of the present verb.
    pub failures: u32,
    /// Attempts of whose end nobody has told.
    pub open: Vec<Open>,
    /// An attempt did something to it, or may have.
    pub touched: bool,
    /// An operator has vouched that it may have its access back, or its machine was restarted since and the policy takes that for one.
    pub unfence: bool,
    /// Where that lease was written from, if known.
    #[serde(default)]
    pub kernel: Option<Box<Kernel>>,
}

/// An attempt of whose end nobody has told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// Its number.
    pub number: u32,
    /// What the agent was to do.
    pub verb: Verb,
    /// Who ran it.
    pub leadership: Leadership,
    /// How long it may act, from when it was proposed.
    #[serde(with = "millis")]
    pub deadline: Duration,
}

/// What a leader is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceDue {
    /// Its name in the log.
    pub attempt: AttemptRef,
    /// The tree's name, for the agent.
    pub name: TreeName,
    /// What it is to do.
    pub verb: Verb,
    /// Which agent.
    pub agent: String,
    /// The side's host, as its daemon said; empty if it is not known.
    pub host: String,
    /// Attempts in a row before it that did not succeed.
    pub failures: u32,
}

/// An attempt whose deadline a leader is to time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceOpen {
    /// Which.
    pub attempt: AttemptRef,
    /// Who ran it.
    pub leadership: Leadership,
    /// How long it may act.
    pub deadline: Duration,
}

impl Tree {
    /// Whether an attempt against that side may still act, or may have done something to it that nobody has undone.
    pub fn is_fenced(&self, side: &SideName) -> bool {
        self.fenced.get(side).is_some_and(|fenced| fenced.touched || !fenced.open.is_empty())
    }

    /// For status.
    pub(super) fn fenced_sides(&self) -> Vec<FencedSide> {
        let shown = |(side, fenced): (&SideName, &Fenced)| FencedSide {
            side: side.clone(),
            epoch: fenced.epoch,
            agent: fenced.agent.clone(),
            acting: !fenced.open.is_empty(),
            unfencing: fenced.unfence,
        };
        self.fenced.iter().filter(|(side, _)| self.is_fenced(side)).map(shown).collect()
    }

    /// Why a fenced side gets nothing, and what to type.
    pub(super) fn fenced_words(&self, side: &SideName) -> String {
        let Some(fenced) = self.fenced.get(side) else { return String::new() };
        let (name, epoch, agent) = (&self.name, fenced.epoch, &fenced.agent);
        match fenced.unfence {
            true => {
                format!("{side} was fenced on {name} after epoch {epoch}, and the agent `{agent}` is giving it its access back")
            }
            false => {
                // Whose machine is not known cannot show that it was restarted.
                let shows = self.policy.unfence == Unfence::Restart && fenced.kernel.is_some();
                let restart = if shows { "its machine is restarted, or " } else { "" };
                format!(
                    "{side} was fenced on {name} by the agent `{agent}` after epoch {epoch}: it gets nothing until {restart}`treelease \
                     fence unfence {name} {side} --reason …`"
                )
            }
        }
    }

    /// The unclean end that is being fenced, and whose it was. After a restore whom to fence is not known: others may have held
    /// it since the backup, so no agent's success would free it (I2).
    fn fencing_of(&self, side: &SideName) -> Option<&Fencing> {
        match &self.state {
            TreeState::Fencing(fencing) if fencing.ended.whom_to_fence() == Some(side) => Some(fencing),
            _ => None,
        }
    }

    /// Whether its unclean end is being fenced.
    pub(super) fn is_fencing(&self, side: &SideName) -> bool {
        self.fencing_of(side).is_some()
    }

    /// What of that verb is to be run against that side now, under that leadership.
    fn fence_due(&self, side: &SideName, verb: Verb, under: Leadership) -> Option<FenceDue> {
        let fencing = self.fencing_of(side);
        let (epoch, agent) = match verb {
            Verb::Fence => {
                let Fence::Exec(agent) = &self.policy.fence else { return None };
                // Whom nobody else waits for is left alone.
                let wanted = self.queue.iter().any(|w| w.side != *side && self.may_be_granted(&w.side));
                (fencing.filter(|_| wanted)?.ended.epoch, agent)
            }
            Verb::Unfence => {
                let fenced = self.fenced.get(side).filter(|fenced| fenced.unfence && fencing.is_none())?;
                (fenced.epoch, &fenced.agent)
            }
        };
        let before = self.fenced.get(side).filter(|fenced| fenced.epoch == epoch);
        let free = before.is_none_or(|fenced| match verb {
            // What earlier leaders began asks before it acts, and is told that it does not stand any more.
            Verb::Fence => fenced.open.iter().all(|open| open.leadership != under) && fenced.open.len() < OPEN_MAX,
            // A fence that still acted after it would shut the side out for good.
            Verb::Unfence => fenced.open.is_empty(),
        });
        let number = before.map_or(0, |fenced| fenced.attempts).saturating_add(1);
        let host = match (before, fencing) {
            (Some(fenced), _) => fenced.host.clone(),
            (None, fencing) => fencing.map(|fencing| fencing.ended.host.clone()).unwrap_or_default(),
        };
        free.then(|| FenceDue {
            attempt: AttemptRef { tree: self.id.clone(), side: side.clone(), epoch, number },
            name: self.name.clone(),
            verb,
            agent: agent.clone(),
            host,
            failures: before.map_or(0, |fenced| fenced.failures),
        })
    }

    fn fences_due(&self, under: Leadership) -> Vec<FenceDue> {
        let fence = self.ended().and_then(|ended| ended.side.as_ref()).map(|side| (side, Verb::Fence));
        let unfences = self.fenced.keys().map(|side| (side, Verb::Unfence));
        fence.into_iter().chain(unfences).filter_map(|(side, verb)| self.fence_due(side, verb, under)).collect()
    }

    /// About that side, instead of the lease as it stands.
    pub(super) fn fence_event(&self, kind: EventKind, of: &AttemptRef, reason: String, context: &Context) -> Event {
        Event { side: Some(of.side.clone()), session: None, epoch: of.epoch, reason, ..self.event(kind, context) }
    }

    /// For `status`: what happens at the moment.
    fn fencing_why(&mut self, of: &AttemptRef, what: &str) {
        let name = self.name.clone();
        if let TreeState::Fencing(fencing) = &mut self.state
            && fencing.ended.epoch == of.epoch
        {
            let text = format!("{what}; or vouch with `treelease fence confirm {name} --epoch {} --reason …`", of.epoch);
            fencing.why = cut(&text);
        }
    }
}

impl State {
    /// What agents are to do now. When, after what did not succeed, is the leader's to say.
    pub fn fences_due(&self, under: Leadership) -> Vec<FenceDue> {
        self.fences.iter().filter_map(|id| self.trees.get(id)).flat_map(|tree| tree.fences_due(under)).collect()
    }

    /// Every attempt of whose end nobody has told.
    pub fn fences_open(&self) -> Vec<FenceOpen> {
        let mut all = Vec::new();
        for tree in self.fences.iter().filter_map(|id| self.trees.get(id)) {
            for (side, fenced) in &tree.fenced {
                all.extend(fenced.open.iter().map(|open| FenceOpen {
                    attempt: AttemptRef { tree: tree.id.clone(), side: side.clone(), epoch: fenced.epoch, number: open.number },
                    leadership: open.leadership,
                    deadline: open.deadline,
                }));
            }
        }
        all
    }

    /// An agent is about to be run.
    pub(super) fn fence_attempt(
        &mut self,
        of: &AttemptRef,
        verb: Verb,
        agent: &str,
        deadline: Duration,
        under: Leadership,
        context: &mut Context,
    ) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership decided this");
        }
        let Some(tree) = self.trees.get_mut(&of.tree) else { return ignore("there is no such tree") };
        let due = tree.fence_due(&of.side, verb, under).filter(|due| due.attempt == *of && due.agent == agent);
        let Some(due) = due else {
            return ignore(format!("{} does not wait for attempt {} of `{agent}`", tree.name, of.number));
        };
        let kernel = tree.fencing_of(&of.side).and_then(|fencing| fencing.ended.kernel.clone());
        let new = || Fenced {
            epoch: of.epoch,
            agent: agent.to_owned(),
            host: due.host.clone(),
            attempts: 0,
            failures: 0,
            open: Vec::new(),
            touched: false,
            unfence: false,
            kernel: kernel.clone(),
        };
        let fenced = tree.fenced.entry(of.side.clone()).or_insert_with(new);
        if fenced.epoch != of.epoch {
            // Of an earlier lease, and nothing was done: it held the tree again since.
            *fenced = new();
        }
        (fenced.attempts, fenced.agent) = (of.number, agent.to_owned());
        fenced.open.push(Open { number: of.number, verb, leadership: under, deadline });
        if let (Verb::Fence, TreeState::Fencing(fencing)) = (verb, &mut tree.state) {
            fencing.attempt = of.number;
        }
        let length = format_duration(deadline);
        let reason = match verb {
            Verb::Fence => format!("attempt {}: the agent `{agent}` fences {}, within {length}", of.number, of.side),
            Verb::Unfence => {
                format!("attempt {}: the agent `{agent}` gives {} its access back, within {length}", of.number, of.side)
            }
        };
        tree.fencing_why(of, &reason);
        let event = tree.fence_event(EventKind::Fencing, of, reason, context);
        context.happened(event);
        Answer::Done
    }

    /// An attempt has ended, says the leader that ran it.
    pub(super) fn fence_result(
        &mut self,
        of: &AttemptRef,
        outcome: Outcome,
        detail: &str,
        under: Leadership,
        context: &mut Context,
    ) -> Answer {
        #[cfg(test)]
        let (any, forgotten) =
            (self.fault == super::tests::Fault::AnyFenceResult, self.fault == super::tests::Fault::FenceForgotten);
        #[cfg(not(test))]
        let (any, forgotten) = (false, false);
        if !self.leads(under) && !any {
            return ignore("another leadership ran this");
        }
        let Some(tree) = self.trees.get_mut(&of.tree) else { return ignore("there is no such tree") };
        let number = of.number;
        let fenced = tree.fenced.get_mut(&of.side).filter(|fenced| fenced.epoch == of.epoch);
        let open = fenced.and_then(|fenced| {
            let this = |open: &Open| any || open.number == number && open.leadership == under;
            let at = fenced.open.iter().position(this)?;
            Some((fenced.open.remove(at), fenced))
        });
        let Some((open, fenced)) = open else {
            return ignore(format!("attempt {number} against {} on {} is over", of.side, tree.name));
        };
        let said = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        let agent = fenced.agent.clone();
        match outcome {
            Outcome::Succeeded => fenced.failures = 0,
            Outcome::Untouched | Outcome::Failed => fenced.failures = fenced.failures.saturating_add(1),
        }
        fenced.touched |= open.verb == Verb::Fence && outcome != Outcome::Untouched && !forgotten;
        let stands = tree.fencing_of(&of.side).is_some_and(|f| f.ended.epoch == of.epoch && (f.attempt == number || any));
        let (kind, reason) = match (open.verb, outcome) {
            (Verb::Fence, Outcome::Succeeded) if stands => {
                (EventKind::Fenced, format!("attempt {number}: the agent `{agent}` has fenced {}{said}", of.side))
            }
            (Verb::Fence, Outcome::Succeeded) => {
                let late = "though that was not wanted any more: it gets nothing until `treelease fence unfence`";
                (EventKind::Fencing, format!("attempt {number}: the agent `{agent}` has fenced {}, {late}{said}", of.side))
            }
            (Verb::Unfence, Outcome::Succeeded) => {
                tree.fenced.remove(&of.side);
                (
                    EventKind::Unfenced,
                    format!("attempt {number}: the agent `{agent}` has given {} its access back{said}", of.side),
                )
            }
            (verb, Outcome::Untouched) => {
                let verb = verb.as_str();
                (EventKind::Fencing, format!("attempt {number}: the agent `{agent}` did nothing ({verb} {}){said}", of.side))
            }
            (verb, Outcome::Failed) => {
                let verb = verb.as_str();
                (EventKind::Fencing, format!("attempt {number}: the agent `{agent}` failed ({verb} {}){said}", of.side))
            }
        };
        tree.fencing_why(of, &reason);
        let event = tree.fence_event(kind, of, reason, context);
        context.happened(event);
        if stands && open.verb == Verb::Fence && outcome == Outcome::Succeeded {
            tree.free_unclean();
        }
        Answer::Done
    }

    /// The agent of an earlier leader cannot act any more. What it has done is not known.
    pub(super) fn fence_lapsed(&mut self, of: &AttemptRef, under: Leadership, context: &mut Context) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership decided this");
        }
        let Some(tree) = self.trees.get_mut(&of.tree) else { return ignore("there is no such tree") };
        let fenced = tree.fenced.get_mut(&of.side).filter(|fenced| fenced.epoch == of.epoch);
        let open = fenced.and_then(|fenced| {
            // This leadership's own attempt has an end that it tells.
            let at = fenced.open.iter().position(|open| open.number == of.number && open.leadership != under)?;
            let open = fenced.open.remove(at);
            fenced.touched |= open.verb == Verb::Fence;
            Some(fenced.agent.clone())
        });
        let Some(agent) = open else {
            return ignore(format!("attempt {} against {} on {} is over", of.number, of.side, tree.name));
        };
        let reason = format!(
            "attempt {}: the node that ran the agent `{agent}` has not told how it ended; its deadline has passed, and what it did \
             is not known",
            of.number
        );
        let event = tree.fence_event(EventKind::Fencing, of, reason, context);
        context.happened(event);
        Answer::Done
    }

    /// An agent asks right before it acts. An attempt of an earlier leadership does not stand: its result would not count either.
    pub(super) fn fence_stands(&self, of: &AttemptRef) -> Answer {
        let Some(tree) = self.trees.get(&of.tree) else { return no_such_tree(&of.tree) };
        let fenced = tree.fenced.get(&of.side).filter(|fenced| fenced.epoch == of.epoch);
        let open = fenced.and_then(|fenced| fenced.open.iter().find(|open| open.number == of.number));
        let wanted = match open {
            Some(open) if self.leads(open.leadership) => match open.verb {
                Verb::Fence => tree.fencing_of(&of.side).is_some_and(|f| f.ended.epoch == of.epoch && f.attempt == of.number),
                Verb::Unfence => fenced.is_some_and(|fenced| fenced.unfence),
            },
            _ => false,
        };
        match wanted {
            true => Answer::Done,
            false => ignore(format!(
                "attempt {} against {} on {} after epoch {} is not wanted any more: do nothing",
                of.number, of.side, tree.name, of.epoch
            )),
        }
    }

    /// An operator vouches that nothing of what the side had written can come any more.
    pub(super) fn unfence(
        &mut self,
        id: &TreeId,
        side: &SideName,
        epoch: Epoch,
        reason: &str,
        by_hand: bool,
        context: &mut Context,
    ) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        let name = tree.name.clone();
        if !tree.is_fenced(side) {
            return refuse(Code::NotFound, format!("{side} is not fenced on {name}"));
        }
        let fencing = tree.fencing_of(side).is_some();
        let Some(fenced) = tree.fenced.get_mut(side).filter(|fenced| fenced.epoch == epoch) else {
            return refuse(Code::EpochMoved, format!("{side} was not fenced on {name} after epoch {epoch}; look again"));
        };
        if fencing {
            let why =
                format!("{side} is being fenced on {name}: first that has to end, or be vouched for (`treelease fence confirm`)");
            return refuse(Code::Busy, why);
        }
        if by_hand && !fenced.open.is_empty() {
            let why =
                format!("an attempt of the agent `{}` against {side} may still act; try again after its deadline", fenced.agent);
            return refuse(Code::Busy, why);
        }
        let of = AttemptRef { tree: id.clone(), side: side.clone(), epoch, number: fenced.attempts };
        let (kind, text) = match by_hand {
            true => (EventKind::Unfenced, format!("{side} has its access back, by hand: {reason}")),
            false => {
                (EventKind::Fencing, format!("{side} may have its access back, from the agent `{}`: {reason}", fenced.agent))
            }
        };
        (fenced.unfence, fenced.failures) = (true, 0);
        if by_hand {
            tree.fenced.remove(side);
        }
        let event = tree.fence_event(kind, &of, text, context);
        context.happened(event);
        Answer::Done
    }

    /// Keeps the index, and forgets whom nothing was done to. Runs for every touched tree after every command.
    pub(super) fn index_fences(&mut self, id: &TreeId) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        let fencing = match &tree.state {
            TreeState::Fencing(fencing) => fencing.ended.side.clone().map(|side| (side, fencing.ended.epoch)),
            _ => None,
        };
        // While it is fencing the numbers of attempts go on.
        tree.fenced.retain(|side, f| f.touched || !f.open.is_empty() || fencing.as_ref() == Some(&(side.clone(), f.epoch)));
        if tree.fenced.is_empty() && tree.trial.is_none() && !matches!(tree.state, TreeState::Fencing(_)) {
            self.fences.remove(id);
        } else {
            self.fences.insert(id.clone());
        }
    }
}
