//! The end of a root's life and of a tree's: seal, retire, remove.
//!
//! It promises that a tree whose roots are all sealed, and a retired one, is granted to nobody; that retiring is for ever; and that
//! the id of a removed tree is never used again, because its marker may still lie on some storage, with epochs above those that a new
//! tree would begin with (I1, I8). All of that happens to free trees only: nobody's lease is touched.

use serde::{Deserialize, Serialize};
use treelease_proto::command::{Answer, Event, EventKind};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{RootId, TreeId, TreeName};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::WallTime;
use treelease_proto::tree::RootState;

use super::ending::moved_on;
use super::history::Context;
use super::tree::TreeState;
use super::{State, Tree, no_such_tree, refuse};

/// Most removed trees that are remembered, each by some tens of bytes. Then retired trees stay as they are.
pub const TOMBSTONES_MAX: usize = 100_000;

/// What is remembered of a removed tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its name then; another tree may have it now.
    pub name: TreeName,
    /// Of its last grant.
    pub last_epoch: Epoch,
    /// When.
    pub at: WallTime,
}

impl State {
    /// Seals a root, or makes a sealed one live.
    pub(super) fn set_root(
        &mut self,
        id: &TreeId,
        root: &RootId,
        epoch: Epoch,
        state: RootState,
        reason: &str,
        context: &mut Context,
    ) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if let Some(refusal) = not_free(tree, epoch) {
            return Answer::Refused(refusal);
        }
        let name = tree.name.clone();
        if tree.state == TreeState::Retired {
            return refuse(Code::Config, format!("{name} is retired, for ever"));
        }
        if let (RootState::Live, Some(other)) = (state, tree.live_root().filter(|live| *live != root)) {
            return refuse(Code::Config, format!("{name} has a live root already, {other}: seal that first"));
        }
        let Some(known) = tree.roots.iter_mut().find(|known| known.id == *root) else {
            return refuse(Code::NotFound, format!("{name} has no root {root}; `treelease tree show {name}` lists them"));
        };
        if known.state == state {
            return Answer::Done;
        }
        known.state = state;
        let path = known.path.clone();
        // Who knows what happens to its files meanwhile: nothing of before goes on.
        tree.close_run();
        let event = Event {
            reason: because(format!("{} root {root} at {path}", state.as_str()), reason),
            ..tree.event(EventKind::Root, context)
        };
        context.happened(event);
        Answer::Done
    }

    /// Forgets a sealed root.
    pub(super) fn remove_root(&mut self, id: &TreeId, root: &RootId, reason: &str, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        let name = tree.name.clone();
        let Some(at) = tree.roots.iter().position(|known| known.id == *root) else {
            return refuse(Code::NotFound, format!("{name} has no root {root}; `treelease tree show {name}` lists them"));
        };
        if tree.roots[at].state == RootState::Live {
            return refuse(Code::Config, format!("root {root} of {name} is live: seal it first (`treelease tree seal {name}`)"));
        }
        // Without a root nothing would say that it is sealed, and the guard that finds its marker would open.
        if tree.roots.len() == 1 && tree.state != TreeState::Retired {
            return refuse(Code::Config, format!("{root} is the last root of {name}: `treelease tree retire {name}` first"));
        }
        let gone = tree.roots.remove(at);
        let event = Event {
            reason: because(format!("removed root {root} at {}", gone.path), reason),
            ..tree.event(EventKind::Root, context)
        };
        context.happened(event);
        self.roots.remove(root);
        Answer::Done
    }

    /// A free tree ends its life. Its roots are sealed, and whoever waits is sent away.
    pub(super) fn retire(&mut self, id: &TreeId, epoch: Epoch, reason: &str, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if tree.state == TreeState::Retired {
            return Answer::Done;
        }
        if let Some(refusal) = not_free(tree, epoch) {
            return Answer::Refused(refusal);
        }
        let waiters: Vec<_> = tree.queue.iter().map(|waiting| waiting.session.clone()).collect();
        for session in waiters {
            self.leave_queue(id, &session, "the tree was retired", context);
        }
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        tree.retire();
        let event = Event { reason: because("retired".to_owned(), reason), ..tree.event(EventKind::Retired, context) };
        context.happened(event);
        Answer::Done
    }

    /// A retired tree without roots goes; what is left is that its id was used.
    pub(super) fn remove_tree(&mut self, id: &TreeId, reason: &str, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get(id) else { return no_such_tree(id) };
        let name = tree.name.clone();
        if tree.state != TreeState::Retired {
            return refuse(Code::Config, format!("{name} is not retired: `treelease tree retire {name}` first"));
        }
        if let Some(root) = tree.roots.first() {
            let why = format!("{name} still has a root, at {}: `treelease tree rm {name} --root {}` first", root.path, root.id);
            return refuse(Code::Config, why);
        }
        if let Some(side) = tree.fenced.keys().next() {
            let why = format!("{side} was fenced on {name}: `treelease fence unfence {name} {side} --reason …` first");
            return refuse(Code::Config, why);
        }
        if self.tombstones.len() >= TOMBSTONES_MAX {
            return refuse(
                Code::Limit,
                format!("this server remembers {TOMBSTONES_MAX} removed trees already; it stays retired"),
            );
        }
        let event = Event { reason: because("removed".to_owned(), reason), ..tree.event(EventKind::Retired, context) };
        context.happened(event);
        self.tombstones.insert(id.clone(), Tombstone { name: name.clone(), last_epoch: tree.last_epoch, at: context.at });
        self.trees.remove(id);
        self.names.remove(&name);
        self.fences.remove(id);
        Answer::Done
    }

    /// What is remembered of a removed tree.
    pub fn tombstone(&self, id: &TreeId) -> Option<&Tombstone> {
        self.tombstones.get(id)
    }

    /// The tree of that name that was removed last.
    pub fn removed_named(&self, name: &TreeName) -> Option<&TreeId> {
        self.tombstones.iter().filter(|(_, gone)| gone.name == *name).max_by_key(|(_, gone)| gone.at).map(|(id, _)| id)
    }
}

/// Why a tree is not at the operator's disposal, if it is not: held, waited out, or moved on since he looked.
fn not_free(tree: &Tree, epoch: Epoch) -> Option<Refusal> {
    let name = &tree.name;
    if tree.last_epoch != epoch {
        return Some(moved_on(tree, epoch));
    }
    match (&tree.state, tree.holder()) {
        (TreeState::Held(held), Some(holder)) => {
            let why = format!("{name} is held by {}: it has to be handed back first (or `treelease break {name}`)", held.side);
            Some(Refusal::new(Code::Held, why).held_by(holder))
        }
        (TreeState::Cooling(cooling), _) => Some(Refusal::new(Code::Busy, format!("{name} {}", cooling.why))),
        (TreeState::Fencing(fencing), _) => Some(Refusal::new(Code::Busy, format!("{name} is fencing: {}", fencing.why))),
        _ => None,
    }
}

fn because(what: String, reason: &str) -> String {
    if reason.is_empty() { what } else { format!("{what}: {reason}") }
}
