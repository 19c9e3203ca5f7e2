//! Two machines renewed one session: it ends for both, and what they may still write is waited out (I2).

use super::*;

/// `a`'s machine, whose kernel is the one that its session names.
fn open_a(world: &mut World, session: u64) -> SessionId {
    let open = OpenSession { boot: "boot-k".into(), ..open_of("a", session_id(session)) };
    assert!(matches!(world.run(Command::OpenSession(open)), Answer::Opened { resumed: false, .. }));
    session_id(session)
}

fn on_k(session: &SessionId) -> Command {
    Command::Acquire(Acquire { place: kernel("k"), ..acquire_of(&tree_id(1), session) })
}

fn copied(world: &mut World, session: &SessionId) -> Answer {
    world.run(Command::EndCopied { session: session.clone(), incarnation: 1 })
}

#[test]
fn i2_a_copied_session_ends_and_its_lease_waits_for_a_full_ttl_grace_and_the_fence() {
    let mut world = World::new();
    let (a, b) = (open_a(&mut world, 1), world.open("b", 2));
    world.run(on_k(&a));
    world.queued(&b);
    assert_eq!(copied(&mut world, &a), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Copied, EventKind::Cooling]);
    assert_eq!((world.events[0].end, world.events[0].session.as_ref()), (End::Unclean, Some(&a)));
    assert!(world.state.session(&a).is_none(), "neither machine is acknowledged any more");
    assert_eq!(world.length(), TTL + GRACE);
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    world.confirm(1);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn i2_one_machines_word_that_its_gate_is_shut_says_nothing_of_the_others() {
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    world.run(on_k(&a));
    copied(&mut world, &a);
    let lease = LeaseRef { tree: tree_id(1), session: a, epoch: Epoch::from_raw(1) };
    assert!(ignored(&world.run(Command::GateClosed(lease))));
    assert_eq!(world.length(), TTL + GRACE);
}

#[test]
fn i2_nobody_comes_back_after_a_session_that_was_copied() {
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    world.run(on_k(&a));
    copied(&mut world, &a);
    let again = open_a(&mut world, 2);
    assert!(matches!(world.run(on_k(&again)), Answer::Queued { place: 1, .. }));
    world.end_grace(1);
    world.confirm(1);
    let status = world.status();
    assert_eq!((status.holder.unwrap().session, status.run_start.0.get()), (again, 2), "a new run");
}

#[test]
fn i2_nor_does_a_later_session_on_a_kernel_of_which_there_is_a_copy() {
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    copied(&mut world, &a);
    let again = open_a(&mut world, 2);
    world.run(on_k(&again));
    world.expire(&again);
    let third = open_a(&mut world, 3);
    assert!(matches!(world.run(on_k(&third)), Answer::Queued { .. }), "it may be the other machine");
}

#[test]
fn i6_a_run_does_not_go_on_on_a_kernel_of_which_there_is_a_copy() {
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    world.run(on_k(&a));
    world.release(&LeaseRef { tree: tree_id(1), session: a.clone(), epoch: Epoch::from_raw(1) });
    copied(&mut world, &a);
    let again = open_a(&mut world, 2);
    assert_eq!(run_start(&world.run(on_k(&again))), 2);
    // The control: without the copy it is the same run.
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    world.run(on_k(&a));
    world.release(&LeaseRef { tree: tree_id(1), session: a.clone(), epoch: Epoch::from_raw(1) });
    assert_eq!(run_start(&world.run(on_k(&a))), 1);
}

#[test]
fn a_verdict_about_another_run_of_the_daemon_or_an_ended_session_changes_nothing() {
    let mut world = World::new();
    let a = open_a(&mut world, 1);
    world.run(on_k(&a));
    assert!(ignored(&world.run(Command::EndCopied { session: a.clone(), incarnation: 2 })));
    assert_eq!(world.holder(), Some(a.clone()));
    world.expire(&a);
    assert!(ignored(&copied(&mut world, &a)));
}

#[test]
fn what_a_copied_session_waited_for_it_waits_for_no_more() {
    let mut world = World::new();
    let (a, b) = (open_a(&mut world, 1), world.open("b", 2));
    world.granted(&b);
    assert!(matches!(world.run(on_k(&a)), Answer::Queued { .. }));
    copied(&mut world, &a);
    assert_eq!(world.kinds(), [EventKind::Cancelled]);
    assert!(world.events[0].reason.contains("two machines"));
    assert!(world.status().waiters.is_empty());
}

#[test]
fn remembered_kernels_have_a_limit() {
    let mut world = World::new();
    for n in 0..crate::lease::COPIED_MAX as u64 + 5 {
        let open = OpenSession { boot: format!("boot-{n}"), ..open_of("a", session_id(100 + n)) };
        world.run(Command::OpenSession(open));
        copied(&mut world, &session_id(100 + n));
    }
    assert_eq!(world.state.copied_boots.len(), crate::lease::COPIED_MAX);
    assert_eq!(world.state.copied_boots[0], "boot-5", "the oldest goes");
}
