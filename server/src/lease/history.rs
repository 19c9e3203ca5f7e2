//! What happened: events on their way out, and the ring of them that each tree keeps as its audit trail.
//!
//! It promises that every event has its own revision (given in `apply`), that a tree's ring holds the newest
//! [`HISTORY_MAX`] of them, and that no text of a person's makes an entry longer than its limit.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use treelease_proto::command::{Event, EventKind, LeaseRef};
use treelease_proto::id::TreeId;
use treelease_proto::refusal::Code;
use treelease_proto::time::WallTime;

use super::many::{self, Many};
use super::ring::{Ring, Texts};
use super::{Answer, HISTORY_MAX, State, Tree, cut, no_such_tree, refuse, to_millis};

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

/// The audit trail of every tree; a copy shares them, as it shares the trees (`super::shared`).
#[derive(Debug, Default)]
pub(super) struct Histories {
    rings: Many<TreeId, Ring>,
    /// What the rings share; it says nothing by itself.
    texts: Texts,
}

impl Clone for Histories {
    fn clone(&self) -> Self {
        Self { rings: self.rings.clone(), texts: Texts::default() }
    }
}

impl PartialEq for Histories {
    fn eq(&self, other: &Self) -> bool {
        self.rings == other.rings
    }
}

impl Eq for Histories {}

impl Hash for Histories {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rings.hash(state);
    }
}

/// One tree's, on its way to a snapshot.
struct Events<'a>(&'a TreeId, &'a Ring);

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.events(self.0))
    }
}

impl Serialize for Histories {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.rings.iter().map(|(tree, ring)| (tree, Events(tree, ring))))
    }
}

impl<'de> Deserialize<'de> for Histories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ring = |events: Vec<Event>| {
            let (mut ring, mut texts) = (Ring::default(), Texts::default());
            events.iter().for_each(|event| keep(&mut ring, event, &mut texts));
            ring
        };
        Ok(Self { rings: many::read(deserializer, ring)?, texts: Texts::default() })
    }
}

/// The newest, in place of the oldest where there are too many.
fn keep(ring: &mut Ring, event: &Event, texts: &mut Texts) {
    while ring.len() >= HISTORY_MAX {
        ring.pop();
    }
    ring.push(event, texts);
}

impl Histories {
    pub(super) fn add(&mut self, event: &Event) {
        // Said with every burst of writes: watchers hear it, the audit trail would hold nothing else.
        if matches!(event.kind, EventKind::Rest | EventKind::Active) {
            return;
        }
        keep(self.rings.get_or_insert_with(&event.tree, Ring::default), event, &mut self.texts);
    }

    /// See [`State::was_read`].
    pub(super) fn share_texts(&mut self, trees: &Many<TreeId, Tree>) {
        for (id, ring) in self.rings.iter_mut() {
            ring.share(trees.get(id).map(|tree| &tree.name), &mut self.texts);
        }
        self.rings.rekey(|id| trees.key(id).cloned());
    }

    /// How long each tree's newest event is when it is written down, with what is between it and the next, all in all; then those before the
    /// newest; and so on.
    fn lengths(&self) -> serde_json::Result<Vec<usize>> {
        let mut lengths = Vec::new();
        for (tree, ring) in self.rings.iter() {
            for (event, back) in ring.events(tree).zip((0..ring.len()).rev()) {
                if lengths.len() <= back {
                    lengths.resize(back + 1, 0);
                }
                lengths[back] += serde_json::to_vec(&event)?.len() + ",".len();
            }
        }
        Ok(lengths)
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl State {
    /// The newest events of a tree, newest last; `limit` 0: all that there are.
    pub fn history(&self, tree: &TreeId, limit: usize) -> Vec<Event> {
        let Some(ring) = self.history.rings.get(tree) else { return Vec::new() };
        ring.newest(tree, if limit == 0 { ring.len() } else { limit })
    }

    /// How many of each tree's newest events there is room for in so many bytes of JSON.
    pub fn history_within(&self, mut room: usize) -> serde_json::Result<usize> {
        let fits = |of_all: &usize| {
            let left = room.checked_sub(*of_all);
            room = left.unwrap_or_default();
            left.is_some()
        };
        Ok(self.history.lengths()?.into_iter().take_while(fits).count())
    }

    /// The same with so many of each tree's newest events at most. Nothing is decided by them.
    #[must_use]
    pub fn with_history(mut self, newest: usize) -> Self {
        for (_, ring) in self.history.rings.iter_mut() {
            ring.forget(ring.len().saturating_sub(newest));
        }
        self
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
