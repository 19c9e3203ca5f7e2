//! The plan by examples, against an oracle, and in a small world of writers and a storage with a speed.

use proptest::prelude::*;

use super::*;

const MAX: Duration = Duration::from_secs(1);

fn at(millis: u64) -> BootTime {
    BootTime::default().after(Duration::from_millis(millis))
}

/// A write that is let in and ends.
fn write(plan: &mut Plan, file: u64, bytes: u64, now: BootTime) -> bool {
    let goes = plan.let_in(bytes, now);
    if goes {
        plan.wrote(file, bytes, now);
        plan.came_out(bytes);
    }
    goes
}

#[test]
fn a_call_begins_when_half_of_dirty_max_has_passed_and_the_oldest_is_first() {
    let mut plan = Plan::new(MAX);
    assert!(plan.wrote(1, 10, at(0)), "whoever looks for work is told of the first");
    assert!(!plan.wrote(1, 10, at(400)));
    assert!(!plan.wrote(2, 10, at(100)));
    assert_eq!((plan.next(at(499), false), plan.due_at()), (None, Some(at(500))));
    assert_eq!(plan.next(at(500), false), Some(1));
    assert_eq!(plan.next(at(499), true), Some(1), "past a deadline at once");
    plan.begin(1, at(500)).unwrap();
    assert_eq!((plan.next(at(500), false), plan.due_at()), (None, Some(at(600))));
    assert_eq!(plan.next(at(600), false), Some(2));
}

#[test]
fn a_dirty_max_that_changes_counts_for_what_was_written_before() {
    let mut plan = Plan::new(Duration::from_secs(60));
    plan.wrote(1, 10, at(0));
    assert_eq!(plan.next(at(500), false), None);
    assert!(plan.set_dirty_max(MAX) && !plan.set_dirty_max(MAX));
    assert_eq!(plan.next(at(500), false), Some(1));
    plan.set_dirty_max(Duration::ZERO);
    assert_eq!((plan.next(at(49), false), plan.next(at(50), false)), (None, Some(1)), "not more often than that");
}

#[test]
fn a_call_confirms_what_was_written_before_it_began_and_nothing_else() {
    let mut plan = Plan::new(MAX);
    plan.wrote(1, 10, at(0));
    let first = plan.begin(1, at(500)).unwrap();
    plan.wrote(1, 7, at(600));
    plan.end(&first, at(700));
    assert_eq!(plan.unconfirmed(at(700)), (7, Duration::from_millis(100)));
    let second = plan.begin(1, at(1100)).unwrap();
    plan.end(&second, at(1200));
    assert_eq!(plan.unconfirmed(at(1200)), (0, Duration::ZERO));
    assert!(!plan.has(1), "its node is let go of");
}

#[test]
fn an_fsync_of_a_programs_confirms_what_was_written_before_it() {
    let mut plan = Plan::new(MAX);
    plan.wrote(1, 10, at(0));
    let mark = plan.mark(1).unwrap();
    plan.wrote(1, 7, at(100));
    plan.confirmed(1, mark, at(200));
    assert_eq!(plan.unconfirmed(at(200)), (7, Duration::from_millis(100)));
    assert_eq!(plan.due_at(), Some(at(600)));
    // Many of them, whose end never comes, are not told apart for ever: then less is confirmed, never more.
    let marks: Vec<Mark> = (0..100)
        .map(|n| {
            plan.wrote(1, 1, at(300 + n));
            plan.mark(1).unwrap()
        })
        .collect();
    assert!(plan.files[&1].parts.len() <= PARTS_MAX as usize + 1);
    plan.wrote(1, 1, at(500));
    plan.confirmed(1, marks[99], at(600));
    assert!(plan.unconfirmed(at(600)).0 >= 1);
}

#[test]
fn more_than_64_mib_are_never_let_in_also_not_by_writes_under_way() {
    let mut plan = Plan::new(MAX);
    let mib = 1 << 20;
    assert!(plan.let_in(60 * mib, at(0)));
    assert!(!plan.let_in(5 * mib, at(0)) && plan.let_in(4 * mib, at(0)));
    plan.wrote(1, 60 * mib, at(0));
    plan.came_out(60 * mib);
    assert!(!plan.let_in(1, at(0)));
    plan.came_out(4 * mib);
    assert!(plan.let_in(4 * mib, at(0)), "a write that failed makes room");
    plan.came_out(4 * mib);
    assert_eq!(plan.next(at(0), false), Some(1), "so much is written back at once");
    let call = plan.begin(1, at(0)).unwrap();
    assert!(!plan.let_in(5 * mib, at(0)), "it is unconfirmed until the call has returned");
    plan.end(&call, at(9));
    assert!(plan.let_in(UNCONFIRMED_MAX, at(9)), "the largest write there is, alone");
}

#[test]
fn when_nothing_can_begin_in_time_nothing_more_is_let_in() {
    let mut plan = Plan::new(MAX);
    let calls: Vec<Ticket> = (0..2)
        .map(|n| {
            assert!(write(&mut plan, 1, 1, at(n)));
            plan.begin(1, at(n)).unwrap()
        })
        .collect();
    assert!(write(&mut plan, 1, 1, at(100)));
    assert_eq!(plan.next(at(700), false), None, "two calls for one file are enough");
    assert!(write(&mut plan, 2, 1, at(1100)), "not yet");
    assert!(!write(&mut plan, 2, 1, at(1101)));
    plan.end(&calls[1], at(1200));
    assert_eq!(plan.next(at(1200), false), Some(1));
    plan.begin(1, at(1200)).unwrap();
    assert!(write(&mut plan, 2, 1, at(1201)));
}

#[test]
fn the_storage_is_silent_when_no_call_at_all_has_returned() {
    let (mut plan, patience) = (Plan::new(MAX), Duration::from_secs(5));
    plan.wrote(1, 1, at(0));
    assert_eq!(plan.silent_at(patience), None, "it was not asked");
    let hangs = plan.begin(1, at(500)).unwrap();
    assert_eq!(plan.silent_at(patience), Some(at(5500)));
    plan.wrote(2, 1, at(600));
    let other = plan.begin(2, at(1100)).unwrap();
    plan.end(&other, at(1200));
    assert_eq!(plan.silent_at(patience), Some(at(6200)), "one that returned");
    plan.clear();
    assert_eq!(plan.silent_at(patience), Some(at(6200)), "in the next epoch it hangs still");
    plan.end(&hangs, at(7000));
    assert_eq!(plan.silent_at(patience), None);
}

#[test]
fn a_call_of_an_earlier_epoch_confirms_nothing_of_the_next() {
    let mut plan = Plan::new(MAX);
    plan.wrote(1, 10, at(0));
    let old = plan.begin(1, at(500)).unwrap();
    plan.clear();
    plan.wrote(1, 7, at(600));
    plan.end(&old, at(700));
    assert_eq!(plan.unconfirmed(at(700)).0, 7);
}

#[test]
fn a_file_that_is_gone_is_unconfirmed_no_more() {
    let mut plan = Plan::new(MAX);
    plan.wrote(1, 10, at(0));
    let call = plan.begin(1, at(500)).unwrap();
    plan.wrote(1, 10, at(500));
    plan.forget(1);
    assert_eq!((plan.unconfirmed(at(500)).0, plan.due_at()), (0, None));
    plan.end(&call, at(600));
    assert_eq!(plan.unbegun, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Begin,
    End(usize),
    Mark(u64),
    Fsynced(usize),
    Forget(u64),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u64, 0..(9u64 << 20)).prop_map(|(file, bytes)| Step::Write(file, bytes)),
        5 => Just(Step::Begin),
        4 => (0..9usize).prop_map(Step::End),
        2 => (0..4u64).prop_map(Step::Mark),
        2 => (0..9usize).prop_map(Step::Fsynced),
        1 => (0..4u64).prop_map(Step::Forget),
        1 => Just(Step::Clear),
    ]
}

/// What really is unconfirmed, write by write; nothing is told apart by calls.
#[derive(Default)]
struct Oracle {
    /// File, number of the write, bytes.
    writes: Vec<(u64, u64, u64)>,
    last: u64,
}

impl Oracle {
    /// A call for the file that began after so many writes has returned.
    fn confirm(&mut self, file: u64, upto: u64) {
        self.writes.retain(|(of, no, _)| *of != file || *no > upto);
    }
    fn bytes(&self) -> u64 {
        self.writes.iter().map(|(_, _, bytes)| bytes).sum()
    }
}

proptest! {
    #[test]
    fn nothing_is_confirmed_that_no_call_has_seen_and_the_limit_holds(steps in prop::collection::vec(step(), 1..120)) {
        let (mut plan, mut oracle) = (Plan::new(MAX), Oracle::default());
        let (mut calls, mut marks, mut few_marks) = (Vec::new(), Vec::new(), true);
        for (n, step) in steps.into_iter().enumerate() {
            let now = at(n as u64 * 40);
            match step {
                Step::Write(file, bytes) => {
                    if write(&mut plan, file, bytes, now) {
                        oracle.last += 1;
                        oracle.writes.push((file, oracle.last, bytes));
                    }
                }
                Step::Begin if calls.len() < CALLS => {
                    if let Some(file) = plan.next(now, true) {
                        calls.push((plan.begin(file, now).unwrap(), file, oracle.last));
                    }
                }
                Step::Begin => {}
                Step::End(which) if !calls.is_empty() => {
                    let (ticket, file, upto) = calls.swap_remove(which % calls.len());
                    plan.end(&ticket, now);
                    oracle.confirm(file, upto);
                }
                Step::Mark(file) => {
                    few_marks &= plan.files.get(&file).is_none_or(|f| (f.parts.len() as u64) < PARTS_MAX);
                    marks.extend(plan.mark(file).map(|mark| (mark, file, oracle.last)));
                }
                Step::Fsynced(which) if !marks.is_empty() => {
                    let (mark, file, upto) = marks.swap_remove(which % marks.len());
                    plan.confirmed(file, mark, now);
                    oracle.confirm(file, upto);
                }
                Step::Forget(file) => {
                    plan.forget(file);
                    oracle.writes.retain(|(of, ..)| *of != file);
                }
                Step::Clear => {
                    plan.clear();
                    oracle.writes.clear();
                }
                Step::End(_) | Step::Fsynced(_) => {}
            }
            let unconfirmed = plan.unconfirmed(now).0;
            prop_assert!(unconfirmed >= oracle.bytes(), "something is taken for confirmed that is not");
            if few_marks {
                prop_assert_eq!(unconfirmed, oracle.bytes());
            }
            prop_assert!(unconfirmed + plan.let_in <= UNCONFIRMED_MAX);
            let parts = || plan.files.values().flat_map(|file| &file.parts);
            prop_assert_eq!(parts().map(|part| part.bytes).sum::<u64>(), unconfirmed);
            prop_assert_eq!(parts().filter(|part| !part.begun).map(|part| part.bytes).sum::<u64>(), plan.unbegun);
            let oldest = plan.files.iter().filter_map(|(no, file)| {
                Some((file.parts.iter().find(|part| !part.begun)?.since, *no))
            });
            prop_assert_eq!(&oldest.collect::<BTreeSet<_>>(), &plan.waiting);
        }
    }

    /// A storage with a speed, that carries out one call after the other, and writers that always have more.
    #[test]
    fn with_a_storage_that_keeps_up_nothing_is_older_than_dirty_max_and_with_any_other_than_the_calls_before_it(
        mib_per_second in 1..400u64, latency in 1..3000u64, files in 1..=4u64, chunk in 1..8u64,
    ) {
        let (mut plan, mut calls, mut longest) = (Plan::new(MAX), Vec::new(), 0);
        let (mut free_at, mut next_file, mut keeps_up) = (0, 0, true);
        for millis in 0..30_000u64 {
            let now = at(millis);
            let mut n = 0;
            while n < calls.len() {
                let (ticket, began, until): &(Ticket, u64, u64) = &calls[n];
                if *until <= millis {
                    longest = longest.max(millis - began);
                    plan.end(ticket, now);
                    calls.swap_remove(n);
                } else {
                    n += 1;
                }
            }
            // Two writers of a chunk in each millisecond: faster than any of these storages.
            for _ in 0..2 {
                next_file = (next_file + 1) % files;
                write(&mut plan, next_file, chunk << 20, now);
            }
            while calls.len() < CALLS {
                let Some(file) = plan.next(now, false) else { break };
                let bytes = plan.files[&file].parts.iter().filter(|part| !part.begun).map(|part| part.bytes).sum::<u64>();
                let ticket = plan.begin(file, now).unwrap();
                free_at = free_at.max(millis) + bytes * 1000 / (mib_per_second << 20) + 1;
                calls.push((ticket, millis, free_at + latency));
            }
            let (bytes, age) = plan.unconfirmed(now);
            prop_assert!(bytes <= UNCONFIRMED_MAX);
            let under_way = calls.iter().map(|(_, began, _)| millis - began).max().unwrap_or(0);
            let call = Duration::from_millis(longest.max(under_way) + 1);
            // Its own, and where it could not begin when it was due, the one that all were busy with, and an older one's.
            keeps_up &= plan.due_at().is_none_or(|at| at > now);
            let most = if keeps_up { MAX / 2 + call } else { MAX + 3 * call };
            prop_assert!(age <= most, "{age:?} at {millis} ms, calls of {call:?}, it keeps up: {keeps_up}");
        }
    }
}
