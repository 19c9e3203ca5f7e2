//! A machine: what its clock shows while true time passes, and whether anything runs on it.
//!
//! True time is the world's own; no machine knows it. Rates lie within 0.9 % of it and of each other, which is what the drift
//! term of I4 (1 %) allows for. A side reads its clock as a daemon does, NTP's slew of the kernel's clocks included; the gate by one
//! reading where it can.

use std::sync::Arc;
use std::time::Duration;

use treelease_proto::clock::{Clock, Machine as Kernel, SideClock};
use treelease_proto::time::BootTime;

use super::rng::Rng;

/// Rates lie so far apart at most, in parts of a million.
const SPREAD_PPM: i64 = 9_000;
/// By how much NTP slows a clock down in the control, in parts of a million.
const SLEW_PPM: i64 = 83_000;

/// What the clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As DESIGN has it for a side: suspend counts, and shows.
    Side,
    /// As for a server: `MONOTONIC_RAW`, which stands still in suspend.
    Server,
    /// Control: as `Side`, slewed.
    Slewed,
    /// Control: stands still in suspend and does not show it.
    Monotonic,
}

/// What the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It runs.
    Running,
    /// Our process was stopped; the clock goes on.
    Stopped,
    /// It sleeps. The clock counts the sleep, with an error: so many thousandths of it.
    Suspended {
        /// Of the true length.
        counted: u32,
    },
    /// A virtual machine that is paused: no clock of it moves, and none will show it.
    Frozen,
}

/// One machine.
pub struct Machine {
    kind: Kind,
    ppm: i64,
    mode: Mode,
    /// True time of the last look.
    at: Duration,
    kernel: Arc<Kernel>,
    /// What the world reads; the gate has one of its own.
    clock: SideClock<Arc<Kernel>>,
    /// What NTP makes of the kernel's clocks, in parts of a thousand.
    slew: i64,
}

impl Machine {
    /// A machine that runs, with a rate near `centre`, which all machines of a world share.
    pub fn new(kind: Kind, centre_ppm: i64, rng: &mut Rng) -> Self {
        let mut ppm = centre_ppm + Self::within(rng);
        if kind == Kind::Slewed {
            ppm -= SLEW_PPM;
        }
        let (kernel, slew) = (Arc::new(Kernel::default()), (ppm.rem_euclid(7) - 3) * 27);
        // No origin in common with any other machine.
        kernel.pass(rng.ms(1_000, 1_000_000), slew);
        let clock = SideClock::on(kernel.clone());
        Self { kind, ppm, mode: Mode::Running, at: Duration::ZERO, kernel, clock, slew }
    }

    /// Half the spread at most, to either side.
    pub fn within(rng: &mut Rng) -> i64 {
        rng.below(SPREAD_PPM as usize + 1) as i64 - SPREAD_PPM / 2
    }

    /// Its clock, for those that read it by themselves.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SideClock::on(self.kernel.clone()))
    }

    /// What its clock shows at this true time.
    pub fn now(&mut self, at: Duration) -> BootTime {
        let passed = at.saturating_sub(self.at);
        self.at = self.at.max(at);
        match self.mode {
            Mode::Running | Mode::Stopped => self.kernel.pass(self.counted(passed), self.slew),
            Mode::Suspended { counted } if matches!(self.kind, Kind::Side | Kind::Slewed) => {
                self.kernel.sleep(passed * counted / 1_000);
            }
            Mode::Suspended { .. } | Mode::Frozen => {}
        }
        self.clock.now()
    }

    fn counted(&self, passed: Duration) -> Duration {
        let nanos = i128::try_from(passed.as_nanos()).unwrap_or(0) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    /// How much true time passes until the clock has gone on so far, if it runs.
    pub fn true_length(&self, clock: Duration) -> Duration {
        let nanos = clock.as_nanos() as i128 * 1_000_000 / i128::from(1_000_000 + self.ppm);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)) + Duration::from_micros(1)
    }

    /// From this true time on it does that.
    pub fn set(&mut self, mode: Mode, at: Duration) {
        self.now(at);
        self.mode = mode;
    }

    /// What it does.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether our process gets to run.
    pub fn runs(&self) -> bool {
        self.mode == Mode::Running
    }
}
