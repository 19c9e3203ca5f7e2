//! I7: all nodes apply the same events in the same order, and what any of them has applied is there for good.

use std::sync::Arc;

use treelease_proto::command::Event;

use super::super::past::Past;
use super::Broken;

/// A node has applied that event. True: nobody has before.
pub fn check(past: &Past, event: &Arc<Event>) -> Result<bool, Broken> {
    if let Some(known) = past.at(event.revision) {
        if known != event {
            return Err(format!("one node has applied {known:?}, another one {event:?}: what was acknowledged is lost"));
        }
        return Ok(false);
    }
    match past.last() {
        // What came before the first look.
        0 => Ok(true),
        last if event.revision == last + 1 => Ok(true),
        last if event.revision <= last => Ok(false),
        last => Err(format!("the world has seen revision {last}, and then {}", event.revision)),
    }
}

/// At the end, when everything has healed: how far the nodes have come.
pub fn check_end(past: &Past, revisions: &[u64]) -> Result<(), Broken> {
    let last = past.last();
    match revisions.iter().find(|revision| **revision < last) {
        Some(behind) => Err(format!("revision {last} was applied once, and in the end a node has {behind} and comes no further")),
        None => Ok(()),
    }
}
