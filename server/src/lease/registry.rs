//! Trees, their roots and their policy.
//!
//! It promises that a name, and a root, belong to one tree; that a tree has at most one live root (I8 rests on it); and that
//! a policy is changed as a whole or not at all. Whether a root's marker agrees is for the side that sees the storage; whether there
//! is an agent of the name that a policy gives is for the leader that knows its configuration (`crate::api`).

use treelease_proto::command::{Answer, Event, EventKind};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{TreeId, TreeName};
use treelease_proto::policy::Policy;
use treelease_proto::refusal::Code;
use treelease_proto::tree::{Root, RootState};

use super::history::Context;
use super::tree::{Ended, How, TreeState};
use super::{MAX_TREES, State, Tree, no_such_tree, refuse};

/// The greatest epoch that is believed when it is found on a storage: no counter gets there by counting, and the next ones
/// must still fit.
pub(super) const EPOCH_BELIEVED: u64 = 1 << 62;

/// What a new tree is called and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewTree<'a> {
    pub(super) name: &'a TreeName,
    pub(super) tree: &'a TreeId,
    pub(super) root: Option<&'a Root>,
}

impl State {
    pub(super) fn add_tree(
        &mut self,
        name: &TreeName,
        tree: &TreeId,
        pairs: &[(String, String)],
        root: Option<&Root>,
        context: &mut Context,
    ) -> Answer {
        let new = NewTree { name, tree, root };
        if let Some(answer) = self.cannot_add(new) {
            return answer;
        }
        let policy = match changed(&Policy::default(), pairs) {
            Ok(policy) => policy,
            Err(why) => return refuse(Code::Config, why),
        };
        let event = self.insert(new, policy).event(EventKind::Added, context);
        let at = root.map(|root| format!("root {}", root.path)).unwrap_or_default();
        context.happened(Event { reason: at, ..event });
        Answer::TreeAdded { tree: tree.clone(), root: root.map(|root| root.id.clone()) }
    }

    /// A root with another cluster's marker becomes ours, as after a restore: whoever held it there is unknown, and so is the
    /// TTL there; the largest that we know is waited out, then the fence as for an active tree.
    pub(super) fn takeover(&mut self, new: NewTree, reason: &str, from: &str, above: Epoch, context: &mut Context) -> Answer {
        if let Some(answer) = self.cannot_add(new) {
            return answer;
        }
        if above.get() > EPOCH_BELIEVED {
            return refuse(
                Code::Config,
                format!("the storage names epoch {above}, which no tree can have reached; look at its stamps"),
            );
        }
        let length = self.ttl_max.get();
        let tree = self.insert(new, Policy::default());
        // At least 1, so that `fence confirm` has an epoch to name: 0 means none.
        tree.last_epoch = above.max(Epoch::from_raw(1));
        let how = How::Takeover;
        let (epoch, host) = (tree.last_epoch, String::new());
        let (side, session, place, marker, kernel) = (None, None, None, None, None);
        let ended = Ended { epoch, side, host, session, place, active: true, how, marker, kernel };
        let length = length.saturating_add(tree.policy.grace);
        let why =
            format!("waits for the largest TTL and grace after the takeover from cluster {from} at epoch {}", tree.last_epoch);
        tree.cool(ended, length, why.clone());
        let taken = Event { reason: format!("from cluster {from}: {reason}"), ..tree.event(EventKind::Takeover, context) };
        let cooling = Event { reason: why, ..tree.event(EventKind::Cooling, context) };
        context.happened(taken);
        context.happened(cooling);
        self.now_cooling(new.tree);
        Answer::TreeAdded { tree: new.tree.clone(), root: new.root.map(|root| root.id.clone()) }
    }

    /// Why it cannot be added, or that it was already.
    fn cannot_add(&self, new: NewTree) -> Option<Answer> {
        let NewTree { name, tree, root } = new;
        if let Some(known) = self.trees.get(tree) {
            if known.name != *name {
                return Some(refuse(Code::Config, format!("tree {tree} is called {}, not {name}", known.name)));
            }
            return Some(Answer::TreeAdded { tree: tree.clone(), root: known.live_root().cloned() });
        }
        if let Some(gone) = self.tombstones.get(tree) {
            let why = format!("tree {tree} was called {} and was removed at {}: its id is never used again", gone.name, gone.at);
            return Some(refuse(Code::Config, why));
        }
        if let Some(other) = self.names.get(name) {
            return Some(refuse(Code::Config, format!("there is a tree {name} already (id {other}); choose another name")));
        }
        if let Some(other) = root.and_then(|root| self.roots.get(&root.id)) {
            let other = self.trees.get(other).map_or_else(|| other.to_string(), |tree| tree.name.to_string());
            return Some(refuse(Code::Config, format!("that root belongs to the tree {other} already")));
        }
        (self.trees.len() >= MAX_TREES).then(|| refuse(Code::Limit, format!("this server has {MAX_TREES} trees already")))
    }

    fn insert(&mut self, new: NewTree, policy: Policy) -> &mut Tree {
        // A cluster with a tree takes no backup.
        if self.restoring.take().is_some() {
            self.timed += 1;
        }
        let root = new.root.map(live);
        if let Some(root) = &root {
            self.roots.insert(root.id.clone(), new.tree.clone());
        }
        self.names.insert(new.name.clone(), new.tree.clone());
        let policy = self.policies.one(policy.into());
        self.trees.get_or_insert_with(new.tree, || Tree::new(new.tree.clone(), new.name.clone(), policy, root))
    }

    pub(super) fn set_policy(&mut self, id: &TreeId, pairs: &[(String, String)], context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if tree.state == TreeState::Retired {
            return refuse(Code::Config, format!("{} is retired, for ever", tree.name));
        }
        match changed(&tree.policy, pairs) {
            Ok(policy) => tree.follow(self.policies.one(policy.into())),
            Err(why) => return refuse(Code::Config, why),
        }
        let said: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let event = Event { reason: said.join(" "), ..tree.event(EventKind::Policy, context) };
        context.happened(event);
        Answer::Done
    }

    pub(super) fn add_root(&mut self, id: &TreeId, root: &Root, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if tree.state == TreeState::Retired {
            return refuse(Code::Config, format!("{} is retired, for ever", tree.name));
        }
        if self.roots.get(&root.id).is_some_and(|owner| owner != id) {
            return refuse(Code::Config, "that root belongs to another tree already".to_owned());
        }
        if let Some(known) = tree.roots.iter_mut().find(|known| known.id == root.id) {
            known.path.clone_from(&root.path);
        } else if let Some(other) = tree.roots.iter().find(|known| known.state == RootState::Live) {
            let text =
                format!("{} has a live root already, at {}; moving a tree comes with a later version", tree.name, other.path);
            return refuse(Code::Config, text);
        } else {
            // Beside sealed ones it is sealed, too: an operator says which is to be live (`set_root`).
            let state = if tree.roots.is_empty() { RootState::Live } else { RootState::Sealed };
            tree.roots.push(Root { state, ..root.clone() });
            self.roots.insert(root.id.clone(), id.clone());
        }
        let state = tree.roots.iter().find(|known| known.id == root.id).map_or(RootState::Live, |known| known.state);
        let reason = format!("{} root {} at {}", state.as_str(), root.id, root.path);
        let event = Event { reason, ..tree.event(EventKind::Root, context) };
        context.happened(event);
        Answer::TreeAdded { tree: id.clone(), root: Some(root.id.clone()) }
    }
}

/// The first root is live, whatever was asked.
fn live(root: &Root) -> Root {
    Root { state: RootState::Live, ..root.clone() }
}

/// A policy with some keys changed; all or none.
fn changed(old: &Policy, pairs: &[(String, String)]) -> Result<Policy, String> {
    let mut policy = old.clone();
    for (key, value) in pairs {
        policy.set(key, value).map_err(|bad| bad.to_string())?;
    }
    Ok(policy)
}
