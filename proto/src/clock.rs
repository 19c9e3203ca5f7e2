//! The elapsed-time clock of DESIGN 3, for a side and for a server, and one that tests move by hand.
//!
//! NTP slews `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` (by up to 8.3 %, which would eat the whole drift term of I4), and
//! `CLOCK_MONOTONIC` stands still in suspend. So a side counts `MONOTONIC_RAW`, which is never slewed, plus the difference
//! `BOOTTIME - MONOTONIC`, in which the slew cancels out and which is the time spent suspended. A server counts
//! `MONOTONIC_RAW` alone: there, slower is the safe direction (it expires later).
//!
//! Timers only wake things up; every decision reads this clock again. One reading is four of the kernel's: so who asks only whether a
//! deadline has not passed asks [`Clock::at_latest`] first, which is as a rule one of them ([`anchor`] has the argument).

mod anchor;
mod machine;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::time::{BootTime, WallTime};
use anchor::{Anchor, Anchors};
pub use machine::Machine;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// Elapsed time on this machine. Never goes back.
    fn now(&self) -> BootTime;
    /// What time it is at the latest, for less: never before [`Clock::now`] of the same moment, in elapsed time and in suspend, and ahead
    /// of it by a few milliseconds at most. Who is in time by this is in time; who is not asks again what time it is.
    fn at_latest(&self) -> BootTime {
        self.now()
    }
    /// For people to read.
    fn wall(&self) -> WallTime {
        WallTime(jiff::Timestamp::now())
    }
}

/// The kernel's clocks that elapsed time is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// `CLOCK_MONOTONIC`: slewed, stands still in suspend.
    Monotonic,
    /// `CLOCK_BOOTTIME`: slewed, goes on in suspend.
    Boottime,
    /// `CLOCK_MONOTONIC_RAW`: not slewed, stands still in suspend.
    MonotonicRaw,
}

/// Where readings come from: the kernel, or a test.
pub trait Kernel: Send + Sync + 'static {
    /// One clock, now.
    fn read(&self, clock: Raw) -> Duration;
}

/// The kernel of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisKernel;

impl Kernel for ThisKernel {
    fn read(&self, clock: Raw) -> Duration {
        let t = clock_gettime(match clock {
            Raw::Monotonic => ClockId::Monotonic,
            Raw::Boottime => ClockId::Boottime,
            Raw::MonotonicRaw => ClockId::MonotonicRaw,
        });
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }
}

/// Two readings of `MONOTONIC` around the others may be at most this far apart, else the reading is torn and is taken again.
const TORN: Duration = Duration::from_millis(1);
/// How often a torn reading is taken again before the last one counts: a machine this busy is late, not wrong by much.
const TORN_TRIES: usize = 64;

/// The clock of a side: counts suspend, is never slewed.
#[derive(Debug, Default)]
pub struct SideClock<K = ThisKernel> {
    kernel: K,
    /// Highest answer so far, in nanoseconds: the process stops if the clock goes back.
    last: AtomicU64,
    /// What [`Clock::at_latest`] counts on from.
    anchors: Anchors,
}

impl SideClock {
    /// A clock on this machine's kernel.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<K: Kernel> SideClock<K> {
    /// A clock on another kernel's readings.
    pub fn on(kernel: K) -> Self {
        Self { kernel, last: AtomicU64::new(0), anchors: Anchors::default() }
    }

    /// All of the kernel's clocks.
    fn read(&self) -> Anchor {
        // Read before the clocks are: this thread may be put aside for long between reading them and saying so, while others
        // read on; only a reading that began after another one ended must not be before it.
        let last = self.last.load(Ordering::Acquire);
        let (mut boot, mut reading) = (Duration::ZERO, BootTime::default());
        for _ in 0..TORN_TRIES {
            let before = self.kernel.read(Raw::Monotonic);
            boot = self.kernel.read(Raw::Boottime);
            let raw = self.kernel.read(Raw::MonotonicRaw);
            let after = self.kernel.read(Raw::Monotonic);
            let suspended = boot.saturating_sub(before);
            reading = BootTime { elapsed: raw + suspended, suspended };
            if after.saturating_sub(before) <= TORN {
                break;
            }
        }
        let nanos = reading.elapsed.as_nanos() as u64;
        // A reading is up to `TORN` too late, so the next may be that much earlier; more is a broken clock: nothing is safe on it.
        assert!(nanos + 2 * TORN.as_nanos() as u64 >= last, "the elapsed-time clock went back from {last} to {nanos} ns");
        let highest = self.last.fetch_max(nanos, Ordering::AcqRel);
        reading.elapsed = Duration::from_nanos(nanos.max(highest));
        Anchor { boot, reading }
    }

    /// A full reading, from which the next [`SPAN`](anchor) is counted on.
    #[cold]
    fn drop_anchor(&self) -> BootTime {
        let anchor = self.read();
        self.anchors.keep(anchor);
        anchor.reading
    }
}

impl<K: Kernel> Clock for SideClock<K> {
    fn now(&self) -> BootTime {
        self.read().reading
    }
    fn at_latest(&self) -> BootTime {
        // In this order: what is read after it was kept has not gone back since.
        let anchor = self.anchors.last();
        let known = anchor.and_then(|anchor| anchor.at_latest(self.kernel.read(Raw::Boottime)));
        known.unwrap_or_else(|| self.drop_anchor())
    }
}

/// The clock of a server.
#[derive(Debug, Default)]
pub struct ServerClock<K = ThisKernel>(K);

impl ServerClock {
    /// A clock on this machine's kernel.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<K: Kernel> ServerClock<K> {
    /// A clock on another kernel's readings.
    pub fn on(kernel: K) -> Self {
        Self(kernel)
    }
}

impl<K: Kernel> Clock for ServerClock<K> {
    fn now(&self) -> BootTime {
        BootTime { elapsed: self.0.read(Raw::MonotonicRaw), suspended: Duration::ZERO }
    }
}

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<BootTime>);

impl ManualClock {
    /// Starts at zero.
    pub fn new() -> Self {
        Self::default()
    }
    /// Time passes.
    pub fn advance(&self, d: Duration) {
        let mut now = self.0.lock().expect("clock");
        now.elapsed += d;
    }
    /// The machine sleeps: time passes, and it shows.
    pub fn suspend(&self, d: Duration) {
        let mut now = self.0.lock().expect("clock");
        now.elapsed += d;
        now.suspended += d;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> BootTime {
        *self.0.lock().expect("clock")
    }
    fn wall(&self) -> WallTime {
        WallTime::UNKNOWN
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
