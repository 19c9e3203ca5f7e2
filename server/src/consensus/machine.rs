//! openraft's state machine over the lease state.
//!
//! Promises: entries are applied in the log's order, each command of a batch with the entry's index, one answer for each;
//! a snapshot is the state right after some entry, and is on disk before openraft hears of it (I7); a panic in `apply` ends
//! the node, because a half-changed state must not be seen. It does not decide anything.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError};

use treelease_proto::command::Command;

use super::codec;
use super::peers::Peers;
use super::published::Published;
use super::types::{Entry, LogId, Outcome, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::failure::{FailStop, Failure};
use crate::fault::{Fault, Faults};
use crate::lease::{self, State};
use crate::memory;
use crate::store::damaged;
use crate::store::disk::Disk;
use crate::store::passing::{self, Passing};
use crate::store::snapshot::{SnapshotDir, reader};

/// The state machine of one node.
pub struct Machine {
    published: Arc<Published>,
    snapshots: SnapshotDir,
    last: Option<LogId>,
    membership: StoredMembership,
    fail: FailStop,
    disk: Disk,
    faults: Faults,
    peers: Option<Arc<Peers>>,
}

impl Machine {
    /// The state of the newest snapshot, or an empty one.
    pub fn open(snapshots: SnapshotDir, fail: FailStop) -> io::Result<Self> {
        let (meta, state) = match snapshots.newest()? {
            Some(file) => read(&mut reader(&file))?,
            None => (SnapshotMeta::default(), State::new()),
        };
        // What reading it has taken beside the state.
        memory::give_back();
        let published = Arc::new(Published::new(state, meta.last_log_id.map_or(0, |id| id.index)));
        published.set_voters(meta.last_membership.membership().get_joint_config().clone());
        Ok(Self {
            published,
            snapshots,
            last: meta.last_log_id,
            membership: meta.last_membership,
            fail,
            disk: Disk::default(),
            faults: Faults::default(),
            peers: None,
        })
    }

    /// Tells the door of every number that was agreed upon: an applied entry's, and those that a received snapshot knows.
    #[must_use]
    pub fn telling(self, peers: Arc<Peers>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// On another disk, and without some rules.
    #[must_use]
    pub fn on(self, disk: Disk, faults: Faults) -> Self {
        Self { disk, faults, ..self }
    }

    /// The state for those who look.
    pub fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    /// Up to which entry the state goes.
    pub fn last_applied(&self) -> Option<u64> {
        self.last.map(|id| id.index)
    }

    /// `None`: applying it panicked, and the node ends.
    fn apply_one(&mut self, entry: Entry) -> Option<Outcome> {
        let index = entry.log_id.index;
        let outcome = match entry.payload {
            EntryPayload::Blank => Outcome::default(),
            EntryPayload::Membership(members) => {
                if members.get_joint_config().len() > 1 && self.faults.has(Fault::DieInJoint) {
                    std::process::abort();
                }
                let ids = || members.nodes().map(|(id, _)| *id);
                self.published.write().note_nodes(ids());
                self.peers.iter().for_each(|peers| peers.were_used(ids()));
                self.published.set_voters(members.get_joint_config().clone());
                self.membership = StoredMembership::new(Some(entry.log_id), members);
                Outcome::default()
            }
            EntryPayload::Normal(batch) => {
                // The lock is taken inside, so that a panic poisons it: nobody reads the state between two lines of a command,
                // and the node ends.
                let applied = catch_unwind(AssertUnwindSafe(|| {
                    let mut state = self.published.write();
                    let mut events = Vec::new();
                    let term = entry.log_id.leader_id.term;
                    let by_term = self.faults.has(Fault::TermsForLeaderships);
                    let commands = batch.0.into_iter().map(|proposal| match proposal.command {
                        Command::Lead { .. } if by_term => lease::Entry { index: term, proposal },
                        _ => lease::Entry { index, proposal },
                    });
                    let answers = commands.map(|entry| {
                        let applied = state.apply(&entry);
                        events.extend(applied.events);
                        applied.answer
                    });
                    let answers = answers.collect::<Vec<_>>();
                    self.published.hub.publish(events);
                    answers
                }));
                let Ok(answers) = applied else {
                    self.fail.report(Failure::internal(format!("applying log entry {index} panicked; please report this")));
                    return None;
                };
                Outcome(answers)
            }
        };
        self.last = Some(entry.log_id);
        self.published.set_applied(index);
        Some(outcome)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            match self.apply_one(entry) {
                Some(outcome) => outcomes.push(outcome),
                None => return Err(StorageIOError::apply(log_id, AnyError::error("applying it panicked")).into()),
            }
        }
        Ok(outcomes)
    }

    /// Called between two entries: what it takes along is the state after one of them.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let index = self.last.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{index}-{}", uuid::Uuid::new_v4().simple()),
        };
        Builder { meta, state: Some(self.published.state().clone()), snapshots: self.snapshots.clone(), disk: self.disk.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Passing>, StorageError> {
        let failed = |e| StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e);
        self.disk.coming_in(&self.snapshots).map(Box::new).map_err(failed)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<Passing>) -> Result<(), StorageError> {
        let failed = |e| StorageError::from_io_error(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, e);
        let (mut file, draft) = snapshot.done().await;
        let (snapshots, announced) = (self.snapshots.clone(), meta.clone());
        let work = move || {
            let mut draft = match draft {
                Some(draft) => draft,
                // It lies elsewhere.
                None => {
                    let mut draft = snapshots.draft()?;
                    passing::rewind(&mut file)?;
                    draft.fill(|out| io::copy(&mut file, out).map(drop))?;
                    draft
                }
            };
            let (own, state) = read(&mut draft.reader()?)?;
            if own != announced {
                return Err(damaged("the received snapshot is another one than was announced"));
            }
            snapshots.keep(draft, index_of(&own), &own.snapshot_id)?;
            Ok(state)
        };
        let state = self.disk.write(work).await.map_err(failed)?;
        let revision = state.revision();
        self.peers.iter().for_each(|peers| peers.were_used(state.node_ids().iter().copied()));
        let before = std::mem::replace(&mut *self.published.write(), state);
        // Nobody waits for the end of so many trees.
        let tidied = self.disk.read(move || {
            drop(before);
            memory::give_back();
            Ok(())
        });
        tidied.await.map_err(failed)?;
        self.published.hub.reset(revision);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.published.set_voters(meta.last_membership.membership().get_joint_config().clone());
        self.published.set_applied(meta.last_log_id.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let snapshots = self.snapshots.clone();
        let newest = self.disk.read(move || newest(&snapshots)).await;
        let newest = newest.map_err(|e| StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, e))?;
        Ok(newest.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(self.disk.going_out(file)) }))
    }
}

/// A state on its way to disk.
pub struct Builder {
    meta: SnapshotMeta,
    state: Option<State>,
    snapshots: SnapshotDir,
    disk: Disk,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let failed = |e| StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e);
        let (snapshots, meta, state) = (self.snapshots.clone(), self.meta.clone(), self.state.take());
        let work = move || {
            let state = state.ok_or_else(|| io::Error::other("a snapshot is built once"))?;
            let mut draft = snapshots.draft()?;
            draft.fill(|out| codec::write_snapshot(out, &meta, &state))?;
            // What it shared with the present state, and that has changed since, goes here too.
            drop(state);
            snapshots.keep(draft, index_of(&meta), &meta.snapshot_id)?;
            // A newer one that has come in meanwhile covers more.
            newest(&snapshots)?.ok_or_else(|| damaged("the snapshot that was just saved is not there"))
        };
        let (meta, file) = self.disk.write(work).await.map_err(failed)?;
        Ok(Snapshot { meta, snapshot: Box::new(self.disk.going_out(file)) })
    }
}

fn index_of(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index)
}

fn newest(snapshots: &SnapshotDir) -> io::Result<Option<(SnapshotMeta, File)>> {
    let Some(mut file) = snapshots.newest()? else { return Ok(None) };
    let meta = codec::read_snapshot_meta(&mut file)?;
    Ok(Some((meta, file)))
}

/// What it says about itself, and a state that is as if it had grown here.
fn read(input: &mut impl io::Read) -> io::Result<(SnapshotMeta, State)> {
    let (meta, mut state) = codec::read_snapshot(input)?;
    state.was_read(meta.last_membership.nodes().map(|(id, _)| *id));
    Ok((meta, state))
}
