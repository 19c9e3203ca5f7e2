//! The storage: which admitted writes are on their way, of which side, under which epoch, since which true time.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_proto::epoch::Epoch;

/// A write on its way.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    /// Under which epoch it was admitted.
    pub epoch: Epoch,
    /// When.
    pub begun: Duration,
    /// Its machine had been paused and could not know it yet.
    pub deluded: bool,
}

/// What is on its way, and what has arrived.
#[derive(Debug, Default)]
pub struct Storage {
    begun: BTreeMap<(usize, u64), Flight>,
    /// The writes that have arrived, in order: side and epoch.
    pub arrived: Vec<(usize, Epoch)>,
}

impl Storage {
    /// A write was admitted.
    pub fn begin(&mut self, side: usize, write: u64, flight: Flight) {
        self.begun.insert((side, write), flight);
    }

    /// It has arrived.
    pub fn end(&mut self, side: usize, write: u64) -> Option<Flight> {
        let flight = self.begun.remove(&(side, write))?;
        self.arrived.push((side, flight.epoch));
        Some(flight)
    }
}
