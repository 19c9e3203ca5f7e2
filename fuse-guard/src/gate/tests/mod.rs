//! Tests of the gate: the table of DESIGN 4 as a table, permits across a close, operations that wait.

mod carriers;
mod clock;
mod permits;
mod table;
mod waiters;

use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::clock::{Clock, ManualClock};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::{Mode, OnClose};
use treelease_client::words::time::BootTime;

use super::{Gate, Hooks, LateWrite, Refused, Right, Standing};
use crate::sync::{Arc, AtomicUsize, Ordering};

#[derive(Default)]
pub(super) struct Ears {
    pub(super) wanted: AtomicUsize,
    pub(super) late: Mutex<Vec<LateWrite>>,
}

impl Hooks for Ears {
    fn wants_lease(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }
    fn late_write(&self, what: LateWrite) {
        self.late.lock().unwrap().push(what);
    }
    fn refused(&self, _what: Refused) {}
}

pub(super) struct Stand {
    pub(super) gate: Gate,
    pub(super) clock: Arc<ManualClock>,
    pub(super) ears: Arc<Ears>,
}

pub(super) fn standing(right: Right) -> Standing {
    Standing {
        serial: 1,
        mode: Mode::Enforce,
        stale_below: Epoch::from_raw(5),
        epoch: Epoch::from_raw(7),
        right,
        may_wait: false,
        free: false,
        on_close: OnClose::Refuse,
    }
}

pub(super) fn write_for(seconds: u64, now: BootTime) -> Right {
    Right::Write { until: now.after(Duration::from_secs(seconds)) }
}

pub(super) fn stand(first: Standing) -> Stand {
    let (clock, ears) = (Arc::new(ManualClock::new()), Arc::new(Ears::default()));
    let gate = Gate::new(first, clock.clone() as Arc<dyn Clock>, ears.clone());
    Stand { gate, clock, ears }
}

/// Waits for another thread, with a limit.
pub(super) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}
