//! What the state knows of the nodes that keep it: which numbers were ever used, and how short a time to live they allow.
//!
//! Promises: a number that a member once had is never forgotten (I7: a vote or a promise of the one who had it may still be
//! under way, and people would take the new node for the old one). The shortest time to live only grows, and living sessions
//! grow with it, because a failover of these nodes must never be the end of a session; a longer one is the safe direction, for
//! the server waits for all of it before a side is told of it. It does not know who is a member now: openraft does.

use std::collections::BTreeSet;

use treelease_proto::command::Answer;
use treelease_proto::id::NodeId;
use treelease_proto::time::Ttl;

use super::tree::TreeState;
use super::{State, ignore};

impl State {
    /// These are members from some entry on. Called for every such entry, so equal on all nodes.
    pub fn note_nodes(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        self.node_ids.extend(ids);
    }

    /// A state that was read from a snapshot, with the members of then: one of an earlier version knows neither them nor the
    /// index of fences.
    pub fn was_read(&mut self, members: impl IntoIterator<Item = NodeId>) {
        self.note_nodes(members);
        let trees: Vec<_> = self.trees.keys().cloned().collect();
        trees.iter().for_each(|tree| self.index_fences(tree));
        self.share_texts();
    }

    /// Ids and names of trees, which each index has read as a text of its own, are one text again, as when the trees were made.
    fn share_texts(&mut self) {
        let mut sides = BTreeSet::new();
        for (id, tree) in self.trees.iter_mut() {
            if tree.id == *id {
                tree.id = id.clone();
            }
            tree.policy = self.policies.one(tree.policy.clone());
            if let Some(run) = &mut tree.run {
                one(&mut sides, &mut run.side);
            }
            if let TreeState::Held(held) = &mut tree.state {
                one(&mut sides, &mut held.side);
                held.session = self.sessions.key(&held.session).unwrap_or(&held.session).clone();
            }
        }
        for (name, id) in self.names.iter_mut() {
            let Some(tree) = self.trees.get_mut(id).filter(|tree| tree.name == *name) else { continue };
            tree.name = name.clone();
            *id = tree.id.clone();
        }
        for (_, id) in self.roots.iter_mut() {
            *id = self.trees.key(id).unwrap_or(id).clone();
        }
        for (_, session) in self.sessions.iter_mut() {
            one(&mut sides, &mut session.side);
            session.held = session.held.iter().map(|id| self.trees.key(id).unwrap_or(id).clone()).collect();
        }
        self.history.share_texts(&self.trees);
    }

    /// Numbers of nodes that are or were members.
    pub fn node_ids(&self) -> &BTreeSet<NodeId> {
        &self.node_ids
    }

    /// The members, or their pace, have changed.
    pub(super) fn raise_ttl(&mut self, ttl_min: Ttl) -> Answer {
        let ttl_min = ttl_min.min(self.ttl_max);
        if ttl_min <= self.ttl_min {
            return ignore("the shortest time to live is that long already");
        }
        self.ttl_min = ttl_min;
        let short: Vec<_> = self.sessions.iter().filter(|(_, session)| session.ttl < ttl_min).map(|(id, _)| id.clone()).collect();
        for id in short {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.ttl = ttl_min;
            // What was lower meanwhile is no longer the longest that it may have been answered with.
            session.lowered_from = session.lowered_from.filter(|before| *before > ttl_min);
            self.timed += 1;
        }
        Answer::Done
    }
}

/// The one that was seen before, if it is equal.
fn one<T: Ord + Clone>(seen: &mut BTreeSet<T>, it: &mut T) {
    match seen.get(it) {
        Some(known) => *it = known.clone(),
        None => drop(seen.insert(it.clone())),
    }
}
