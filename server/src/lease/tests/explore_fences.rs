//! Every sequence of commands around a fence agent, breadth first: an active holder has expired, its grace is over, another side
//! waits, and the policy names an agent. Leaders change, agents succeed, fail, do nothing, and are heard of no more; persons vouch;
//! the fenced side comes back, from the same boot of its machine, a later one, and from nobody knows where; the tree is sealed and
//! retired.

use super::explore::{Node, Walk, session, step, walk_from};
use super::oracle::Oracle;
use super::*;

/// How many commands long the sequences are, from the fence on: some seconds of a debug build.
const DEPTH: usize = 9;
/// How many situations there are then.
const SITUATIONS: usize = 10_467;

/// The fence has begun to be waited for.
fn fencing(fault: Fault) -> Node {
    let mut first = World::new();
    first.state.fault = fault;
    let mut node = Node { state: first.state, oracle: Oracle::default() };
    let way: [fn(&State) -> Command; 7] = [
        |_| Command::SetPolicy { tree: tree_id(1), policy: pairs(&[("fence", "exec:nas"), ("unfence", "restart")]) },
        |_| Command::OpenSession(OpenSession { machine: "m".into(), ..open_of("a", session(0)) }),
        |_| Command::OpenSession(open_of("b", session(1))),
        |_| Command::Acquire(Acquire { place: kernel("k"), ..acquire_of(&tree_id(1), &session(0)) }),
        |_| Command::Acquire(acquire_of(&tree_id(1), &session(1))),
        |s| Command::ExpireSession { session: session(0), decided_under: s.leadership().unwrap().0 },
        |s| Command::EndGrace { tree: tree_id(1), epoch: Epoch::from_raw(1), decided_under: s.leadership().unwrap().0 },
    ];
    for command in way {
        node = step(&node, command(&node.state)).expect("in order").expect("it changes something");
    }
    assert_eq!(node.state.tree_status(&tree_id(1)).unwrap().state, StateName::Fencing);
    node
}

/// Every command that is worth trying here, right ones and late ones.
fn alphabet(state: &State) -> Vec<Command> {
    let tree = tree_id(1);
    let status = state.tree_status(&tree).unwrap();
    let epoch = status.epoch;
    let leadership = state.leadership().unwrap().0;
    let wrong = Leadership(leadership.0 - 1);
    let reason = String::new;
    let mut all = vec![
        Command::Lead { node: NODE },
        Command::EndGrace { tree: tree.clone(), epoch, decided_under: leadership },
        Command::FenceConfirm { tree: tree.clone(), epoch, reason: reason() },
        Command::OpenSession(open_of("a", session(0))),
        Command::OpenSession(OpenSession { machine: "m".into(), ..open_of("a", session(0)) }),
        Command::OpenSession(OpenSession { machine: "m".into(), boot: "later".into(), ..open_of("a", session(0)) }),
        Command::Retire { tree: tree.clone(), epoch, reason: reason() },
        Command::SetRoot { tree: tree.clone(), root: root(1).id, epoch, state: RootState::Sealed, reason: reason() },
        Command::SetRoot { tree: tree.clone(), root: root(1).id, epoch, state: RootState::Live, reason: reason() },
        Command::Cancel { tree: tree.clone(), session: session(1) },
        Command::Acquire(Acquire { place: kernel("k"), ..acquire_of(&tree, &session(0)) }),
        Command::Acquire(acquire_of(&tree, &session(1))),
    ];
    for due in state.fences_due(leadership) {
        let begin = |attempt: &AttemptRef, decided_under| Command::FenceAttempt {
            attempt: attempt.clone(),
            verb: due.verb,
            agent: due.agent.clone(),
            deadline_ms: 30_000,
            decided_under,
        };
        all.push(begin(&due.attempt, leadership));
        all.push(begin(&due.attempt, wrong));
        all.push(begin(&AttemptRef { number: due.attempt.number + 1, ..due.attempt.clone() }, leadership));
    }
    // What no leader would propose here: an attempt that is not due.
    let undue = AttemptRef { tree: tree.clone(), side: side("a"), epoch: Epoch::from_raw(1), number: 9 };
    for verb in [Verb::Fence, Verb::Unfence] {
        let (attempt, agent) = (undue.clone(), "nas".to_owned());
        all.push(Command::FenceAttempt { attempt, verb, agent, deadline_ms: 30_000, decided_under: leadership });
    }
    for open in state.fences_open() {
        let of = &open.attempt;
        let result = |attempt: &AttemptRef, outcome, decided_under| Command::FenceResult {
            attempt: attempt.clone(),
            outcome,
            detail: String::new(),
            decided_under,
        };
        for outcome in [Outcome::Succeeded, Outcome::Failed, Outcome::Untouched] {
            all.push(result(of, outcome, open.leadership));
        }
        // An old agent's late success under the present leadership, and one under a number that is not its own.
        all.push(result(of, Outcome::Succeeded, leadership));
        all.push(result(&AttemptRef { number: of.number + 1, ..of.clone() }, Outcome::Succeeded, open.leadership));
        all.push(result(&AttemptRef { epoch: of.epoch.next(), ..of.clone() }, Outcome::Succeeded, open.leadership));
        all.push(Command::FenceLapsed { attempt: of.clone(), decided_under: leadership });
        all.push(Command::FenceLapsed { attempt: of.clone(), decided_under: wrong });
        all.push(Command::FenceStands { attempt: of.clone() });
    }
    for by_hand in [false, true] {
        let (tree, side) = (tree.clone(), side("a"));
        all.push(Command::Unfence { tree, side, epoch: Epoch::from_raw(1), reason: reason(), by_hand });
    }
    for n in 0..2 {
        let lease = LeaseRef { tree: tree.clone(), session: session(n), epoch };
        all.push(Command::Release(release_of(&lease)));
        all.push(Command::Release(Release { to: Some(side("a")), ..release_of(&lease) }));
        all.push(Command::ExpireSession { session: session(n), decided_under: leadership });
    }
    all
}

fn walk(fault: Fault) -> Walk {
    walk_from(fencing(fault), alphabet, DEPTH)
}

#[test]
fn i2_holds_in_every_sequence_of_commands_around_a_fence_agent() {
    let walk = walk(Fault::None);
    eprintln!("{} situations, {} steps", walk.situations, walk.steps);
    assert_eq!(walk.complaint, None);
    assert_eq!(walk.situations, SITUATIONS, "{walk:?}");
}

#[test]
fn control_the_walk_finds_a_result_that_counts_for_any_attempt() {
    let complaint = walk(Fault::AnyFenceResult).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_the_walk_finds_a_side_that_is_let_in_though_its_machine_was_not_restarted() {
    let complaint = walk(Fault::AnyKernelIsFresh).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("must not begin"), "{complaint}");
}

#[test]
fn control_the_walk_finds_a_fence_that_is_forgotten() {
    let complaint = walk(Fault::FenceForgotten).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}
