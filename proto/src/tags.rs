//! Which answer belongs to which question, where one call that stays open has many of both, in any order: the tags on the wire.
//!
//! Promises: no tag is given twice; what an answer names is handed out once, and only while somebody waits for it; after the end nothing is
//! asked any more. It does not know what is asked, nor how whoever waits is told (`S`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// The questions of one call that are under way, and why it has ended, if it has (`E`).
#[derive(Debug)]
pub struct Tags<S, E>(Mutex<Inner<S, E>>);

#[derive(Debug)]
struct Inner<S, E> {
    last: u64,
    waiting: BTreeMap<u64, S>,
    ended: Option<E>,
}

/// Why nothing can be asked.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAsked<E> {
    /// The call has ended.
    Ended(E),
    /// As many as may be are under way.
    Full,
}

impl<S, E> Default for Tags<S, E> {
    fn default() -> Self {
        Self(Mutex::new(Inner { last: 0, waiting: BTreeMap::new(), ended: None }))
    }
}

impl<S, E> Tags<S, E> {
    fn lock(&self) -> MutexGuard<'_, Inner<S, E>> {
        self.0.lock().expect("nothing panics while it holds the tags")
    }

    /// Whether somebody still waits for this answer.
    pub fn waits(&self, tag: u64) -> bool {
        self.lock().waiting.contains_key(&tag)
    }

    /// The one that waits for this answer, if there is one.
    pub fn answered(&self, tag: u64) -> Option<S> {
        self.lock().waiting.remove(&tag)
    }
}

impl<S, E: Clone> Tags<S, E> {
    /// One question more, of at most `most` under way. It is under way until it is answered or what is returned is dropped.
    ///
    /// # Errors
    /// The call has ended, or has no room.
    pub fn ask(&self, waits: S, most: usize) -> Result<Asked<'_, S, E>, NotAsked<E>> {
        let mut inner = self.lock();
        if let Some(end) = &inner.ended {
            return Err(NotAsked::Ended(end.clone()));
        }
        if inner.waiting.len() >= most {
            return Err(NotAsked::Full);
        }
        inner.last += 1;
        let tag = inner.last;
        inner.waiting.insert(tag, waits);
        Ok(Asked { of: self, tag })
    }

    /// Nothing is asked or answered any more. All that were under way, to be told so.
    pub fn end(&self, end: E) -> Vec<S> {
        let mut inner = self.lock();
        inner.ended = Some(end);
        std::mem::take(&mut inner.waiting).into_values().collect()
    }

    /// Why the call has ended, if it has.
    pub fn ended(&self) -> Option<E> {
        self.lock().ended.clone()
    }
}

/// A question under way. Whoever drops it waits no longer.
#[derive(Debug)]
pub struct Asked<'a, S, E> {
    of: &'a Tags<S, E>,
    tag: u64,
}

impl<S, E> Asked<'_, S, E> {
    /// What its answer will name.
    pub fn tag(&self) -> u64 {
        self.tag
    }
}

impl<S, E> Drop for Asked<'_, S, E> {
    fn drop(&mut self) {
        self.of.lock().waiting.remove(&self.tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_handed_to_the_one_that_it_names_once_and_to_nobody_who_waits_no_longer() {
        let tags = Tags::<&str, ()>::default();
        let (one, two) = (tags.ask("one", 9).unwrap(), tags.ask("two", 9).unwrap());
        assert_ne!(one.tag(), two.tag());
        assert!(tags.waits(two.tag()));
        assert_eq!(tags.answered(two.tag()), Some("two"));
        assert!(!tags.waits(two.tag()));
        assert_eq!(tags.answered(two.tag()), None, "once");
        let gone = one.tag();
        drop(one);
        assert_eq!(tags.answered(gone), None, "nobody waits");
        assert!(![gone, two.tag()].contains(&tags.ask("three", 9).unwrap().tag()), "no tag is given twice");
    }

    #[test]
    fn there_is_room_for_so_many_and_after_the_end_for_none() {
        let tags = Tags::<u8, &str>::default();
        let first = tags.ask(1, 1).unwrap();
        assert_eq!(tags.ask(2, 1).err(), Some(NotAsked::Full));
        drop(first);
        let _second = tags.ask(3, 1).unwrap();
        assert_eq!(tags.end("over"), [3]);
        assert_eq!(tags.ask(4, 1).err(), Some(NotAsked::Ended("over")));
        assert_eq!(tags.ended(), Some("over"));
    }
}
