//! I5: calls are linearizable: each is as if it had happened at one moment between question and answer.
//!
//! *Why no search is needed.* In general one looks for an order of all calls. Here the log gives the order of the changes, and the
//! world knows when each was applied first. A call may stand at any moment of a tree's past that was not over when it began. So a
//! call that began when a change had been applied anywhere must have seen it (or a later one): this is what one may not do who
//! answers from what it knew once. If every call finds such a moment, they all stand in one order: take for each the earliest; of two
//! of which one ended before the other began, the later one's moment is not earlier, because what the first one saw had been applied
//! before it ended. A status is no such call (any node answers it at once, and marks what may be old), but it must be the state
//! at the revision that it names.

use std::time::Duration;

use treelease_proto::command::Answer;
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::tree::{ClusterStatus, TreeStatus};

use super::super::past::{Past, TreePast};
use super::Broken;

/// A renewal of that session began then, and says that it holds the tree under this epoch, or that it does not.
pub fn renewed(past: &TreePast, session: &SessionId, says: Option<Epoch>, began: Duration) -> Result<(), Broken> {
    let stretches = past.since(began);
    let holds = |held: &Option<(SessionId, Epoch)>| held.as_ref().filter(|(who, _)| who == session).map(|(_, epoch)| *epoch);
    if stretches.iter().any(|stretch| holds(&stretch.held) == says) {
        return Ok(());
    }
    Err(format!("a renewal that began at {began:?} was told that it holds {says:?}; since then it was {stretches:?}"))
}

/// A command of that session began then and has this answer.
pub fn did(
    past: &TreePast,
    session: &SessionId,
    released: Option<Epoch>,
    answer: &Answer,
    began: Duration,
) -> Result<(), Broken> {
    match (answer, released) {
        (Answer::Granted(grant), _) => renewed(past, session, Some(grant.epoch), began),
        (Answer::Done, Some(epoch)) => {
            let happened = past.released.iter().any(|(who, ended, at)| who == session && *ended == epoch && *at >= began);
            if happened { Ok(()) } else { Err(format!("the release of epoch {epoch} was acknowledged and has not happened")) }
        }
        _ => Ok(()),
    }
}

/// A status shows the tree as it was at the revision that it names.
pub fn shown(past: &Past, status: &ClusterStatus) -> Result<(), Broken> {
    let held = |tree: &TreeStatus| tree.holder.as_ref().map(|holder| (holder.session.clone(), holder.epoch));
    for tree in &status.trees {
        let Some(was) = past.tree(&tree.id) else { continue };
        if status.revision <= past.last() && held(tree) != *was.held_at(status.revision) {
            return Err(wrong_status(&tree.id, status.revision));
        }
    }
    Ok(())
}

fn wrong_status(tree: &TreeId, revision: u64) -> Broken {
    format!("a status shows tree {tree} at revision {revision} otherwise than it was")
}

#[cfg(test)]
mod tests {
    use super::super::super::past::Stretch;
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn i5_who_is_told_what_was_over_when_it_asked_is_seen() {
        let (me, other) = (SessionId::random(), SessionId::random());
        let (one, two) = (Epoch::ZERO.next(), Epoch::ZERO.next().next());
        let stretch = |revision, ms, held| Stretch { revision, at: at(ms), held };
        let past = TreePast {
            stretches: vec![
                stretch(0, 0, None),
                stretch(3, 100, Some((me.clone(), one))),
                stretch(5, 200, None),
                stretch(6, 300, Some((other.clone(), two))),
            ],
            released: vec![(me.clone(), one, at(200))],
        };
        // Asked while it held the tree, or before: it may have been either.
        renewed(&past, &me, Some(one), at(150)).unwrap();
        renewed(&past, &me, Some(one), at(200)).unwrap();
        renewed(&past, &me, None, at(150)).unwrap();
        // Asked after the end had been applied somewhere.
        renewed(&past, &me, Some(one), at(201)).unwrap_err();
        renewed(&past, &me, None, at(350)).unwrap();
        renewed(&past, &other, None, at(350)).unwrap_err();
        renewed(&past, &other, Some(one), at(350)).unwrap_err();
        did(&past, &me, Some(one), &Answer::Done, at(150)).unwrap();
        did(&past, &me, Some(two), &Answer::Done, at(150)).unwrap_err();
        did(&past, &me, Some(one), &Answer::Done, at(250)).unwrap_err();
    }
}
