//! An ordered map whose copy costs next to nothing: the two share all entries until either changes some.
//!
//! Entries lie in order in pieces of at most [`PIECE`], and a copy copies the list of pieces. Whoever changes an entry afterwards
//! copies its piece first. So the state that a snapshot, a backup or a status takes along costs microseconds, however many trees
//! there are, and commands do not wait for it.
//!
//! Promises: to whoever looks it is a `BTreeMap`, in equality, hash and order too, wherever the pieces begin. It decides nothing.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most entries of a piece: few enough to be copied in microseconds, many enough that the list of pieces is short.
const PIECE: usize = 64;

/// See the module.
#[derive(Clone)]
pub(super) struct Shared<K, V> {
    /// In order; none is empty.
    pieces: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<K: Ord, V> Shared<K, V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let (piece, at) = self.find(key)?;
        at.ok().map(|at| &self.pieces[piece][at].1)
    }
    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pieces.iter().flat_map(|piece| piece.iter().map(|(key, value)| (key, value)))
    }
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The piece where a key is or belongs, and its place in there; none if there is no piece at all.
    fn find(&self, key: &K) -> Option<(usize, Result<usize, usize>)> {
        let after = self.pieces.partition_point(|piece| piece[0].0 <= *key);
        let piece = after.saturating_sub(1);
        Some((piece, self.pieces.get(piece)?.binary_search_by(|(known, _)| known.cmp(key))))
    }
}

impl<K: Ord + Clone, V: Clone> Shared<K, V> {
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (piece, at) = self.find(key)?;
        let at = at.ok()?;
        Some(&mut Arc::make_mut(&mut self.pieces[piece])[at].1)
    }

    /// Every value, to be changed: copies what is shared.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.pieces.iter_mut().flat_map(|piece| Arc::make_mut(piece).iter_mut().map(|(key, value)| (&*key, value)))
    }

    /// Puts an equal key in the place of each for which there is one: texts that were read twice become one again.
    pub(super) fn rekey(&mut self, same: impl Fn(&K) -> Option<K>) {
        for (key, _) in self.pieces.iter_mut().flat_map(Arc::make_mut) {
            if let Some(other) = same(key).filter(|other| other == key) {
                *key = other;
            }
        }
    }

    /// The key as it lies here.
    pub(super) fn key(&self, key: &K) -> Option<&K> {
        let (piece, at) = self.find(key)?;
        at.ok().map(|at| &self.pieces[piece][at].0)
    }

    /// Returns what was there before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some((mut piece, at)) = self.find(&key) else {
            self.pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let mut at = match at {
            Ok(at) => return Some(std::mem::replace(&mut Arc::make_mut(&mut self.pieces[piece])[at].1, value)),
            Err(at) => at,
        };
        if self.pieces[piece].len() >= PIECE {
            // What comes in order leaves full pieces behind.
            let last = piece + 1 == self.pieces.len() && at == PIECE;
            let half = if last { PIECE } else { PIECE / 2 };
            let rest = Arc::make_mut(&mut self.pieces[piece]).split_off(half);
            if last {
                self.pieces.push(Arc::new(vec![(key, value)]));
                self.len += 1;
                return None;
            }
            self.pieces.insert(piece + 1, Arc::new(rest));
            if at > half {
                (piece, at) = (piece + 1, at - half);
            }
        }
        Arc::make_mut(&mut self.pieces[piece]).insert(at, (key, value));
        self.len += 1;
        None
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (piece, at) = self.find(key)?;
        let at = at.ok()?;
        let (_, value) = Arc::make_mut(&mut self.pieces[piece]).remove(at);
        self.len -= 1;
        if self.pieces[piece].is_empty() {
            self.pieces.remove(piece);
        } else if piece + 1 < self.pieces.len() && self.pieces[piece].len() + self.pieces[piece + 1].len() <= PIECE / 2 {
            // A map that has shrunk is no list of crumbs.
            let next = self.pieces.remove(piece + 1);
            Arc::make_mut(&mut self.pieces[piece]).extend(Arc::unwrap_or_clone(next));
        }
        Some(value)
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Shared<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Shared<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for Shared<K, V> {}

impl<K: Ord + Hash, V: Hash> Hash for Shared<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len.hash(state);
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Serialize, V: Serialize> Serialize for Shared<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de> for Shared<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |value| value)
    }
}

/// Reads a map, each value as it is made of what is read.
pub(super) fn read<'de, D, K, R, V>(deserializer: D, made: impl Fn(R) -> V) -> Result<Shared<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Ord + Clone + Deserialize<'de>,
    R: Deserialize<'de>,
    V: Clone,
{
    deserializer.deserialize_map(Entries { made, of: PhantomData })
}

/// Reads entries one by one, so that there is no second map of all of them.
struct Entries<K, R, F> {
    made: F,
    of: PhantomData<(K, R)>,
}

impl<'de, K, R, V, F> Visitor<'de> for Entries<K, R, F>
where
    K: Ord + Clone + Deserialize<'de>,
    R: Deserialize<'de>,
    V: Clone,
    F: Fn(R) -> V,
{
    type Value = Shared<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = Shared::default();
        while let Some((key, value)) = access.next_entry()? {
            map.insert(key, (self.made)(value));
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The oracle.
    type Plain = BTreeMap<u16, u32>;

    fn same(map: &Shared<u16, u32>, plain: &Plain) -> Result<(), TestCaseError> {
        prop_assert!(map.iter().eq(plain.iter()));
        prop_assert_eq!(map.len(), plain.len());
        prop_assert_eq!(map.is_empty(), plain.is_empty());
        prop_assert!(map.pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
        Ok(())
    }

    proptest! {
        #[test]
        fn it_is_a_btree_map_to_whoever_looks_and_a_copy_stays_what_it_was(
            steps in proptest::collection::vec((0u8..5, 0u16..400, any::<u32>()), 0..1_500), copied_at in 0usize..1_500,
        ) {
            let (mut map, mut plain) = (Shared::default(), Plain::new());
            let mut copies = None;
            for (number, (what, key, value)) in steps.into_iter().enumerate() {
                if number == copied_at {
                    copies = Some((map.clone(), plain.clone()));
                }
                match what {
                    0..3 => prop_assert_eq!(map.insert(key, value), plain.insert(key, value)),
                    3 => prop_assert_eq!(map.remove(&key), plain.remove(&key)),
                    _ => {
                        prop_assert_eq!(map.get(&key), plain.get(&key));
                        if let (Some(ours), Some(theirs)) = (map.get_mut(&key), plain.get_mut(&key)) {
                            (*ours, *theirs) = (value, value);
                        }
                    }
                }
            }
            same(&map, &plain)?;
            if let Some((map, plain)) = copies {
                same(&map, &plain)?;
            }
        }
    }

    #[test]
    fn what_comes_in_order_lies_in_full_pieces_and_reads_back_from_json() {
        let map: Shared<u16, u32> = (0..1_000).map(|n| (n, u32::from(n))).collect();
        assert_eq!(map.pieces.len(), 1_000usize.div_ceil(PIECE));
        let mut backwards: Shared<u16, u32> = (0..1_000).rev().map(|n| (n, u32::from(n))).collect();
        assert_eq!(map, backwards, "wherever the pieces begin");
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<Shared<u16, u32>>(&json).unwrap(), map);
        for key in 0..1_000 {
            assert!(backwards.remove(&key).is_some());
        }
        assert!(backwards.pieces.is_empty());
    }

    #[test]
    fn a_copy_shares_what_neither_has_changed() {
        let map: Shared<u16, u32> = (0..1_000).map(|n| (n, 0)).collect();
        let mut copy = map.clone();
        *copy.get_mut(&500).unwrap() = 1;
        let own = map.pieces.iter().zip(&copy.pieces).filter(|(ours, theirs)| !Arc::ptr_eq(ours, theirs)).count();
        assert_eq!((own, map.get(&500), copy.get(&500)), (1, Some(&0), Some(&1)));
    }
}
