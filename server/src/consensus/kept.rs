//! The live log in memory: small, as it lies on disk, and the newest entries as openraft wants them.
//!
//! *Why both:* an entry is read once right after it came, to be applied and for each follower, and hardly ever again; decoded it takes
//! five times as much. So memory follows what the log has in bytes.
//!
//! Promises: what is read is what was put in. It does not know what is on disk.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::ahead::Members;
use super::codec;
use super::types::{Entry, LogId};

/// Entries that are kept decoded: more than are ever on their way to a follower that keeps up.
const RECENT: usize = 64;

#[derive(Debug)]
struct Record {
    id: LogId,
    bytes: Box<[u8]>,
    /// It changes the members.
    members: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    records: BTreeMap<u64, Record>,
    /// The newest of them.
    recent: BTreeMap<u64, Entry>,
    /// Bytes that were ever put in.
    written: u64,
}

impl Kept {
    /// Puts an entry in, in place of one of the same index.
    pub(super) fn insert(&mut self, entry: Entry, bytes: Vec<u8>) {
        self.note(&entry, bytes);
        self.recent.insert(entry.log_id.index, entry);
        while self.recent.len() > RECENT {
            self.recent.pop_first();
        }
    }

    /// The same for one that was on disk.
    pub(super) fn note(&mut self, entry: &Entry, bytes: Vec<u8>) {
        self.written += bytes.len() as u64;
        let record = Record { id: entry.log_id, bytes: bytes.into(), members: entry.get_members().is_some() };
        self.records.insert(entry.log_id.index, record);
    }

    /// Bytes that were ever put in: it only grows.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn first(&self) -> Option<LogId> {
        self.records.first_key_value().map(|(_, record)| record.id)
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.records.last_key_value().map(|(_, record)| record.id)
    }

    pub(super) fn get(&self, index: u64) -> io::Result<Option<Entry>> {
        Ok(self.range(index..index.saturating_add(1))?.pop())
    }

    /// Those of these indexes that are there, in order.
    pub(super) fn range(&self, wanted: Range<u64>) -> io::Result<Vec<Entry>> {
        let entry = |(index, record): (&u64, &Record)| match self.recent.get(index) {
            Some(entry) => Ok(entry.clone()),
            None => codec::entry_from_bytes(&record.bytes),
        };
        self.records.range(wanted).map(entry).collect()
    }

    /// Those that change the members.
    pub(super) fn of_members(&self) -> impl Iterator<Item = Entry> {
        let changes = self.records.values().filter(|record| record.members);
        changes.filter_map(|record| codec::entry_from_bytes(&record.bytes).ok())
    }

    /// Takes away this index and all above it.
    pub(super) fn truncate(&mut self, since: u64) {
        self.records.split_off(&since);
        self.recent.split_off(&since);
    }

    /// Takes away this index and all below it.
    pub(super) fn purge(&mut self, upto: u64) {
        // Not `split_off`, which would move all that stays.
        while self.records.first_key_value().is_some_and(|(index, _)| *index <= upto) {
            self.records.pop_first();
        }
        self.recent.retain(|index, _| *index > upto);
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        Entry { log_id: LogId::new(CommittedLeaderId::new(term, 1), index), payload: EntryPayload::Blank }
    }

    fn put(kept: &mut Kept, term: u64, index: u64) {
        let entry = entry(term, index);
        let bytes = codec::entry_to_bytes(&entry);
        kept.insert(entry, bytes);
    }

    #[test]
    fn an_entry_reads_back_whether_it_is_new_or_old_and_is_gone_when_it_was_cut_off_or_purged() {
        let mut kept = Kept::default();
        (1..=500).for_each(|index| put(&mut kept, 1, index));
        assert_eq!(kept.recent.len(), RECENT, "of the old ones only the bytes are there");
        let all = kept.range(0..1_000).unwrap();
        assert!(all.iter().map(|entry| entry.log_id).eq((1..=500).map(|index| entry(1, index).log_id)));
        kept.truncate(480);
        (480..=490).for_each(|index| put(&mut kept, 2, index));
        assert_eq!(kept.get(485).unwrap().unwrap().log_id, entry(2, 485).log_id, "what was cut off is not read again");
        assert!(kept.get(491).unwrap().is_none());
        kept.purge(484);
        assert_eq!((kept.first(), kept.last()), (Some(entry(2, 485).log_id), Some(entry(2, 490).log_id)));
        assert!(kept.get(484).unwrap().is_none() && kept.range(0..485).unwrap().is_empty());
        kept.purge(1_000);
        assert_eq!((kept.first(), kept.recent.len()), (None, 0));
    }
}
