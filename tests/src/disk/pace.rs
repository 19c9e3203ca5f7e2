//! The pace of a disk: its syncs take as long as what they confirm is large, or hang, or fail; writes are taken at once. As storage
//! over a network, whose client keeps what was written until it is told to confirm it.
//!
//! It counts what is unconfirmed, on the side of the disk: nothing that a guard says about itself is believed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::hang::{Hangs, Hung};
use super::model::No;
use crate::hosts::Timer;

/// See the module.
#[derive(Default)]
pub struct Pace {
    state: Mutex<State>,
    changed: Condvar,
    hangs: Hangs,
}

#[derive(Default)]
struct State {
    bytes_per_second: Option<u64>,
    fails: usize,
    /// One sync moves the disk's arm at a time.
    busy: bool,
    files: BTreeMap<u64, Written>,
    unconfirmed: u64,
    seen: Seen,
}

/// One file's writes.
#[derive(Default)]
struct Written {
    /// How many have been confirmed.
    confirmed: usize,
    /// Those that have not, in order: bytes, and when.
    rest: VecDeque<(u64, Timer)>,
}

/// What the disk has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// The most bytes that were unconfirmed at some moment.
    pub most: u64,
    /// The longest that a byte was unconfirmed, of those that have been confirmed.
    pub oldest: Duration,
    /// The longest sync.
    pub longest_sync: Duration,
    /// Syncs that have confirmed something.
    pub syncs: u64,
    /// Syncs that hang now.
    pub hanging: usize,
}

impl Pace {
    /// Syncs confirm so many bytes in a second, all files together.
    pub fn of(bytes_per_second: u64) -> Pace {
        let pace = Pace::default();
        pace.state().bytes_per_second = Some(bytes_per_second);
        pace
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs hang from now on, until the answer is dropped.
    pub fn hang(&self) -> Hung {
        self.hangs.begin()
    }

    /// The next sync of something unconfirmed fails: its bytes are gone, and the one after it knows nothing of them.
    pub fn fail_next(&self) {
        self.state().fails += 1;
    }

    /// Bytes unconfirmed.
    pub fn unconfirmed(&self) -> u64 {
        self.state().unconfirmed
    }

    /// What it has seen.
    pub fn seen(&self) -> Seen {
        self.state().seen
    }

    pub(super) fn wrote(&self, file: u64, bytes: u64) {
        let mut state = self.state();
        state.files.entry(file).or_default().rest.push_back((bytes, Timer::start()));
        state.unconfirmed += bytes;
        state.seen.most = state.seen.most.max(state.unconfirmed);
    }

    /// Confirms what was written to the file by now.
    pub(super) fn sync(&self, file: u64, keep: impl FnOnce() -> Result<(), No>) -> Result<(), No> {
        let began = Timer::start();
        let mut state = self.state();
        let of_file = state.files.entry(file).or_default();
        if !of_file.rest.is_empty() {
            // What comes meanwhile is the next sync's.
            let upto = of_file.confirmed + of_file.rest.len();
            state.seen.hanging += 1;
            drop(state);
            self.hangs.wait();
            state = self.state();
            state.seen.hanging -= 1;
            while state.busy {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let of_file = state.files.entry(file).or_default();
            let bytes: u64 = of_file.rest.iter().take(upto.saturating_sub(of_file.confirmed)).map(|(bytes, _)| bytes).sum();
            if let Some(rate) = state.bytes_per_second {
                state.busy = true;
                drop(state);
                // The disk's own slowness, not a wait for something.
                std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64));
                state = self.state();
                state.busy = false;
                self.changed.notify_all();
            }
            let fails = state.fails > 0;
            state.fails = state.fails.saturating_sub(1);
            let of_file = state.files.entry(file).or_default();
            let many = upto.saturating_sub(of_file.confirmed);
            of_file.confirmed += many;
            let done: Vec<(u64, Timer)> = of_file.rest.drain(..many).collect();
            for (bytes, since) in done {
                state.unconfirmed -= bytes;
                state.seen.oldest = state.seen.oldest.max(since.elapsed());
            }
            state.seen.syncs += 1;
            state.seen.longest_sync = state.seen.longest_sync.max(began.elapsed());
            if fails {
                return Err(No::Broken);
            }
        }
        drop(state);
        keep()
    }
}
