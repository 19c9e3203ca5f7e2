//! Writing back: what the policy asks of each mount, and what follows when the storage is silent or has failed.
//!
//! *Promises:* a policy that changes is obeyed at the loop's next turn. While no write-back call has returned for half of the
//! session's TTL the tree's gate is shut ([`TreeSide::handle_silence`](super::tree::TreeSide::handle_silence)), so too while there is
//! no thread to make one with; the threads are tried again at each turn. An error that a call meets ends the lease, as one that a flush
//! meets does.
//!
//! *Does not know* how it is written back ([`crate::fs::write_back`]). Nothing here touches the storage.

use std::time::Duration;

use treelease_client::session::SessionCore;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::effects::keep_note;
use super::{Daemon, Mounted, REPORT_PAUSE, Tree};

/// What [`Daemon::look_at_write_back`] looks at.
fn silent_at(mounted: &Mounted, session: Option<&SessionCore>) -> Option<BootTime> {
    mounted.mount.silent_at(patience(session)?)
}

/// How long the storage may confirm nothing before the gate shuts.
fn patience(session: Option<&SessionCore>) -> Option<Duration> {
    session.map(|session| session.ttl().get() / 2)
}

impl Daemon {
    pub(super) fn look_at_write_back(&mut self, now: BootTime) {
        let mut news = false;
        for (id, tree) in &mut self.trees {
            let Some(mounted) = &tree.mounted else { continue };
            let policy = &tree.side.policy;
            mounted.mount.write_back((policy.mode == Mode::Enforce).then_some(policy.dirty_max));
            let silent = silent_at(mounted, self.session.as_ref()).is_some_and(|at| now >= at);
            let failed = mounted.mount.take_failed();
            let trouble = mounted.mount.take_write_back_trouble();
            if tree.side.handle_silence(silent) {
                news = true;
                let silent = tree.side.is_silenced();
                let what = match silent {
                    true => "the storage confirms nothing: writes wait until it does",
                    false => "the storage confirms again: writes go on",
                };
                tracing::warn!(tree = %id, "{what}");
                // A lease that ended meanwhile has its own words.
                if silent || tree.side.is_open() {
                    keep_note(tree, what.into());
                }
            }
            if let Some(missing) = trouble {
                news = true;
                let what = match missing {
                    true => "no thread can be started to write back with: tried again every second",
                    false => "the threads that write back have been started after all",
                };
                tracing::warn!(tree = %id, "{what}");
                keep_note(tree, what.into());
            }
            if failed {
                tree.side.handle_write_back_error(now);
            }
        }
        if news {
            self.report_due.get_or_insert(now.after(REPORT_PAUSE));
        }
    }

    /// When a gate is to shut for silence, if nothing comes.
    pub(super) fn silence_deadline(&self, tree: &Tree) -> Option<BootTime> {
        let at = silent_at(tree.mounted.as_ref()?, self.session.as_ref())?;
        Some(at).filter(|_| tree.side.heeds_silence() && !tree.side.is_silenced())
    }
}
