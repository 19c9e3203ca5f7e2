//! A backup whose digest is right and whose state is not: somebody wrote it by hand, or a version that meant something else. It is
//! restored whole or refused whole, and a cluster that took one goes on like any other.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use treelease_proto::backup::{About, seal};

use super::random::{Draw, carry_out, draw};
use super::restoring::{other_cluster, upload};
use super::*;

/// One value in the state is another one.
#[derive(Debug, Clone)]
enum Change {
    /// This.
    To(Value),
    /// What stands elsewhere.
    Copy(Index),
    /// It is gone.
    Gone,
}

fn change() -> impl Strategy<Value = Change> {
    let values = [
        json!(null),
        json!(0),
        json!(1),
        json!(u64::MAX),
        json!(u64::MAX - 1),
        json!(u32::MAX),
        json!(-1),
        json!(1.5),
        json!(true),
        json!(""),
        json!("a"),
        json!([]),
        json!({}),
        json!({"secs": u64::MAX, "nanos": 999_999_999}),
    ];
    prop_oneof![
        3 => proptest::sample::select(values.to_vec()).prop_map(Change::To),
        3 => any::<Index>().prop_map(Change::Copy),
        1 => Just(Change::Gone),
    ]
}

/// How many values there are in it, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(size).sum::<usize>(),
        Value::Object(map) => map.values().map(size).sum(),
        _ => 0,
    }
}

/// The `n`th value in it.
fn nth(value: &Value, n: usize) -> Option<&Value> {
    if n == 0 {
        return Some(value);
    }
    let mut left = n - 1;
    let children: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => return None,
    };
    for child in children {
        let size = size(child);
        if left < size {
            return nth(child, left);
        }
        left -= size;
    }
    None
}

/// It with the `n`th value replaced; with none, if that is gone.
fn with(value: &Value, n: usize, new: Option<&Value>) -> Option<Value> {
    if n == 0 {
        return new.cloned();
    }
    let mut left = n - 1;
    let mut place = |child: &Value| {
        let size = size(child);
        let here = left < size;
        let at = left;
        left = if here { usize::MAX } else { left.saturating_sub(size) };
        if here { with(child, at, new) } else { Some(child.clone()) }
    };
    Some(match value {
        Value::Array(list) => list.iter().filter_map(&mut place).collect(),
        Value::Object(map) => map.iter().filter_map(|(key, child)| Some((key.clone(), place(child)?))).collect(),
        other => other.clone(),
    })
}

fn changed(state: &Value, at: Index, change: &Change) -> Value {
    let n = at.index(size(state));
    let new = match change {
        Change::To(value) => with(state, n, Some(value)),
        Change::Copy(from) => with(state, n, nth(state, from.index(size(state)))),
        Change::Gone => with(state, n, None),
    };
    new.unwrap_or(Value::Null)
}

/// What people and leaders do with whatever trees there are; every step checks the invariants.
fn goes_on(world: &mut World) {
    let session = world.open("pod", 900);
    let trees: Vec<(TreeId, Epoch)> = world.state.trees().map(|(id, tree)| (id.clone(), tree.last_epoch)).collect();
    let decided_under = world.leadership();
    for (tree, epoch) in trees {
        let reason = String::new;
        world.run(Command::Acquire(acquire_of(&tree, &session)));
        world.run(Command::EndGrace { tree: tree.clone(), epoch, decided_under });
        let due = world.state.fences_due(decided_under);
        drop(due);
        world.run(Command::FenceConfirm { tree: tree.clone(), epoch, reason: reason() });
        let lease = LeaseRef { tree: tree.clone(), session: session.clone(), epoch: Epoch::from_raw(epoch.get() + 1) };
        world.run(Command::Rest { lease: lease.clone(), number: 1 });
        world.run(Command::Surrender { lease, reason: reason(), files: vec![] });
        world.run(Command::SetPolicy { tree: tree.clone(), policy: pairs(&[("idle", "9s")]) });
        world.run(Command::Unfence { tree: tree.clone(), side: side("a"), epoch, reason: reason(), by_hand: true });
        world.run(Command::RaiseEpoch { tree: tree.clone(), above: Epoch::from_raw(epoch.get() + 9), reason: reason() });
        world.run(Command::Retire { tree: tree.clone(), epoch, reason: reason() });
        world.run(Command::RemoveTree { tree, reason: reason() });
    }
    world.run(Command::CloseSession { session });
}

fn restored(draws: &[Draw], changes: &[(Index, Change)]) -> Result<bool, TestCaseError> {
    let old = carry_out(Fault::None, draws).map_err(TestCaseError::fail)?;
    let mut state = serde_json::to_value(&old.state).unwrap();
    for (at, change) in changes {
        state = changed(&state, *at, change);
    }
    let about =
        About { cluster: cluster_id(1), revision: 0, at: WallTime::UNKNOWN, trees: 0, history: None, version: "test".into() };
    let mut new = other_cluster(2);
    let before = new.state.clone();
    let answer = upload(&mut new, &seal(&about, &state.to_string()));
    match answer {
        Answer::Done => {
            prop_assert_eq!(invariant::check(&new.state), Ok(()));
            goes_on(&mut new);
            Ok(true)
        }
        Answer::Refused(_) => {
            prop_assert!(new.state.trees().next().is_none() && new.state.predecessors() == before.predecessors());
            prop_assert!(new.events.is_empty());
            Ok(false)
        }
        other => Err(TestCaseError::fail(format!("{other:?}"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_state_that_contradicts_itself_is_refused_and_one_that_does_not_can_be_lived_in(
        draws in prop::collection::vec(draw(), 1..40), changes in prop::collection::vec((any::<Index>(), change()), 1..4)
    ) {
        restored(&draws, &changes)?;
    }

    #[test]
    fn control_a_state_as_it_was_is_taken(draws in prop::collection::vec(draw(), 1..40)) {
        prop_assert!(restored(&draws, &[])?);
    }
}

#[test]
fn a_tree_of_which_the_backups_own_index_knows_nothing_is_no_tree() {
    let old = World::new();
    let about =
        About { cluster: cluster_id(1), revision: 0, at: WallTime::UNKNOWN, trees: 1, history: None, version: "test".into() };
    for (field, bad) in [("names", json!({})), ("roots", json!({})), ("revision", json!(u64::MAX))] {
        let mut state = serde_json::to_value(&old.state).unwrap();
        state[field] = bad;
        let mut new = other_cluster(2);
        let Answer::Refused(refusal) = upload(&mut new, &seal(&about, &state.to_string())) else { panic!("{field}") };
        assert!(new.state.trees().next().is_none(), "{refusal:?}");
    }
}
