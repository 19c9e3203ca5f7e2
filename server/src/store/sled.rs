//! The backend on sled 0.34.7. The only module in the workspace that names it.
//!
//! Promises: [`Backend::commit`] is one transaction over both trees, followed by `flush` and by `sync_data` on our own
//! handle to sled's file. The last is what makes it durable: on Linux sled's flush is `sync_file_range`, which writes no
//! metadata and does not flush the disk's cache (STACK 2.2: without it 48 of 60 power cuts lost acknowledged records, with
//! it 0 of 190). The background flusher is off. What sled writes at once beyond a quarter of a segment goes to a file of its
//! own that it never syncs, and it writes whole pages: so segments are large enough for the largest page, and a commit that
//! finds such a file is an error. The file has room reserved beyond what sled has written, which is zeros: what sled takes for
//! the end of its log, as after any crash. Each record has a checksum, and an open that panics is an error that can be read. It does
//! not know what a record means.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};
use ::sled::{Batch, Config, Db, Mode, Tree};

use super::{Backend, Counts, Loaded, Meta, VALUE_MAX, WriteSet, damaged, files, record};
use crate::fault::{Fault, Faults};

/// sled's segment. It is part of the format on disk: a directory made with another size is refused.
const SEGMENT: usize = 8 << 20;
/// A page splits when it has more than 16 records, so it is written with so many at most, and so many changes to it.
const RECORDS_A_PAGE: usize = 2 * 17;
/// A page that is too long for its segment goes to `blobs/`, which sled does not sync.
const _: () = assert!(RECORDS_A_PAGE * VALUE_MAX < SEGMENT / 3);
/// Room in the file that is reserved at a time, never beyond the segment that sled is in. Enough that few syncs pay for a file that
/// grows; and what a node goes on with when its disk is full, so no more. Less than what a journal hands over at a time: on a full disk that fails,
/// the node ends, and the journal keeps it until there is room.
const RESERVE: u64 = 256 << 10;
/// How often an open is tried while a database that this process has just closed still holds its file lock.
const OPEN_TRIES: u32 = 40;
/// Pause between two tries.
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// Log and vote in a sled database.
pub struct SledBackend {
    db: Db,
    log: Tree,
    meta: Tree,
    /// Our own handle to sled's file, for `sync_data`.
    file: File,
    dir: PathBuf,
    /// A test's control: the sync that sled needs beside its own flush is left out.
    no_sync: bool,
    /// First and last index of the log on disk.
    range: Option<(u64, u64)>,
    /// The file's length that was reserved last; another one: sled has grown the file, or cut it.
    reserved: u64,
    counts: Arc<Counts>,
}

impl SledBackend {
    /// Opens the database in this directory, or makes one; it keeps so many bytes of pages in memory.
    pub fn open_with(dir: &Path, cache: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let db = open_db(dir, cache)?;
        let log = db.open_tree("log").map_err(to_io)?;
        let meta = db.open_tree("meta").map_err(to_io)?;
        db.flush().map_err(to_io)?;
        for name in ["db", "conf"] {
            File::open(dir.join(name))?.sync_all()?;
        }
        files::sync_dir(dir)?;
        files::sync_dir(dir.parent().unwrap_or(dir))?;
        let file = File::options().read(true).write(true).open(dir.join("db"))?;
        let (dir, counts) = (dir.to_owned(), Arc::default());
        Ok(Self { db, log, meta, file, dir, no_sync: false, range: None, reserved: 0, counts })
    }

    /// The same, perhaps with the rule left out that a test's control leaves out.
    pub fn with_faults(mut self, faults: Faults) -> Self {
        self.no_sync = faults.has(Fault::NoSync);
        self
    }

    /// Room for the next writes, made durable by the sync of this commit.
    fn reserve(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length != self.reserved {
            let end = (length + RESERVE).min(length.next_multiple_of(SEGMENT as u64));
            self.reserved = if end > length && files::reserve(&self.file, length, end - length)? { end } else { length };
        }
        Ok(())
    }

    /// A page in a file of its own is not durable, whatever was synced: better no answer than that one.
    fn no_blobs(&self) -> io::Result<()> {
        match fs::read_dir(self.dir.join("blobs"))?.next() {
            None => Ok(()),
            Some(_) => Err(io::Error::other("sled wrote a page to a file that it does not sync; please report this")),
        }
    }

    fn log_batch(&self, change: &WriteSet) -> (Batch, Option<(u64, u64)>) {
        let mut batch = Batch::default();
        let mut range = self.range;
        if let (Some(from), Some((first, last))) = (change.truncate_from, range) {
            for index in from.max(first)..=last {
                batch.remove(&index.to_be_bytes());
            }
            range = (from > first).then(|| (first, last.min(from - 1)));
        }
        if let (Some(to), Some((first, last))) = (change.purge_to, range) {
            for index in first..=to.min(last) {
                batch.remove(&index.to_be_bytes());
            }
            range = (to < last).then(|| (first.max(to + 1), last));
        }
        for (index, content) in &change.puts {
            let key = index.to_be_bytes();
            batch.insert(&key, record::seal(&key, content));
            range = Some(range.map_or((*index, *index), |(first, last)| (first.min(*index), last.max(*index))));
        }
        (batch, range)
    }
}

impl Backend for SledBackend {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        change.check_sizes()?;
        self.reserve()?;
        let (log, range) = self.log_batch(change);
        let mut meta = Batch::default();
        for (kind, content) in &change.meta {
            let key = kind.key().as_bytes();
            meta.insert(key, record::seal(key, content));
        }
        (&self.log, &self.meta)
            .transaction(|(in_log, in_meta)| {
                in_log.apply_batch(&log)?;
                in_meta.apply_batch(&meta)?;
                Ok::<(), ConflictableTransactionError<()>>(())
            })
            .map_err(|e| match e {
                TransactionError::Storage(e) => to_io(e),
                TransactionError::Abort(()) => io::Error::other("the transaction was aborted"),
            })?;
        self.db.flush().map_err(to_io)?;
        if !self.no_sync {
            self.file.sync_data()?;
        }
        self.no_blobs()?;
        self.range = range;
        self.counts.syncs.fetch_add(1, Ordering::SeqCst);
        self.counts.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn load(&mut self) -> io::Result<Loaded> {
        let dir = self.dir.display().to_string();
        let read = catch_unwind(AssertUnwindSafe(|| read_all(&self.log, &self.meta)));
        let loaded = read.unwrap_or_else(|_| Err(damaged(format!("sled cannot read {dir}"))))?;
        self.range = loaded.log.keys().next().copied().zip(loaded.log.keys().next_back().copied());
        Ok(loaded)
    }

    fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }
}

fn read_all(log: &Tree, meta: &Tree) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    for item in log.iter() {
        let (key, value) = item.map_err(to_io)?;
        let index = u64::from_be_bytes(key.as_ref().try_into().map_err(|_| damaged("a log record has a key that is no index"))?);
        loaded.log_record(index, &value)?;
    }
    for kind in Meta::ALL {
        if let Some(value) = meta.get(kind.key()).map_err(to_io)? {
            loaded.meta_record(kind, &value)?;
        }
    }
    Ok(loaded)
}

fn open_db(dir: &Path, cache: u64) -> io::Result<Db> {
    let config = Config::new().path(dir).mode(Mode::LowSpace).segment_size(SEGMENT).cache_capacity(cache).flush_every_ms(None);
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(error)) => to_io(error),
            // A damaged file can make it panic (STACK 2.2).
            Err(_) => return Err(damaged(format!("sled cannot open {}", dir.display()))),
        };
        let locked = error.to_string().contains("could not acquire lock");
        if !locked || tries == OPEN_TRIES {
            return Err(error);
        }
        std::thread::sleep(OPEN_PAUSE);
    }
}

fn to_io(error: ::sled::Error) -> io::Error {
    match error {
        ::sled::Error::Io(e) => e,
        // What it does not understand was not written by this version of it, or not to its end.
        e => damaged(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{indexes, put};
    use super::*;

    fn open(dir: &Path) -> io::Result<SledBackend> {
        SledBackend::open_with(dir, super::super::kind::CACHE)
    }

    #[test]
    fn i7_full_pages_of_large_records_never_go_to_a_file_that_is_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        let mut backend = open(dir.path()).unwrap();
        for round in 0..3 {
            let puts = (0..40).map(|n| (round * 40 + n, vec![n as u8; VALUE_MAX])).collect::<Vec<_>>();
            backend.commit(&WriteSet { puts, ..WriteSet::default() }).unwrap();
        }
        backend.commit(&WriteSet { purge_to: Some(70), ..WriteSet::default() }).unwrap();
        for index in 120..160 {
            backend.commit(&WriteSet { puts: vec![(index, vec![7; VALUE_MAX])], ..WriteSet::default() }).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
        drop(backend);
        assert_eq!(indexes(&mut open(dir.path()).unwrap()), (71..160).collect::<Vec<_>>());
    }

    #[test]
    fn a_commit_whose_sync_fails_is_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut backend = open(dir.path()).unwrap();
        // fdatasync on this one is EINVAL.
        backend.file = File::open("/dev/null").unwrap();
        assert!(backend.commit(&put(0, "x")).is_err());
        assert_eq!(backend.counts().read(), (0, 0));
    }
}
