//! Sealed roots, retired trees, and what is left of removed ones.

use super::*;

fn set_root(world: &mut World, epoch: u64, state: RootState) -> Answer {
    let (epoch, reason) = (Epoch::from_raw(epoch), "the disk moves".to_owned());
    world.run(Command::SetRoot { tree: tree_id(1), root: root(1).id, epoch, state, reason })
}
fn retire(world: &mut World, epoch: u64) -> Answer {
    world.run(Command::Retire { tree: tree_id(1), epoch: Epoch::from_raw(epoch), reason: "the project is over".into() })
}
fn remove(world: &mut World) -> Answer {
    world.run(Command::RemoveTree { tree: tree_id(1), reason: "tidying".into() })
}
fn remove_root(world: &mut World) -> Answer {
    world.run(Command::RemoveRoot { tree: tree_id(1), root: root(1).id, reason: String::new() })
}
fn add_again(n: u64, name: &str) -> Command {
    Command::AddTree { name: name.parse().unwrap(), tree: tree_id(n), policy: Vec::new(), root: None }
}

#[test]
fn i8_a_tree_whose_root_is_sealed_is_granted_to_nobody_until_it_is_unsealed() {
    let mut world = World::new();
    let a = world.open("a", 1);
    assert_eq!(set_root(&mut world, 0, RootState::Sealed), Answer::Done);
    assert!(world.events[0].reason.contains("sealed root") && world.events[0].reason.ends_with(": the disk moves"));
    let refused = refusal(world.run(Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &a) })));
    assert!(refused.code == Code::Held && refused.message.contains("sealed"), "{refused}");
    world.queued(&a);
    assert_eq!(set_root(&mut world, 0, RootState::Sealed), Answer::Done, "again");
    assert_eq!(world.kinds(), []);
    assert_eq!(set_root(&mut world, 0, RootState::Live), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Root, EventKind::Granted]);
}

#[test]
fn i8_the_last_root_of_a_sealed_tree_stays_until_the_tree_is_retired() {
    let mut world = World::new();
    assert_eq!(set_root(&mut world, 0, RootState::Sealed), Answer::Done);
    assert_eq!(code(remove_root(&mut world)), Code::Config, "without it nothing would say that the tree is sealed");
    assert_eq!(retire(&mut world, 0), Answer::Done);
    assert_eq!(remove_root(&mut world), Answer::Done);
}

#[test]
fn nobodys_lease_is_touched_by_a_seal_or_a_retirement() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    world.granted(&a);
    world.queued(&b);
    for way in [|w: &mut World| set_root(w, 1, RootState::Sealed), |w: &mut World| retire(w, 1)] {
        assert_eq!(code(way(&mut world)), Code::Held);
    }
    world.expire(&a);
    assert_eq!((code(retire(&mut world, 1)), code(set_root(&mut world, 1, RootState::Sealed))), (Code::Busy, Code::Busy));
    world.end_grace(1);
    assert_eq!(code(retire(&mut world, 1)), Code::Busy);
    world.confirm(1);
    assert_eq!(code(retire(&mut world, 1)), Code::EpochMoved, "b has it, since he looked");
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn i6_what_was_before_a_seal_does_not_go_on_after_it() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.release(&lease);
    set_root(&mut world, 1, RootState::Sealed);
    set_root(&mut world, 1, RootState::Live);
    let again = world.acquire(&a);
    assert_eq!(run_start(&again), 2, "somebody else may have had its files meanwhile");
}

#[test]
fn a_retired_tree_is_granted_to_nobody_and_never_comes_back() {
    let mut world = World::new();
    let a = world.open("a", 1);
    // Sealed, so that somebody can wait for a free tree.
    set_root(&mut world, 0, RootState::Sealed);
    world.queued(&a);
    assert_eq!(retire(&mut world, 0), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Cancelled, EventKind::Retired]);
    assert_eq!((world.stands(), retire(&mut world, 0)), (StateName::Retired, Answer::Done));
    assert_eq!(code(world.acquire(&a)), Code::NotFound);
    assert_eq!(code(set_root(&mut world, 0, RootState::Live)), Code::Config);
    assert_eq!(code(world.set("grace", "1s")), Code::Config);
    let more = Command::AddRoot { tree: tree_id(1), root: root(2) };
    assert_eq!(code(world.run(more)), Code::Config);
    assert_eq!(code(world.run(add_again(2, "dev"))), Code::Config, "its name is taken as long as it is there");
}

#[test]
fn i1_the_id_of_a_removed_tree_is_never_used_again_and_its_name_may_be() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.release(&lease);
    assert_eq!(code(remove(&mut world)), Code::Config, "first it has to be retired");
    assert_eq!(code(remove_root(&mut world)), Code::Config, "it is live");
    retire(&mut world, 1);
    assert_eq!(code(remove(&mut world)), Code::Config, "it has a root");
    assert_eq!(remove_root(&mut world), Answer::Done);
    assert_eq!(code(remove_root(&mut world)), Code::NotFound);
    assert_eq!(remove(&mut world), Answer::Done);
    assert!(world.state.tree(&tree_id(1)).is_none());
    assert_eq!(world.state.tombstone(&tree_id(1)).unwrap().last_epoch.get(), 1);
    assert_eq!(world.state.history(&tree_id(1), 1)[0].reason, "removed: tidying", "its history is kept");
    let refused = refusal(world.run(add_again(1, "dev")));
    assert!(refused.code == Code::Config && refused.message.contains("never used again"), "{refused}");
    let takeover = Command::Takeover {
        name: "dev".parse().unwrap(),
        tree: tree_id(1),
        root: root(1),
        reason: "x".into(),
        from_cluster: cluster_id(9).to_string(),
        above: Epoch::from_raw(9),
    };
    assert_eq!(code(world.run(takeover)), Code::Config);
    assert!(matches!(world.run(add_again(3, "dev")), Answer::TreeAdded { .. }));
    assert_eq!(world.state.removed_named(&"dev".parse().unwrap()), Some(&tree_id(1)));
}

#[test]
fn i8_a_root_that_comes_to_sealed_ones_is_sealed_too() {
    let mut world = World::new();
    set_root(&mut world, 0, RootState::Sealed);
    world.run(Command::AddRoot { tree: tree_id(1), root: root(2) });
    let states: Vec<RootState> = world.status().roots.iter().map(|root| root.state).collect();
    assert_eq!(states, [RootState::Sealed, RootState::Sealed]);
    set_root(&mut world, 0, RootState::Live);
    let other = Command::SetRoot {
        tree: tree_id(1),
        root: root(2).id,
        epoch: Epoch::from_raw(0),
        state: RootState::Live,
        reason: String::new(),
    };
    assert_eq!(code(world.run(other)), Code::Config, "one at a time");
}
