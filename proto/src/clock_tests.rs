//! The side's clock on a machine whose time a test makes: slewed by NTP, suspended, put aside between two readings, broken.

use std::sync::Arc;

use super::*;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

/// A machine: true time, what NTP has made of it, and how long it slept. In nanoseconds.
#[derive(Debug, Default)]
struct Machine {
    raw: AtomicU64,
    slewed: AtomicU64,
    asleep: AtomicU64,
    /// What passes at each reading: this thread is put aside between two.
    pause: AtomicU64,
    /// So many readings more it is put aside, then never again.
    pauses: AtomicU64,
    readings: AtomicU64,
}

impl Machine {
    /// True time passes while NTP slews by so many parts of a thousand.
    fn pass(&self, nanos: u64, slew_permille: i64) {
        self.raw.fetch_add(nanos, Ordering::SeqCst);
        self.slewed.fetch_add(nanos.strict_add_signed(nanos as i64 / 1000 * slew_permille), Ordering::SeqCst);
    }
    fn sleep(&self, nanos: u64) {
        self.asleep.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Kernel for Arc<Machine> {
    fn read(&self, clock: Raw) -> Duration {
        self.readings.fetch_add(1, Ordering::SeqCst);
        let at = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let value = match clock {
            Raw::Monotonic => at(&self.slewed),
            Raw::Boottime => at(&self.slewed) + at(&self.asleep),
            Raw::MonotonicRaw => at(&self.raw),
        };
        if self.pauses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            self.pass(at(&self.pause), 0);
        }
        Duration::from_nanos(value)
    }
}

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
    machine.pause.store(SECOND, Ordering::SeqCst);
    machine.pauses.store(3, Ordering::SeqCst);
    machine.readings.store(0, Ordering::SeqCst);
    let after = clock.now();
    assert_eq!(machine.readings.load(Ordering::SeqCst), 8, "a second time, whole");
    assert_eq!(after.since(before), Duration::from_secs(3));
    assert!(!after.suspended_since(before), "the pause was no suspend");
}

#[test]
fn control_one_torn_reading_alone_would_have_looked_like_suspend() {
    let (machine, clock) = side();
    let before = clock.now();
    machine.pause.store(SECOND, Ordering::SeqCst);
    machine.pauses.store(u64::MAX, Ordering::SeqCst);
    machine.readings.store(0, Ordering::SeqCst);
    let after = clock.now();
    assert_eq!(machine.readings.load(Ordering::SeqCst), 4 * TORN_TRIES as u64, "it gives up, with the last one");
    assert!(after.suspended_since(before), "which is on the safe side: the gate closes");
}

#[test]
fn a_clock_that_goes_back_stops_the_process() {
    let (machine, clock) = side();
    clock.now();
    // As much as a reading can be off is none of its business.
    machine.raw.fetch_sub(TORN.as_nanos() as u64, Ordering::SeqCst);
    clock.now();
    machine.raw.fetch_sub(SECOND, Ordering::SeqCst);
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| clock.now())).unwrap_err();
    let said = broken.downcast_ref::<String>().unwrap();
    assert!(said.contains("went back"), "{said}");
}

#[test]
fn within_what_a_reading_can_be_off_it_never_shows_less_than_before() {
    let (machine, clock) = side();
    let before = clock.now();
    machine.raw.fetch_sub(TORN.as_nanos() as u64, Ordering::SeqCst);
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
