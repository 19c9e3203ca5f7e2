//! The right to write, at true time: thousands of random schedules of renewals, delays, leader changes, suspends, pauses and cut
//! ways, over the real pure cores (`treelease_tests::world`). Never do two sides' gates admit at the same moment (I1 to I6).
//!
//! Each control leaves one rule out, and must be caught by the gates themselves. A run follows from its seed alone; a failure
//! prints the command that replays it.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use treelease_tests::seeds::{attempt, many, on_all_processors};
use treelease_tests::world::plan::{Fault, Freezes, Options};
use treelease_tests::world::{Report, command, run};

/// How often what happened, over a batch.
type Counts = BTreeMap<&'static str, u64>;

/// What must have happened in a batch, so that it proves something.
const MUST_HAPPEN: [&str; 29] = [
    "granted",
    "turns",
    "released",
    "handoff",
    "expired",
    "returned",
    "cooling",
    "freed",
    "fencing",
    "fenced",
    "broken",
    "gate_closed",
    "surrendered",
    "rest",
    "active",
    "suspends",
    "pauses that no clock shows",
    "clocks found wrong",
    "daemons stopped",
    "ways cut",
    "elections",
    "leaderships begun anew",
    "leaders stopped",
    "leaders paused",
    "leaders cut off",
    "decisions of an earlier leadership voided",
    "late writes of a stopped guard",
    "writes through a file kept open",
    "sieges",
];

#[test]
fn i4_at_true_time_no_gate_admits_on_two_sides() {
    let counts = all_hold((0..many(3_000, 100_000)).map(Options::of));
    for what in MUST_HAPPEN {
        assert!(counts.get(what).is_some_and(|n| *n >= 5), "{what} hardly happened, so nothing is shown about it: {counts:#?}");
    }
}

#[test]
fn after_a_pause_that_no_clock_shows_the_gate_is_shut_from_the_first_answer_on() {
    let runs = (0..many(500, 20_000)).map(|seed| Options { freezes: Some(Freezes::Long), ..Options::of(seed) });
    let counts = all_hold(runs);
    assert!(counts.get("clocks found wrong").is_some_and(|n| *n > 0), "{counts:#?}");
    // The control: until that answer the hole is real, and the world sees it. SAFETY.md says so.
    assert!(counts.get("moments with two gates after a pause").is_some_and(|n| *n > 0), "{counts:#?}");
}

#[test]
fn a_deadline_counted_from_the_answer_is_caught() {
    is_caught(Fault::DeadlineFromArrival);
}

#[test]
fn a_clock_that_stands_still_in_suspend_is_caught() {
    is_caught(Fault::MonotonicClock);
}

#[test]
fn a_clock_slewed_beyond_the_drift_is_caught() {
    is_caught(Fault::SlewedClock);
}

#[test]
fn renewals_that_extend_trees_no_longer_held_are_caught() {
    is_caught(Fault::ExtendsUnlisted);
}

#[test]
fn a_new_leader_that_goes_on_with_old_timers_is_caught() {
    is_caught(Fault::TimersGoOn);
}

#[test]
fn an_expiry_that_is_not_bound_to_its_leadership_is_caught() {
    is_caught(Fault::ExpiryUnbound);
}

#[test]
fn a_renewal_acknowledged_without_a_quorum_is_caught() {
    is_caught(Fault::AckUnconfirmed);
}

#[test]
fn a_grant_before_the_grace_is_over_is_caught() {
    is_caught(Fault::GraceSkipped);
    is_caught_by(Fault::GraceSkipped, "before the waits");
}

#[test]
fn a_release_while_writes_are_on_their_way_is_caught() {
    is_caught_by(Fault::DrainSkipped, "ended clean");
}

#[test]
fn a_file_that_stays_writable_after_another_sides_turn_is_caught() {
    is_caught_by(Fault::NothingStale, "through a file that it opened");
}

#[test]
fn a_seed_replays_the_same_run() {
    for seed in 0..10 {
        let options = Options { trace: true, ..Options::of(seed) };
        let (first, second) = (run(options), run(options));
        assert!(first.trace.len() > 500, "a run is longer than {} events", first.trace.len());
        for (n, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "line {n} of seed {seed}");
        }
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn the_world_as_a_command_prints_a_line_per_event_the_same_each_time() {
    let print = || {
        let out = Command::new(env!("CARGO_BIN_EXE_world")).args(["--seed", "7"]).output().expect("the world runs");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).expect("text")
    };
    let first = print();
    assert!(first.lines().count() > 500, "{first}");
    assert_eq!(first, print());
}

/// Runs them all; the first one that does not hold fails the test.
fn all_hold(runs: impl Iterator<Item = Options>) -> Counts {
    let counts: Mutex<Counts> = Mutex::default();
    let broken: Mutex<Vec<String>> = Mutex::default();
    on_all_processors(runs, |options| {
        match attempt(|| run(options)) {
            Ok(Report { broken: None, counts: happened, .. }) => {
                let mut counts = counts.lock().expect("nobody panics with it");
                for (what, n) in happened {
                    *counts.entry(what).or_default() += n;
                }
            }
            Ok(Report { broken: Some((at, what)), .. }) => {
                broken.lock().expect("nobody panics with it").push(format!("after {at:?}: {what}\n  {}", command(&options)));
            }
            Err(panicked) => {
                broken.lock().expect("nobody panics with it").push(format!("it panicked: {panicked}\n  {}", command(&options)));
            }
        }
        broken.lock().expect("nobody panics with it").is_empty()
    });
    let broken = broken.into_inner().expect("nobody panics with it");
    assert!(broken.is_empty(), "what must hold does not:\n{}", broken.join("\n"));
    counts.into_inner().expect("nobody panics with it")
}

/// How many runs must catch a control; more seeds are tried until so many did.
const CATCHES: u64 = 3;

/// A rule is left out: the gates of two sides are seen to admit, or one admits after another side was granted.
fn is_caught(fault: Fault) {
    let runs = (0..2_000).map(|seed| Options { fault, gates_only: true, ..Options::of(seed) });
    catch(runs, |what| what.contains("admit"));
}

/// A rule is left out, and the property whose sentence says `what` is seen to be broken.
fn is_caught_by(fault: Fault, what: &str) {
    let runs = (0..2_000).map(|seed| Options { fault, ..Options::of(seed) });
    catch(runs, |broken| broken.contains(what));
}

fn catch(runs: impl Iterator<Item = Options>, counts: impl Fn(&str) -> bool + Sync) {
    let caught = AtomicU64::new(0);
    let fault: Mutex<Fault> = Mutex::new(Fault::None);
    on_all_processors(runs, |options| {
        *fault.lock().expect("nobody panics with it") = options.fault;
        if run(options).broken.is_some_and(|(_, what)| counts(&what)) {
            caught.fetch_add(1, Ordering::Relaxed);
        }
        caught.load(Ordering::Relaxed) < CATCHES
    });
    let (caught, fault) = (caught.into_inner(), fault.into_inner().expect("nobody panics with it"));
    assert!(caught >= CATCHES, "`{fault}` was caught by {caught} of 2000 schedules only: the world is too tame");
}
