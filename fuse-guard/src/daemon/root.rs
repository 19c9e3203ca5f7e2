//! What the new holder's side does on the storage between the grant and the open gate (DESIGN 5): check and stamp the marker
//! (I8), look at what the last holder left, and after an unclean end run the checks that the policy lists.
//!
//! # Promises
//!
//! I8. The gate opens only on the root that the grant names, only if the marker's cluster, tree and root agree, and only if
//! the greatest epoch stamped on the storage is lower, or equal and stamped by this very session. *Why the stamp:* a server
//! restored from an old backup grants epochs that were granted before; the storage remembers, and says no.
//!
//! The stamp is written only while the right to write lives; the clock is read again after the call, and an epoch whose
//! deadline passed meanwhile does not open.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use treelease_client::marker::{self, Expected, Marker, MarkerError, Stamp};
use treelease_client::words::clock::Clock;
use treelease_client::words::command::Grant;
use treelease_client::words::id::{ClusterId, SessionId, TreeName};
use treelease_client::words::policy::Check;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::{End, RootState};

use crate::gate::in_time;
use crate::lower::{checks, leftovers};

/// Everything that the look needs, taken out of the daemon: it runs on a thread that may be lost.
pub(super) struct Opening {
    pub root: Arc<OwnedFd>,
    pub lower: PathBuf,
    /// As it was read when the tree was mounted.
    pub marker: Marker,
    pub name: TreeName,
    pub grant: Grant,
    pub session: SessionId,
    pub cluster: ClusterId,
    /// Clusters whose markers count as this one's, by the user's word.
    pub accepted: BTreeSet<ClusterId>,
    pub endpoints: Vec<String>,
    pub checks: BTreeSet<Check>,
    pub scratch: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub until: Option<BootTime>,
}

impl Opening {
    /// Marker, stamp, left-overs, checks. Notes for people, or why the gate must stay shut.
    pub fn see_to_it(&self) -> Result<Vec<String>, Refusal> {
        let marker = self.check_marker()?;
        self.stamp(&marker)?;
        let mut notes = Vec::new();
        if self.grant.last_end == End::Unclean {
            let found = leftovers::look(self.root.as_fd())
                .map_err(|e| Refusal::new(Code::Storage, format!("{}: cannot look for left-overs: {e}", self.lower.display())))?;
            notes.extend(found.leftovers.iter().map(ToString::to_string));
            let reports = checks::run(self.root.as_fd(), &found, &self.checks, &self.scratch, self.clock.as_ref());
            notes.extend(reports.iter().map(ToString::to_string));
        }
        Ok(notes)
    }

    /// Of which cluster it is.
    fn check_marker(&self) -> Result<ClusterId, Refusal> {
        let found = marker::read(self.root.as_fd()).map_err(|e| self.storage(&e))?.ok_or_else(|| {
            Refusal::new(
                Code::Config,
                format!("{}: its marker {} is gone: is the volume still mounted?", self.lower.display(), marker::MARKER),
            )
        })?;
        let root = self.grant.root.clone().unwrap_or_else(|| self.marker.root.clone());
        let expected = Expected { cluster: &self.cluster, tree: &self.grant.tree, root: Some(&root) };
        marker::check_following(&found, expected, &self.accepted)
            .map_err(|mismatch| Refusal::from(marker::mismatch_failure(&self.lower, &found, &mismatch)))?;
        Ok(found.marker.cluster)
    }

    fn stamp(&self, marker: &ClusterId) -> Result<(), Refusal> {
        let epoch = self.grant.epoch;
        let largest = marker::largest_stamp(self.root.as_fd()).map_err(|e| self.storage(&e))?;
        // Two clusters may have grown from one: the marker is that one's, and the stamp says whose turn was the last.
        if *marker != self.cluster
            && let Some(stamp) = largest.as_ref().and_then(|found| found.stamp.as_ref())
            && stamp.cluster != self.cluster
            && !self.accepted.contains(&stamp.cluster)
        {
            return Err(Refusal::new(
                Code::Config,
                format!(
                    "{}: its last holder was of cluster {}, and this side follows cluster {}: both have grown from cluster {marker}",
                    self.lower.display(),
                    stamp.cluster,
                    self.cluster
                ),
            ));
        }
        if let Some(found) = largest
            && found.epoch >= epoch
        {
            let ours = found.epoch == epoch
                && found.stamp.as_ref().is_some_and(|s| s.session == self.session && s.cluster == self.cluster);
            if ours {
                return self.still_in_time();
            }
            return Err(Refusal::new(
                Code::Config,
                format!(
                    "{}: the storage says epoch {}, the server granted {epoch} of \"{}\": an older server was restored",
                    self.lower.display(),
                    found.epoch,
                    self.name
                ),
            ));
        }
        self.still_in_time()?;
        let stamp = Stamp {
            epoch,
            session: self.session.clone(),
            cluster: self.cluster.clone(),
            root_state: RootState::Live,
            endpoints: self.endpoints.clone(),
        };
        marker::write_stamp(self.root.as_fd(), &stamp).map_err(|e| self.storage(&e))?;
        self.still_in_time()?;
        if let Err(error) = marker::remove_older(self.root.as_fd(), epoch) {
            tracing::warn!(%error, "older stamps could not be removed");
        }
        self.still_in_time()
    }

    fn still_in_time(&self) -> Result<(), Refusal> {
        match self.until {
            Some(until) if !in_time(until, self.clock.now()) => Err(Refusal::new(
                Code::Storage,
                format!("{}: the storage took longer than the lease lasts", self.lower.display()),
            )),
            _ => Ok(()),
        }
    }

    fn storage(&self, error: &MarkerError) -> Refusal {
        Refusal::new(Code::Storage, format!("{}: {error}", self.lower.display()))
    }
}
