//! All trees by their ids.
//!
//! Promises: a copy of all of them shares each one with the original until either changes it. So the state that a snapshot takes
//! along costs a pointer a tree, in memory and in the time for which commands wait for it. It decides nothing.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use treelease_proto::id::TreeId;

use super::Tree;

/// The trees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Trees(BTreeMap<TreeId, Arc<Tree>>);

impl Trees {
    pub(super) fn get(&self, id: &TreeId) -> Option<&Tree> {
        self.0.get(id).map(Arc::as_ref)
    }
    pub(super) fn get_mut(&mut self, id: &TreeId) -> Option<&mut Tree> {
        self.0.get_mut(id).map(Arc::make_mut)
    }
    pub(super) fn insert(&mut self, id: TreeId, tree: Tree) {
        self.0.insert(id, Arc::new(tree));
    }
    /// The one of that id; if there is none, this one.
    pub(super) fn get_or_insert(&mut self, id: TreeId, tree: Tree) -> &mut Tree {
        Arc::make_mut(self.0.entry(id).or_insert_with(|| Arc::new(tree)))
    }
    pub(super) fn remove(&mut self, id: &TreeId) {
        self.0.remove(id);
    }
    pub(super) fn contains_key(&self, id: &TreeId) -> bool {
        self.0.contains_key(id)
    }
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn keys(&self) -> impl Iterator<Item = &TreeId> {
        self.0.keys()
    }
    pub(super) fn values(&self) -> impl Iterator<Item = &Tree> {
        self.0.values().map(Arc::as_ref)
    }
    #[cfg(test)]
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Tree> {
        self.0.values_mut().map(Arc::make_mut)
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (&TreeId, &Tree)> {
        self.0.iter().map(|(id, tree)| (id, tree.as_ref()))
    }
    pub(super) fn into_all(self) -> impl Iterator<Item = (TreeId, Tree)> {
        self.0.into_iter().map(|(id, tree)| (id, Arc::unwrap_or_clone(tree)))
    }
}

impl Index<&TreeId> for Trees {
    type Output = Tree;
    fn index(&self, id: &TreeId) -> &Tree {
        &self.0[id]
    }
}

impl Serialize for Trees {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Trees {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = BTreeMap::<TreeId, Tree>::deserialize(deserializer)?;
        let shared = read.into_iter().map(|(id, mut tree)| {
            if tree.id == id {
                tree.id = id.clone();
            }
            (id, Arc::new(tree))
        });
        Ok(Self(shared.collect()))
    }
}
