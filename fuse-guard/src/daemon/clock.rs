//! This machine's clock and the server's disagree about how much time passed: it was paused or copied, and saw nothing of it.
//!
//! Promises: the gate of every tree is shut before anything else is done, by the session core, which gives no right until a
//! renewal sent later is acknowledged (I4); what the kernel cached meanwhile is dropped, for another side may have written;
//! and it is on record, here and in the history of every tree that this side holds. It decides nothing.

use std::time::Duration;

use treelease_client::words::clock::{Clock, SideClock};
use treelease_client::words::command::{Command, EventKind};
use treelease_client::words::id::{RequestKey, TreeId};
use treelease_client::words::time::BootTime;

use super::effects::keep_note;
use super::servers::Purpose;
use super::storage::DROP_LIMIT;
use super::{Daemon, Faults};
use crate::failpoint::PausedKernel;

/// This machine's clock, or one that a test pauses.
pub(super) fn clock(faults: Faults) -> std::sync::Arc<dyn Clock> {
    if faults.paused_clock {
        return std::sync::Arc::new(SideClock::on(PausedKernel::from_env()));
    }
    std::sync::Arc::new(SideClock::new())
}

impl Daemon {
    /// See the module's header.
    pub(super) fn clock_disagrees(&mut self, own: Duration, server: Duration, now: BootTime) {
        self.refresh_rights(now);
        let why = format!(
            "between two renewals {} ms passed here and {} ms at the server: this machine was paused or copied, or its clock is \
             wrong",
            own.as_millis(),
            server.as_millis()
        );
        tracing::warn!("{why}; no writes until the next renewal is answered");
        let ids: Vec<TreeId> = self.trees.keys().cloned().collect();
        for id in ids {
            if let Some(mount) = self.mount(&id) {
                tokio::task::spawn_blocking(move || mount.drop_caches(DROP_LIMIT));
            }
            let Some(lease) = self.current_lease(&id) else { continue };
            if let Some(tree) = self.trees.get_mut(&id) {
                keep_note(tree, why.clone());
            }
            let report = Command::Report { lease, event: EventKind::ClockDisagrees, reason: why.clone(), count: 1 };
            self.send(&id, report, Purpose::Tell, RequestKey::random());
        }
    }
}
