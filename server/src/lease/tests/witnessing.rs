//! The storage as a witness: the old holder's lock in a waiter's hand is the fence's success (DESIGN 3).

use super::*;

/// `a` held it and said that it had its marker's lock on `k`; `b` waits; then `a` expired and its grace passed.
fn fencing(marker: Option<MarkerLock>) -> (World, SessionId) {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    assert_eq!(world.active(&lease, 1, marker.clone()), Answer::Done);
    assert_eq!(world.status().witness, marker, "people see it while it is held");
    world.expire(&a);
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    (world, b)
}

#[test]
fn i2_who_has_the_old_holders_lock_in_hand_ends_the_fence_and_the_first_waiter_is_granted() {
    let (mut world, b) = fencing(Some(marker_on("k")));
    assert_eq!(world.status().witness, Some(marker_on("k")));
    assert_eq!(world.witness(1, 1, &b, marker_on("k")), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Witnessed, EventKind::Granted]);
    assert_eq!((world.holder(), world.events[1].end), (Some(b), End::Unclean));
    assert_eq!(world.status().witness, None);
}

#[test]
fn i2_a_witness_counts_only_for_the_very_lock_that_the_ended_lease_said_to_have() {
    let other_inode = MarkerLock { inode: 13, ..marker_on("k") };
    for wrong in [marker_on("l"), other_inode] {
        let (mut world, b) = fencing(Some(marker_on("k")));
        assert!(ignored(&world.witness(1, 1, &b, wrong)));
        assert_eq!(world.stands(), StateName::Fencing);
    }
    let (mut world, b) = fencing(None);
    assert!(ignored(&world.witness(1, 1, &b, marker_on("k"))), "it never said that it had one");
    // Two sides that do not know their kernel are not on one.
    let nowhere = MarkerLock { place: Place { boot: String::new(), superblock: 7 }, ..marker_on("k") };
    let (mut world, b) = fencing(Some(nowhere.clone()));
    assert!(ignored(&world.witness(1, 1, &b, nowhere)));
}

#[test]
fn i2_a_witness_of_another_epoch_or_attempt_is_ignored_and_so_is_one_of_who_does_not_wait() {
    let (mut world, b) = fencing(Some(marker_on("k")));
    let c = world.open("c", 3);
    for (epoch, attempt, session) in [(0, 1, &b), (2, 1, &b), (1, 0, &b), (1, 2, &b), (1, 1, &c)] {
        assert!(ignored(&world.witness(epoch, attempt, session, marker_on("k"))), "{epoch} {attempt} {session}");
    }
    assert_eq!(world.stands(), StateName::Fencing);
}

#[test]
fn i2_while_it_cools_or_is_held_a_free_lock_says_nothing() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    world.active(&lease, 1, Some(marker_on("k")));
    assert!(ignored(&world.witness(1, 1, &b, marker_on("k"))), "a restarted daemon may not have locked it again yet");
    world.expire(&a);
    assert!(
        ignored(&world.witness(1, 0, &b, marker_on("k"))),
        "a call that was admitted just before the deadline may be in flight"
    );
}

#[test]
fn the_last_active_says_whether_the_lock_is_held_and_a_grant_begins_without() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.active(&lease, 1, Some(marker_on("k")));
    world.active(&lease, 2, None);
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    assert!(ignored(&world.witness(1, 1, &b, marker_on("k"))), "it had said that it did not have it any more");
    world.confirm(1);
    world.expire(&b);
    world.end_grace(2);
    let c = world.open("c", 3);
    world.queued(&c);
    assert!(ignored(&world.witness(2, 1, &c, marker_on("k"))), "a lock of the lease before");
}

#[test]
fn a_rest_does_not_take_back_what_was_said_about_the_lock_and_a_late_active_says_nothing() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.active(&lease, 3, Some(marker_on("k")));
    world.run(Command::Rest { lease: lease.clone(), number: 4 });
    assert!(ignored(&world.active(&lease, 2, None)));
    world.active(&lease, 5, Some(marker_on("k")));
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    assert_eq!(world.witness(1, 1, &b, marker_on("k")), Answer::Done);
}

#[test]
fn i2_a_lease_that_came_back_and_never_opened_is_no_witness_of_what_was_written_before() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let on = |session: &SessionId| Command::Acquire(Acquire { place: kernel("k"), ..acquire_of(&tree_id(1), session) });
    assert!(matches!(world.run(on(&a)), Answer::Granted(_)));
    world.queued(&b);
    world.expire(&a);
    let a = world.open("a", 3);
    let Answer::Granted(grant) = world.run(on(&a)) else { panic!("it comes back") };
    let lease = LeaseRef { tree: tree_id(1), session: a, epoch: grant.epoch };
    world.active(&lease, 1, Some(marker_on("k")));
    world.run(Command::GiveBack { lease, reason: "storage hangs".into() });
    world.end_grace(2);
    assert!(ignored(&world.witness(2, 1, &b, marker_on("k"))));
}
