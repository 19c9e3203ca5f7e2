//! What a tree asks of its gate and its storage.
//!
//! # Promises
//!
//! - Nothing here waits for the storage: what touches the lower filesystem runs on a thread that may be lost, and its end comes back as
//!   a [`Done`].
//! - A standing is published before the drain that relies on it begins.
//! - The marker's lock is let go of only when nothing is unconfirmed; what could not be confirmed keeps it.
//!
//! # Does not know
//!
//! Why a tree asks ([`super::tree`]); what its end says to the servers.

use std::sync::Arc;
use std::time::Duration;

use treelease_client::error::Failure;
use treelease_client::words::command::Grant;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::TreeId;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;

use super::effects::Done;
use super::{Daemon, Msg};
use crate::fuse::Mount;
use crate::gate::{Outcome, Right};
use crate::handoff::DRAIN_LIMIT;

/// How long dropping the kernel's caches may take at a grant before the lease is handed back.
pub(super) const DROP_LIMIT: Duration = Duration::from_secs(8);
/// How long a broken lease's writes in flight may take to end before the daemon says that its gate is shut.
const SHUT_LIMIT: Duration = Duration::from_secs(60);
/// Longer than any test: how long a gate stays open that a test holds open.
const FOR_EVER: Duration = Duration::from_secs(86_400);

impl Daemon {
    pub(super) fn mount(&self, id: &TreeId) -> Option<Arc<Mount>> {
        self.trees.get(id)?.mounted.as_ref().map(|m| m.mount.clone())
    }

    pub(super) fn publish(&mut self, id: &TreeId) {
        let lives = self.session.is_some();
        let faults = self.faults;
        let for_ever = self.clock.now().after(FOR_EVER);
        let Some(tree) = self.trees.get(id) else { return };
        let Some(mounted) = &tree.mounted else { return };
        let mut standing = tree.side.standing(lives);
        if faults.no_stale || faults.gate_open {
            standing.stale_below = Epoch::ZERO;
        }
        let opened = |right: Right| matches!(right, Right::Write { .. });
        if faults.gate_open && (opened(standing.right) || opened(mounted.mount.standing().right)) {
            standing.right = Right::Write { until: for_ever };
        }
        mounted.mount.publish(standing);
        // A gate that opened while operations waited (they came after the others were carried out, or the handoff was declined).
        if tree.side.is_open() && mounted.mount.waiting() > 0 {
            self.answer_waiting(id);
        }
    }

    pub(super) fn answer_waiting(&self, id: &TreeId) {
        let Some(tree) = self.trees.get(id) else { return };
        if let (Some(mounted), Some(grant)) = (&tree.mounted, tree.side.grant()) {
            mounted.mount.answer_waiters(Outcome::Granted { run_start: grant.run_start, epoch: grant.epoch });
        }
    }

    /// Runs something that may hang on a thread that may be lost, and brings its end back.
    pub(super) fn elsewhere(&self, id: &TreeId, work: impl FnOnce() -> Done + Send + 'static) {
        let (mail, id) = (self.mail.clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            let done = work();
            let _ = mail.blocking_send(Msg::Tree(id, done));
        });
    }

    pub(super) fn open_root(&mut self, id: &TreeId, grant: Grant) {
        if self.mount(id).is_some() {
            return self.lock_for_opening(id, &grant);
        }
        // Shim-only: there is no gate to open.
        self.elsewhere(id, move || Done::Opened(grant.epoch, Ok(Vec::new())));
    }

    /// The lock was asked for: now marker, stamp and left-overs, as long as the right to write lives.
    pub(super) fn check_root(&mut self, id: &TreeId, epoch: Epoch, now: BootTime) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        let Some(grant) = tree.side.grant().filter(|g| g.epoch == epoch).cloned() else { return };
        if tree.side.right().is_none() {
            let refusal =
                Refusal::new(Code::Storage, format!("\"{}\": the lock took longer than the lease lasts", tree.side.name));
            return tree.side.handle_opened(epoch, Err(refusal), now);
        }
        let Some(mounted) = &tree.mounted else { return };
        let (Some(session), Some(cluster)) = (self.file.session.clone(), self.file.cluster.clone()) else { return };
        let opening = super::root::Opening {
            root: mounted.root.clone(),
            lower: mounted.lower.clone(),
            marker: mounted.marker.clone(),
            name: tree.side.name.clone(),
            grant: grant.clone(),
            session,
            cluster,
            accepted: self.file.accepted.clone(),
            endpoints: self.servers.as_ref().map(|s| s.endpoints()).unwrap_or_default(),
            checks: tree.side.policy.checks.clone(),
            scratch: self.config.state_dir.clone(),
            clock: self.clock.clone(),
            until: tree.side.right(),
        };
        let mount = mounted.mount.clone();
        self.note_lease(id, grant.epoch);
        let Some(tree) = self.trees.get(id) else { return };
        // Back in the same run after an expiry: what was written under the earlier epoch may still be unconfirmed, so the list of
        // written files, and the descriptor that would hear of their errors, go on.
        let goes_on = tree.unflushed && grant.run_start.0 <= tree.side.ever_run();
        self.elsewhere(id, move || {
            let result =
                opening.see_to_it().and_then(|notes| match if goes_on { Ok(()) } else { mount.begin_epoch(grant.epoch) } {
                    Ok(()) => Ok(notes),
                    Err(e) => Err(Failure::io("cannot begin an epoch on the storage", &e).into()),
                });
            Done::Opened(grant.epoch, result)
        });
    }

    pub(super) fn carry_out_waiting(&mut self, id: &TreeId, grant: Grant) {
        tracing::info!(tree = %id, epoch = %grant.epoch, run_start = %grant.run_start, last_end = %grant.last_end, "lease granted");
        let Some(mount) = self.mount(id) else {
            self.elsewhere(id, move || Done::CarriedOut(grant.epoch, Ok(())));
            return;
        };
        self.elsewhere(id, move || {
            mount.forget_attributes();
            mount.answer_waiters(Outcome::Granted { run_start: grant.run_start, epoch: grant.epoch });
            let dropped = if mount.drop_caches(DROP_LIMIT) {
                Ok(())
            } else {
                Err(format!("the kernel did not drop its caches within {} s: the lease is handed back", DROP_LIMIT.as_secs()))
            };
            Done::CarriedOut(grant.epoch, dropped)
        });
    }

    pub(super) fn shut(&mut self, id: &TreeId, epoch: Epoch) {
        let mount = self.mount(id);
        let lock = self.trees.get_mut(id).and_then(|t| t.locks.own.take());
        let (mail, id) = (self.mail.clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            // What could not be confirmed keeps the lock, until the process ends.
            let keep = || lock.iter().for_each(|lock| lock.keep());
            if let Some(mount) = mount {
                // The daemon's word that its gate is shut lets the server wait less: not while a write is in flight (I2 c).
                if !mount.drain(SHUT_LIMIT) {
                    tracing::error!(tree = %id, %epoch, "writes are in flight still: the server waits its full time");
                    keep();
                    mount.drop_caches(DROP_LIMIT);
                    return;
                }
                match mount.flush(SHUT_LIMIT) {
                    Ok(_) => lock.iter().for_each(|lock| _ = lock.let_go(lock.turn())),
                    Err(failed) => {
                        tracing::warn!(files = ?failed.files, why = failed.why, "a flush after the lease was taken away has failed");
                        keep();
                    }
                }
                mount.drop_caches(DROP_LIMIT);
            }
            let _ = mail.blocking_send(Msg::Tree(id, Done::Shut(epoch)));
        });
    }

    pub(super) fn settle(&mut self, id: &TreeId, no: u64) {
        let Some(mount) = self.mount(id) else { return };
        self.elsewhere(id, move || {
            if !mount.drain(DRAIN_LIMIT) {
                return Done::Settled(no, Err(false));
            }
            Done::Settled(no, super::flushes::settled(mount.flush(SHUT_LIMIT)))
        });
    }

    pub(super) fn flush_lapsed(&mut self, id: &TreeId) {
        let Some(mount) = self.mount(id) else { return };
        let lock = self.trees.get(id).and_then(|t| t.locks.own.clone()).map(|lock| (lock.turn(), lock));
        tracing::warn!(tree = %id, "the deadline has passed without a renewal: writes have stopped");
        tokio::task::spawn_blocking(move || {
            let (flush, drain) = (|| mount.flush(SHUT_LIMIT), || mount.drain(SHUT_LIMIT));
            match super::flushes::lapsed(flush, drain) {
                // Nothing is unconfirmed: a free lock is this side's word for it, through the storage.
                Ok(true) => lock.iter().for_each(|(turn, lock)| _ = lock.let_go(*turn)),
                Ok(false) => {}
                Err(failed) => {
                    tracing::warn!(files = ?failed.files, why = failed.why, "a flush at the deadline has failed");
                }
            }
        });
    }
}
