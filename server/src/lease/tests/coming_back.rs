//! I2: the same side on the same kernel comes back at once after an expiry, once, and keeps its run start.

use super::oracle::Oracle;
use super::*;

fn on(session: &SessionId, place: Option<Place>) -> Command {
    Command::Acquire(Acquire { place, ..acquire_of(&tree_id(1), session) })
}

/// `a` held it on kernel `k` and expired; `b` waits, if so wished; `a` has a new session.
fn expired(with_waiter: bool) -> (World, SessionId) {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    assert!(matches!(world.run(on(&a, kernel("k"))), Answer::Granted(_)));
    if with_waiter {
        world.queued(&b);
    }
    world.expire(&a);
    let again = world.open("a", 3);
    (world, again)
}

#[test]
fn i2_the_same_side_on_the_same_kernel_comes_back_at_once_and_keeps_its_run() {
    let (mut world, a) = expired(true);
    let answer = world.run(on(&a, kernel("k")));
    assert_eq!(run_start(&answer), 1);
    assert_eq!(last_end(&answer), End::Unclean);
    assert_eq!(world.kinds(), [EventKind::Returned, EventKind::Granted]);
    assert_eq!(world.holder(), Some(a));
    assert_eq!(world.state.coolings().count(), 0);
}

#[test]
fn i2_it_comes_back_out_of_fencing_too() {
    let (mut world, a) = expired(true);
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    assert_eq!(run_start(&world.run(on(&a, kernel("k")))), 1);
}

#[test]
fn i2_from_another_kernel_it_is_another_side() {
    for place in [kernel("other"), None, Some(Place { boot: "boot-k".into(), superblock: 8 })] {
        let (mut world, a) = expired(false);
        assert!(matches!(world.run(on(&a, place)), Answer::Queued { place: 1, .. }));
        world.end_grace(1);
        world.confirm(1);
        let status = world.status();
        assert_eq!((status.holder.unwrap().session, status.run_start.0.get()), (a, 2));
    }
}

#[test]
fn i2_where_the_kernel_was_not_known_there_is_no_way_back() {
    for place in [None, Some(Place { boot: String::new(), superblock: 7 })] {
        let mut world = World::new();
        let a = world.open("a", 1);
        world.run(on(&a, place.clone()));
        world.expire(&a);
        let a = world.open("a", 2);
        assert!(matches!(world.run(on(&a, place)), Answer::Queued { .. }));
    }
}

#[test]
fn i2_another_side_on_the_same_kernel_waits() {
    let (mut world, _) = expired(false);
    let c = world.open("c", 4);
    assert!(matches!(world.run(on(&c, kernel("k"))), Answer::Queued { .. }));
}

#[test]
fn i2_it_jumps_the_queue_only_once() {
    let (mut world, a) = expired(true);
    world.run(on(&a, kernel("k")));
    world.expire(&a);
    let a = world.open("a", 5);
    assert!(matches!(world.run(on(&a, kernel("k"))), Answer::Queued { place: 2, .. }));
}

#[test]
fn i2_with_nobody_waiting_it_comes_back_as_often_as_it_likes() {
    let (mut world, mut a) = expired(false);
    for n in 10..13 {
        assert_eq!(run_start(&world.run(on(&a, kernel("k")))), 1);
        world.expire(&a);
        a = world.open("a", n);
    }
}

#[test]
fn i2_a_clean_release_gives_it_its_way_back_again() {
    let (mut world, a) = expired(false);
    let Answer::Granted(grant) = world.run(on(&a, kernel("k"))) else { panic!() };
    world.release(&LeaseRef { tree: grant.tree, session: a.clone(), epoch: grant.epoch });
    world.run(on(&a, kernel("k")));
    world.queued(&session_id(2));
    world.expire(&a);
    let a = world.open("a", 9);
    assert!(matches!(world.run(on(&a, kernel("k"))), Answer::Granted(_)));
}

#[test]
fn i2_after_a_surrender_there_is_no_way_back() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.run(Command::Surrender { lease, reason: "EIO".into(), files: Vec::new() });
    assert_eq!(world.queued(&a), 1);
    world.end_grace(1);
    world.confirm(1);
    assert_eq!(world.status().run_start.0.get(), 2);
}

#[test]
fn i6_once_freed_the_same_kernel_goes_on_with_its_run_if_nobody_else_had_a_turn() {
    let (mut world, a) = expired(false);
    world.end_grace(1);
    world.confirm(1);
    assert_eq!(run_start(&world.run(on(&a, kernel("k")))), 1);
}

#[test]
fn i6_after_anothers_turn_the_run_is_a_new_one() {
    let (mut world, a) = expired(true);
    world.end_grace(1);
    world.confirm(1);
    let lease = LeaseRef { tree: tree_id(1), session: session_id(2), epoch: world.status().epoch };
    world.release(&lease);
    assert_eq!(run_start(&world.run(on(&a, kernel("k")))), 3);
}

/// `a` has come back past `b`, says `rest` if so wished, and gives back what it could not open; then grace passes. The oracle
/// watches all of it.
fn came_back_and_gave_back(rests: bool) -> World {
    let mut world = World::new();
    let mut oracle = Oracle::default();
    let decided_under = world.leadership();
    let (first, b, a) = (session_id(1), session_id(2), session_id(3));
    let lease = LeaseRef { tree: tree_id(1), session: a.clone(), epoch: Epoch::from_raw(2) };
    let rest = Command::Rest { lease: lease.clone(), number: 1 };
    let commands = [
        Command::OpenSession(open_of("a", first.clone())),
        Command::OpenSession(open_of("b", b.clone())),
        on(&first, kernel("k")),
        on(&b, None),
        Command::ExpireSession { session: first, decided_under },
        Command::OpenSession(open_of("a", a.clone())),
        on(&a, kernel("k")),
        if rests { rest } else { Command::Lead { node: NODE } },
        Command::GiveBack { lease, reason: "storage hangs".into() },
    ];
    let end = |decided_under| Command::EndGrace { tree: tree_id(1), epoch: Epoch::from_raw(2), decided_under };
    for command in commands {
        watch(&mut world, &mut oracle, command);
    }
    assert_eq!((world.stands(), world.length()), (StateName::Cooling, GRACE), "its earlier writes are waited out anew");
    let leadership = world.leadership();
    watch(&mut world, &mut oracle, end(leadership));
    world
}

fn watch(world: &mut World, oracle: &mut Oracle, command: Command) {
    let before = world.state.clone();
    let answer = world.run(command.clone());
    assert!(!matches!(answer, Answer::Refused(_) | Answer::Ignored { .. }), "{command:?}: {answer:?}");
    assert_eq!(oracle.watch(&before, &command, &answer, &world.state), Ok(()));
}

#[test]
fn i2_giving_back_after_coming_back_leaves_the_fence_of_the_expiry() {
    assert_eq!(came_back_and_gave_back(false).stands(), StateName::Fencing);
}

#[test]
fn i2_giving_back_after_coming_back_needs_no_fence_once_the_holder_has_said_rest() {
    assert_eq!(came_back_and_gave_back(true).holder(), Some(session_id(2)));
}
