//! Random ends: from a seed, three to six faults that overlap befall three nodes and two sides, each a real process on a host of its
//! own; then all is healed, and every promise must have been kept.
//!
//! The quick tier plays a few fixed seeds; `TREELEASE_LONG=1` hundreds. `TREELEASE_SEEDS=7..8` plays seed 7 in either.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use treelease_tests::ends::plan::Plan;
use treelease_tests::ends::scene::Setting;
use treelease_tests::ends::verdict;
use treelease_tests::ledger::Journal;

/// Short ones that together have most kinds of faults.
const QUICK: [u64; 3] = [29, 30, 40];
/// Seeds of the long tier.
const LONG: u64 = 300;
/// Most of a run is waiting.
const AT_ONCE: usize = 4;

#[test]
fn whatever_befalls_no_two_gates_admit_nothing_acknowledged_is_lost_and_both_sides_go_on() {
    let queue = Mutex::new(seeds());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(seed) = queue.lock().expect("no panic while it is held").pop() else { return };
                    if std::panic::catch_unwind(AssertUnwindSafe(|| play(seed))).is_err() {
                        failed.lock().expect("no panic while it is held").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while it is held");
    let again: Vec<String> = failed.iter().map(|seed| replay(*seed)).collect();
    assert!(failed.is_empty(), "{} seeds failed; again:\n{}", failed.len(), again.join("\n"));
}

fn play(seed: u64) {
    // Over the storage itself, as people mount it; `TREELEASE_ENDS_BESIDE=1` at an empty directory instead.
    let over = std::env::var_os("TREELEASE_ENDS_BESIDE").is_none();
    let setting = Setting { replay: replay(seed), over, ..Setting::quick(&format!("random_ends-{seed}")) };
    verdict::run(&Plan::from(seed, journal(seed)), setting);
}

fn replay(seed: u64) -> String {
    format!("TREELEASE_SEEDS={seed}..{} cargo nextest run -p treelease-tests --test story_random_ends", seed + 1)
}

/// Played from the last one to the first.
fn seeds() -> Vec<u64> {
    match std::env::var("TREELEASE_SEEDS") {
        Ok(range) => {
            let parts = range.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            let (from, to): (u64, u64) = parts.unwrap_or_else(|| panic!("TREELEASE_SEEDS={range}: write it as 7..20"));
            (from..to).rev().collect()
        }
        Err(_) if std::env::var_os("TREELEASE_LONG").is_some() => (0..LONG).rev().collect(),
        Err(_) => QUICK.to_vec(),
    }
}

/// Every second seed writes ahead; `TREELEASE_ENDS_JOURNAL=delete` (or `wal`) makes all of them do the one.
fn journal(seed: u64) -> Journal {
    match std::env::var("TREELEASE_ENDS_JOURNAL") {
        Ok(name) => name.parse().unwrap_or_else(|e| panic!("{e}")),
        Err(_) if seed % 2 == 1 => Journal::Wal,
        Err(_) => Journal::Delete,
    }
}
