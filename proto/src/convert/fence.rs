//! Attempts of fence agents, and how they ended.

use super::{BadMessage, Out, id, present};
use crate::epoch::Epoch;
use crate::fence::{AttemptRef, Outcome};
use crate::wire;

/// An attempt, if it is named.
pub(super) fn attempt(a: Option<wire::Attempt>) -> Out<AttemptRef> {
    let a = present("attempt", a)?;
    Ok(AttemptRef {
        tree: id("attempt.tree", &a.tree)?,
        side: id("attempt.side", &a.side)?,
        epoch: Epoch::from_raw(a.epoch),
        number: a.number,
    })
}

/// How an agent ended.
pub(super) fn outcome(s: &str) -> Out<Outcome> {
    Outcome::parse(s).ok_or_else(|| BadMessage::new("outcome", "use one of succeeded, untouched, failed"))
}

impl From<&AttemptRef> for wire::Attempt {
    fn from(a: &AttemptRef) -> Self {
        Self { tree: a.tree.to_string(), side: a.side.to_string(), epoch: a.epoch.get(), number: a.number }
    }
}
