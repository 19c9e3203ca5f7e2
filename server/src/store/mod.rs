//! What a node keeps on disk: the log and the vote behind one trait, snapshots and identity in plain files.
//!
//! | what | where | module |
//! |---|---|---|
//! | one process at a time | `DIR/lock` | [`lock`] |
//! | who this node is, and whether it was ever complete | `DIR/identity` | [`identity`] |
//! | log, vote, last purged, last committed | `DIR/log/` | [`sled`] or [`redb`], chosen by [`kind`], behind [`journal`], through [`writer`] |
//! | the state up to some entry | `DIR/snapshots/` | [`snapshot`]; to and from other nodes by [`passing`] |
//!
//! Promises (I7): what [`Backend::commit`] has answered with `Ok` survives kill -9 and power loss; what is read back is
//! what was written, or an error ([`record`]); a directory that once was complete and is not any more is refused, never
//! taken for an empty one. It knows bytes and numbers only: what an entry means is the business of `consensus`.

pub mod disk;
pub mod files;
pub mod identity;
mod journal;
pub mod kind;
pub mod lock;
pub mod passing;
pub mod record;
mod redb;
mod sled;
pub mod snapshot;
#[cfg(test)]
mod suite;
pub mod writer;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use kind::Kind;

/// Largest value that a backend takes: sled puts larger ones into files that it never syncs (STACK 2.2).
pub const VALUE_MAX: usize = 64 * 1024;

/// The records beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meta {
    /// Whom this node voted for.
    Vote,
    /// Up to where the log was purged.
    Purged,
    /// Up to where the log is known to be committed. Rides along with appends; need not be the newest.
    Committed,
    /// Which generation of the journal before a backend counts. Its own: nobody else sees it.
    Journal,
}

impl Meta {
    /// Every kind.
    pub const ALL: [Meta; 4] = [Meta::Vote, Meta::Purged, Meta::Committed, Meta::Journal];
    /// Its key on disk.
    pub const fn key(self) -> &'static str {
        match self {
            Meta::Vote => "vote",
            Meta::Purged => "purged",
            Meta::Committed => "committed",
            Meta::Journal => "journal",
        }
    }
}

/// One durable change. `truncate_from` and `purge_to` (both inclusive) happen before `puts`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteSet {
    /// Log records by index.
    pub puts: Vec<(u64, Vec<u8>)>,
    /// Removes this index and all above it.
    pub truncate_from: Option<u64>,
    /// Removes this index and all below it.
    pub purge_to: Option<u64>,
    /// Records beside the log.
    pub meta: Vec<(Meta, Vec<u8>)>,
}

impl WriteSet {
    /// Refuses a record that is too large for any backend.
    fn check_sizes(&self) -> io::Result<()> {
        let values = self.puts.iter().map(|(_, v)| v).chain(self.meta.iter().map(|(_, v)| v));
        match values.map(Vec::len).find(|len| *len > VALUE_MAX) {
            Some(large) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a record of {large} bytes is over the limit of {VALUE_MAX}"),
            )),
            None => Ok(()),
        }
    }
}

/// Everything that is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Log records by index, without a hole.
    pub log: BTreeMap<u64, Vec<u8>>,
    /// Records beside the log.
    pub meta: BTreeMap<Meta, Vec<u8>>,
}

impl Loaded {
    /// As it is after this change.
    fn change(&mut self, change: &WriteSet) {
        if let Some(from) = change.truncate_from {
            self.log.split_off(&from);
        }
        if let Some(to) = change.purge_to {
            self.log = self.log.split_off(&(to + 1));
        }
        self.log.extend(change.puts.iter().cloned());
        self.meta.extend(change.meta.iter().cloned());
    }

    /// One record of the log as it was on disk; they come in order.
    fn log_record(&mut self, index: u64, sealed: &[u8]) -> io::Result<()> {
        let content = record::open(&index.to_be_bytes(), sealed).map_err(|e| damaged(format!("log entry {index}: {e}")))?;
        if let Some((before, _)) = self.log.last_key_value()
            && before + 1 != index
        {
            return Err(damaged(format!("the log has a hole between {before} and {index}")));
        }
        self.log.insert(index, content);
        Ok(())
    }

    /// One record beside the log as it was on disk.
    fn meta_record(&mut self, kind: Meta, sealed: &[u8]) -> io::Result<()> {
        let content = record::open(kind.key().as_bytes(), sealed).map_err(|e| damaged(format!("{}: {e}", kind.key())))?;
        self.meta.insert(kind, content);
        Ok(())
    }
}

/// How often a backend did what; tests hold it to one sync for each commit.
#[derive(Debug, Default)]
pub struct Counts {
    /// Commits that succeeded.
    pub commits: AtomicU64,
    /// Calls of `sync_data` for them that succeeded.
    pub syncs: AtomicU64,
}

impl Counts {
    /// Commits and syncs so far.
    pub fn read(&self) -> (u64, u64) {
        (self.commits.load(Ordering::SeqCst), self.syncs.load(Ordering::SeqCst))
    }
}

/// A place for log and vote.
pub trait Backend: Send + 'static {
    /// Atomic, and durable when it returns `Ok`. Any error is final for the node.
    fn commit(&mut self, change: &WriteSet) -> io::Result<()>;
    /// Reads everything back, and checks it: an error of kind `InvalidData` says what is damaged.
    fn load(&mut self) -> io::Result<Loaded>;
    /// Its counters.
    fn counts(&self) -> Arc<Counts>;
}

impl Backend for Box<dyn Backend> {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        (**self).commit(change)
    }
    fn load(&mut self) -> io::Result<Loaded> {
        (**self).load()
    }
    fn counts(&self) -> Arc<Counts> {
        (**self).counts()
    }
}

/// The error of a record that is not what was written.
pub fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
