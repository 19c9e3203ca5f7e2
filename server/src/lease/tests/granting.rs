//! How a lease begins, and how it passes when its holder lets go.

use super::*;

#[test]
fn a_free_tree_is_granted_at_once_with_epoch_one() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let answer = world.acquire(&a);
    let Answer::Granted(grant) = &answer else { panic!("{answer:?}") };
    assert_eq!((grant.epoch.get(), grant.last_end), (1, End::None));
    assert_eq!(grant.root, Some(root(1).id));
    assert_eq!(world.kinds(), [EventKind::Granted]);
    assert_eq!(world.state.held_by(&a), std::slice::from_ref(grant), "I5: a renewal lists it");
}

#[test]
fn i1_a_held_tree_is_not_granted_to_a_second_side() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    let Answer::Queued { place: 1, holder: Some(holder) } = world.acquire(&b) else { panic!() };
    assert_eq!(holder.side, side("a"));
    assert_eq!(world.holder(), Some(a));
    assert_eq!(world.state.held_by(&b), []);
}

#[test]
fn acquiring_again_gives_the_same_grant_and_the_newer_note() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let first = world.acquire(&a);
    let place = kernel(a.as_str());
    let again = world.run(Command::Acquire(Acquire { note: "lunch".into(), place, ..acquire_of(&tree_id(1), &a) }));
    assert_eq!(first, again);
    assert_eq!(world.status().holder.unwrap().note, "lunch");
    assert_eq!(world.kinds(), []);
}

#[test]
fn i2_a_clean_release_passes_the_tree_on_at_once() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    assert_eq!(world.release(&lease), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Released, EventKind::Granted]);
    assert_eq!(world.events[0].end, End::Clean);
    assert_eq!((world.events[0].files, world.events[0].bytes), (3, 4096));
    assert_eq!(world.events[1].end, End::Clean, "the new holder is told how the last lease ended");
    let status = world.status();
    assert_eq!(status.holder.unwrap().session, b);
    assert_eq!((status.epoch.get(), status.run_start.0.get()), (2, 2), "another side, another run");
}

#[test]
fn i6_the_same_side_on_the_same_kernel_goes_on_with_its_run() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.release(&lease);
    assert_eq!(run_start(&world.acquire(&a)), 1);
}

#[test]
fn i6_an_unknown_kernel_begins_a_new_run() {
    let mut world = World::new();
    let a = world.open("a", 1);
    for _ in 0..2 {
        let Answer::Granted(grant) = world.run(Command::Acquire(acquire_of(&tree_id(1), &a))) else { panic!() };
        assert_eq!(grant.run_start.0, grant.epoch);
        world.release(&LeaseRef { tree: grant.tree, session: a.clone(), epoch: grant.epoch });
    }
}

#[test]
fn i6_a_remount_elsewhere_during_the_lease_ends_the_run_with_it() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.run(Command::Acquire(Acquire { place: kernel("other"), ..acquire_of(&tree_id(1), &a) }));
    world.release(&lease);
    assert_eq!(run_start(&world.acquire(&a)), 2);
}

#[test]
fn a_release_that_is_not_current_is_ignored() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    world.release(&lease);
    assert!(ignored(&world.release(&lease)));
    assert!(ignored(&world.release(&LeaseRef { session: b.clone(), ..lease.clone() })), "its own session, an old epoch");
    assert!(ignored(&world.release(&LeaseRef { epoch: lease.epoch.next(), ..lease })), "the right epoch, another session");
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn a_handoff_goes_ahead_of_the_queue() {
    let mut world = World::new();
    let (a, b, c) = (world.open("a", 1), world.open("b", 2), world.open("c", 3));
    let lease = world.granted(&a);
    world.queued(&b);
    world.queued(&c);
    let to = Some(side("c"));
    assert_eq!(world.run(Command::Release(Release { to, ..release_of(&lease) })), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Released, EventKind::Handoff, EventKind::Granted]);
    assert_eq!(world.holder(), Some(c));
    let waiting: Vec<_> = world.status().waiters.into_iter().map(|w| w.session).collect();
    assert_eq!(waiting, [b], "its own entry is gone, the other one stays first");
}

#[test]
fn a_handoff_to_a_side_without_a_session_changes_nothing() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    let to = |name| Some(side(name));
    assert_eq!(code(world.run(Command::Release(Release { to: to("b"), ..release_of(&lease) }))), Code::NotFound);
    assert_eq!(code(world.run(Command::Release(Release { to: to("a"), ..release_of(&lease) }))), Code::Usage);
    assert_eq!(world.holder(), Some(a));
}

#[test]
fn a_given_back_grant_passes_on_and_its_side_is_passed_over() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    let back = Command::GiveBack { lease, reason: "no marker".into() };
    assert_eq!(world.run(back), Answer::Done);
    assert_eq!(world.holder(), Some(b.clone()));
    assert_eq!(world.events[0].reason, "given back: no marker");
    let lease = LeaseRef { tree: tree_id(1), session: b, epoch: world.status().epoch };
    world.release(&lease);
    assert_eq!(world.stands(), StateName::Free, "the first one is granted only after it asks again");
    world.granted(&a);
}

#[test]
fn a_given_back_grant_does_not_hide_the_unclean_end_before_it() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.expire(&a);
    world.end_grace(1);
    world.confirm(1);
    let lease = world.granted(&b);
    world.run(Command::GiveBack { lease, reason: "storage hangs".into() });
    assert_eq!(world.status().last_end, End::Unclean, "nobody has looked at what was left behind");
    assert_eq!(last_end(&world.acquire(&b)), End::Unclean);
}

#[test]
fn nothing_is_granted_to_a_session_that_has_ended_or_on_a_tree_that_is_not_there() {
    let mut world = World::new();
    assert_eq!(code(world.acquire(&session_id(9))), Code::NotFound);
    let a = world.open("a", 1);
    assert_eq!(code(world.run(Command::Acquire(acquire_of(&tree_id(9), &a)))), Code::NotFound);
}
