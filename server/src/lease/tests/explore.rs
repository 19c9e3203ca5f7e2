//! Every sequence of commands for one tree and three sides, breadth first, repeats dropped.
//!
//! A situation is the state without its counters and memories (history, answers, revisions, the numbers of epochs) together
//! with the oracle's book. The walk goes on from each new situation with every command of the alphabet, and asks the oracle
//! and the invariants after each step. The numbers of situations that it found are asserted, so that a change of the rules
//! shows here, and a walk that has become empty too.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::oracle::Oracle;
use super::*;
use crate::lease::TreeState;

/// How many commands long the sequences are: about 20 s of a debug build.
const DEPTH: usize = 8;
/// How many situations there are then.
const SITUATIONS: usize = 14_835;
/// The same where there is time (`TREELEASE_LONG`).
const LONG_DEPTH: usize = 12;

const SIDES: [&str; 3] = ["a", "b", "c"];

/// A state, and the oracle's book of how it came about.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) state: State,
    pub(super) oracle: Oracle,
}

pub(super) fn session(n: usize) -> SessionId {
    session_id(n as u64 + 1)
}

/// Every command that is worth trying here, right ones and late ones.
fn alphabet(state: &State) -> Vec<Command> {
    let tree = tree_id(1);
    let status = state.tree_status(&tree).unwrap();
    let epoch = status.epoch;
    let old = Epoch::from_raw(epoch.get().saturating_sub(1));
    let leadership = state.leadership().unwrap().0;
    let wrong = Leadership(leadership.0 - 1);
    let number = match state.tree(&tree).unwrap().state() {
        TreeState::Held(held) => held.number,
        _ => 0,
    };
    let reason = String::new;
    let mut all = vec![
        Command::Lead { node: NODE },
        Command::EndGrace { tree: tree.clone(), epoch, decided_under: leadership },
        Command::EndGrace { tree: tree.clone(), epoch: old, decided_under: leadership },
        Command::EndGrace { tree: tree.clone(), epoch, decided_under: wrong },
        Command::Break { tree: tree.clone(), epoch, reason: reason() },
        Command::Break { tree: tree.clone(), epoch: old, reason: reason() },
        Command::FenceConfirm { tree: tree.clone(), epoch, reason: reason() },
        Command::FenceConfirm { tree: tree.clone(), epoch: old, reason: reason() },
        Command::SetPolicy { tree: tree.clone(), policy: pairs(&[("fence", "none")]) },
        Command::SetPolicy { tree: tree.clone(), policy: pairs(&[("fence", "manual")]) },
    ];
    for (n, name) in SIDES.iter().enumerate() {
        let session = session(n);
        let lease = LeaseRef { tree: tree.clone(), session: session.clone(), epoch };
        let late = LeaseRef { epoch: old, ..lease.clone() };
        let next = Some(side(SIDES[(n + 1) % SIDES.len()]));
        all.push(Command::OpenSession(open_of(name, session.clone())));
        all.push(Command::CloseSession { session: session.clone() });
        all.push(Command::ExpireSession { session: session.clone(), decided_under: leadership });
        all.push(Command::ExpireSession { session: session.clone(), decided_under: wrong });
        all.push(Command::EndCopied { session: session.clone(), incarnation: 1 });
        all.push(Command::Cancel { tree: tree.clone(), session: session.clone() });
        // The first side on two kernels and on an unknown one; the second on the first one's kernel; the third nowhere known.
        let places = match n {
            0 => vec![kernel("k"), kernel("l"), None],
            1 => vec![kernel("k")],
            _ => vec![None],
        };
        for place in places {
            all.push(Command::Acquire(Acquire { place, ..acquire_of(&tree, &session) }));
        }
        all.push(Command::Release(release_of(&lease)));
        all.push(Command::Release(release_of(&late)));
        all.push(Command::Release(Release { to: next, ..release_of(&lease) }));
        all.push(Command::GiveBack { lease: lease.clone(), reason: reason() });
        all.push(Command::Surrender { lease: lease.clone(), reason: reason(), files: Vec::new() });
        all.push(Command::GateClosed(lease.clone()));
        all.push(Command::GateClosed(late.clone()));
        all.push(Command::Rest { lease: lease.clone(), number: number + 1 });
        all.push(Command::Rest { lease: lease.clone(), number });
        all.push(Command::Active { lease: lease.clone(), number: number + 1, marker: None });
        all.push(Command::Active { lease: lease.clone(), number: number + 1, marker: Some(marker_on("k")) });
        all.push(Command::Rest { lease: late, number: number + 1 });
        let late = if n == 1 { vec![(old, 1, "k"), (epoch, 2, "k")] } else { Vec::new() };
        for (epoch, attempt, marker) in [(epoch, status.attempt, "k"), (epoch, status.attempt, "l")].into_iter().chain(late) {
            let (tree, session, marker) = (tree.clone(), session.clone(), marker_on(marker));
            all.push(Command::Witnessed { tree, epoch, attempt, session, marker });
        }
    }
    all
}

/// What makes two situations the same.
fn situation(node: &Node) -> u64 {
    let mut state = node.state.clone();
    state.history.clear();
    state.replay.clear();
    // The sides' own boots are no kernels of the places here: it changes nothing.
    state.copied_boots.clear();
    let leadership = state.leadership().map(|(current, _)| current).unwrap_or_default();
    (state.revision, state.timed, state.leadership) = (0, 0, None);
    for session in state.sessions.values_mut() {
        session.since = WallTime::UNKNOWN;
    }
    for tree in state.trees.values_mut() {
        if let Some(run) = &mut tree.run {
            run.start = Default::default();
        }
        tree.coolings = 0;
        for fenced in tree.fenced.values_mut() {
            for open in &mut fenced.open {
                open.number = u32::from(open.number == fenced.attempts);
                open.leadership = Leadership(u64::from(open.leadership == leadership));
            }
            (fenced.attempts, fenced.failures) = (u32::from(fenced.attempts > 0), 0);
            fenced.epoch = Epoch::from_raw(u64::from(fenced.epoch == tree.last_epoch));
        }
        tree.last_epoch = Epoch::from_raw(u64::from(tree.last_epoch > Epoch::ZERO));
        let epoch = tree.last_epoch;
        match &mut tree.state {
            TreeState::Held(held) => {
                (held.epoch, held.number, held.since) = (epoch, 0, WallTime::UNKNOWN);
            }
            TreeState::Cooling(cooling) => {
                (cooling.ended.epoch, cooling.serial) = (epoch, 0);
                cooling.why.clear();
            }
            TreeState::Fencing(fencing) => {
                (fencing.ended.epoch, fencing.attempt) = (epoch, 1);
                fencing.why.clear();
            }
            TreeState::Free | TreeState::Retired => {}
        }
    }
    let mut oracle = node.oracle.clone();
    oracle.forget_numbers(leadership);
    let mut hasher = DefaultHasher::new();
    (state, oracle).hash(&mut hasher);
    hasher.finish()
}

/// Situations and steps that a walk has seen, and the first complaint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Walk {
    pub(super) situations: usize,
    pub(super) steps: usize,
    pub(super) complaint: Option<String>,
}

fn walk(fault: Fault, depth: usize) -> Walk {
    let mut first = World::new();
    first.state.fault = fault;
    walk_from(Node { state: first.state, oracle: Oracle::default() }, alphabet, depth)
}

/// Every sequence of so many commands of that alphabet, from there on.
pub(super) fn walk_from(mut node: Node, alphabet: fn(&State) -> Vec<Command>, depth: usize) -> Walk {
    node.state.history.clear();
    node.state.replay.clear();
    let mut seen = BTreeSet::from([situation(&node)]);
    let mut walk = Walk { situations: 1, ..Walk::default() };
    let mut edge = vec![node];
    for _ in 0..depth {
        let mut next = Vec::new();
        for node in &edge {
            for command in alphabet(&node.state) {
                walk.steps += 1;
                match step(node, command) {
                    Ok(None) => {}
                    Ok(Some(node)) => {
                        if seen.insert(situation(&node)) {
                            next.push(node);
                        }
                    }
                    Err(complaint) => {
                        walk.complaint = Some(complaint);
                        return walk;
                    }
                }
            }
        }
        edge = next;
    }
    walk.situations = seen.len();
    walk
}

/// One command from one situation; `None` if it changed nothing.
pub(super) fn step(node: &Node, command: Command) -> Result<Option<Node>, String> {
    let mut after = node.clone();
    // Every entry of a walk has the next index and the same key: nothing is remembered between them.
    let index = node.state.leadership().unwrap().0.0 + 1;
    let proposal = Proposal { request_key: key(1), actor: String::new(), at: WallTime::UNKNOWN, command };
    let entry = Entry { index, proposal };
    let Applied { answer, .. } = after.state.apply(&entry);
    after.state.replay.clear();
    after.state.history.clear();
    let command = &entry.proposal.command;
    after.oracle.watch(&node.state, command, &answer, &after.state)?;
    if matches!(answer, Answer::Refused(_) | Answer::Ignored { .. }) {
        let same = after.state == node.state;
        return if same { Ok(None) } else { Err(format!("{answer:?} changed something")) };
    }
    // Without a fault a debug build has asserted the invariants in `apply` already.
    if !cfg!(debug_assertions) || node.state.fault != Fault::None {
        invariant::check(&after.state)?;
        let tree = tree_id(1);
        let (was, is) = (node.state.tree(&tree).unwrap(), after.state.tree(&tree).unwrap());
        invariant::check_step(was, is, command, after.state.leadership())?;
    }
    Ok(Some(after))
}

#[test]
fn i1_i2_hold_in_every_sequence_of_commands_for_one_tree_and_three_sides() {
    let long = std::env::var_os("TREELEASE_LONG").is_some();
    let walk = walk(Fault::None, if long { LONG_DEPTH } else { DEPTH });
    eprintln!("{} situations, {} steps", walk.situations, walk.steps);
    assert_eq!(walk.complaint, None);
    assert!(if long { walk.situations > SITUATIONS } else { walk.situations == SITUATIONS }, "{walk:?}");
}

#[test]
fn control_the_walk_finds_a_missing_fence() {
    let complaint = walk(Fault::NoFence, DEPTH).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_the_walk_finds_a_witness_of_a_lock_that_nobody_said_to_have() {
    let complaint = walk(Fault::WitnessUnsaid, DEPTH).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_the_walk_finds_a_way_back_from_any_kernel() {
    let complaint = walk(Fault::BackFromAnyKernel, DEPTH).complaint.expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}
