//! What this side may do with one tree. Published as a whole; never patched.

use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::{Mode, OnClose};
use treelease_client::words::time::BootTime;

/// How this side stands with one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Another number whenever *who may write* changes (grant, end, stage of closing); the same when only a deadline moves.
    /// What was cached or answered under another serial is not believed.
    pub serial: u64,
    /// The policy's mode. Only `Enforce` refuses anything.
    pub mode: Mode,
    /// Handles opened under an earlier epoch are stale for ever: another side has had its turn. Only grows (I6); the gate sees to it.
    pub stale_below: Epoch,
    /// Of the latest grant of this tree that we know of, anybody's.
    pub epoch: Epoch,
    /// What this side may do now.
    pub right: Right,
    /// Whether a mutation without the lease may wait for it (`first_write=acquire`).
    pub may_wait: bool,
    /// Whether, as far as we know, nobody holds the tree.
    pub free: bool,
    /// What a call meets while the gate closes.
    pub on_close: OnClose,
}

impl Standing {
    /// Before anything is known: reads only, nothing waits.
    pub const fn unknown(mode: Mode) -> Self {
        Standing {
            serial: 0,
            mode,
            stale_below: Epoch::ZERO,
            epoch: Epoch::ZERO,
            right: Right::Read,
            may_wait: false,
            free: false,
            on_close: OnClose::Refuse,
        }
    }

    /// Whether this side has the lease now.
    pub fn holds(&self, now: BootTime) -> bool {
        matches!(self.right, Right::Write { until } | Right::Resting { until } if in_time(until, now))
    }

    /// Whether this side may cache as a holder does: nobody else writes. Where nothing is refused, the lease keeps nobody out.
    pub fn caches(&self, now: BootTime) -> bool {
        self.mode == Mode::Enforce && self.holds(now)
    }
}

/// What this side may do with a tree. Each deadline is [I4's](crate::gate): the send time of the renewal that listed the
/// pair, plus what it is worth; its `suspended` part is that of the send time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read.
    Read,
    /// Write, before the deadline.
    Write {
        /// The deadline.
        until: BootTime,
    },
    /// Granted; the operations that waited are being carried out and caches are being dropped. New mutations wait.
    Opening {
        /// The deadline.
        until: BootTime,
    },
    /// The lease is held, and the server has been told, or is being told, that nothing is unconfirmed: every mutation, page-cache
    /// writes too, waits until it has been told otherwise (DESIGN 3, *At rest*).
    Resting {
        /// The deadline.
        until: BootTime,
    },
    /// Stage one of closing: new calls are refused or wait (`on_close`), page-cache writes are admitted.
    Closing {
        /// The deadline.
        until: BootTime,
    },
}

impl Right {
    /// The deadline, where there is one.
    pub const fn until(self) -> Option<BootTime> {
        match self {
            Right::Read => None,
            Right::Write { until } | Right::Opening { until } | Right::Resting { until } | Right::Closing { until } => {
                Some(until)
            }
        }
    }
}

/// Whether a deadline has not passed (I4). The length of a suspend is never trusted: if the machine was suspended since the
/// renewal that gave the deadline was sent, the deadline has passed, whatever the clock says.
pub fn in_time(until: BootTime, now: BootTime) -> bool {
    now.elapsed < until.elapsed && !now.suspended_since(until)
}

/// What a handle remembers of its opening: the epoch that stood when it was opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The epoch.
    pub epoch: Epoch,
}

/// What becomes of the operations that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// This side was granted.
    Granted {
        /// Of the run that the grant belongs to: an operation that arrived before another side's turn is refused.
        run_start: treelease_client::words::epoch::RunStart,
        /// Of the grant.
        epoch: Epoch,
    },
    /// It was not.
    Refused,
}
