//! The gate on the clock that a daemon has, on machines whose time is made here: one reading in the place of four changes nothing that
//! the gate says (I4).

use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::clock::{Clock, Machine, SideClock};
use treelease_client::words::time::BootTime;

use super::super::{Admission, Gate, Op, Right, in_time};
use super::{Ears, standing};
use crate::sync::Arc;

/// Control: what was read once is good for ever.
struct Believing(SideClock<Arc<Machine>>, Mutex<Option<BootTime>>);

impl Clock for Believing {
    fn now(&self) -> BootTime {
        self.0.now()
    }
    fn at_latest(&self) -> BootTime {
        *self.1.lock().unwrap().get_or_insert_with(|| self.0.now())
    }
}

/// How often it was admitted, by one reading of a clock alone, and refused.
#[derive(Debug, Default)]
struct Played {
    admitted: u32,
    quick: u32,
    refused: u32,
    late: u32,
}

/// Plays with machines, deadlines and one writer. Err: the gate says something else than the truth of the moment.
fn play(clock_of: impl Fn(Arc<Machine>) -> Arc<dyn Clock>) -> Result<Played, String> {
    let mut played = Played::default();
    for seed in 1u64..=200 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let machine = Arc::new(Machine::default());
        machine.pass(Duration::from_secs(1000), 0);
        let clock = clock_of(machine.clone());
        let gate = Gate::new(standing(Right::Read), clock.clone(), Arc::new(Ears::default()));
        // Up to what chrony and `adjtime` can do together.
        let (slew, mut until) = (below(301) as i64 - 150, None);
        for step in 0..400 {
            match below(24) {
                0 => machine.sleep(Duration::from_micros(below(9_000))),
                1 => machine.sleep(Duration::from_micros(below(90_000_000))),
                2 => machine.pass(Duration::from_micros(below(40_000)), slew),
                // A deadline is put off, brought forward, or taken away.
                3..6 => {
                    until = Some(clock.now().after(Duration::from_micros(below(30_000))));
                    gate.publish(standing(Right::Write { until: until.unwrap() }));
                }
                6 => {
                    until = None;
                    gate.publish(standing(Right::Read));
                }
                _ => machine.pass(Duration::from_micros(below(1_500)), slew),
            }
            let (truth, readings) = (machine.truth(), machine.readings());
            let may = until.is_some_and(|until| in_time(until, truth));
            let wrong = |what: &str| Err(format!("seed {seed}, step {step}: {what} at {truth:?}, the deadline being {until:?}"));
            match gate.admit(Op::Write, None) {
                Admission::Permit(permit) if may => {
                    played.admitted += 1;
                    played.quick += u32::from(machine.readings() == readings + 1);
                    if below(8) == 0 {
                        machine.pass(Duration::from_micros(below(20_000)), slew);
                    }
                    let ended = machine.truth();
                    let late = until.is_some_and(|until| ended.elapsed > until.elapsed || ended.suspended_since(until));
                    played.late += u32::from(late);
                    if permit.finish(gate.at_latest()).is_err() != late {
                        return wrong("a call's end was misjudged");
                    }
                }
                Admission::Refuse(_) if !may => played.refused += 1,
                Admission::Permit(_) => return wrong("admitted"),
                _ => return wrong("not admitted"),
            }
        }
    }
    Ok(played)
}

#[test]
fn i4_by_one_reading_the_gate_says_what_it_says_by_a_full_one() {
    let played = play(|machine| Arc::new(SideClock::on(machine))).unwrap();
    let enough = played.quick > 5_000 && played.admitted > played.quick && played.refused > 5_000 && played.late > 100;
    assert!(enough, "hardly anything happened, so nothing is shown: {played:?}");
}

#[test]
fn control_a_reading_that_is_good_for_ever_lets_through_what_comes_after_the_deadline() {
    let wrong = play(|machine| Arc::new(Believing(SideClock::on(machine), Mutex::default()))).unwrap_err();
    assert!(wrong.contains("admitted at") || wrong.contains("misjudged"), "{wrong}");
}
