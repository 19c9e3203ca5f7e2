//! Random sequences of commands over several trees and sides, judged by the invariants and by the oracle.
//!
//! Commands are drawn as small choices and made concrete against the state at that moment (mostly the current epoch and
//! leadership, sometimes another one), so that most of them do something.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::oracle::Oracle;
use super::*;

const SIDES: [&str; 3] = ["a", "b", "c"];
const TREES: u64 = 2;
/// How many sequences a control has to notice its fault: several times what it needs.
const CONTROL_RUNS: usize = 240;

/// One drawn command.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    what: u8,
    side: usize,
    tree: u64,
    /// 0: not current; else current.
    current: u8,
    extra: u8,
    repeat: bool,
}

pub(super) fn draw() -> impl Strategy<Value = Draw> {
    (0..42u8, 0..SIDES.len(), 1..=TREES, 0..8u8, any::<u8>(), prop::bool::weighted(0.05))
        .prop_map(|(what, side, tree, current, extra, repeat)| Draw { what, side, tree, current, extra, repeat })
}

/// The session of a side: the live one, else one that has ended or never was.
fn session_of(state: &State, name: &str, salt: u64) -> SessionId {
    let live = state.sessions().find(|(_, s)| s.side().as_str() == name).map(|(id, _)| id.clone());
    live.unwrap_or_else(|| session_id(salt))
}

fn concrete(state: &State, d: &Draw, step: u64) -> Command {
    let name = SIDES[d.side];
    let tree = tree_id(d.tree);
    let status = state.tree_status(&tree).unwrap();
    let session = session_of(state, name, 500 + step);
    let epoch = if d.current == 0 { Epoch::from_raw(status.epoch.get().saturating_sub(1)) } else { status.epoch };
    // Mostly the holder itself speaks about a lease.
    let speaker = match &status.holder {
        Some(holder) if d.current > 1 => holder.session.clone(),
        _ => session.clone(),
    };
    let lease = LeaseRef { tree: tree.clone(), session: speaker, epoch };
    let leadership = state.leadership().unwrap().0;
    let decided_under = if d.current == 0 { Leadership(leadership.0.wrapping_sub(1)) } else { leadership };
    let place = match d.extra % 4 {
        0 => None,
        1 => kernel("shared"),
        n => kernel(&format!("{name}{n}")),
    };
    let reason = "because".to_owned();
    match d.what {
        0 => Command::Lead { node: 1 + u64::from(d.extra % 3) },
        1..=3 => {
            let resume = d.extra.is_multiple_of(3).then(|| Resume { session: session.clone(), secret: name.as_bytes().to_vec() });
            let ttl = Ttl::new(Duration::from_secs(2 + u64::from(d.extra % 20)));
            let boot = format!("boot-{}", d.extra % 2);
            Command::OpenSession(OpenSession { resume, ttl, boot, ..open_of(name, session_id(1_000 + step)) })
        }
        4 => Command::CloseSession { session },
        5..=9 => Command::Acquire(Acquire {
            ask: d.extra & 16 != 0,
            first_write: d.extra & 32 != 0,
            no_wait: d.extra & 64 != 0,
            place,
            ..acquire_of(&tree, &session)
        }),
        10 => Command::Cancel { tree, session },
        11 => Command::Release(release_of(&lease)),
        12 => Command::Release(Release { to: Some(side(SIDES[usize::from(d.extra) % 3])), ..release_of(&lease) }),
        13 => Command::GiveBack { lease, reason },
        14 => Command::Surrender { lease, reason, files: vec!["f".into()] },
        15 => {
            let session = status.waiters.first().map_or(lease.session.clone(), |w| w.session.clone());
            Command::GateClosed(LeaseRef { session: if d.extra.is_multiple_of(2) { session } else { lease.session }, ..lease })
        }
        16 if d.extra.is_multiple_of(4) => Command::Obeys { tree, session, mode_no: u64::from(d.extra % 3) },
        16 => Command::Rest { lease, number: step + 1 },
        17 => Command::Active { lease, number: step + 1, marker: d.extra.is_multiple_of(2).then(|| lock_of(d)) },
        18 => Command::Rest { lease, number: step / 2 },
        19 => Command::Decline { lease, for_ms: 1_000, note: String::new() },
        20 => Command::Break { tree, epoch, reason },
        21 => Command::FenceConfirm { tree, epoch, reason },
        22 | 23 => Command::EndGrace { tree, epoch, decided_under },
        24 => {
            let value = [
                ("fence", "none"),
                ("fence", "manual"),
                ("fence", "exec:nas"),
                ("takeover", "a,b"),
                ("takeover", "any"),
                ("grace", "1s"),
                ("fence", "exec:nas"),
                ("mode", "observe"),
                ("mode", "enforce"),
            ];
            Command::SetPolicy { tree, policy: pairs(&[value[usize::from(d.extra) % value.len()]]) }
        }
        25 => Command::EndCopied {
            incarnation: state.session(&session).map_or(1, |s| s.incarnation()) - u64::from(d.current == 0),
            session,
        },
        // Who waits has got the lock that the holder may have said to have, or another one.
        26..=28 => {
            let session = status.waiters.first().map_or(session, |w| w.session.clone());
            let attempt = status.attempt + u32::from(d.extra.is_multiple_of(16));
            let marker = status.witness.filter(|_| d.current > 1).unwrap_or_else(|| lock_of(d));
            Command::Witnessed { tree, epoch, attempt, session, marker }
        }
        30 | 31 => match state.fences_due(leadership).into_iter().find(|due| due.attempt.tree == tree) {
            Some(due) => Command::FenceAttempt {
                attempt: due.attempt,
                verb: due.verb,
                agent: due.agent,
                deadline_ms: 30_000,
                decided_under,
            },
            // What brings one about.
            None => Command::EndGrace { tree, epoch, decided_under },
        },
        32..=34 if state.fences_open().is_empty() => Command::Acquire(Acquire { place, ..acquire_of(&tree, &session) }),
        32..=34 => {
            let (attempt, under) = attempt_of(state, d, &tree, epoch);
            let outcome = [Outcome::Succeeded, Outcome::Failed, Outcome::Untouched][usize::from(d.extra) % 3];
            Command::FenceResult { attempt, outcome, detail: reason, decided_under: under }
        }
        35 => Command::FenceLapsed { attempt: attempt_of(state, d, &tree, epoch).0, decided_under },
        36 => Command::FenceStands { attempt: attempt_of(state, d, &tree, epoch).0 },
        40 if d.extra > 200 => Command::RaiseTtl { ttl_min: Ttl::new(Duration::from_secs(2 + u64::from(d.extra % 8))) },
        41 => match state.trials().first() {
            Some(due) => {
                let (tree, number, outcome) = (due.tree.clone(), due.number, Outcome::Failed);
                Command::FenceTested { tree, number, outcome, detail: reason, decided_under }
            }
            None => Command::FenceTest { tree, side: side(name) },
        },
        40 => {
            let incarnation = state.session(&session).map_or(1, |s| s.incarnation());
            Command::SettleTtl { session, incarnation, decided_under }
        }
        38 if d.extra > 250 => Command::Retire { tree, epoch, reason },
        38 | 39 => {
            let state = if d.extra.is_multiple_of(3) { RootState::Sealed } else { RootState::Live };
            Command::SetRoot { tree, root: root(d.tree).id, epoch, state, reason }
        }
        37 => {
            let shut = status.fenced.first();
            let (side, epoch) = shut.map_or((side(name), epoch), |shut| (shut.side.clone(), shut.epoch));
            Command::Unfence { tree, side, epoch, reason, by_hand: d.extra.is_multiple_of(4) }
        }
        _ => Command::ExpireSession { session: if d.extra.is_multiple_of(2) { lease.session } else { session }, decided_under },
    }
}

/// Mostly an attempt of whose end nobody has told, under its own leadership.
fn attempt_of(state: &State, d: &Draw, tree: &TreeId, epoch: Epoch) -> (AttemptRef, Leadership) {
    let none = AttemptRef { tree: tree.clone(), side: side(SIDES[d.side]), epoch, number: 1 };
    let open = state.fences_open().into_iter().rfind(|open| open.attempt.tree == *tree);
    let (mut attempt, under) = open.map_or((none, Leadership(1)), |open| (open.attempt, open.leadership));
    if d.current == 0 {
        attempt.number += 1;
    }
    (attempt, under)
}

/// One of two locks.
fn lock_of(d: &Draw) -> MarkerLock {
    marker_on(if d.extra.is_multiple_of(3) { "other" } else { "shared" })
}

fn start(fault: Fault) -> World {
    let mut world = World::new();
    let docs = world.add_tree(2, "docs");
    world.run(Command::SetPolicy { tree: docs, policy: pairs(&[("fence", "exec:nas")]) });
    world.state.fault = fault;
    world
}

/// Carries a sequence out; the first complaint of oracle or invariants.
pub(super) fn carry_out(fault: Fault, draws: &[Draw]) -> Result<World, String> {
    let mut world = start(fault);
    let mut oracle = Oracle::default();
    let mut last: Option<(RequestKey, Command)> = None;
    for (step, d) in draws.iter().enumerate() {
        let before = world.state.clone();
        let (key, command, repeated) = match &last {
            Some((key, command)) if d.repeat => (key.clone(), command.clone(), true),
            _ => (key(step as u64), concrete(&before, d, step as u64), false),
        };
        let replays = repeated && !matches!(command, Command::FenceStands { .. }) && command.servers_own().is_none();
        let answer = world.run_keyed(key.clone(), command.clone());
        if replays {
            if world.state != before {
                return Err("a retry changed something".into());
            }
            continue;
        }
        last = Some((key, command.clone()));
        oracle.watch(&before, &command, &answer, &world.state)?;
        for (id, tree) in before.trees() {
            invariant::check_step(tree, &world.state.trees[id], &command, world.state.leadership())?;
        }
    }
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i1_i2_hold_whatever_is_asked_in_whatever_order(draws in prop::collection::vec(draw(), 1..120)) {
        let world = carry_out(Fault::None, &draws).map_err(TestCaseError::fail)?;
        // A snapshot is the state: another node that reads it goes on in the same way.
        let text = serde_json::to_string(&world.state).unwrap();
        let back: State = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back, world.state);
    }

    #[test]
    fn equal_entries_make_equal_states(draws in prop::collection::vec(draw(), 1..60), cut in 0..60usize) {
        let whole = carry_out(Fault::None, &draws).map_err(TestCaseError::fail)?;
        // The same log once more, through a snapshot in the middle.
        let mut world = start(Fault::None);
        let mut last: Option<(RequestKey, Command)> = None;
        for (step, d) in draws.iter().enumerate() {
            if step == cut {
                world.state = serde_json::from_str(&serde_json::to_string(&world.state).unwrap()).unwrap();
            }
            let (key, command) = match &last {
                Some(repeated) if d.repeat => repeated.clone(),
                _ => (key(step as u64), concrete(&world.state, d, step as u64)),
            };
            world.run_keyed(key.clone(), command.clone());
            last = Some((key, command));
        }
        prop_assert_eq!(world.state, whole.state);
    }
}

/// Looks for a sequence that the oracle, or the invariants, complain of.
fn somebody_complains(fault: Fault) -> Option<String> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    (0..CONTROL_RUNS).find_map(|_| {
        let draws = prop::collection::vec(draw(), 120).new_tree(&mut runner).unwrap().current();
        carry_out(fault, &draws).err()
    })
}

#[test]
fn control_a_missing_fence_is_noticed() {
    let complaint = somebody_complains(Fault::NoFence).expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_a_way_back_from_any_kernel_is_noticed() {
    let complaint = somebody_complains(Fault::BackFromAnyKernel).expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_a_witness_of_a_lock_that_nobody_said_to_have_is_noticed() {
    let complaint = somebody_complains(Fault::WitnessUnsaid).expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_an_agents_result_that_counts_for_any_attempt_is_noticed() {
    let complaint = somebody_complains(Fault::AnyFenceResult).expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_a_fence_that_is_forgotten_is_noticed() {
    let complaint = somebody_complains(Fault::FenceForgotten).expect("a broken rule must be noticed");
    assert!(complaint.contains("I2"), "{complaint}");
}

#[test]
fn control_without_a_fault_the_same_sequences_are_in_order() {
    assert_eq!(somebody_complains(Fault::None), None);
}
