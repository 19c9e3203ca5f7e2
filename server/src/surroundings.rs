//! What a node stands on: clock, callers, connections, disk. This machine's, or a simulated world's.
//!
//! Promises: whoever starts a node without a word stands on this machine. What a simulated world gives instead is enough for a
//! node to run in one thread on another's time, the same each time: no socket, no thread of its own, no clock of the kernel. It
//! decides nothing.

use std::sync::Arc;

use treelease_proto::clock::{Clock, ServerClock};

use crate::api::callers::Caller;
use crate::consensus::network::Dial;
use crate::fault::Faults;
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
    /// Rules that are left out: nothing but tests does that.
    pub faults: Faults,
}

impl Surroundings {
    /// What a node of its own stands on.
    pub fn of_this_machine() -> Self {
        Self {
            clock: Arc::new(ServerClock::new()),
            callers: None,
            dial: Dial::default(),
            disk: Disk::default(),
            faults: Faults::from_environment(),
        }
    }
}
