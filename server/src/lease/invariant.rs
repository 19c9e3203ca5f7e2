//! I1 and I2 as functions that look at a state from outside, and say in a sentence what is wrong.
//!
//! [`check`] looks at one state, [`check_step`] at what one command did to one tree. They are called after every command in
//! debug builds and in tests. They repeat no code of the transitions: what they know is the drawing in `tree`.

use std::collections::BTreeSet;

use treelease_proto::command::{Command, Leadership, Outcome, Verb};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{NodeId, SideName, TreeId};
use treelease_proto::policy::Fence;
use treelease_proto::time::Ttl;
use treelease_proto::tree::{End, RootState};

use super::tree::{Ended, Fencing, How, TreeState};
use super::{MAX_WAITERS, OPEN_MAX, State, Tree};

type Verdict = Result<(), String>;

fn must(holds: bool, what: impl Fn() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

/// Everything that must be true of a state.
pub fn check(state: &State) -> Verdict {
    for id in state.trees.keys() {
        check_alone(state, id)?;
    }
    must(state.names.len() == state.trees.len(), || "names and trees differ in number".into())?;
    let roots: usize = state.trees.values().map(|tree| tree.roots.len()).sum();
    must(state.roots.len() == roots, || "the index of roots is wrong".into())?;
    must(state.sides.len() == state.sessions.len(), || "a side has two sessions, or none".into())?;
    for (id, session) in state.sessions.iter() {
        must(state.sides.get(&session.side) == Some(id), || format!("session {id} is not its side's"))?;
        must(session.ttl >= state.ttl_min && session.ttl <= state.ttl_max, || format!("session {id}'s TTL"))?;
        must(session.lowered_from.is_none_or(|before| before > session.ttl), || format!("session {id}'s lower TTL"))?;
        let holds = |tree: &Tree| tree.held().is_some_and(|held| held.session == *id);
        for tree in &session.held {
            must(state.trees.get(tree).is_some_and(holds), || format!("session {id} does not hold {tree}"))?;
        }
        for tree in &session.waiting {
            let waits = state.trees.get(tree).is_some_and(|tree| tree.queue.contains(id));
            must(waits, || format!("session {id} does not wait for {tree}"))?;
        }
    }
    for id in &state.fences {
        must(state.trees.contains_key(id), || format!("{id} is in the index of fences and is no tree"))?;
    }
    for id in &state.cooling {
        let cools = state.trees.get(id).is_some_and(|tree| matches!(tree.state, TreeState::Cooling(_)));
        must(cools, || format!("{id} is in the index of coolings and does not cool"))?;
    }
    Ok(())
}

/// Everything that must be true of one tree in its state. It walks all sessions; [`check`] looks from their side, once for all trees.
pub fn check_tree(state: &State, id: &TreeId) -> Verdict {
    check_alone(state, id)?;
    let holder = state.trees.get(id).and_then(|tree| tree.held()).map(|held| &held.session);
    let another = state.sessions.iter().find(|(session, s)| s.held.contains(id) && holder != Some(*session));
    must(another.is_none(), || format!("{id}: I1: a second session believes to hold it"))
}

/// What can be said of it without a walk through all sessions.
fn check_alone(state: &State, id: &TreeId) -> Verdict {
    let Some(tree) = state.trees.get(id) else { return Err(format!("there is no tree {id}")) };
    let name = &tree.name;
    must(tree.id == *id && state.names.get(name) == Some(id), || format!("{name}: its name leads elsewhere"))?;
    // I1: one holder, a live session, the tree's last epoch; and the session's own list agrees, for renewals answer from that.
    if let Some(held) = tree.held() {
        let session = state.sessions.get(&held.session);
        must(session.is_some_and(|s| s.side == held.side && s.held.contains(id)), || {
            format!("{name}: I1: held by a session that does not live or does not know it")
        })?;
        must(held.epoch == tree.last_epoch, || format!("{name}: I1: held under an old epoch"))?;
        must(!tree.queue.contains(&held.session), || format!("{name}: its holder waits for it"))?;
        must(!tree.is_fenced(&held.side), || format!("{name}: I2: held by a fenced side"))?;
        let run = tree.run.as_ref();
        must(run.is_some_and(|run| run.side == held.side && !run.closed), || format!("{name}: the run is not the holder's"))?;
    }
    if let Some(ended) = tree.ended() {
        must(ended.epoch == tree.last_epoch, || format!("{name}: cools after an old epoch"))?;
        must(tree.last_end == End::Unclean, || format!("{name}: cools after a clean end"))?;
        let on = ended.how != How::Expired && tree.run.as_ref().is_some_and(|run| !run.closed);
        must(!on, || format!("{name}: its run goes on after a break or a surrender"))?;
    }
    must(state.cooling.contains(id) == matches!(tree.state, TreeState::Cooling(_)), || format!("{name}: the index of coolings"))?;
    let fences = matches!(tree.state, TreeState::Fencing(_)) || !tree.fenced.is_empty() || tree.trial.is_some();
    must(state.fences.contains(id) == fences, || format!("{name}: the index of fences"))?;
    for (side, fenced) in &tree.fenced {
        let numbers: BTreeSet<u32> = fenced.open.iter().map(|open| open.number).collect();
        let right = numbers.len() == fenced.open.len() && numbers.last().is_none_or(|last| *last <= fenced.attempts);
        must(right && fenced.open.len() <= OPEN_MAX, || format!("{name}: the attempts against {side}"))?;
        must(fenced.epoch <= tree.last_epoch, || format!("{name}: {side} was fenced in the future"))?;
    }
    must(tree.run_start().0 <= tree.last_epoch, || format!("{name}: a run that begins in the future"))?;
    must(tree.roots.iter().filter(|r| r.state == RootState::Live).count() <= 1, || format!("{name}: I8: two live roots"))?;
    let retired = tree.state == TreeState::Retired;
    must(!retired || tree.live_root().is_none() && tree.queue.len() == 0, || format!("{name}: retired, and not at its end"))?;
    must(!state.tombstones.contains_key(id), || format!("{name}: I1: its id was used before"))?;
    must(tree.roots.iter().all(|r| state.roots.get(&r.id) == Some(id)), || format!("{name}: a root of another tree"))?;
    // The queue: one entry each, of live sessions, and nobody who may have a free tree.
    let waiters: BTreeSet<_> = tree.queue.iter().map(|w| &w.session).collect();
    must(waiters.len() == tree.queue.len() && tree.queue.len() <= MAX_WAITERS, || format!("{name}: somebody waits twice"))?;
    for waiting in tree.queue.iter() {
        let known = state.sessions.get(&waiting.session).is_some_and(|s| s.side == waiting.side && s.waiting.contains(id));
        must(known, || format!("{name}: a waiter without a session"))?;
        let passed_over = tree.state == TreeState::Free && tree.may_be_granted(&waiting.side);
        must(!passed_over, || format!("{name}: it is free, and {} waits for it", waiting.side))?;
    }
    Ok(())
}

/// I1 and I2 of one step: what `command` did to a tree, under which leadership.
pub fn check_step(before: &Tree, after: &Tree, command: &Command, leadership: Option<(Leadership, NodeId)>) -> Verdict {
    let name = &before.name;
    if let Command::RaiseEpoch { above, .. } = command
        && after.last_epoch != before.last_epoch
    {
        return raised(before, after, *above);
    }
    let granted = after.last_epoch != before.last_epoch;
    must(!granted || after.last_epoch.get() == before.last_epoch.get() + 1, || {
        format!("{name}: I1: from epoch {} to {}", before.last_epoch, after.last_epoch)
    })?;
    must(!granted || after.held().is_some(), || format!("{name}: I1: an epoch that nobody was granted"))?;
    let changed = after.held().map(|held| (&held.session, held.epoch)) != before.held().map(|held| (&held.session, held.epoch));
    must(granted || !changed || after.held().is_none(), || format!("{name}: I1: a holder without a grant"))?;
    if granted {
        run_goes_on_rightly(before, after)?;
    }
    let by_leader = |under: &Leadership| leadership.is_some_and(|(current, _)| current == *under);
    for side in before.fenced.keys().filter(|side| before.is_fenced(side) && !after.is_fenced(side)) {
        let back = match command {
            Command::FenceResult { attempt, outcome, decided_under, .. } => {
                let open = open_of(before, side, attempt.number);
                let undone =
                    matches!((open, outcome), (Some((Verb::Unfence, _)), Outcome::Succeeded) | (Some(_), Outcome::Untouched));
                attempt.side == *side && by_leader(decided_under) && undone
            }
            Command::Unfence { side: named, by_hand, .. } => *named == *side && *by_hand,
            Command::FenceLapsed { attempt, .. } => {
                attempt.side == *side && matches!(open_of(before, side, attempt.number), Some((Verb::Unfence, _)))
            }
            _ => false,
        };
        must(back, || format!("{name}: I2: the fence of {side} was forgotten"))?;
    }
    match (&before.state, &after.state) {
        (TreeState::Retired, after) => must(*after == TreeState::Retired, || format!("{name}: it was retired")),
        (TreeState::Free, TreeState::Retired) => {
            let asked = matches!(command, Command::Retire { epoch, .. } if *epoch == before.last_epoch);
            must(asked, || format!("{name}: it was retired by nobody"))
        }
        (TreeState::Free, TreeState::Free | TreeState::Held(_)) => {
            must(!granted || !after.is_sealed(), || format!("{name}: I8: granted with no root that takes writes"))
        }
        (TreeState::Held(held), TreeState::Held(_)) if !granted => must(
            held.at_rest == after.held().is_some_and(|h| h.at_rest)
                || matches!(command, Command::Rest { .. } | Command::Active { .. }),
            || format!("{name}: rest changed by something else"),
        ),
        // I2 a: the holder's own word.
        (TreeState::Held(held), TreeState::Held(_) | TreeState::Free) => {
            let lease = match command {
                Command::Release(release) => Some(&release.lease),
                Command::GiveBack { lease, .. } if !before.came_back => Some(lease),
                _ => None,
            };
            must(lease.is_some_and(|l| l.session == held.session && l.epoch == held.epoch), || {
                format!("{name}: I2: it left its holder without the holder's word")
            })
        }
        // I2 b, c: into the waits, by who may say so.
        (TreeState::Held(held), TreeState::Cooling(cooling)) => {
            let (right, how) = match command {
                Command::ExpireSession { session, decided_under } => {
                    (*session == held.session && by_leader(decided_under), How::Expired)
                }
                // Two machines may write until their time is up.
                Command::EndCopied { session, .. } => {
                    let waits = cooling.length >= before.policy.grace.saturating_add(Ttl::MIN.get());
                    (*session == held.session && waits, How::Copied)
                }
                Command::Break { epoch, .. } => (*epoch == held.epoch, How::Broken),
                Command::Surrender { lease, .. } => {
                    (lease.session == held.session && lease.epoch == held.epoch, How::Surrendered)
                }
                // Back after an expiry, and its gate did not open: what was unconfirmed still is.
                Command::GiveBack { lease, .. } => {
                    (before.came_back && lease.session == held.session && lease.epoch == held.epoch, How::Expired)
                }
                _ => (false, How::Expired),
            };
            let ended = &cooling.ended;
            must(right && ended.how == how && ended.epoch == held.epoch, || format!("{name}: I2: ended by who may not"))?;
            must(ended.place == held.place && ended.side.as_ref() == Some(&held.side), || format!("{name}: not its end"))?;
            must(ended.active || held.at_rest, || format!("{name}: I2: unconfirmed writes forgotten"))?;
            must(ended.marker.is_none() || ended.marker == held.marker, || format!("{name}: I2: a lock that nobody had"))?;
            must(cooling.length >= before.policy.grace, || format!("{name}: I2: less than grace"))
        }
        (TreeState::Cooling(from), TreeState::Cooling(to)) if from.serial == to.serial => {
            must(from == to, || format!("{name}: a cooling changed in place"))
        }
        (TreeState::Cooling(from), TreeState::Cooling(to)) => {
            let word = matches!(command, Command::GateClosed(lease)
                if Some(&lease.session) == from.ended.session.as_ref() && lease.epoch == from.ended.epoch);
            must(word && to.serial > from.serial && from.ended.how == How::Broken, || format!("{name}: I2: cut short"))
        }
        (TreeState::Cooling(cooling), TreeState::Fencing(fencing)) => {
            let ended = matches!(command, Command::EndGrace { epoch, decided_under, .. }
                if *epoch == cooling.ended.epoch && by_leader(decided_under));
            must(ended && cooling.ended == fencing.ended, || format!("{name}: I2: the grace was not over"))
        }
        (TreeState::Cooling(cooling), TreeState::Free | TreeState::Held(_)) => {
            let needs_fence = cooling.ended.active && before.policy.fence != Fence::None;
            let waited = matches!(command, Command::EndGrace { epoch, decided_under, .. }
                if *epoch == cooling.ended.epoch && by_leader(decided_under));
            let passes =
                vouched(command, &cooling.ended) || (waited && !needs_fence) || came_back(&cooling.ended, after, command);
            must(passes, || format!("{name}: I2: it passed on before its waits were over"))
        }
        (TreeState::Fencing(from), TreeState::Fencing(to)) => {
            let tried = matches!(command, Command::FenceAttempt { attempt, verb: Verb::Fence, decided_under, .. }
                if attempt.number == to.attempt && to.attempt >= from.attempt && by_leader(decided_under));
            must(from.ended == to.ended && (tried || from.attempt == to.attempt), || format!("{name}: a fence changed"))
        }
        (TreeState::Fencing(fencing), TreeState::Free | TreeState::Held(_)) => {
            let passes = vouched(command, &fencing.ended)
                || witnessed(command, fencing)
                || by_agent(command, before, fencing, leadership)
                || came_back(&fencing.ended, after, command);
            must(passes, || format!("{name}: I2: it passed on without its fence"))
        }
        (from, to) => Err(format!("{name}: there is no way from {from:?} to {to:?}")),
    }
}

/// Lifted by hand: above what was, without a holder, without a run that goes on, and with all waits ahead of it.
fn raised(before: &Tree, after: &Tree, above: Epoch) -> Verdict {
    let name = &before.name;
    must(after.last_epoch == above && above > before.last_epoch, || format!("{name}: I1: raised to {}", after.last_epoch))?;
    must(before.held().is_none(), || format!("{name}: I2: raised under its holder"))?;
    match &after.state {
        TreeState::Cooling(cooling) => {
            let waits = cooling.length >= before.policy.grace.saturating_add(Ttl::MIN.get());
            let right = cooling.ended.how == How::Restored && cooling.ended.active && cooling.ended.marker.is_none();
            must(waits && right && after.run.is_none(), || format!("{name}: I2: raised without its waits"))
        }
        state => Err(format!("{name}: I2: raised, and then {state:?}")),
    }
}

fn vouched(command: &Command, ended: &Ended) -> bool {
    matches!(command, Command::FenceConfirm { epoch, .. } if *epoch == ended.epoch)
}

/// The storage's word: the very lock that the ended lease said to have, in another hand.
fn witnessed(command: &Command, fencing: &Fencing) -> bool {
    matches!(command, Command::Witnessed { epoch, attempt, marker, .. }
        if *epoch == fencing.ended.epoch && *attempt == fencing.attempt && fencing.ended.marker.as_ref() == Some(marker))
}

/// An attempt that nobody has told the end of: its verb, and who ran it.
fn open_of(tree: &Tree, side: &SideName, number: u32) -> Option<(Verb, Leadership)> {
    tree.fenced.get(side)?.open.iter().find(|open| open.number == number).map(|open| (open.verb, open.leadership))
}

/// The agent's success: of the attempt that stands, from the leader that ran it and leads still.
fn by_agent(command: &Command, before: &Tree, fencing: &Fencing, leadership: Option<(Leadership, NodeId)>) -> bool {
    let Command::FenceResult { attempt, outcome: Outcome::Succeeded, decided_under, .. } = command else { return false };
    let open = open_of(before, &attempt.side, attempt.number);
    leadership.is_some_and(|(current, _)| current == *decided_under)
        && open == Some((Verb::Fence, *decided_under))
        && attempt.number == fencing.attempt
        && attempt.epoch == fencing.ended.epoch
        && fencing.ended.side.as_ref() == Some(&attempt.side)
}

/// I2: the same side on the same kernel, both known, after an expiry, by its own acquire.
fn came_back(ended: &Ended, after: &Tree, command: &Command) -> bool {
    let Some(held) = after.held() else { return false };
    ended.how == How::Expired
        && matches!(command, Command::Acquire(acquire) if acquire.session == held.session)
        && ended.side.as_ref() == Some(&held.side)
        && ended.place.is_some()
        && ended.place == held.place
}

/// Equal run starts mean that nobody else had a turn between, and that the pages are the same kernel's (I6).
fn run_goes_on_rightly(before: &Tree, after: &Tree) -> Verdict {
    let (Some(held), Some(run)) = (after.held(), after.run.as_ref()) else { return Ok(()) };
    if run.start.0 == held.epoch {
        return Ok(());
    }
    let same = before.run.as_ref().is_some_and(|old| {
        !old.closed && old.start == run.start && old.side == held.side && old.place.is_some() && old.place == held.place
    });
    must(same, || format!("{}: I6: the run goes on after another's turn or on another kernel", before.name))
}
