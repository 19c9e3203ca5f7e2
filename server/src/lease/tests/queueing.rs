//! Who waits, in which order, and what asking does.

use super::*;
use crate::lease::MAX_WAITERS;

fn ask(session: &SessionId) -> Command {
    Command::Acquire(Acquire { ask: true, ..acquire_of(&tree_id(1), session) })
}

#[test]
fn the_queue_is_first_come_first_served_and_asking_does_not_change_it() {
    let mut world = World::new();
    let (a, b, c) = (world.open("a", 1), world.open("b", 2), world.open("c", 3));
    let lease = world.granted(&a);
    assert_eq!(world.queued(&b), 1);
    assert_eq!(world.queued(&c), 2);
    assert!(matches!(world.run(ask(&c)), Answer::Queued { place: 2, .. }));
    assert_eq!(world.kinds(), [EventKind::Asked], "it was queued before; only the asking is new");
    assert_eq!(world.events[0].side, Some(side("c")));
    world.release(&lease);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn asking_is_only_ever_raised_and_a_person_outranks_a_first_write() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    let first = Acquire { first_write: true, ..acquire_of(&tree_id(1), &b) };
    world.run(Command::Acquire(first.clone()));
    assert!(world.status().waiters[0].first_write);
    world.run(ask(&b));
    world.run(Command::Acquire(first));
    let waiter = &world.status().waiters[0];
    assert!(waiter.asked && !waiter.first_write);
    assert_eq!(world.status().waiters.len(), 1);
    world.run(ask(&b));
    assert_eq!(world.kinds(), [], "nothing is new");
}

#[test]
fn without_waiting_the_answer_names_the_holder_and_nothing_is_queued() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    let no_wait = Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &b) });
    let refused = refusal(world.run(no_wait.clone()));
    assert_eq!(refused.code, Code::Held);
    assert_eq!(refused.holder.unwrap().side, side("a"));
    assert!(refused.message.starts_with("dev is held by a (host a-host) since 1970-"), "{}", refused.message);
    assert_eq!(world.status().waiters.len(), 0);
    world.queued(&b);
    refusal(world.run(no_wait));
    assert_eq!(world.status().waiters.len(), 1, "an entry that stood there before stays");
}

#[test]
fn without_waiting_the_answer_says_what_a_cooling_tree_waits_for() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.expire(&a);
    let no_wait = Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &b) });
    let cooling = refusal(world.run(no_wait.clone())).message;
    assert_eq!(cooling, "dev waits for grace after a's unclean end at epoch 1 (its session expired)");
    world.end_grace(1);
    let fencing = refusal(world.run(no_wait)).message;
    assert!(fencing.contains("treelease fence confirm dev --epoch 1 --reason"), "{fencing}");
}

#[test]
fn a_waiter_that_cancels_is_not_granted() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    let cancel = Command::Cancel { tree: tree_id(1), session: b.clone() };
    assert_eq!(world.run(cancel.clone()), Answer::Done);
    assert!(ignored(&world.run(cancel)));
    world.release(&lease);
    assert_eq!(world.stands(), StateName::Free);
    world.granted(&b);
    assert!(ignored(&world.run(Command::Cancel { tree: tree_id(1), session: b.clone() })));
    assert_eq!(world.holder(), Some(b), "a cancel does nothing to a lease that was granted meanwhile");
}

#[test]
fn a_waiter_whose_session_ends_leaves_the_queue() {
    let mut world = World::new();
    let (a, b, c) = (world.open("a", 1), world.open("b", 2), world.open("c", 3));
    let lease = world.granted(&a);
    world.queued(&b);
    world.queued(&c);
    world.expire(&b);
    assert_eq!(world.kinds(), [EventKind::Cancelled]);
    world.release(&lease);
    assert_eq!(world.holder(), Some(c));
}

#[test]
fn a_decline_takes_requests_back_until_somebody_asks_anew() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.run(ask(&b));
    let decline = Command::Decline { lease, for_ms: 600_000, note: "a build".into() };
    assert_eq!(world.run(decline), Answer::Done);
    let status = world.status();
    assert_eq!(status.declined, "not now, for 10m: a build");
    assert!(!status.waiters[0].asked);
    world.run(ask(&b));
    assert_eq!(world.status().declined, "");
    assert_eq!(world.kinds(), [EventKind::Asked]);
}

#[test]
fn the_queue_has_a_limit() {
    let mut world = World::new();
    let a = world.open("holder", 1);
    world.granted(&a);
    for n in 0..MAX_WAITERS as u64 {
        let session = world.open(&format!("s{n}"), 100 + n);
        world.queued(&session);
    }
    let late = world.open("late", 2);
    assert_eq!(code(world.acquire(&late)), Code::Limit);
}

#[test]
fn after_an_unclean_end_only_the_sides_of_the_takeover_policy_are_granted() {
    let mut world = World::new();
    let (a, b, c) = (world.open("a", 1), world.open("b", 2), world.open("c", 3));
    assert_eq!(world.set("takeover", "c"), Answer::Done);
    world.granted(&a);
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    world.confirm(1);
    assert_eq!(world.stands(), StateName::Free, "b may not have it");
    let no_wait = Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &b) });
    assert!(refusal(world.run(no_wait)).message.contains("takeover"));
    let lease = world.granted(&c);
    world.release(&lease);
    assert_eq!(world.holder(), Some(b), "after a clean end anybody may");
}

#[test]
fn a_changed_takeover_policy_lets_the_waiter_in() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.set("takeover", "c");
    world.granted(&a);
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    world.confirm(1);
    world.set("takeover", "any");
    assert_eq!(world.holder(), Some(b));
}
