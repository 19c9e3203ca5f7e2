//! Expiry, grace and fence (I2 b).

use super::*;

#[test]
fn i2_an_expired_active_tree_waits_for_grace_and_then_for_its_fence() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.queued(&b);
    assert_eq!(world.expire(&a), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Expired, EventKind::Cooling]);
    assert_eq!((world.stands(), world.length()), (StateName::Cooling, GRACE));
    let status = world.status();
    assert_eq!((status.ended_epoch, status.ended_side), (Some(Epoch::from_raw(1)), Some(side("a"))));
    world.end_grace(1);
    assert_eq!(world.kinds(), [EventKind::Fencing]);
    assert_eq!((world.stands(), world.status().attempt), (StateName::Fencing, 1));
    assert_eq!(world.confirm(1), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Fenced, EventKind::Granted]);
    assert_eq!(world.events[0].reason, "vouched: unplugged");
    assert_eq!(world.holder(), Some(b));
    assert_eq!(world.events[1].end, End::Unclean);
}

#[test]
fn i2_a_tree_at_rest_needs_no_fence() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.run(Command::Rest { lease, number: 1 });
    world.queued(&b);
    world.expire(&a);
    assert_eq!(world.stands(), StateName::Cooling, "grace all the same");
    world.end_grace(1);
    assert_eq!(world.kinds(), [EventKind::Freed, EventKind::Granted]);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn i2_without_a_fence_the_history_names_the_risk() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.set("fence", "none");
    world.granted(&a);
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    assert_eq!(world.holder(), Some(b));
    assert!(world.events[0].reason.contains("unconfirmed writes may still arrive"));
}

#[test]
fn i3_a_decision_of_another_leadership_is_ignored() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.granted(&a);
    let old = world.leadership();
    assert_eq!(world.run(Command::Lead { node: NODE }), Answer::Done);
    let expire = |decided_under| Command::ExpireSession { session: session_id(1), decided_under };
    assert!(ignored(&world.run(expire(old))));
    assert!(ignored(&world.run(expire(Leadership(old.0 + 1_000)))));
    assert_eq!(world.holder(), Some(a.clone()));
    world.expire(&a);
    let late = world.leadership();
    world.run(Command::Lead { node: NODE });
    let end = Command::EndGrace { tree: tree_id(1), epoch: Epoch::from_raw(1), decided_under: late };
    assert!(ignored(&world.run(end)));
    assert_eq!(world.stands(), StateName::Cooling);
}

#[test]
fn the_end_of_an_earlier_epochs_grace_is_ignored() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.granted(&a);
    assert!(ignored(&world.end_grace(1)), "it does not cool");
    world.expire(&a);
    assert!(ignored(&world.end_grace(0)));
    assert!(ignored(&world.end_grace(2)));
    assert_eq!(world.end_grace(1), Answer::Done);
    assert!(ignored(&world.end_grace(1)), "it fences now");
}

#[test]
fn an_expiry_ends_every_lease_of_the_session_and_no_other() {
    let mut world = World::new();
    let second = world.add_tree(2, "docs");
    let third = world.add_tree(3, "site");
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.run(Command::Acquire(acquire_of(&second, &a)));
    world.run(Command::Acquire(acquire_of(&third, &b)));
    world.expire(&a);
    let stands = |id: &TreeId| world.state.tree_status(id).unwrap().state;
    assert_eq!([stands(&tree_id(1)), stands(&second), stands(&third)], [StateName::Cooling, StateName::Cooling, StateName::Held]);
    assert!(world.state.session(&a).is_none());
    assert_eq!(world.state.coolings().count(), 2);
    assert!(ignored(&world.expire(&a)), "it is gone already");
}

#[test]
fn i2_a_surrender_waits_for_grace_and_the_fence_even_at_rest_and_names_the_files() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.run(Command::Rest { lease: lease.clone(), number: 1 });
    world.queued(&b);
    let files = (0..30).map(|n| format!("f{n}")).collect();
    assert_eq!(world.run(Command::Surrender { lease, reason: "EIO".into(), files }), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Surrendered, EventKind::Cooling]);
    let reason = &world.events[0].reason;
    assert!(reason.contains("f19 and 10 more") && !reason.contains("f20"), "{reason}");
    assert_eq!(world.length(), GRACE);
    assert!(world.state.session(&a).is_some(), "the session lives on");
    assert_eq!(world.state.held_by(&a), []);
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    world.confirm(1);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn a_vouching_operator_ends_the_cooling_too() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.queued(&b);
    world.expire(&a);
    assert_eq!(code(world.confirm(2)), Code::EpochMoved);
    assert_eq!(world.confirm(1), Answer::Done);
    assert_eq!(world.holder(), Some(b));
    assert_eq!(world.state.coolings().count(), 0);
    assert_eq!(code(world.confirm(1)), Code::EpochMoved, "once");
}
