//! The backend on redb 4. The only module in the workspace that names it.
//!
//! Promises: [`Backend::commit`] is one write transaction over both tables with redb's own `Durability::Immediate`: it writes
//! the pages, then the new root with its checksum, and syncs the file before it returns; a commit during which nothing was
//! synced is an error. The file is ours ([`Disk`]), so that each sync is counted and redb needs no lock of its own: the data
//! directory has one. Each record has our checksum besides. An open or a read that panics is an error that can be read. It
//! does not know what a record means.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::redb::{Database, Error, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{Backend, Counts, Loaded, Meta, WriteSet, damaged, files, record};
use crate::fault::{Fault, Faults};

/// The file's name.
const FILE: &str = "redb";

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// redb's file.
#[derive(Debug)]
struct Disk {
    file: File,
    watch: Arc<Watch>,
}

/// What is seen of it from outside.
#[derive(Debug, Default)]
struct Watch {
    /// Syncs that succeeded.
    syncs: AtomicU64,
    /// A test's control: redb is told that it was synced.
    no_sync: AtomicBool,
    /// A test's disk: the sync fails.
    failing: AtomicBool,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|meta| meta.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.len()?;
        if len > now && files::reserve(&self.file, now, len - now)? {
            return Ok(());
        }
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.watch.failing.load(Ordering::SeqCst) {
            return Err(io::Error::other("this disk does not sync"));
        }
        if !self.watch.no_sync.load(Ordering::SeqCst) {
            self.file.sync_data()?;
        }
        self.watch.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// Log and vote in a redb database.
pub struct RedbBackend {
    db: Database,
    watch: Arc<Watch>,
    path: PathBuf,
    counts: Arc<Counts>,
}

impl RedbBackend {
    /// Opens the database in this directory, or makes one; it keeps so many bytes of pages in memory.
    pub fn open(dir: &Path, cache: u64, faults: Faults) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let watch = Arc::new(Watch::default());
        let disk = Disk { file: file.try_clone()?, watch: watch.clone() };
        let opened = caught(&path, "open", || {
            let db = Database::builder()
                .set_cache_size(usize::try_from(cache).unwrap_or(usize::MAX))
                .create_with_backend(disk)
                .map_err(to_io)?;
            // So that both tables are there for a reader.
            let begun = db.begin_write().map_err(to_io)?;
            begun.open_table(LOG).map_err(to_io)?;
            begun.open_table(META).map_err(to_io)?;
            begun.commit().map_err(to_io)?;
            Ok(db)
        })?;
        file.sync_all()?;
        files::sync_dir(dir)?;
        files::sync_dir(dir.parent().unwrap_or(dir))?;
        watch.no_sync.store(faults.has(Fault::NoSync), Ordering::SeqCst);
        Ok(Self { db: opened, watch, path, counts: Arc::default() })
    }

    fn write(&self, change: &WriteSet) -> Result<(), Error> {
        let writing = self.db.begin_write()?;
        {
            let mut log = writing.open_table(LOG)?;
            if let Some(from) = change.truncate_from {
                log.retain_in(from.., |_, _| false)?;
            }
            if let Some(to) = change.purge_to {
                log.retain_in(..=to, |_, _| false)?;
            }
            for (index, content) in &change.puts {
                log.insert(*index, record::seal(&index.to_be_bytes(), content).as_slice())?;
            }
            let mut meta = writing.open_table(META)?;
            for (kind, content) in &change.meta {
                meta.insert(kind.key(), record::seal(kind.key().as_bytes(), content).as_slice())?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    fn read(&self) -> io::Result<Loaded> {
        let mut loaded = Loaded::default();
        let reading = self.db.begin_read().map_err(to_io)?;
        for item in reading.open_table(LOG).map_err(to_io)?.iter().map_err(to_io)? {
            let (index, sealed) = item.map_err(to_io)?;
            loaded.log_record(index.value(), sealed.value())?;
        }
        let meta = reading.open_table(META).map_err(to_io)?;
        for kind in Meta::ALL {
            if let Some(sealed) = meta.get(kind.key()).map_err(to_io)? {
                loaded.meta_record(kind, sealed.value())?;
            }
        }
        Ok(loaded)
    }
}

impl Backend for RedbBackend {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        change.check_sizes()?;
        let before = self.watch.syncs.load(Ordering::SeqCst);
        self.write(change).map_err(to_io)?;
        if self.watch.syncs.load(Ordering::SeqCst) == before {
            return Err(io::Error::other("redb answered a commit that it did not sync; please report this"));
        }
        self.counts.syncs.fetch_add(1, Ordering::SeqCst);
        self.counts.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn load(&mut self) -> io::Result<Loaded> {
        caught(&self.path, "read", || self.read())
    }

    fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }
}

/// A damaged file can make it panic.
fn caught<T>(path: &Path, what: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let panicked = |_| Err(damaged(format!("redb cannot {what} {}", path.display())));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

fn to_io(error: impl Into<Error>) -> io::Error {
    match error.into() {
        // Shorter than it says that it is.
        Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => damaged(e.to_string()),
        Error::Io(e) => e,
        e @ (Error::Corrupted(_) | Error::RepairAborted | Error::UpgradeRequired(_)) => damaged(e.to_string()),
        e => io::Error::other(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::put;
    use super::*;

    fn open(dir: &Path) -> RedbBackend {
        RedbBackend::open(dir, super::super::kind::CACHE, Faults::default()).unwrap()
    }

    #[test]
    fn every_commit_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let mut backend = open(dir.path());
        let before = backend.watch.syncs.load(Ordering::SeqCst);
        for index in 0..10 {
            backend.commit(&put(index, "x")).unwrap();
        }
        let syncs = backend.watch.syncs.load(Ordering::SeqCst) - before;
        assert!((10..=20).contains(&syncs), "{syncs} syncs for 10 commits");
    }

    #[test]
    fn a_commit_whose_sync_fails_is_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut backend = open(dir.path());
        backend.watch.failing.store(true, Ordering::SeqCst);
        assert!(backend.commit(&put(0, "x")).is_err());
        assert_eq!(backend.counts().read(), (0, 0));
    }
}
