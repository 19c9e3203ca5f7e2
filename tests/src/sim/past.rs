//! What has happened, put together from what the nodes have applied: the one order of events, and the past of each tree.
//!
//! A moment of the past is when the first node had applied it: it was committed then, or shortly before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use treelease_proto::command::{Event, EventKind};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::tree::End;

/// Who holds a tree.
pub type Held = Option<(SessionId, Epoch)>;

/// A tree from some revision on.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Since which revision.
    pub revision: u64,
    /// Since when.
    pub at: Duration,
    /// Who holds it.
    pub held: Held,
}

/// One tree's past, oldest first; it begins free.
#[derive(Debug, Clone)]
pub struct TreePast {
    /// Its stretches.
    pub stretches: Vec<Stretch>,
    /// Clean ends: session and epoch, and when.
    pub released: Vec<(SessionId, Epoch, Duration)>,
}

/// All events by revision, and when each was applied first.
#[derive(Debug, Default)]
pub struct Past {
    events: BTreeMap<u64, (Arc<Event>, Duration)>,
    trees: BTreeMap<TreeId, TreePast>,
}

impl Default for TreePast {
    fn default() -> Self {
        Self { stretches: vec![Stretch { revision: 0, at: Duration::ZERO, held: None }], released: Vec::new() }
    }
}

impl Past {
    /// The last revision; 0: nothing has happened.
    pub fn last(&self) -> u64 {
        self.events.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// What happened at that revision.
    pub fn at(&self, revision: u64) -> Option<&Arc<Event>> {
        self.events.get(&revision).map(|(event, _)| event)
    }

    /// A tree's past.
    pub fn tree(&self, tree: &TreeId) -> Option<&TreePast> {
        self.trees.get(tree)
    }

    /// It happened, and was not known before.
    pub fn note(&mut self, event: &Arc<Event>, at: Duration) {
        let past = self.trees.entry(event.tree.clone()).or_default();
        let held = match (event.kind, &event.session) {
            (EventKind::Granted, Some(session)) => Some((session.clone(), event.epoch)),
            // A lease that was given back before it came to anything ends as others do.
            (EventKind::Released | EventKind::Expired | EventKind::Surrendered | EventKind::Broken | EventKind::Copied, _) => {
                None
            }
            _ => past.stretches.last().and_then(|stretch| stretch.held.clone()),
        };
        if past.stretches.last().is_some_and(|stretch| stretch.held != held) {
            past.stretches.push(Stretch { revision: event.revision, at, held });
        }
        if let (EventKind::Released, End::Clean, Some(session)) = (event.kind, event.end, &event.session) {
            past.released.push((session.clone(), event.epoch, at));
        }
        self.events.insert(event.revision, (event.clone(), at));
    }
}

impl TreePast {
    /// The stretches that a call may have seen which began then and has just ended: the one that was known when it began, and
    /// all later ones.
    pub fn since(&self, began: Duration) -> &[Stretch] {
        let known = self.stretches.iter().rposition(|stretch| stretch.at < began).unwrap_or(0);
        &self.stretches[known..]
    }

    /// Who held it at that revision.
    pub fn held_at(&self, revision: u64) -> &Held {
        let stretch = self.stretches.iter().rev().find(|stretch| stretch.revision <= revision);
        stretch.map_or(&None, |stretch| &stretch.held)
    }
}
