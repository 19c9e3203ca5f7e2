//! In front of either backend: each commit is one write and one `fdatasync` of a file that stands in its blocks already.
//!
//! *What for.* A backend writes a commit in several pieces, waits for each, and wakes threads of its own for them (STACK 2.2). A
//! follower's commit is what everybody waits for. So a commit is written here, and the backend behind gets all of them together
//! when the file is full.
//!
//! Promises (I7), and why:
//! 1. *A commit is durable when [`Backend::commit`] returns:* its record is written and `fdatasync` has returned; or the backend
//!    behind has committed it, with everything before it.
//! 2. *What is durable is not written again while it is needed:* a record begins at a block of its own, and the first block is used
//!    again only when the backend behind has all of it, durably, together with the number of the generation that begins then.
//! 3. *What is read back is a record that was written as one:* each carries the journal's salt, random and drawn when its file was made,
//!    which the backend behind keeps, and which leaves the data directory with nothing else. So no text that a client chose is taken for a record,
//!    wherever in one it lies and whatever a torn write, or a shorter record of a later generation, leaves of that one.
//! 4. *It is all of it, in order:* of which generation the records are is the word of the backend behind. They are read
//!    from the first block on, each with its number and checksum; the first one that is not there is the end, since a commit begins only
//!    when the one before is durable. So whatever comes after the end is damage: another record of this generation says that one is
//!    lost, one of a later generation that the backend behind has lost its part. Nothing is answered from what was read before the backend
//!    behind has it.
//!
//! It does not know what a record means, nor which backend is behind.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message;

use super::{Backend, Counts, Loaded, Meta, WriteSet, damaged, files, record};
use crate::fault::{Fault, Faults};

/// The file's name.
const FILE: &str = "journal";
/// What a disk and a page cache write at once.
const BLOCK: usize = 4096;
/// Length of the file: so many commits share the backend's work that less than one of a hundred waits for it, and few enough that
/// this one takes milliseconds.
const LENGTH: usize = 256 * BLOCK;
/// The same where a test wants the store behind to get its part often.
const SMALL: usize = 24 * BLOCK;
/// A record's length: it comes first.
const LENGTH_OF: usize = 4;
/// Then its name: the salt, which format 2 of the data directory did not have; then generation and number.
const SALT: usize = 16;
const ORDER: usize = 16;

/// See the module.
type Salt = [u8; SALT];

/// A commit, as it is written. Its name is under the checksum, too.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint64, optional, tag = "1")]
    truncate_from: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    purge_to: Option<u64>,
    #[prost(message, repeated, tag = "3")]
    puts: Vec<Put>,
    #[prost(message, repeated, tag = "4")]
    meta: Vec<PutMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutMeta {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

/// A backend behind a journal.
pub struct Journaled<B> {
    behind: B,
    file: File,
    length: usize,
    salt: Salt,
    generation: u64,
    /// Of the next record, and where it begins.
    number: u64,
    at: usize,
    /// What the journal has and the backend behind has not, as one change.
    owed: WriteSet,
    /// What the backend behind has, if that was read and has not changed since: for the first who asks.
    had: Option<Loaded>,
    no_sync: bool,
    counts: Arc<Counts>,
}

impl<B: Backend> Journaled<B> {
    /// Opens the journal in this directory, or makes one.
    pub fn open(dir: &Path, behind: B, faults: Faults) -> io::Result<Self> {
        let length = if faults.has(Fault::SmallJournal) { SMALL } else { LENGTH };
        Self::open_with(dir, behind, faults, length)
    }

    fn open_with(dir: &Path, mut behind: B, faults: Faults, length: usize) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut had = behind.load()?;
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let begun = match had.meta.remove(&Meta::Journal) {
            Some(said) => {
                if bytes.len() < BLOCK {
                    return Err(damaged(format!("{} is missing, or too short", path.display())));
                }
                Begun::read(&said)?
            }
            // Nothing is written to a journal before the backend behind knows of it.
            None if (0..bytes.len()).step_by(BLOCK).any(|at| is_record(&bytes[at..])) => {
                return Err(damaged(format!(
                    "{} has records, and the store that it belongs to has lost its own",
                    path.display()
                )));
            }
            None => {
                let file = File::options().write(true).create(true).truncate(true).open(&path)?;
                bytes = vec![0; length];
                file.write_all_at(&bytes, 0)?;
                file.sync_all()?;
                files::sync_dir(dir)?;
                let begun = Begun { generation: 1, salt: Some(draw()) };
                behind.commit(&WriteSet { meta: vec![begun.told()], ..WriteSet::default() })?;
                begun
            }
        };
        let file = File::options().read(true).write(true).open(&path)?;
        let length = bytes.len() / BLOCK * BLOCK;
        let (owed, number, at) = replay(&bytes[..length], begun).map_err(|why| damaged(format!("{}: {why}", path.display())))?;
        let (salt, generation) = (begun.salt.unwrap_or_else(draw), begun.generation);
        let (had, no_sync, counts) = (Some(had), faults.has(Fault::NoSync), Arc::default());
        let mut journal = Self { behind, file, length, salt, generation, number, at, owed, had, no_sync, counts };
        // What was read may be in the page cache only: its writer was killed before its sync, or the sync failed, and then the kernel takes
        // the pages for written, and another sync would say nothing of them. So it goes to the store behind before anybody relies on it.
        // And where there was no salt, one is in force from the next generation on.
        if journal.number > 0 || begun.salt.is_none() {
            journal.pass_on()?;
        }
        Ok(journal)
    }

    /// All that is owed, and the beginning of the next generation, in one commit of the backend behind.
    fn pass_on(&mut self) -> io::Result<()> {
        let mut owed = std::mem::take(&mut self.owed);
        owed.meta.push(Begun { generation: self.generation + 1, salt: Some(self.salt) }.told());
        self.behind.commit(&owed)?;
        self.had = None;
        (self.generation, self.number, self.at) = (self.generation + 1, 0, 0);
        Ok(())
    }
}

impl<B: Backend> Backend for Journaled<B> {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        change.check_sizes()?;
        let frame = frame(&name(Some(self.salt), self.generation, self.number), change);
        merge(&mut self.owed, change.clone());
        if self.at + frame.len() > self.length {
            self.pass_on()?;
        } else {
            self.file.write_all_at(&frame, self.at as u64)?;
            if !self.no_sync {
                self.file.sync_data()?;
            }
            (self.number, self.at) = (self.number + 1, self.at + frame.len());
        }
        self.counts.syncs.fetch_add(1, Ordering::SeqCst);
        self.counts.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn load(&mut self) -> io::Result<Loaded> {
        let mut loaded = match self.had.take() {
            Some(had) => had,
            None => self.behind.load()?,
        };
        loaded.meta.remove(&Meta::Journal);
        loaded.change(&self.owed);
        match loaded.log.keys().zip(loaded.log.keys().skip(1)).find(|(before, index)| *before + 1 != **index) {
            Some((before, index)) => Err(damaged(format!("the log has a hole between {before} and {index}"))),
            None => Ok(loaded),
        }
    }

    fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }
}

/// Which generation of the journal counts: what the backend behind is told when it begins.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Begun {
    generation: u64,
    /// None: it was begun by a build that wrote format 2.
    salt: Option<Salt>,
}

impl Begun {
    fn told(self) -> (Meta, Vec<u8>) {
        let salt = self.salt.as_ref().map_or(&[][..], |salt| salt);
        (Meta::Journal, [&self.generation.to_be_bytes(), salt].concat())
    }

    fn read(told: &[u8]) -> io::Result<Self> {
        let begun = told.split_first_chunk().and_then(|(generation, rest)| {
            let salt = if rest.is_empty() { None } else { Some(rest.try_into().ok()?) };
            Some(Self { generation: u64::from_be_bytes(*generation), salt })
        });
        begun.ok_or_else(|| damaged("the number of the journal's generation is none"))
    }
}

fn draw() -> Salt {
    uuid::Uuid::new_v4().into_bytes()
}

fn name(salt: Option<Salt>, generation: u64, number: u64) -> Vec<u8> {
    let mut name = salt.map_or(Vec::new(), Vec::from);
    name.extend_from_slice(&generation.to_be_bytes());
    name.extend_from_slice(&number.to_be_bytes());
    name
}

/// A record, in whole blocks.
fn frame(name: &[u8], change: &WriteSet) -> Vec<u8> {
    let record = Record {
        truncate_from: change.truncate_from,
        purge_to: change.purge_to,
        puts: change.puts.iter().map(|(index, content)| Put { index: *index, content: content.clone() }).collect(),
        meta: change.meta.iter().map(|(kind, content)| PutMeta { key: kind.key().into(), content: content.clone() }).collect(),
    };
    let sealed = record::seal(name, &record.encode_to_vec());
    let length = u32::try_from(sealed.len()).expect("a change is some megabytes at most");
    let mut frame = Vec::with_capacity((LENGTH_OF + name.len() + sealed.len()).next_multiple_of(BLOCK));
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(name);
    frame.extend_from_slice(&sealed);
    frame.resize(frame.len().next_multiple_of(BLOCK), 0);
    frame
}

/// A whole record.
struct Found {
    begun: Begun,
    number: u64,
    content: Vec<u8>,
    blocks: usize,
}

/// What begins here, if it is a whole record, with a salt or of the form without.
fn read(bytes: &[u8], salted: bool) -> Option<Found> {
    let (length, rest) = bytes.split_at_checked(LENGTH_OF)?;
    let (name, rest) = rest.split_at_checked(if salted { SALT + ORDER } else { ORDER })?;
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let content = record::open(name, rest.get(..length)?).ok()?;
    let (salt, order) = name.split_at(name.len() - ORDER);
    let order = u128::from_be_bytes(order.try_into().ok()?);
    let salt = if salted { Some(salt.try_into().ok()?) } else { None };
    Some(Found {
        begun: Begun { generation: (order >> 64) as u64, salt },
        number: order as u64,
        content,
        blocks: (LENGTH_OF + name.len() + length).next_multiple_of(BLOCK),
    })
}

/// Whether one of either form begins here, whosever it is.
fn is_record(bytes: &[u8]) -> bool {
    read(bytes, true).or_else(|| read(bytes, false)).is_some()
}

/// All records of this generation as one change; the number of the next one, and where it begins.
fn replay(bytes: &[u8], begun: Begun) -> io::Result<(WriteSet, u64, usize)> {
    let ours = |at: usize| read(&bytes[at..], begun.salt.is_some()).filter(|found| found.begun.salt == begun.salt);
    let (mut owed, mut number, mut at) = (WriteSet::default(), 0, 0);
    while let Some(found) = ours(at).filter(|found| (found.begun.generation, found.number) == (begun.generation, number)) {
        merge(&mut owed, understood(&found.content)?);
        (number, at) = (number + 1, at + found.blocks);
    }
    for block in (at..bytes.len()).step_by(BLOCK) {
        // One with a salt is later than all without.
        let later = begun.salt.is_none() && read(&bytes[block..], true).is_some();
        match ours(block).map(|found| found.begun.generation) {
            Some(generation) if generation == begun.generation => {
                return Err(damaged(format!("record {number} is lost, and a later one is there")));
            }
            Some(generation) if generation > begun.generation => return Err(went_back()),
            _ if later => return Err(went_back()),
            _ => {}
        }
    }
    Ok((owed, number, at))
}

fn went_back() -> io::Error {
    damaged("the store that it belongs to has lost what it was given")
}

fn understood(content: &[u8]) -> io::Result<WriteSet> {
    let record = Record::decode(content).map_err(|e| damaged(e.to_string()))?;
    let meta = |meta: PutMeta| {
        let kind = Meta::ALL.into_iter().find(|kind| kind.key() == meta.key);
        kind.map(|kind| (kind, meta.content)).ok_or_else(|| damaged(format!("`{}` is no record of this version", meta.key)))
    };
    Ok(WriteSet {
        puts: record.puts.into_iter().map(|put| (put.index, put.content)).collect(),
        truncate_from: record.truncate_from,
        purge_to: record.purge_to,
        meta: record.meta.into_iter().map(meta).collect::<io::Result<_>>()?,
    })
}

/// Makes one change of two that come one after the other.
fn merge(owed: &mut WriteSet, next: WriteSet) {
    let gone = |index: u64| next.truncate_from.is_some_and(|from| index >= from) || next.purge_to.is_some_and(|to| index <= to);
    owed.puts.retain(|(index, _)| !gone(*index));
    owed.truncate_from = owed.truncate_from.into_iter().chain(next.truncate_from).min();
    owed.purge_to = owed.purge_to.max(next.purge_to);
    owed.puts.extend(next.puts);
    for (kind, content) in next.meta {
        owed.meta.retain(|(other, _)| *other != kind);
        owed.meta.push((kind, content));
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
