//! How short this process is of descriptors: the guard keeps one for each file that the kernel knows.
//!
//! # Promises
//!
//! From [`CROWDED`] of all on somebody is told to shed files ([`Descriptors::take_crowded`]), and nothing is looked up that nobody has
//! asked for by its name; from [`FULL`] on each lookup of what is not known yet waits [`FULL_PAUSE`], so that files which are being shed
//! are closed meanwhile.
//!
//! # Does not know
//!
//! What the descriptors are of, nor who sheds ([`crate::fuse`]). All trees of a process share its limit.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Above this part they are short.
const CROWDED: (u64, u64) = (3, 4);
/// Above this part there are hardly any left.
const FULL: (u64, u64) = (7, 8);
/// How long a lookup waits then.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// As far as one tree has seen.
pub struct Descriptors {
    may: AtomicU64,
    crowded: AtomicBool,
    short: AtomicBool,
}

impl Default for Descriptors {
    fn default() -> Self {
        Descriptors { may: AtomicU64::new(u64::MAX), crowded: AtomicBool::new(false), short: AtomicBool::new(false) }
    }
}

fn part(of: u64, (n, m): (u64, u64)) -> u64 {
    of / m * n
}

impl Descriptors {
    /// The process may have so many.
    pub fn allow(&self, many: u64) {
        self.may.store(many, Ordering::Relaxed);
    }

    /// How many it may have.
    pub fn may_have(&self) -> u64 {
        self.may.load(Ordering::Relaxed)
    }

    /// Whether they have become short since this was asked for last.
    pub fn take_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed) && self.crowded.swap(false, Ordering::Relaxed)
    }

    /// Whether they were short when the last one was opened for a node.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// There is none left.
    pub fn none_left(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }

    /// One was opened for a node. *Why its number tells:* the kernel gives the lowest one that is free.
    pub fn opened(&self, fd: &OwnedFd) {
        let (number, may) = (u64::from(fd.as_raw_fd().unsigned_abs()), self.may_have());
        let short = number >= part(may, CROWDED);
        self.short.store(short, Ordering::Relaxed);
        if short {
            self.none_left();
        }
        if number >= part(may, FULL) {
            std::thread::sleep(FULL_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_of_all_are_short_and_it_is_told_once() {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let number = u64::from(fd.as_raw_fd().unsigned_abs());
        let descriptors = Descriptors::default();
        descriptors.opened(&fd);
        assert!(!descriptors.is_short() && !descriptors.take_crowded(), "nobody has said how many there may be");
        descriptors.allow(number * 4 / 3 / 4 * 4);
        descriptors.opened(&fd);
        assert!(descriptors.is_short() && descriptors.take_crowded() && !descriptors.take_crowded());
        descriptors.allow(number * 2 + 8);
        descriptors.opened(&fd);
        assert!(!descriptors.is_short());
    }
}
