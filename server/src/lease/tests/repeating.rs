//! Retries, history and revisions.

use super::*;
use crate::lease::{HISTORY_MAX, REPLAY_MAX, TEXT_MAX};

#[test]
fn a_retry_gets_the_same_answer_and_does_nothing_twice() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let acquire = Command::Acquire(acquire_of(&tree_id(1), &a));
    let first = world.run_keyed(key(1), acquire.clone());
    let lease = LeaseRef { tree: tree_id(1), session: a, epoch: Epoch::from_raw(1) };
    world.release(&lease);
    let before = world.state.clone();
    assert_eq!(world.run_keyed(key(1), acquire), first, "the old answer: it opens no gate (I4)");
    assert_eq!(world.kinds(), []);
    assert_eq!(world.state, before);
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    let no_wait = Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &b) });
    let first = world.run_keyed(key(1), no_wait.clone());
    world.release(&lease);
    assert_eq!(world.run_keyed(key(1), no_wait), first);
}

#[test]
fn a_retry_survives_a_snapshot() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let acquire = Command::Acquire(acquire_of(&tree_id(1), &a));
    let first = world.run_keyed(key(1), acquire.clone());
    let text = serde_json::to_string(&world.state).unwrap();
    world.state = serde_json::from_str(&text).unwrap();
    assert_eq!(world.run_keyed(key(1), acquire), first);
}

#[test]
fn the_servers_own_commands_are_never_answered_from_memory() {
    let mut world = World::new();
    let first = world.run_keyed(key(1), Command::Lead { node: NODE });
    let number = world.leadership();
    assert_eq!(world.run_keyed(key(1), Command::Lead { node: NODE }), first);
    assert!(world.leadership() > number, "a new leadership has begun");
}

#[test]
fn answers_and_history_are_bounded() {
    let mut world = World::new();
    let report = |n: u64| Command::Report {
        lease: LeaseRef { tree: tree_id(1), session: session_id(1), epoch: Epoch::from_raw(1) },
        event: EventKind::Bypass,
        reason: format!("{n}"),
        count: n,
    };
    for n in 0..REPLAY_MAX as u64 + 10 {
        let at = WallTime::UNKNOWN;
        let proposal = Proposal { request_key: key(n), actor: "test".into(), at, command: report(n) };
        world.state.apply(&Entry { index: 100 + n, proposal });
    }
    assert_eq!(world.state.replay.len(), REPLAY_MAX);
    let history = world.state.history(&tree_id(1), 0);
    assert_eq!(history.len(), HISTORY_MAX);
    assert_eq!(history.last().unwrap().count, REPLAY_MAX as u64 + 9, "newest last");
    assert_eq!(world.state.history(&tree_id(1), 3).len(), 3);
    assert_eq!(world.state.history(&tree_id(1), 3)[2], history[HISTORY_MAX - 1]);
}

#[test]
fn every_event_has_its_own_revision() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    let before = world.state.revision();
    world.release(&lease);
    let revisions: Vec<u64> = world.events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, [before + 1, before + 2]);
    assert_eq!(world.state.revision(), before + 2);
}

#[test]
fn a_sides_report_is_taken_whenever_it_comes_and_only_of_what_a_side_can_know() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.release(&lease);
    let report = |event| Command::Report { lease: lease.clone(), event, reason: "pid 812".into(), count: 2 };
    assert_eq!(world.run(report(EventKind::LateWrite)), Answer::Done);
    let event = &world.events[0];
    assert_eq!((event.side.clone(), event.epoch, event.count), (Some(side("a")), lease.epoch, 2));
    assert_eq!(code(world.run(report(EventKind::Granted))), Code::Usage);
}

#[test]
fn long_texts_are_cut() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let note = "ü".repeat(TEXT_MAX * 2);
    world.run(Command::Acquire(Acquire { note, ..acquire_of(&tree_id(1), &a) }));
    assert_eq!(world.status().holder.unwrap().note.chars().count(), TEXT_MAX);
    let reason = "ü".repeat(TEXT_MAX);
    world.run(Command::FenceConfirm { tree: tree_id(1), epoch: Epoch::from_raw(1), reason: reason.clone() });
    world.run(Command::Break { tree: tree_id(1), epoch: Epoch::from_raw(1), reason: reason.clone() });
    world.run(Command::FenceConfirm { tree: tree_id(1), epoch: Epoch::from_raw(1), reason });
    assert!(world.state.history(&tree_id(1), 0).iter().all(|e| e.reason.chars().count() <= TEXT_MAX));
}
