//! What time it is at the latest, by one reading of one of the kernel's clocks: counted on from the last full reading.
//!
//! # Promises
//!
//! - [`Anchor::at_latest`] is never before what a full reading of that moment shows, neither in elapsed time nor in suspend: whoever is
//!   in time by it, and has not slept by it, is and has not (I4). *Why:* since the full reading `CLOCK_BOOTTIME` has gone on by
//!   `d`. Some of that, `s`, was suspend; the rest is `CLOCK_MONOTONIC`, which NTP slows down by less than a third ([`SLOWEST`]), so
//!   it is at most `3/2 × (d − s)` of `CLOCK_MONOTONIC_RAW`. So suspend has grown by `s ≤ d`, and elapsed time by at most
//!   `3/2 × (d − s) + s ≤ 3/2 × d`; and `3/2 × d` and `d` are what is added. The full reading itself was never before its own
//!   `CLOCK_BOOTTIME`: it reads `CLOCK_MONOTONIC_RAW` later, and what passes between two clocks looks like suspend.
//! - It is ahead by little, since it says nothing once `d` is above [`SPAN`]. What a virtual machine's pause hides from `CLOCK_BOOTTIME` it
//!   hides from a full reading too.
//! - [`Anchors`] keep nobody waiting: who meets another thread's change makes a full reading. Any full reading may be the last one that
//!   is kept, also one that was kept late: the above holds for each.
//!
//! # Does not know
//!
//! Deadlines. One that is brought forward is compared with the same moment, so no old word about it is left anywhere.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use super::TORN;
use crate::time::{BootTime, SUSPEND_NOISE, from_word, to_word};

/// How long a full reading is counted on from. Longer, and what was counted on would look like suspend.
pub(super) const SPAN: Duration = Duration::from_millis(4);
// With what a full reading may be off, it is taken for no suspend.
const _: () = assert!(SPAN.as_millis() + TORN.as_millis() <= SUSPEND_NOISE.as_millis());

/// How slow NTP may make `CLOCK_MONOTONIC`, in percent of its rate: Linux takes a tick of ±10 %, a frequency of ±0.05 %, `adjtime`'s 0.05 %,
/// and works a phase of half a second off by a quarter in each second: 22.6 % slower all together.
#[cfg(test)]
pub(super) const SLOWEST: u64 = 23;

/// A full reading, with what `CLOCK_BOOTTIME` said in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub boot: Duration,
    pub reading: BootTime,
}

impl Anchor {
    /// What time it is at the latest, `CLOCK_BOOTTIME` being so; `None`: a full reading is needed.
    #[inline]
    pub(super) fn at_latest(self, boot: Duration) -> Option<BootTime> {
        // One that goes back is broken: the full reading says so.
        let passed = boot.checked_sub(self.boot).filter(|passed| *passed <= SPAN)?;
        let nanos = passed.subsec_nanos();
        Some(BootTime {
            elapsed: self.reading.elapsed + Duration::new(0, nanos + nanos.div_ceil(2)),
            suspended: self.reading.suspended + passed,
        })
    }
}

/// The last full reading, for all threads. In a cache line of its own: every operation looks at it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Anchors {
    /// Odd while one thread changes the words; 0: there is none yet.
    version: AtomicU64,
    boot: AtomicU64,
    elapsed: AtomicU64,
    suspended: AtomicU64,
}

impl Anchors {
    /// The last one that was kept, if nobody changes it now.
    #[inline]
    pub(super) fn last(&self) -> Option<Anchor> {
        let word = |of: &AtomicU64| from_word(of.load(Ordering::Relaxed));
        let version = self.version.load(Ordering::Acquire);
        let reading = BootTime { elapsed: word(&self.elapsed), suspended: word(&self.suspended) };
        let anchor = Anchor { boot: word(&self.boot), reading };
        // Pairs with the one in `keep`: whoever has read one new word sees the odd version.
        fence(Ordering::Acquire);
        let whole = version != 0 && version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        whole.then_some(anchor)
    }

    /// Keeps one, unless another thread keeps one now.
    pub(super) fn keep(&self, anchor: Anchor) {
        let version = self.version.load(Ordering::Relaxed);
        let free = version.is_multiple_of(2);
        if !free || self.version.compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::Release);
        self.boot.store(to_word(anchor.boot), Ordering::Relaxed);
        self.elapsed.store(to_word(anchor.reading.elapsed), Ordering::Relaxed);
        self.suspended.store(to_word(anchor.reading.suspended), Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
