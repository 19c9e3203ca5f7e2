//! Is this a good moment to close the gate? (DESIGN 5, step 1.)
//!
//! A good moment has no `run` hold and no unfinished work: both can take long, and cutting them off costs the user something.
//! Plain writes only delay it until `quiet` has passed, and [`QUIET_MAX`] at most, or a program that logs once a second would
//! keep a tree for ever. It does not know how unfinished work is found.

use std::time::Duration;

use treelease_client::words::time::BootTime;

/// How long plain writes alone can delay a handoff.
pub const QUIET_MAX: Duration = Duration::from_secs(2);

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moment {
    /// Commands under `treelease run`, and people's holds that were not given up, as text for people.
    pub run_holds: Vec<String>,
    /// Lock files of git, hot journals, exclusive locks, as text for people.
    pub unfinished: Vec<String>,
    /// When the last mutation was admitted.
    pub last_mutation: Option<BootTime>,
}

/// What to make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Now.
    Good,
    /// Nothing but plain writes is in the way, until then at the latest.
    NotQuiet {
        /// When it is good unless something is written before.
        good_at: BootTime,
    },
    /// Somebody is in the middle of something.
    Busy,
}

impl Moment {
    /// Everything that is in the way, named.
    pub(super) fn busy(&self) -> Vec<String> {
        self.run_holds.iter().chain(&self.unfinished).cloned().collect()
    }

    /// `only_writes_since`: since when nothing but plain writes was in the way.
    pub(super) fn judge(&self, quiet: Duration, only_writes_since: Option<BootTime>, now: BootTime) -> Verdict {
        if !self.run_holds.is_empty() || !self.unfinished.is_empty() {
            return Verdict::Busy;
        }
        let Some(last) = self.last_mutation else { return Verdict::Good };
        let quiet_at = last.after(quiet);
        let patience_ends = only_writes_since.unwrap_or(now).after(QUIET_MAX);
        let good_at = quiet_at.min(patience_ends);
        if now >= good_at { Verdict::Good } else { Verdict::NotQuiet { good_at } }
    }
}
