//! Trees, roots, policy, the cluster's id and its limits.

use super::*;
use crate::lease::{MAX_SESSIONS, MAX_TREES};

fn add(name: &str, n: u64, policy: &[(&str, &str)], with: Option<Root>) -> Command {
    Command::AddTree { name: name.parse().unwrap(), tree: tree_id(n), policy: pairs(policy), root: with }
}

#[test]
fn nothing_but_founding_and_leading_comes_before_the_founding() {
    let mut world = World::empty();
    assert_eq!(code(world.run(add("dev", 1, &[], None))), Code::Internal);
    assert_eq!(world.run(Command::Lead { node: NODE }), Answer::Done);
    let found =
        |n, max: u64| Command::Found { cluster: cluster_id(n), ttl_min: Ttl::MIN, ttl_max: Ttl::new(Duration::from_secs(max)) };
    assert_eq!(code(world.run(found(1, 1))), Code::Config);
    assert_eq!(world.run(found(1, 60)), Answer::Done);
    assert_eq!(world.run(found(1, 60)), Answer::Done, "again, with the same id");
    assert_eq!(code(world.run(found(2, 60))), Code::Config);
    assert_eq!(world.state.cluster(), Some(&cluster_id(1)));
    assert_eq!(world.state.limits().1, Ttl::new(Duration::from_secs(60)));
}

#[test]
fn a_request_from_before_the_founding_is_right_after_it() {
    let mut world = World::empty();
    assert_eq!(code(world.run_keyed(key(1), add("dev", 1, &[], None))), Code::Internal);
    world.run(Command::Found { cluster: cluster_id(1), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX });
    assert!(matches!(world.run_keyed(key(1), add("dev", 1, &[], None)), Answer::TreeAdded { .. }));
}

#[test]
fn a_name_and_a_root_belong_to_one_tree() {
    let mut world = World::new();
    assert_eq!(code(world.run(add("dev", 2, &[], None))), Code::Config);
    assert_eq!(code(world.run(add("docs", 2, &[], Some(root(1))))), Code::Config);
    let again = world.run(add("dev", 1, &[], Some(root(1))));
    assert_eq!(again, Answer::TreeAdded { tree: tree_id(1), root: Some(root(1).id) }, "a retry with another key");
    assert_eq!(code(world.run(add("other", 1, &[], None))), Code::Config);
    assert_eq!(world.state.tree_named(&"dev".parse().unwrap()), Some(&tree_id(1)));
}

#[test]
fn a_policy_is_changed_as_a_whole_or_not_at_all() {
    let mut world = World::new();
    let set = |list: &[(&str, &str)]| Command::SetPolicy { tree: tree_id(1), policy: pairs(list) };
    assert_eq!(code(world.run(set(&[("grace", "1s"), ("mode", "sometimes")]))), Code::Config);
    assert_eq!(world.status().policy, Default::default());
    assert_eq!(world.run(set(&[("grace", "1s"), ("mode", "observe")])), Answer::Done);
    assert_eq!(world.status().policy.grace, Duration::from_secs(1));
    assert_eq!(world.events[0].reason, "grace=1s mode=observe");
    assert_eq!(code(world.run(add("docs", 2, &[("nope", "1")], None))), Code::Config);
}

#[test]
fn a_fence_agent_is_a_name_here_and_who_has_none_is_refused_by_the_leader_that_would_run_it() {
    let mut world = World::new();
    assert_eq!(world.set("fence", "exec:nas"), Answer::Done);
    assert_eq!(code(world.set("fence", "exec:")), Code::Config);
}

#[test]
fn i8_a_tree_has_one_live_root() {
    let mut world = World::new();
    let add_root = |n, path: &str| Command::AddRoot { tree: tree_id(1), root: Root { path: path.into(), ..root(n) } };
    assert_eq!(code(world.run(add_root(2, "/mnt/2"))), Code::Config);
    assert!(matches!(world.run(add_root(1, "/elsewhere")), Answer::TreeAdded { .. }));
    assert_eq!(world.status().roots, [Root { path: "/elsewhere".into(), ..root(1) }]);
    world.run(add("docs", 2, &[], None));
    let taken = Command::AddRoot { tree: tree_id(2), root: root(1) };
    assert_eq!(code(world.run(taken)), Code::Config);
    let sealed = Root { state: RootState::Sealed, ..root(2) };
    world.run(Command::AddRoot { tree: tree_id(2), root: sealed });
    let roots = world.state.tree_status(&tree_id(2)).unwrap().roots;
    assert_eq!(roots[0].state, RootState::Live, "the first one is live");
}

#[test]
fn i8_a_taken_over_tree_cools_for_the_largest_ttl_and_goes_on_above_the_storages_epochs() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let takeover = |above| Command::Takeover {
        name: "old".parse().unwrap(),
        tree: tree_id(2),
        root: root(2),
        reason: "the other server is gone".into(),
        from_cluster: cluster_id(9).to_string(),
        above: Epoch::from_raw(above),
    };
    assert_eq!(code(world.run(takeover(u64::MAX))), Code::Config);
    assert!(matches!(world.run(takeover(41)), Answer::TreeAdded { .. }));
    assert_eq!(world.kinds(), [EventKind::Takeover, EventKind::Cooling]);
    assert_eq!(world.length(), Duration::from_secs(60) + GRACE);
    assert!(matches!(world.run(Command::Acquire(acquire_of(&tree_id(2), &a))), Answer::Queued { .. }));
    let decided_under = world.leadership();
    world.run(Command::EndGrace { tree: tree_id(2), epoch: Epoch::from_raw(41), decided_under });
    assert_eq!(world.state.tree_status(&tree_id(2)).unwrap().state, StateName::Fencing);
    world.run(Command::FenceConfirm { tree: tree_id(2), epoch: Epoch::from_raw(41), reason: "switched off".into() });
    assert_eq!(world.state.held_by(&a)[0].epoch.get(), 42);
}

#[test]
fn trees_and_sessions_beyond_the_limits_are_refused() {
    // Straight to the state: the world compares all of it after each command.
    let mut world = World::new();
    let mut apply = |n: u64, command: Command| {
        let proposal = Proposal { request_key: key(7_000_000_000 + n), actor: String::new(), at: WallTime::UNKNOWN, command };
        world.state.apply(&Entry { index: 7_000_000_000 + n, proposal }).answer
    };
    let open = |n: u64| Command::OpenSession(open_of(&format!("side-{n}"), session_id(1_000 + n)));
    for n in 0..MAX_SESSIONS as u64 {
        assert!(matches!(apply(n, open(n)), Answer::Opened { .. }), "{n}");
    }
    assert_eq!(code(apply(20_000, open(20_000))), Code::Limit);
    let close = Command::CloseSession { session: session_id(1_000) };
    assert_eq!(apply(20_001, close), Answer::Done);
    assert!(matches!(apply(20_002, open(20_000)), Answer::Opened { .. }), "there is room again");

    let add = |n: u64| {
        let name = format!("tree-{n}").parse().unwrap();
        Command::AddTree { name, tree: tree_id(1_000 + n), policy: vec![], root: None }
    };
    // One is there already.
    for n in 1..MAX_TREES as u64 {
        assert!(matches!(apply(100_000 + n, add(n)), Answer::TreeAdded { .. }), "{n}");
    }
    assert_eq!(code(apply(500_000, add(500_000))), Code::Limit);
}
