//! Names that the kernel was told are not there, and may believe so for a while: no node stands for them, so they are written
//! down here, to be taken back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::time::BootTime;

use crate::sync::lock;

/// Names that are written down at the same time, about 10 MiB of them. Of more the kernel is told nothing that it may keep.
pub const ABSENT_MAX: usize = 65_536;

/// How long an answer may be on its way to the kernel.
const SLACK: Duration = Duration::from_secs(2);

/// How often, while there is no room, it is looked through for names that the kernel has forgotten by itself: each look reads all.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The names.
#[derive(Default)]
pub struct Absent(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Parent and name, and until when the kernel may believe it.
    names: BTreeMap<(u64, OsString), BootTime>,
    swept: Option<BootTime>,
}

impl Absent {
    /// The kernel is about to be told. False: it must not keep it, there is no room.
    pub fn note(&self, parent: u64, name: &OsStr, until: BootTime, now: BootTime) -> bool {
        let mut known = lock(&self.0);
        let name = (parent, name.to_owned());
        if known.names.len() >= ABSENT_MAX && !known.names.contains_key(&name) {
            if known.swept.is_some_and(|at| now.since(at) < SWEEP_EVERY) {
                return false;
            }
            known.swept = Some(now);
            known.names.retain(|_, until| now.suspended_since(*until) || now.elapsed < until.elapsed + SLACK);
            if known.names.len() >= ABSENT_MAX {
                return false;
            }
        }
        let noted = known.names.entry(name).or_insert(until);
        *noted = (*noted).max(until);
        true
    }

    /// All that the kernel may believe now. They stay: an answer may be on its way while the kernel is told to forget. Its time-outs
    /// stand still while the machine sleeps, and begin when it has read the answer: so nothing that was noted before a sleep has
    /// been forgotten by itself, and everything else a while later than is written here.
    pub fn all(&self, now: BootTime) -> Vec<(u64, OsString)> {
        let mut known = lock(&self.0);
        known.names.retain(|_, until| now.suspended_since(*until) || now.elapsed < until.elapsed + SLACK);
        known.names.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(absent: &Absent, until: BootTime, now: BootTime) {
        for n in 0..ABSENT_MAX {
            assert!(absent.note(1, OsStr::new(&n.to_string()), until, now));
        }
    }

    #[test]
    fn no_more_names_than_the_limit_are_kept_and_old_ones_make_room() {
        let (absent, now) = (Absent::default(), BootTime::default());
        let soon = now.after(Duration::from_secs(1));
        full(&absent, soon, now);
        assert!(!absent.note(1, OsStr::new("one more"), soon, now));
        assert!(absent.note(1, OsStr::new("0"), soon, now), "what is written down already needs no room");
        let later = soon.after(SLACK);
        assert!(absent.note(1, OsStr::new("one more"), later.after(Duration::from_secs(1)), later));
        assert_eq!(absent.all(later), [(1, "one more".into())]);
        let (until, slept) = (later.after(Duration::from_secs(1)), Duration::from_secs(60));
        assert_eq!(absent.all(until).len(), 1, "the answer may have been on its way");
        let woken = BootTime { elapsed: until.elapsed + slept, suspended: slept };
        assert_eq!(absent.all(woken).len(), 1, "the kernel's time stood still");
        assert!(absent.all(until.after(SLACK)).is_empty(), "the kernel has forgotten them by itself");
    }

    #[test]
    fn while_there_is_no_room_not_every_name_makes_it_look_through_all() {
        let (absent, now) = (Absent::default(), BootTime::default());
        full(&absent, now.after(Duration::from_millis(100)), now);
        let more = |n: u32, millis| {
            let now = now.after(SLACK + Duration::from_millis(millis));
            absent.note(2, OsStr::new(&n.to_string()), now.after(Duration::from_secs(9)), now)
        };
        assert!(!more(1, 50), "looked through, and all are still believed");
        assert!(!more(2, 150), "they are believed no more; but it was looked through a moment ago");
        assert!(more(3, 1050));
    }

    #[test]
    fn a_name_is_known_for_as_long_as_the_longest_that_the_kernel_was_told() {
        let (absent, now) = (Absent::default(), BootTime::default());
        let name = OsStr::new("no");
        assert!(absent.note(1, name, now.after(Duration::from_secs(60)), now));
        assert!(absent.note(1, name, now.after(Duration::from_secs(1)), now));
        assert_eq!(absent.all(now.after(Duration::from_secs(50))).len(), 1);
    }
}
