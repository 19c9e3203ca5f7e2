//! Names that the kernel was told are not there, and may believe so for a while: no node stands for them, so they are written
//! down here, to be taken back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::time::BootTime;

use crate::gate::in_time;
use crate::sync::lock;

/// Names that are written down at the same time, about 10 MiB of them. Of more the kernel is told nothing that it may keep.
pub const ABSENT_MAX: usize = 65_536;

/// How long an answer may be on its way to the kernel.
const SLACK: Duration = Duration::from_secs(2);

/// The names.
#[derive(Default)]
pub struct Absent {
    /// Parent and name, and until when the kernel may believe it.
    known: Mutex<BTreeMap<(u64, OsString), BootTime>>,
}

impl Absent {
    /// The kernel is about to be told. False: it must not keep it, there is no room.
    pub fn note(&self, parent: u64, name: &OsStr, until: BootTime, now: BootTime) -> bool {
        let mut known = lock(&self.known);
        if known.len() >= ABSENT_MAX {
            known.retain(|_, until| in_time(*until, now));
            if known.len() >= ABSENT_MAX {
                return false;
            }
        }
        let noted = known.entry((parent, name.to_owned())).or_insert(until);
        *noted = (*noted).max(until);
        true
    }

    /// All that the kernel may believe now. They stay: an answer may be on its way while the kernel is told to forget. Its time-outs
    /// stand still while the machine sleeps, and begin when it has read the answer: so nothing that was noted before a sleep has
    /// been forgotten by itself, and everything else a while later than is written here.
    pub fn all(&self, now: BootTime) -> Vec<(u64, OsString)> {
        let mut known = lock(&self.known);
        known.retain(|_, until| now.suspended_since(*until) || now.elapsed < until.elapsed + SLACK);
        known.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_names_than_the_limit_are_kept_and_old_ones_make_room() {
        let (absent, now) = (Absent::default(), BootTime::default());
        let soon = now.after(Duration::from_secs(1));
        for n in 0..ABSENT_MAX {
            assert!(absent.note(1, OsStr::new(&n.to_string()), soon, now));
        }
        assert!(!absent.note(1, OsStr::new("one more"), soon, now));
        let later = now.after(Duration::from_secs(2));
        assert!(absent.note(1, OsStr::new("one more"), later.after(Duration::from_secs(1)), later));
        assert_eq!(absent.all(later), [(1, "one more".into())]);
        let (until, slept) = (later.after(Duration::from_secs(1)), Duration::from_secs(60));
        assert_eq!(absent.all(until).len(), 1, "the answer may have been on its way");
        let woken = BootTime { elapsed: until.elapsed + slept, suspended: slept };
        assert_eq!(absent.all(woken).len(), 1, "the kernel's time stood still");
        assert!(absent.all(until.after(SLACK)).is_empty(), "the kernel has forgotten them by itself");
    }
}
