//! The disk of one simulated node: what is durable, what is only in the page cache, and what is being written.
//!
//! A commit takes its time, and is durable when it is answered. Who is killed before has written it or not, as chance will have it;
//! who loses its power loses the page cache too. In the control nothing is synced but what is older than half a second, as sled
//! leaves it without our `fdatasync` (STACK 2.2).

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use treelease_server::store::disk::SimulatedDisk;
use treelease_server::store::{Backend, Counts, Loaded, WriteSet};

use super::clock::TrueTime;
use crate::world::rng::Rng;

/// How old an unsynced change is when the kernel writes it back by itself (control).
const WRITE_BACK: Duration = Duration::from_millis(500);

struct State {
    durable: Loaded,
    /// In the page cache alone (control), and since when.
    unsynced: Vec<(Duration, WriteSet)>,
    writing: Option<WriteSet>,
    /// So slow is it at present, in milliseconds.
    slow: Option<(u64, u64)>,
    synced: bool,
    rng: Rng,
}

/// One node's disk. It outlives the node; clones are the same disk.
#[derive(Clone)]
pub struct NodeDisk {
    state: Arc<Mutex<State>>,
    time: TrueTime,
}

impl NodeDisk {
    /// An empty one. `synced`: as it should be.
    pub fn new(time: TrueTime, synced: bool, rng: Rng) -> Self {
        let (durable, unsynced) = (Loaded::default(), Vec::new());
        let state = State { durable, unsynced, writing: None, slow: None, synced, rng };
        Self { state: Arc::new(Mutex::new(state)), time }
    }

    /// From now on a commit takes so many milliseconds; `None`: a few.
    pub fn set_slow(&self, slow: Option<(u64, u64)>) {
        self.lock().slow = slow;
    }

    /// The node is gone. `power`: with its page cache.
    pub fn crash(&self, power: bool) {
        let state = &mut *self.lock();
        if let Some(change) = state.writing.take()
            && state.rng.chance(50)
        {
            state.unsynced.push((Duration::ZERO, change));
        }
        let unsynced = std::mem::take(&mut state.unsynced);
        if !power || state.synced {
            unsynced.iter().for_each(|(_, change)| apply(&mut state.durable, change));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the disk")
    }
}

impl SimulatedDisk for NodeDisk {
    fn open(&self, log: &Path) -> io::Result<Box<dyn Backend>> {
        // Its being there says that the node has had a log.
        std::fs::create_dir_all(log)?;
        Ok(Box::new(OpenDisk { disk: self.clone(), counts: Arc::default() }))
    }

    fn takes(&self, change: &WriteSet) -> Duration {
        let state = &mut *self.lock();
        state.writing = Some(change.clone());
        match state.slow {
            Some((least, most)) => state.rng.ms(least, most),
            None if state.rng.chance(2) => state.rng.ms(20, 120),
            None => state.rng.ms(1, 6),
        }
    }
}

/// As a running node has it.
struct OpenDisk {
    disk: NodeDisk,
    counts: Arc<Counts>,
}

impl Backend for OpenDisk {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        let now = self.disk.time.now();
        let state = &mut *self.disk.lock();
        state.writing = None;
        state.unsynced.push((now, change.clone()));
        let old = |at: &Duration| state.synced || *at + WRITE_BACK <= now;
        let durable = state.unsynced.iter().take_while(|(at, _)| old(at)).count();
        for (_, change) in state.unsynced.drain(..durable) {
            apply(&mut state.durable, &change);
        }
        Ok(())
    }

    fn load(&mut self) -> io::Result<Loaded> {
        let state = self.disk.lock();
        let mut all = state.durable.clone();
        state.unsynced.iter().for_each(|(_, change)| apply(&mut all, change));
        Ok(all)
    }

    fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }
}

fn apply(to: &mut Loaded, change: &WriteSet) {
    if let Some(from) = change.truncate_from {
        to.log.split_off(&from);
    }
    if let Some(upto) = change.purge_to {
        to.log = to.log.split_off(&(upto + 1));
    }
    to.log.extend(change.puts.iter().cloned());
    to.meta.extend(change.meta.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: u64) -> WriteSet {
        WriteSet { puts: vec![(index, vec![7])], ..WriteSet::default() }
    }

    fn indexes(disk: &NodeDisk) -> Vec<u64> {
        disk.open(&std::env::temp_dir()).unwrap().load().unwrap().log.into_keys().collect()
    }

    #[test]
    fn what_was_committed_outlives_the_power_only_if_it_was_synced() {
        for synced in [true, false] {
            let disk = NodeDisk::new(TrueTime::default(), synced, Rng::new(1));
            let mut open = disk.open(&std::env::temp_dir()).unwrap();
            open.commit(&put(1)).unwrap();
            open.commit(&put(2)).unwrap();
            disk.crash(false);
            assert_eq!(indexes(&disk), [1, 2], "a process that is killed leaves the page cache");
            open.commit(&put(3)).unwrap();
            disk.crash(true);
            assert_eq!(indexes(&disk), if synced { vec![1, 2, 3] } else { vec![1, 2] });
        }
    }

    #[test]
    fn what_was_being_written_is_there_or_not() {
        let mut seen = [false; 2];
        for seed in 0..40 {
            let disk = NodeDisk::new(TrueTime::default(), true, Rng::new(seed));
            disk.takes(&put(1));
            disk.crash(true);
            seen[indexes(&disk).len()] = true;
        }
        assert_eq!(seen, [true; 2]);
    }
}
