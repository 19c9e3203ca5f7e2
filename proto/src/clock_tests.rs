//! The side's clock on a machine whose time a test makes: slewed by NTP, suspended, put aside between two readings, broken.

use std::sync::Arc;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

fn side() -> (Arc<Machine>, SideClock<Arc<Machine>>) {
    let machine = Arc::new(Machine::default());
    machine.pass(DAY, 0);
    (machine.clone(), SideClock::on(machine))
}

#[test]
fn slew_of_any_strength_cancels_out() {
    for slew in [-83, -5, 0, 5, 83] {
        let (machine, clock) = side();
        let before = clock.now();
        machine.pass(100 * SECOND, slew);
        let after = clock.now();
        assert_eq!(after.since(before), Duration::from_secs(100), "{slew} permille");
        assert!(!after.suspended_since(before), "slew is no suspend");
    }
}

#[test]
fn control_the_monotonic_clock_would_have_been_wrong_by_more_than_the_drift_term() {
    let (machine, _) = side();
    let before = machine.read(Raw::Monotonic);
    machine.pass(100 * SECOND, -83);
    let measured = machine.read(Raw::Monotonic) - before;
    assert!(measured < Duration::from_secs(99), "{measured:?}");
}

#[test]
fn suspend_counts_and_shows() {
    let (machine, clock) = side();
    let before = clock.now();
    machine.pass(SECOND, 83);
    machine.sleep(7 * SECOND);
    machine.pass(SECOND, 83);
    let after = clock.now();
    assert_eq!(after.since(before), Duration::from_secs(9));
    assert!(after.suspended_since(before));
    // Where it sleeps before anything else passes, too.
    machine.sleep(SECOND);
    assert!(clock.now().suspended_since(after));
}

#[test]
fn a_servers_clock_does_not_count_suspend_and_is_not_slewed() {
    let machine = Arc::new(Machine::default());
    let clock = ServerClock::on(machine.clone());
    let before = clock.now();
    machine.pass(SECOND, 83);
    machine.sleep(7 * SECOND);
    assert_eq!(clock.now(), BootTime { elapsed: before.elapsed + Duration::from_secs(1), suspended: Duration::ZERO });
}

#[test]
fn a_torn_reading_is_taken_again() {
    let (machine, clock) = side();
    let before = clock.now();
    // Put aside for a second before each of the next three readings: between the first and the second it looks like suspend.
    let read = machine.readings();
    machine.put_aside(SECOND, 3);
    let after = clock.now();
    assert_eq!(machine.readings() - read, 8, "a second time, whole");
    assert_eq!(after.since(before), Duration::from_secs(3));
    assert!(!after.suspended_since(before), "the pause was no suspend");
}

#[test]
fn control_one_torn_reading_alone_would_have_looked_like_suspend() {
    let (machine, clock) = side();
    let before = clock.now();
    let read = machine.readings();
    machine.put_aside(SECOND, u64::MAX);
    let after = clock.now();
    assert_eq!(machine.readings() - read, 4 * TORN_TRIES as u64, "it gives up, with the last one");
    assert!(after.suspended_since(before), "which is on the safe side: the gate closes");
}

#[test]
fn a_clock_that_goes_back_stops_the_process() {
    let (machine, clock) = side();
    clock.now();
    // As much as a reading can be off is none of its business.
    machine.go_back(TORN);
    clock.now();
    machine.go_back(SECOND);
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| clock.now())).unwrap_err();
    let said = broken.downcast_ref::<String>().unwrap();
    assert!(said.contains("went back"), "{said}");
}

#[test]
fn within_what_a_reading_can_be_off_it_never_shows_less_than_before() {
    let (machine, clock) = side();
    let before = clock.now();
    machine.go_back(TORN);
    assert_eq!(clock.now().elapsed, before.elapsed);
}

#[test]
fn this_machines_clock_advances_and_shows_no_suspend_by_itself() {
    let clock = SideClock::new();
    let first = clock.now();
    for _ in 0..10_000 {
        let next = clock.now();
        assert!(next.elapsed >= first.elapsed);
        assert!(!next.suspended_since(first));
    }
}

#[test]
fn many_threads_on_few_processors_never_see_it_go_back() {
    let clock = SideClock::new();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut last = clock.now();
                for _ in 0..20_000 {
                    let next = clock.now();
                    assert!(next.elapsed >= last.elapsed);
                    last = next;
                }
            });
        }
    });
}
