//! A machine whose time a test makes: true time, what NTP has made of it, and how long it slept.
//!
//! # Promises
//!
//! A clock on it ([`super::SideClock::on`]) is the one that a daemon has, with the same readings in the same order.
//!
//! # Does not know
//!
//! What really happens to machines: the test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Kernel, Raw};
use crate::time::BootTime;

/// A machine. In nanoseconds.
#[derive(Debug, Default)]
pub struct Machine {
    raw: AtomicU64,
    slewed: AtomicU64,
    asleep: AtomicU64,
    /// What passes after each reading: this thread is put aside between two.
    pause: AtomicU64,
    /// So many readings more it is put aside, then never again.
    pauses: AtomicU64,
    readings: AtomicU64,
    /// Before the last reading of `CLOCK_BOOTTIME`, and the suspend of then.
    boot_read: (AtomicU64, AtomicU64),
}

fn at(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

impl Machine {
    /// True time passes while NTP slews by so many parts of a thousand.
    pub fn pass(&self, d: Duration, slew_permille: i64) {
        let nanos = d.as_nanos() as u64;
        self.raw.fetch_add(nanos, Ordering::SeqCst);
        let slewed = i128::from(nanos) * i128::from(1000 + slew_permille) / 1000;
        self.slewed.fetch_add(slewed as u64, Ordering::SeqCst);
    }

    /// It sleeps.
    pub fn sleep(&self, d: Duration) {
        self.asleep.fetch_add(d.as_nanos() as u64, Ordering::SeqCst);
    }

    /// No clock is right: its time goes back.
    pub fn go_back(&self, d: Duration) {
        self.raw.fetch_sub(d.as_nanos() as u64, Ordering::SeqCst);
    }

    /// At each of the next readings so much passes, before the thread goes on.
    pub fn put_aside(&self, each: Duration, readings: u64) {
        self.pause.store(each.as_nanos() as u64, Ordering::SeqCst);
        self.pauses.store(readings, Ordering::SeqCst);
    }

    /// How often one of its clocks was read.
    pub fn readings(&self) -> u64 {
        at(&self.readings)
    }

    /// What time it is in truth.
    pub fn truth(&self) -> BootTime {
        let (raw, asleep) = (at(&self.raw), at(&self.asleep));
        BootTime { elapsed: Duration::from_nanos(raw + asleep), suspended: Duration::from_nanos(asleep) }
    }

    /// What time it was when `CLOCK_BOOTTIME` was read last.
    pub fn truth_when_read(&self) -> BootTime {
        let (raw, asleep) = (at(&self.boot_read.0), at(&self.boot_read.1));
        BootTime { elapsed: Duration::from_nanos(raw + asleep), suspended: Duration::from_nanos(asleep) }
    }
}

impl Kernel for Arc<Machine> {
    fn read(&self, clock: Raw) -> Duration {
        self.readings.fetch_add(1, Ordering::SeqCst);
        let value = match clock {
            Raw::Monotonic => at(&self.slewed),
            Raw::Boottime => {
                self.boot_read.0.store(at(&self.raw), Ordering::SeqCst);
                self.boot_read.1.store(at(&self.asleep), Ordering::SeqCst);
                at(&self.slewed) + at(&self.asleep)
            }
            Raw::MonotonicRaw => at(&self.raw),
        };
        if self.pauses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            self.pass(Duration::from_nanos(at(&self.pause)), 0);
        }
        Duration::from_nanos(value)
    }
}
