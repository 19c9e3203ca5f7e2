//! Events, for watch and history.

use super::{BadMessage, Out, SENTENCE_MAX, cut, end, id, optional_id, or_empty, say, sentence, text};
use crate::command::{Event, EventKind};
use crate::epoch::{Epoch, RunStart};
use crate::time::WallTime;
use crate::wire;

/// The kind of an event by its name.
pub(super) fn kind(field: &'static str, s: &str) -> Out<EventKind> {
    EventKind::parse(s).ok_or_else(|| {
        BadMessage::new(field, format!("`{}` is no event of this version", s.chars().take(40).collect::<String>()))
    })
}

impl From<&Event> for wire::Event {
    fn from(e: &Event) -> Self {
        Self {
            revision: e.revision,
            at: e.at.to_string(),
            tree: e.tree.to_string(),
            name: e.name.to_string(),
            event: e.kind.as_str().into(),
            side: or_empty(e.side.as_ref()),
            session: or_empty(e.session.as_ref()),
            epoch: e.epoch.get(),
            run_start: e.run_start.0.get(),
            actor: say(&e.actor),
            reason: cut(&e.reason, SENTENCE_MAX),
            end: e.end.as_str().into(),
            files: e.files,
            bytes: e.bytes,
            count: e.count,
        }
    }
}

impl TryFrom<wire::Event> for Event {
    type Error = BadMessage;
    fn try_from(e: wire::Event) -> Out<Self> {
        Ok(Self {
            revision: e.revision,
            at: WallTime::parse(&e.at),
            tree: id("event.tree", &e.tree)?,
            name: id("event.name", &e.name)?,
            kind: kind("event.event", &e.event)?,
            side: optional_id("event.side", &e.side)?,
            session: optional_id("event.session", &e.session)?,
            epoch: Epoch::from_raw(e.epoch),
            run_start: RunStart(Epoch::from_raw(e.run_start)),
            actor: text("event.actor", e.actor)?,
            reason: sentence("event.reason", e.reason)?,
            end: end("event.end", &e.end)?,
            files: e.files,
            bytes: e.bytes,
            count: e.count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_event_comes_back_as_it_went(event in arbitrary::event()) {
            prop_assert_eq!(Event::try_from(wire::Event::from(&event)).unwrap(), event);
        }
    }
}
