//! The standing as everybody reads it: whole, at any time, without waiting for who publishes.
//!
//! # Promises
//!
//! - [`Published::read`] is one standing that was published, never parts of two: either its words, if no publisher was at them, or the
//!   whole one, which is published at the same time. Nobody reads an earlier one than it has read before.
//! - [`Published::is_still`] says yes only while no later standing has been published. *Why that is enough for the argument in
//!   [`super::permits`]:* its look and the last step of [`Published::publish`] are sequentially consistent, as are the counts.
//!
//! # Does not know
//!
//! What a standing admits. That publishers come one at a time is [`super::Gate::publish`]'s matter.

use arc_swap::ArcSwap;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::{Mode, OnClose};
use treelease_client::words::time::{BootTime, from_word, to_word};

use super::{Right, Standing};
use crate::sync::{Arc, AtomicU64, Ordering, fence};

const WORDS: usize = 6;

/// The last step of a publication: the version says that it is over. Before: the version says that it goes on, the whole one, its words.
const LAST: usize = WORDS + 2;

/// The version of a standing that was not read by its words.
const NONE: u64 = u64::MAX;

/// See the module's header. In cache lines of its own: every operation reads it.
#[repr(align(128))]
pub(super) struct Published {
    /// Odd while the words are changed.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
    whole: ArcSwap<Standing>,
}

impl Published {
    pub fn new(standing: Standing) -> Self {
        let words = words_of(&standing).map(AtomicU64::new);
        Published { version: AtomicU64::new(0), words, whole: ArcSwap::from_pointee(standing) }
    }

    /// The standing, and its version.
    #[inline]
    pub fn read(&self) -> (Standing, u64) {
        self.read_with(|| ())
    }

    /// `between`: what others do between its steps; nothing but a test says that.
    #[inline(always)]
    fn read_with(&self, mut between: impl FnMut()) -> (Standing, u64) {
        let version = self.version.load(Ordering::Acquire);
        let words = self.words.each_ref().map(|word| {
            between();
            word.load(Ordering::Relaxed)
        });
        between();
        // Pairs with the one in `publication`: whoever has read one new word sees the odd version.
        fence(Ordering::Acquire);
        if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
            return (standing_of(words), version);
        }
        between();
        (self.latest(), NONE)
    }

    /// Whether nothing was published since the version was read.
    #[inline]
    pub fn is_still(&self, version: u64) -> bool {
        self.version.load(Ordering::SeqCst) == version
    }

    /// The latest one, whole; also while the words are changed.
    #[cold]
    pub fn latest(&self) -> Standing {
        **self.whole.load()
    }

    /// One caller at a time.
    pub fn publish(&self, standing: Standing) {
        self.publication(standing).for_each(drop);
    }

    /// Its steps, each made when it is asked for.
    fn publication(&self, standing: Standing) -> impl Iterator<Item = ()> {
        let (words, version) = (words_of(&standing), self.version.load(Ordering::Relaxed));
        (0..=LAST).map(move |step| match step {
            0 => {
                self.version.store(version + 1, Ordering::Relaxed);
                fence(Ordering::Release);
            }
            // While the version is odd: whoever has read this one goes back to no earlier one.
            1 => self.whole.store(Arc::new(standing)),
            LAST => self.version.store(version + 2, Ordering::SeqCst),
            _ => self.words[step - 2].store(words[step - 2], Ordering::Relaxed),
        })
    }
}

const MODES: [Mode; 3] = [Mode::Off, Mode::Observe, Mode::Enforce];

fn words_of(standing: &Standing) -> [u64; WORDS] {
    let mode = MODES.iter().position(|mode| *mode == standing.mode).unwrap_or(MODES.len() - 1) as u64;
    let right = match standing.right {
        Right::Read => 0,
        Right::Write { .. } => 1,
        Right::Opening { .. } => 2,
        Right::Resting { .. } => 3,
        Right::Closing { .. } => 4,
    };
    let until = standing.right.until().unwrap_or_default();
    let small = [mode, right, standing.may_wait.into(), standing.free.into(), (standing.on_close == OnClose::Wait).into()];
    [
        standing.serial,
        standing.stale_below.get(),
        standing.epoch.get(),
        to_word(until.elapsed),
        to_word(until.suspended),
        small.iter().enumerate().map(|(n, value)| value << (8 * n)).sum(),
    ]
}

/// What [`words_of`] has made of it. Whatever the words are it is a standing: those of two are thrown away only afterwards.
#[inline]
fn standing_of([serial, stale_below, epoch, elapsed, suspended, small]: [u64; WORDS]) -> Standing {
    let byte = |n: u32| (small >> (8 * n)) as u8;
    let until = BootTime { elapsed: from_word(elapsed), suspended: from_word(suspended) };
    Standing {
        serial,
        mode: match byte(0) {
            0 => Mode::Off,
            1 => Mode::Observe,
            _ => Mode::Enforce,
        },
        stale_below: Epoch::from_raw(stale_below),
        epoch: Epoch::from_raw(epoch),
        right: match byte(1) {
            1 => Right::Write { until },
            2 => Right::Opening { until },
            3 => Right::Resting { until },
            4 => Right::Closing { until },
            _ => Right::Read,
        },
        may_wait: byte(2) != 0,
        free: byte(3) != 0,
        on_close: if byte(4) == 0 { OnClose::Refuse } else { OnClose::Wait },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn all() -> Vec<Standing> {
        let until = BootTime { elapsed: Duration::new(7, 3), suspended: Duration::new(5, 999_999_999) };
        let rights =
            [Right::Read, Right::Write { until }, Right::Opening { until }, Right::Resting { until }, Right::Closing { until }];
        let mut all = Vec::new();
        for (n, right) in rights.into_iter().enumerate() {
            for mode in MODES {
                for flags in 0..8 {
                    let on_close = if flags & 4 == 0 { OnClose::Refuse } else { OnClose::Wait };
                    let (serial, epoch) = (u64::MAX - n as u64, Epoch::from_raw(n as u64));
                    let (may_wait, free, stale_below) = (flags & 1 != 0, flags & 2 != 0, Epoch::from_raw(n as u64 + 9));
                    all.push(Standing { serial, mode, stale_below, epoch, right, may_wait, free, on_close });
                }
            }
        }
        all
    }

    #[test]
    fn a_standing_is_read_as_it_was_published() {
        let all = all();
        let published = Published::new(all[0]);
        for standing in all {
            published.publish(standing);
            let (read, version) = published.read();
            assert_eq!((read, published.latest()), (standing, standing));
            assert!(published.is_still(version));
            published.publish(standing);
            assert!(!published.is_still(version), "published anew, if only the same");
        }
    }

    /// All numbers of one standing are the same.
    fn of(n: u64) -> Standing {
        let until = BootTime { elapsed: Duration::from_secs(n), suspended: Duration::from_secs(n) };
        let (stale_below, epoch) = (Epoch::from_raw(n), Epoch::from_raw(n));
        Standing { serial: n, stale_below, epoch, right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) }
    }

    /// A reader that believes its words, whatever the version says.
    fn believe(published: &Published, mut between: impl FnMut()) -> (Standing, u64) {
        let version = published.version.load(Ordering::Acquire);
        let words = published.words.each_ref().map(|word| {
            between();
            word.load(Ordering::Relaxed)
        });
        (standing_of(words), version)
    }

    /// Reads twice while the third standing is published, in every order in which the steps of that publication and of the first reading
    /// can come after one another. In each: the first standing that was read, its version, and the second one.
    fn in_every_order(read: impl Fn(&Published, &mut dyn FnMut()) -> (Standing, u64)) -> Vec<(Standing, u64, Standing)> {
        let mut all = Vec::new();
        // How many of the steps come before the reading, and in each of its gaps: all ways to give them out.
        let mut shares = [0; WORDS + 3];
        loop {
            let published = Published::new(of(1));
            published.publish(of(2));
            let mut steps = published.publication(of(3));
            let mut left = shares.into_iter();
            let mut go_on = || (0..left.next().unwrap_or(0)).for_each(|_| _ = steps.next());
            go_on();
            let (first, version) = read(&published, &mut go_on);
            all.push((first, version, published.read().0));
            if !give_out_otherwise(&mut shares) {
                return all;
            }
        }
    }

    /// The next way to give out no more than all steps; false: that was the last.
    fn give_out_otherwise(shares: &mut [usize]) -> bool {
        for n in 0..shares.len() {
            if shares.iter().sum::<usize>() <= LAST {
                shares[n] += 1;
                return true;
            }
            shares[n] = 0;
        }
        false
    }

    #[test]
    fn while_one_publishes_others_read_one_or_the_other_and_never_parts_of_both() {
        let all = in_every_order(|published, between| published.read_with(between));
        for (first, version, second) in &all {
            assert_eq!(*first, of(first.serial));
            assert!((2..=3).contains(&first.serial), "none from before it began to read");
            assert!(*version == NONE || *version == 2 * (first.serial - 1), "it is the version of what was read");
            assert!(second.serial >= first.serial, "it never goes back");
        }
        let of_serial = |n| all.iter().filter(|(first, _, _)| first.serial == n).count();
        assert!((2..=3).all(|n| of_serial(n) > 0) && all.iter().any(|(_, version, _)| *version == NONE), "all of it happens");
    }

    #[test]
    fn control_who_does_not_look_at_the_version_again_reads_parts_of_both() {
        let all = in_every_order(|published, between| believe(published, between));
        assert!(all.iter().any(|(first, _, _)| *first != of(first.serial)));
    }
}
