//! True time, and the clock of a node's machine, which counts it with an error and may stand still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use treelease_proto::clock::Clock;
use treelease_proto::time::{BootTime, WallTime};

use crate::world::clock::{Machine, Mode};

/// The world's own time, which no machine knows. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct TrueTime(Arc<AtomicU64>);

impl TrueTime {
    /// Now.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }

    /// It is that time now.
    pub fn set(&self, now: Duration) {
        self.0.store(now.as_nanos() as u64, Ordering::SeqCst);
    }
}

/// The clock of a node's machine. Clones are the same.
#[derive(Clone)]
pub struct NodeClock {
    machine: Arc<Mutex<Machine>>,
    time: TrueTime,
}

impl NodeClock {
    /// Of that machine.
    pub fn new(machine: Machine, time: TrueTime) -> Self {
        Self { machine: Arc::new(Mutex::new(machine)), time }
    }

    /// From now on it stands still, or goes.
    pub fn set(&self, mode: Mode) {
        let now = self.time.now();
        self.machine.lock().expect("nothing panics while it holds the machine").set(mode, now);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> BootTime {
        let now = self.time.now();
        self.machine.lock().expect("nothing panics while it holds the machine").now(now)
    }

    fn wall(&self) -> WallTime {
        WallTime::UNKNOWN
    }
}
