//! What a node stands on: clock, callers, connections, disk. This machine's, or a simulated world's.
//!
//! Promises: whoever starts a node without a word stands on this machine. What a simulated world gives instead is enough for a
//! node to run in one thread on another's time, the same each time: no socket, no thread of its own, no clock of the kernel. It
//! decides nothing.

use std::sync::Arc;

use treelease_proto::clock::{Clock, ServerClock};

use crate::api::callers::Caller;
use crate::consensus::network::Dial;
use crate::store::disk::Disk;

/// See the module.
pub struct Surroundings {
    /// A server's clock.
    pub clock: Arc<dyn Clock>,
    /// Where callers come from; `None`: the addresses of the configuration.
    pub callers: Option<futures::stream::BoxStream<'static, std::io::Result<Caller>>>,
    /// How other nodes are reached.
    pub dial: Dial,
    /// Where log and vote are kept.
    pub disk: Disk,
    /// Nothing but tests leaves out a rule, and only debug builds obey.
    pub faults: Faults,
}

/// Rules that are left out on purpose, so that it shows that tests notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Leadership is never confirmed: what is read was true once (I5).
    pub local_reads: bool,
    /// A new leader goes on with timers that heard of no renewal, and does not arm them anew (I3).
    pub timers_go_on: bool,
    /// A leadership is known by its term, not by its entry's index.
    pub terms_for_leaderships: bool,
    /// A leader counts itself before its disk has an entry, and goes on in its term when it comes back without it (I7).
    pub counts_unwritten: bool,
}

impl Surroundings {
    /// What a node of its own stands on.
    pub fn of_this_machine() -> Self {
        Self {
            clock: Arc::new(ServerClock::new()),
            callers: None,
            dial: Dial::default(),
            disk: Disk::default(),
            faults: Faults::default(),
        }
    }
}

impl Faults {
    /// What counts of them in this build.
    #[must_use]
    pub fn in_this_build(self) -> Self {
        if cfg!(debug_assertions) { self } else { Self::default() }
    }
}
