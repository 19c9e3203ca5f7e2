//! Trees, sessions, answers: many things, each by its id, of which a copy of the state shares every one until either changes it.
//!
//! It decides nothing.

use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shared::{self, Shared};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Many<K: Ord, T>(Shared<K, Arc<T>>);

impl<K: Ord, T> Default for Many<K, T> {
    fn default() -> Self {
        Self(Shared::default())
    }
}

impl<K: Ord + Clone, T: Clone> Many<K, T> {
    pub(super) fn get(&self, id: &K) -> Option<&T> {
        self.0.get(id).map(Arc::as_ref)
    }
    pub(super) fn get_mut(&mut self, id: &K) -> Option<&mut T> {
        self.0.get_mut(id).map(Arc::make_mut)
    }
    pub(super) fn insert(&mut self, id: K, thing: T) {
        self.0.insert(id, Arc::new(thing));
    }
    /// The one of that id; if there is none, a new one.
    pub(super) fn get_or_insert_with(&mut self, id: &K, new: impl FnOnce() -> T) -> &mut T {
        if !self.0.contains_key(id) {
            self.0.insert(id.clone(), Arc::new(new()));
        }
        self.get_mut(id).expect("it is there now")
    }
    pub(super) fn remove(&mut self, id: &K) -> Option<T> {
        self.0.remove(id).map(Arc::unwrap_or_clone)
    }
    pub(super) fn contains_key(&self, id: &K) -> bool {
        self.0.contains_key(id)
    }
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(Arc::as_ref)
    }
    /// Every one, to be changed: copies what is shared.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut T)> {
        self.0.iter_mut().map(|(id, thing)| (id, Arc::make_mut(thing)))
    }
    #[cfg(test)]
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.iter_mut().map(|(_, thing)| thing)
    }
    /// See [`Shared::rekey`].
    pub(super) fn rekey(&mut self, same: impl Fn(&K) -> Option<K>) {
        self.0.rekey(same);
    }
    /// The id as it lies here.
    pub(super) fn key(&self, id: &K) -> Option<&K> {
        self.0.key(id)
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &T)> {
        self.0.iter().map(|(id, thing)| (id, thing.as_ref()))
    }
}

impl<K: Ord + Clone, T: Clone> Index<&K> for Many<K, T> {
    type Output = T;
    fn index(&self, id: &K) -> &T {
        self.get(id).expect("whoever asks so knows that it is there")
    }
}

impl<K: Ord + Serialize, T: Serialize> Serialize for Many<K, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, thing)| (id, thing.as_ref())))
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, T: Clone + Deserialize<'de>> Deserialize<'de> for Many<K, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |thing| thing)
    }
}

/// Reads them, each as it is made of what is read.
pub(super) fn read<'de, D, K, R, T>(deserializer: D, made: impl Fn(R) -> T) -> Result<Many<K, T>, D::Error>
where
    D: Deserializer<'de>,
    K: Ord + Clone + Deserialize<'de>,
    R: Deserialize<'de>,
{
    shared::read(deserializer, |read| Arc::new(made(read))).map(Many)
}
