//! The storage: which admitted writes are on their way, of which side, under which epoch, since which true time.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_proto::epoch::Epoch;

/// What is on its way.
#[derive(Debug, Default)]
pub struct Storage {
    begun: BTreeMap<(usize, u64), (Epoch, Duration)>,
    /// The writes that have arrived, in order: side and epoch.
    pub arrived: Vec<(usize, Epoch)>,
}

impl Storage {
    /// A write was admitted.
    pub fn begin(&mut self, side: usize, write: u64, epoch: Epoch, at: Duration) {
        self.begun.insert((side, write), (epoch, at));
    }

    /// It has arrived. When it was admitted.
    pub fn end(&mut self, side: usize, write: u64) -> Option<Duration> {
        let (epoch, at) = self.begun.remove(&(side, write))?;
        self.arrived.push((side, epoch));
        Some(at)
    }
}
