//! What the clock says by one reading against what is true: random machines, slewed as much as the kernel can be made to, suspended for
//! moments and for long, and threads that are put aside between two readings.

use std::sync::Arc;

use super::*;
use crate::clock::{Clock, Kernel, Machine, Raw, SideClock};

type Side = SideClock<Arc<Machine>>;

/// Small and good enough to play with time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
    fn micros(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.below(below))
    }
}

/// What became of it: how often one reading was enough, and how far ahead of the truth what was said has been.
#[derive(Debug, PartialEq, Eq)]
struct Played {
    quick: u64,
    ahead: Duration,
}

/// Plays with machines, and asks each time. Err: something that was said is before the truth.
fn play(mut ask: impl FnMut(&Side, &Arc<Machine>, &mut Option<Anchor>) -> BootTime) -> Result<Played, String> {
    let mut played = Played { quick: 0, ahead: Duration::ZERO };
    for seed in 1u64..=300 {
        let (mut dice, machine) = (Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)), Arc::new(Machine::default()));
        machine.pass(Duration::from_secs(86_400), 0);
        let (clock, mut anchor) = (SideClock::on(machine.clone()), None);
        let slew = dice.below(2 * 10 * SLOWEST + 1) as i64 - 10 * SLOWEST as i64;
        for step in 0..300 {
            match dice.below(12) {
                0 => machine.sleep(dice.micros(6_000)),
                1 => machine.sleep(dice.micros(60_000_000)),
                2 => machine.put_aside(dice.micros(1_500), dice.below(6)),
                3 => machine.pass(dice.micros(3_000_000), slew),
                _ => machine.pass(dice.micros(900), slew),
            }
            let before = machine.readings();
            let said = ask(&clock, &machine, &mut anchor);
            played.quick += u64::from(machine.readings() == before + 1);
            let truth = machine.truth_when_read();
            if said.elapsed < truth.elapsed || said.suspended < truth.suspended {
                return Err(format!("seed {seed}, step {step}, slew {slew}: it is {truth:?}, and {said:?} was said"));
            }
            let truth = machine.truth();
            let ahead = said.elapsed.saturating_sub(truth.elapsed).max(said.suspended.saturating_sub(truth.suspended));
            played.ahead = played.ahead.max(ahead);
        }
    }
    Ok(played)
}

/// The same with another rule.
fn play_by(rule: fn(Anchor, Duration) -> Option<BootTime>) -> Result<Played, String> {
    play(|clock, machine, anchor| {
        let known = anchor.and_then(|anchor| rule(anchor, machine.read(Raw::Boottime)));
        known.unwrap_or_else(|| anchor.insert(clock.read()).reading)
    })
}

#[test]
fn i4_what_one_reading_says_is_never_before_the_truth_and_ahead_by_little() {
    let played = play(|clock, _, _| clock.at_latest()).unwrap();
    assert!(played.quick > 10_000, "{played:?}: nothing is shown about one reading");
    assert!(played.ahead <= SPAN + 2 * TORN, "{played:?}");
    assert_eq!(play_by(Anchor::at_latest), Ok(played), "the rule alone, without threads");
}

#[test]
fn control_counted_on_for_ever_without_what_ntp_may_take_away_it_is_long_before_the_truth() {
    let plain = |anchor: Anchor, boot: Duration| {
        let passed = boot.checked_sub(anchor.boot)?;
        Some(BootTime { elapsed: anchor.reading.elapsed + passed, suspended: anchor.reading.suspended + passed })
    };
    assert!(play_by(plain).unwrap_err().contains("was said"));
    // And within the span by less, but it is.
    let short = |anchor: Anchor, boot: Duration| {
        let passed = boot.checked_sub(anchor.boot).filter(|passed| *passed <= SPAN)?;
        Some(BootTime { elapsed: anchor.reading.elapsed + passed, suspended: anchor.reading.suspended + passed })
    };
    assert!(play_by(short).unwrap_err().contains("was said"));
}

#[test]
fn control_taken_for_awake_a_short_sleep_goes_by_unseen() {
    let awake = |anchor: Anchor, boot: Duration| {
        let said = anchor.at_latest(boot)?;
        Some(BootTime { suspended: anchor.reading.suspended, ..said })
    };
    assert!(play_by(awake).unwrap_err().contains("was said"));
}

#[test]
fn a_clock_that_goes_back_is_read_in_full() {
    let anchor = Anchor { boot: Duration::from_secs(9), reading: BootTime::default() };
    assert_eq!(anchor.at_latest(Duration::from_secs(9)), Some(anchor.reading));
    assert_eq!(anchor.at_latest(Duration::from_secs(9) - Duration::from_nanos(1)), None);
    assert_eq!(anchor.at_latest(Duration::from_secs(9) + SPAN + Duration::from_nanos(1)), None);
}

#[test]
fn threads_that_keep_readings_at_the_same_time_read_whole_ones() {
    let anchors = Anchors::default();
    assert_eq!(anchors.last(), None);
    // In a whole one all three words are of one number.
    let of = |n: u64| {
        let d = Duration::new(n, n as u32);
        Anchor { boot: d, reading: BootTime { elapsed: d, suspended: d } }
    };
    let seen = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (anchors, seen) = (&anchors, &seen);
            threads.spawn(move || {
                for n in 1..20_000 {
                    anchors.keep(of(n * 4 + thread));
                    if let Some(anchor) = anchors.last() {
                        assert_eq!(anchor, of(anchor.boot.as_secs()));
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(seen.load(Ordering::Relaxed) > 0);
}

#[test]
fn on_this_machine_what_is_said_by_one_reading_is_not_before_what_was_said_in_full() {
    let clock = SideClock::new();
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..20_000 {
                    let full = clock.now();
                    let said = clock.at_latest();
                    // A full reading may be late by that much.
                    assert!(said.elapsed + 2 * TORN >= full.elapsed && said.suspended + TORN >= full.suspended);
                }
            });
        }
    });
}
