//! What goes into a handoff and what comes out of it: why it began, its limits, its steps, how it ended. Data only.

use std::time::Duration;

use treelease_client::words::id::SideName;

/// Why the lease is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// `treelease release`.
    Release {
        /// `--now`: do not wait for a good moment.
        now: bool,
    },
    /// Another side asks for it.
    Asked {
        /// At the limit it goes on instead of declining.
        force: bool,
    },
    /// Nothing went on for so long, and somebody waits. If something goes on after all, it ends without a word.
    Idle,
    /// `treelease handoff --to`.
    To {
        /// Who is granted next.
        to: SideName,
        /// At the limit it goes on instead of declining.
        force: bool,
    },
    /// The daemon ends, or the machine sleeps: at the limit it goes on.
    Down,
}

impl Why {
    /// What happens when no good moment came within the limit: go on, or decline.
    pub(super) fn goes_on_at_the_limit(&self) -> bool {
        match self {
            Why::Release { now } => *now,
            Why::Asked { force } | Why::To { force, .. } => *force,
            Why::Idle => false,
            Why::Down => true,
        }
    }
}

/// The numbers of the tree's policy that bound the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A good moment needs so long without a mutation.
    pub quiet: Duration,
    /// How long to wait for a good moment. `down --within` passes a shorter one.
    pub handoff_wait: Duration,
    /// From the closed gate to the end of the flush; longer surrenders.
    pub flush_limit: Duration,
    /// Of one wait for permits: [`super::DRAIN_LIMIT`].
    pub drain: Duration,
}

/// What the daemon is to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Look at what is going on. May come several times.
    LookForMoment,
    /// Push mapped pages while the gate is open.
    PushMapped,
    /// Refuse new calls (or let them wait, `on_close`); page-cache writes are still admitted.
    CloseStageOne,
    /// Push again, now that nothing new is dirtied by calls.
    PushAgain,
    /// Refuse everything and wait for the permits in flight, at most so long. May come several times.
    CloseStageTwo(Duration),
    /// Make durable what was written in this epoch.
    Flush,
    /// Say to the server that the lease ends clean.
    Release {
        /// Files flushed.
        files: u64,
        /// Bytes flushed.
        bytes: u64,
        /// Who is granted next.
        to: Option<SideName>,
        /// Steps with the same number are one request asked again and carry the same request key.
        request: u32,
    },
    /// Say to the server that the lease ends unclean. The gate stays shut.
    Surrender {
        /// For the history.
        why: String,
        /// As for a release.
        request: u32,
    },
    /// Say "not now" to whoever asked; the gate was never closed.
    Decline {
        /// What is still busy.
        busy: Vec<String>,
    },
    /// Open the gate again under the same epoch.
    Reopen,
    /// Nothing more will come: see [`super::Handoff::outcome`].
    Done,
}

/// What became of a release or a surrender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The server has it.
    Done,
    /// Nobody knows: asked again with the same key.
    Unknown,
    /// The server says no: the lease has moved on, or the side to hand to has no session.
    Refused(String),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Clean.
    Released {
        /// Files flushed.
        files: u64,
        /// Bytes flushed.
        bytes: u64,
        /// The side that was named had no session: the tree was freed for whoever waits.
        not_to: Option<String>,
    },
    /// Unclean.
    Surrendered {
        /// Why.
        why: String,
    },
    /// Nothing changed.
    Declined {
        /// What is still busy.
        busy: Vec<String>,
    },
    /// The wish was taken back; the gate is open as before.
    Cancelled,
    /// The lease ended otherwise meanwhile (expired, broken): the gate stays shut.
    Gone {
        /// Why.
        why: String,
    },
}
