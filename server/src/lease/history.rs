//! What happened: events on their way out, and the ring of them that each tree keeps as its audit trail.
//!
//! It promises that every event has its own revision (given in `apply`), that a tree's ring holds the newest
//! [`HISTORY_MAX`] of them, and that no text of a person's makes an entry longer than its limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use treelease_proto::command::{Event, EventKind, LeaseRef};
use treelease_proto::id::TreeId;
use treelease_proto::refusal::Code;
use treelease_proto::time::WallTime;

use super::trees::Trees;
use super::{Answer, HISTORY_MAX, State, cut, no_such_tree, refuse, to_millis};

/// Who asks for a command and when, and what it has made happen so far.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) actor: String,
    pub(super) at: WallTime,
    events: Vec<Event>,
}

impl Context {
    pub(super) fn new(actor: &str, at: WallTime) -> Self {
        Self { actor: cut(actor), at: to_millis(at), events: Vec::new() }
    }

    /// Something happened. Made by [`super::Tree::event`], so that it names the lease as it then was.
    pub(super) fn happened(&mut self, mut event: Event) {
        event.reason = cut(&event.reason);
        self.events.push(event);
    }

    pub(super) fn into_events(self) -> Vec<Event> {
        self.events
    }
}

/// The audit trail of every tree; a copy shares them, as it shares the trees (`super::trees`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Histories(BTreeMap<TreeId, Arc<VecDeque<Event>>>);

/// A ring of fewer events grows by one at a time: most trees of a large server have few.
const SHORT: usize = 8;

impl Serialize for Histories {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(tree, ring)| (tree, ring.as_ref())))
    }
}

impl<'de> Deserialize<'de> for Histories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = BTreeMap::<TreeId, VecDeque<Event>>::deserialize(deserializer)?;
        Ok(Self(read.into_iter().map(|(tree, ring)| (tree, Arc::new(ring))).collect()))
    }
}

impl Histories {
    pub(super) fn add(&mut self, event: Event) {
        // Said with every burst of writes: watchers hear it, the audit trail would hold nothing else.
        if matches!(event.kind, EventKind::Rest | EventKind::Active) {
            return;
        }
        let ring = Arc::make_mut(self.0.entry(event.tree.clone()).or_default());
        while ring.len() >= HISTORY_MAX {
            ring.pop_front();
        }
        if ring.len() < SHORT {
            ring.reserve_exact(1);
        }
        ring.push_back(event);
    }

    /// See [`State::was_read`].
    pub(super) fn share_texts(&mut self, trees: &Trees) {
        let rings = std::mem::take(&mut self.0).into_iter().map(|(id, mut ring)| {
            let Some(tree) = trees.get(&id) else { return (id, ring) };
            let (id, name) = (tree.id.clone(), &tree.name);
            for event in Arc::make_mut(&mut ring) {
                event.tree = id.clone();
                if event.name == *name {
                    event.name = name.clone();
                }
            }
            (id, ring)
        });
        self.0 = rings.collect();
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl State {
    /// The newest events of a tree, newest last; `limit` 0: all that there are.
    pub fn history(&self, tree: &TreeId, limit: usize) -> Vec<Event> {
        let Some(ring) = self.history.0.get(tree) else { return Vec::new() };
        let wanted = if limit == 0 { ring.len() } else { limit.min(ring.len()) };
        ring.iter().skip(ring.len() - wanted).cloned().collect()
    }

    /// A side's word of what happened there. Taken even when the lease is not current: a late write is told late.
    pub(super) fn report(
        &mut self,
        lease: &LeaseRef,
        kind: EventKind,
        reason: &str,
        count: u64,
        context: &mut Context,
    ) -> Answer {
        if !matches!(kind, EventKind::LateWrite | EventKind::Bypass | EventKind::RenewalLate | EventKind::ClockDisagrees) {
            return refuse(Code::Usage, format!("a side does not report `{}`: the server says that itself", kind.as_str()));
        }
        let Some(tree) = self.trees.get(&lease.tree) else { return no_such_tree(&lease.tree) };
        let side = self.sessions.get(&lease.session).map(|session| session.side.clone());
        let event = Event {
            side,
            session: Some(lease.session.clone()),
            epoch: lease.epoch,
            reason: reason.to_owned(),
            count,
            ..tree.event(kind, context)
        };
        context.happened(event);
        Answer::Done
    }
}
