//! What can have happened to a tree: for those who watch, and for its history.

use serde::{Deserialize, Serialize};

use crate::epoch::{Epoch, RunStart};
use crate::id::{SessionId, SideName, TreeId, TreeName};
use crate::time::WallTime;
use crate::tree::End;

/// What can have happened. The names are those of `watch` and `history` in CLI.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the contract's
pub enum EventKind {
    Granted,
    Released,
    Expired,
    Surrendered,
    Cooling,
    Fencing,
    Fenced,
    Unfenced,
    Broken,
    Rest,
    Active,
    Queued,
    Asked,
    Declined,
    Handoff,
    Returned,
    Witnessed,
    Takeover,
    Bypass,
    LateWrite,
    RenewalLate,
    Policy,
    Root,
    Lagged,
    /// A waiter left the queue.
    Cancelled,
    /// A tree was registered.
    Added,
    /// A grace ended, nothing else to wait for.
    Freed,
    /// After a break: the old holder's gate is shut.
    GateClosed,
    /// A lease ended because two machines renewed its session: one is a copy of the other.
    Copied,
    /// A side's clock and the server's disagree: its gate was shut until a later renewal.
    ClockDisagrees,
    /// The tree came out of another cluster's backup.
    Restored,
    /// The tree's epoch was lifted by hand.
    Raised,
    /// A tree's life has ended; or it was removed.
    Retired,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 33] = {
        use EventKind::*;
        [
            Granted,
            Released,
            Expired,
            Surrendered,
            Cooling,
            Fencing,
            Fenced,
            Unfenced,
            Broken,
            Rest,
            Active,
            Queued,
            Asked,
            Declined,
            Handoff,
            Returned,
            Witnessed,
            Takeover,
            Bypass,
            LateWrite,
            RenewalLate,
            Policy,
            Root,
            Lagged,
            Cancelled,
            Added,
            Freed,
            GateClosed,
            Copied,
            ClockDisagrees,
            Restored,
            Raised,
            Retired,
        ]
    };
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        use EventKind::*;
        match self {
            Granted => "granted",
            Released => "released",
            Expired => "expired",
            Surrendered => "surrendered",
            Cooling => "cooling",
            Fencing => "fencing",
            Fenced => "fenced",
            Unfenced => "unfenced",
            Broken => "broken",
            Rest => "rest",
            Active => "active",
            Queued => "queued",
            Asked => "asked",
            Declined => "declined",
            Handoff => "handoff",
            Returned => "returned",
            Witnessed => "witnessed",
            Takeover => "takeover",
            Bypass => "bypass",
            LateWrite => "late_write",
            RenewalLate => "renewal_late",
            Policy => "policy",
            Root => "root",
            Lagged => "lagged",
            Cancelled => "cancelled",
            Added => "added",
            Freed => "freed",
            GateClosed => "gate_closed",
            Copied => "copied",
            ClockDisagrees => "clock_disagrees",
            Restored => "restored",
            Raised => "raised",
            Retired => "retired",
        }
    }
    /// The kind of that name.
    pub fn parse(s: &str) -> Option<EventKind> {
        Self::ALL.into_iter().find(|k| k.as_str() == s)
    }
}

/// Something happened to a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// The state's own counter: one more with each event.
    pub revision: u64,
    /// The proposer's wall clock.
    pub at: WallTime,
    /// To which tree.
    pub tree: TreeId,
    /// Its name then.
    pub name: TreeName,
    /// What.
    pub kind: EventKind,
    /// Whose lease or whose doing, where there is one.
    pub side: Option<SideName>,
    /// Its session.
    pub session: Option<SessionId>,
    /// Of the lease that it is about.
    pub epoch: Epoch,
    /// Of a grant.
    pub run_start: RunStart,
    /// Who asked for it.
    pub actor: String,
    /// Why, or what in detail.
    pub reason: String,
    /// Whether a lease's end was clean; `None` if the event is no end.
    pub end: End,
    /// Files made durable.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How many, for reports.
    pub count: u64,
}
