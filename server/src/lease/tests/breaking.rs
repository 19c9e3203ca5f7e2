//! A break: an operator ends a lease, and its full TTL is waited out (I2 c).

use super::*;

fn broken(world: &mut World, epoch: u64) -> Answer {
    world.run(Command::Break { tree: tree_id(1), epoch: Epoch::from_raw(epoch), reason: "stuck".into() })
}

#[test]
fn i2_a_break_waits_for_a_full_ttl_and_grace_then_for_the_fence() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.queued(&b);
    assert_eq!(broken(&mut world, 1), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Broken, EventKind::Cooling]);
    assert_eq!((world.events[0].actor.as_str(), world.events[0].reason.as_str()), ("test", "stuck"));
    assert_eq!(world.length(), TTL + GRACE);
    assert_eq!(world.state.held_by(&a), [], "I4: renewals list the pair no more");
    assert!(world.state.session(&a).is_some());
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    world.confirm(1);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn a_break_of_another_epoch_is_refused_with_the_state_it_is_in() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let refused = refusal(broken(&mut world, 1));
    assert_eq!(refused.code, Code::EpochMoved);
    assert!(refused.message.contains("it is free at epoch 0"), "{}", refused.message);
    world.granted(&a);
    assert_eq!(refusal(broken(&mut world, 2)).holder.unwrap().session, a);
    broken(&mut world, 1);
    assert_eq!(code(broken(&mut world, 1)), Code::EpochMoved, "it is broken already");
}

#[test]
fn i2_the_daemons_word_that_its_gate_is_shut_leaves_only_grace() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    broken(&mut world, 1);
    let serial = |w: &World| w.state.cooling_trees().next().unwrap().1.serial;
    let before = serial(&world);
    assert!(ignored(&world.run(Command::GateClosed(LeaseRef { session: b, ..lease.clone() }))), "another's word");
    assert!(ignored(&world.run(Command::GateClosed(LeaseRef { epoch: Epoch::from_raw(7), ..lease.clone() }))));
    assert_eq!(world.run(Command::GateClosed(lease.clone())), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::GateClosed]);
    assert_eq!(world.length(), GRACE);
    assert!(serial(&world) > before, "timers see a new cooling");
    assert!(ignored(&world.run(Command::GateClosed(lease))), "once: grace does not begin again");
}

#[test]
fn a_closed_gate_shortens_no_other_wait() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    assert!(ignored(&world.run(Command::GateClosed(lease.clone()))), "it is held");
    world.expire(&a);
    assert!(ignored(&world.run(Command::GateClosed(lease))), "it expired");
}

#[test]
fn i2_a_tree_broken_at_rest_needs_no_fence() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.run(Command::Rest { lease: lease.clone(), number: 1 });
    world.queued(&b);
    broken(&mut world, 1);
    assert!(ignored(&world.run(Command::Active { lease, number: 2, marker: Some(marker_on("k")) })), "it cannot wake");
    world.end_grace(1);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn i2_a_broken_side_waits_like_any_other_and_begins_a_new_run() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.granted(&a);
    broken(&mut world, 1);
    assert_eq!(world.queued(&a), 1, "no way back after a break");
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    world.confirm(1);
    let status = world.status();
    assert_eq!((status.holder.unwrap().session, status.run_start.0.get()), (a, 2));
}

#[test]
fn i2_an_expiry_after_the_break_changes_nothing_of_its_waits() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.granted(&a);
    broken(&mut world, 1);
    assert_eq!(world.expire(&a), Answer::Done);
    assert_eq!(world.length(), TTL + GRACE);
    let a = world.open("a", 2);
    world.queued(&a);
    assert_eq!(world.stands(), StateName::Cooling, "no way back through a new session either");
}

#[test]
fn i2_a_break_after_a_resume_waits_for_the_largest_ttl_in_force() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.granted(&a);
    let resume = Some(Resume { session: a, secret: b"a".to_vec() });
    for seconds in [40, 10] {
        let ttl = Ttl::new(Duration::from_secs(seconds));
        let open = OpenSession { ttl, resume: resume.clone(), ..open_of("a", session_id(5)) };
        let answer = world.run(Command::OpenSession(open));
        assert!(matches!(answer, Answer::Opened { resumed: true, ttl, .. } if ttl.get().as_secs() == seconds), "{answer:?}");
    }
    broken(&mut world, 1);
    assert_eq!(world.length(), Duration::from_secs(40) + GRACE);
}
