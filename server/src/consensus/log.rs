//! openraft's log over the store: the live log in memory ([`super::kept`]), the disk for recovery only.
//!
//! Promises (I7): an entry, a vote, a truncation is on disk before openraft hears of it, but for a leader's own entry, which its
//! followers may get meanwhile (the argument is in [`super::ahead`]); writes keep their order, since all
//! go through one thread; a purge and the note of how far it went are one commit, and that is the commit of the next append: *why
//! not at once:* openraft purges as soon as it has received a snapshot, before that is saved, and a node killed in between had
//! neither log nor snapshot. It appends only after the snapshot was saved. What a lost purge leaves is purged again. On opening, everything is checked: each
//! record's checksum, the log without a hole and joined to what was purged, nothing committed that is not there. It does
//! not know what a command means.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, RwLock};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;
use treelease_proto::id::NodeId;

use super::ahead::{self, Ahead, Members};
use super::codec;
use super::kept::Kept;
use super::peers::Peers;
use super::published::Published;
use super::types::{Entry, LogId, Membership, StorageError, TypeConfig, Vote};
use crate::store::writer::Writer;
use crate::store::{Loaded, Meta, WriteSet, damaged};

#[derive(Debug, Default)]
struct Mem {
    entries: Kept,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Purged here and not yet on disk.
    purge_owed: Option<LogId>,
    /// The greatest index at which members were ever changed in this log, be it truncated since.
    members_at: u64,
}

/// The log of one node; clones share it.
#[derive(Clone)]
pub struct LogStore {
    mem: Arc<RwLock<Mem>>,
    writer: Arc<Writer>,
    peers: Option<Arc<Peers>>,
    ahead: Option<Leading>,
}

/// What a leader needs to know to send its entries before its disk has them.
#[derive(Clone)]
struct Leading {
    node: NodeId,
    published: Arc<Published>,
    ahead: Ahead,
}

/// What was on disk, understood.
#[derive(Debug)]
pub struct Recovered {
    mem: Mem,
}

impl Recovered {
    /// Understands and checks what was on disk.
    pub fn read(loaded: Loaded) -> io::Result<Self> {
        let mut mem = Mem::default();
        for (index, bytes) in loaded.log {
            let entry = codec::entry_from_bytes(&bytes).map_err(|e| damaged(format!("log entry {index}: {e}")))?;
            if entry.log_id.index != index {
                return Err(damaged(format!("log entry {index} says that it is {}", entry.log_id.index)));
            }
            if entry.get_members().is_some() {
                mem.members_at = index;
            }
            mem.entries.note(&entry, bytes);
        }
        let id = |kind| loaded.meta.get(&kind).map(|b| codec::log_id_from_bytes(b)).transpose();
        mem.purged = id(Meta::Purged)?;
        mem.committed = id(Meta::Committed)?;
        mem.vote = loaded.meta.get(&Meta::Vote).map(|b| codec::vote_from_bytes(b)).transpose()?;
        let start = mem.purged.map_or(0, |p| p.index + 1);
        if let Some(first) = mem.entries.first()
            && first.index != start
        {
            return Err(damaged(format!("the log begins at entry {}, it should at {start}", first.index)));
        }
        if mem.committed.map(|c| c.index) > mem.last().map(|l| l.index) {
            return Err(damaged("entries that were committed are missing from the log"));
        }
        Ok(Self { mem })
    }

    /// Whether a node that was complete once has what it must have.
    pub fn is_complete(&self) -> bool {
        self.mem.vote.is_some() && self.mem.last().is_some()
    }

    /// The members that the last such entry has made, if the log still has it.
    pub fn members(&self) -> Option<Membership> {
        self.mem.entries.get(self.mem.members_at).ok()??.get_members().cloned()
    }

    /// With the vote that this node may start with ([`ahead::step_back`]).
    #[must_use]
    pub fn stepped_back(mut self, node: NodeId, voters: &[std::collections::BTreeSet<NodeId>]) -> Self {
        self.mem.vote = self.mem.vote.map(|vote| ahead::step_back(node, vote, voters));
        self
    }

    /// Up to which entry the log was purged: a snapshot must cover it.
    pub fn purged(&self) -> Option<u64> {
        self.mem.purged.map(|p| p.index)
    }
}

impl Mem {
    fn last(&self) -> Option<LogId> {
        self.entries.last().or(self.purged)
    }
}

impl LogStore {
    /// The log that was on disk, and the way to write on.
    pub fn new(recovered: Recovered, writer: Arc<Writer>) -> Self {
        Self { mem: Arc::new(RwLock::new(recovered.mem)), writer, peers: None, ahead: None }
    }

    /// Tells the door of every number that an entry names, from those that are there already on, and of what is cut off again.
    #[must_use]
    pub fn telling(self, peers: Arc<Peers>) -> Self {
        self.read().entries.of_members().for_each(|entry| tell(&peers, &entry));
        Self { peers: Some(peers), ..self }
    }

    /// Its entries may be sent before the disk has them, while this node leads.
    #[must_use]
    pub fn running_ahead(self, node: NodeId, published: Arc<Published>, ahead: Ahead) -> Self {
        Self { ahead: Some(Leading { node, published, ahead }), ..self }
    }

    /// Bytes of entries that were ever put in since this node started: it only grows.
    pub(super) fn written(&self) -> u64 {
        self.read().entries.written()
    }

    /// Waits until the change is durable.
    async fn commit(&self, change: WriteSet, subject: ErrorSubject<u64>) -> Result<(), StorageError> {
        let (tx, rx) = oneshot::channel();
        // The receiver is gone only if openraft is.
        self.writer.commit(change, Box::new(move |result| drop(tx.send(result))));
        let result = rx.await.unwrap_or_else(|_| Err(io::Error::other("the store is closed")));
        result.map_err(|e| StorageError::from_io_error(subject, ErrorVerb::Write, e))
    }

    /// Writes down a purge that was not yet, if the state up to `applied` covers it: its snapshot is saved then.
    pub async fn settle(&self, applied: u64) -> Result<(), StorageError> {
        let owed = self.read().purge_owed.filter(|upto| upto.index <= applied);
        let Some(upto) = owed else {
            // An append may have it, and may not be written yet: nothing that comes after it is before it is.
            return self.commit(WriteSet::default(), ErrorSubject::Logs).await;
        };
        let meta = vec![(Meta::Purged, codec::log_id_to_bytes(&upto))];
        self.commit(WriteSet { purge_to: Some(upto.index), meta, ..WriteSet::default() }, ErrorSubject::Log(upto)).await?;
        self.has_purged(upto);
        Ok(())
    }

    /// A purge is with the writer. Owed until then: of an append and [`Self::settle`] that meet, each writes it down, and none relies on one
    /// that the other has not handed over yet. Twice is as good as once.
    fn has_purged(&self, upto: LogId) {
        let mut mem = self.write();
        if mem.purge_owed == Some(upto) {
            mem.purge_owed = None;
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Mem> {
        self.mem.read().expect("nothing panics while it holds the log")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Mem> {
        self.mem.write().expect("nothing panics while it holds the log")
    }
}

fn tell(peers: &Peers, entry: &Entry) {
    if let EntryPayload::Membership(members) = &entry.payload {
        peers.named_at(entry.log_id.index, members.nodes().map(|(id, _)| *id));
    }
}

impl Leading {
    /// Whether these entries may be sent before the disk has them; if so, they are noted.
    fn may_run(&self, mem: &Mem, entries: &[Entry]) -> Option<Ahead> {
        let first = entries.first()?.log_id.index;
        // Those that are applied are in force only if no later change of members stands in the log.
        let known = self.published.applied_now() >= mem.members_at;
        let may = known && self.ahead.may_run(self.node, mem.vote.as_ref(), entries, &self.published.voters());
        may.then(|| {
            self.ahead.begin(first);
            self.ahead.clone()
        })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let read = self.read().entries.range(start..end);
        read.map_err(|e| StorageError::from_io_error(ErrorSubject::Logs, ErrorVerb::Read, e))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let mem = self.read();
        Ok(LogState { last_purged_log_id: mem.purged, last_log_id: mem.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let change = WriteSet { meta: vec![(Meta::Vote, codec::vote_to_bytes(vote))], ..WriteSet::default() };
        self.commit(change, ErrorSubject::Vote).await?;
        self.write().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.read().vote)
    }

    /// Only remembered: it rides along with the next append, and need not be the newest.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.write().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut change = WriteSet::default();
        let (ahead, purge) = {
            let mut mem = self.write();
            let ahead = self.ahead.as_ref().and_then(|leading| leading.may_run(&mem, &entries));
            for entry in entries {
                if entry.get_members().is_some() {
                    mem.members_at = mem.members_at.max(entry.log_id.index);
                }
                let bytes = codec::entry_to_bytes(&entry);
                change.puts.push((entry.log_id.index, bytes.clone()));
                self.peers.iter().for_each(|peers| tell(peers, &entry));
                mem.entries.insert(entry, bytes);
            }
            if let Some(committed) = &mem.committed {
                change.meta.push((Meta::Committed, codec::log_id_to_bytes(committed)));
            }
            let purge = mem.purge_owed;
            if let Some(upto) = purge {
                change.purge_to = Some(upto.index);
                change.meta.push((Meta::Purged, codec::log_id_to_bytes(&upto)));
            }
            (ahead, purge)
        };
        let Some(ahead) = ahead else {
            self.writer.commit(change, Box::new(move |result| callback.log_io_completed(result)));
            purge.into_iter().for_each(|upto| self.has_purged(upto));
            return Ok(());
        };
        // One that fails is never at its end, and the node ends: no answer of a follower counts any more.
        let done = move |result: io::Result<()>| result.map_or((), |()| ahead.end());
        self.writer.commit(change, Box::new(done));
        purge.into_iter().for_each(|upto| self.has_purged(upto));
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let change = WriteSet { truncate_from: Some(since.index), ..WriteSet::default() };
        self.write().entries.truncate(since.index);
        self.peers.iter().for_each(|peers| peers.cut_off(since.index));
        self.commit(change, ErrorSubject::Log(since)).await
    }

    /// Only in memory: on disk with the next append.
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let mut mem = self.write();
        mem.purged = Some(upto);
        mem.entries.purge(upto.index);
        mem.purge_owed = Some(upto);
        self.peers.iter().for_each(|peers| peers.settled(upto.index));
        Ok(())
    }
}
