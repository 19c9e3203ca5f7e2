//! Who waits for a tree, and in which order: first come, first served.
//!
//! It promises one entry for each session, in the order of arrival; asking changes an entry, never its place (DESIGN 3,
//! Requests). It does not know who may be granted: the caller says who is eligible.

use serde::{Deserialize, Serialize};
use treelease_proto::id::{Place, SessionId, SideName};
use treelease_proto::time::WallTime;
use treelease_proto::tree::Waiter;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) session: SessionId,
    pub(super) side: SideName,
    pub(super) host: String,
    pub(super) since: WallTime,
    pub(super) asked: bool,
    pub(super) first_write: bool,
    pub(super) note: String,
    pub(super) place: Option<Place>,
}

impl Waiting {
    pub(super) fn as_waiter(&self) -> Waiter {
        Waiter {
            side: self.side.clone(),
            host: self.host.clone(),
            session: self.session.clone(),
            since: self.since,
            asked: self.asked,
            first_write: self.first_write,
            note: self.note.clone(),
        }
    }
}

/// What [`Queue::join`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joined {
    /// There was no entry before.
    pub(super) new: bool,
    /// The entry asks now and did not before.
    pub(super) newly_asked: bool,
    /// 1: next.
    pub(super) place: u32,
}

/// The entries, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Queue(Vec<Waiting>);

impl Queue {
    /// Appends an entry or changes the one of that session: `ask` is only ever raised, a person's wish is never lowered to a
    /// first write's, the note and the place are the newer ones, the place in the queue stays.
    pub(super) fn join(&mut self, entry: Waiting) -> Joined {
        match self.0.iter().position(|w| w.session == entry.session) {
            Some(at) => {
                let old = &mut self.0[at];
                let newly_asked = entry.asked && !old.asked;
                old.asked |= entry.asked;
                old.first_write &= entry.first_write;
                old.note = entry.note;
                old.place = entry.place;
                Joined { new: false, newly_asked, place: at as u32 + 1 }
            }
            None => {
                let newly_asked = entry.asked;
                self.0.push(entry);
                Joined { new: true, newly_asked, place: self.0.len() as u32 }
            }
        }
    }

    /// Takes a session's entry out.
    pub(super) fn leave(&mut self, session: &SessionId) -> Option<Waiting> {
        let at = self.0.iter().position(|w| w.session == *session)?;
        Some(self.0.remove(at))
    }

    /// The first entry that may be granted.
    pub(super) fn first(&self, eligible: impl Fn(&SideName) -> bool) -> Option<&Waiting> {
        self.0.iter().find(|w| eligible(&w.side))
    }

    /// Takes back every request to hand over; the entries stay.
    pub(super) fn clear_asked(&mut self) {
        for entry in &mut self.0 {
            entry.asked = false;
        }
    }

    pub(super) fn contains(&self, session: &SessionId) -> bool {
        self.0.iter().any(|w| w.session == *session)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.0.iter()
    }
}
