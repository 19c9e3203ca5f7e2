//! Snapshots as plain files: `DIR/snapshots/INDEX-ID.snap`, the highest index counts.
//!
//! Promises: a snapshot is durable before [`SnapshotDir::keep`] returns, and only then are older ones removed, so that
//! there is always one that covers what was purged from the log; a damaged newest one is an error, never passed over for
//! an older one (the log between them is gone). It is written and read in pieces: a large one is never in memory as a whole. It does
//! not know what is inside.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{damaged, files, record};

const SUFFIX: &str = ".snap";
/// How often a reader looks again when the snapshot that it was about to read was replaced: snapshots come minutes apart.
const REPLACED_TRIES: u32 = 16;
const KEY: &[u8] = b"treelease snapshot 1";
/// What is in memory of a snapshot that is written or read.
const PIECE: usize = 256 * 1024;
/// Bytes of a new snapshot that the disk has not got yet, at most.
const SYNC_EVERY: usize = 4 << 20;
/// Where the content begins: before it is its checksum.
pub(super) const BEGIN: u64 = record::HEADER as u64;

/// The directory of one node's snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotDir(PathBuf);

/// A snapshot that is being made, or comes in. Dropped, it is gone.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl SnapshotDir {
    /// Makes the directory if it is missing and removes half-written files.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // Also when it was there: perhaps since a start that was cut off just here.
        files::sync_dir(dir.parent().unwrap_or(dir))?;
        // And the name of the newest one: openraft purges the log as far as it goes.
        files::sync_dir(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(files::TEMPORARY) {
                files::remove(&path)?;
            }
        }
        Ok(Self(dir.to_owned()))
    }

    /// A place for a new one.
    pub fn draft(&self) -> io::Result<Draft> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.0.join(format!("draft-{number}{}", files::TEMPORARY));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let mut draft = Draft { file, path, kept: false };
        draft.file.write_all(&[0; BEGIN as usize])?;
        Ok(draft)
    }

    /// Makes a snapshot durable, then removes those before it. Does nothing if there is a newer one.
    pub fn keep(&self, mut draft: Draft, index: u64, id: &str) -> io::Result<()> {
        let name = format!("{index:020}-{id}{SUFFIX}");
        let before = self.names()?;
        if before.last().is_some_and(|newest| newest[..20] > name[..20]) {
            return Ok(());
        }
        let sum = record::checksum_of(KEY, &mut draft.reader()?)?;
        draft.file.write_all_at(&sum.to_le_bytes(), 0)?;
        draft.file.sync_all()?;
        fs::rename(&draft.path, self.0.join(&name))?;
        draft.kept = true;
        files::sync_dir(&self.0)?;
        for old in before.iter().filter(|old| **old != name) {
            files::remove(&self.0.join(old))?;
        }
        Ok(())
    }

    /// The newest snapshot, if there is any: its file, found whole, at the begin of its content.
    pub fn newest(&self) -> io::Result<Option<File>> {
        let mut tries = 0;
        let (path, mut file) = loop {
            let Some(name) = self.names()?.pop() else { return Ok(None) };
            let path = self.0.join(name);
            match File::open(&path) {
                Ok(file) => break (path, file),
                // A newer one was saved since, and this one removed.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < REPLACED_TRIES => tries += 1,
                Err(e) => return Err(e),
            }
        };
        let bad = |why: &dyn std::fmt::Display| damaged(format!("the snapshot {}: {why}", path.display()));
        let mut written = [0; BEGIN as usize];
        file.read_exact(&mut written).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => bad(&"it is too short"),
            _ => e,
        })?;
        if record::checksum_of(KEY, &mut BufReader::with_capacity(PIECE, &file))? != u32::from_le_bytes(written) {
            return Err(bad(&"its checksum is wrong"));
        }
        file.seek(SeekFrom::Start(BEGIN))?;
        Ok(Some(file))
    }

    /// The whole at once.
    #[cfg(test)]
    pub fn save(&self, index: u64, id: &str, content: &[u8]) -> io::Result<()> {
        let mut draft = self.draft()?;
        draft.fill(|out| out.write_all(content))?;
        self.keep(draft, index, id)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(SUFFIX) && name.len() > 20 && name.is_char_boundary(20) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Draft {
    /// Writes its content.
    pub fn fill(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(PIECE, Steady { file: &self.file, unsynced: 0 });
        write(&mut out)?;
        out.flush()
    }

    /// Its content from the begin.
    pub fn reader(&mut self) -> io::Result<impl io::BufRead> {
        self.file.seek(SeekFrom::Start(BEGIN))?;
        Ok(reader(&self.file))
    }

    /// Another handle to its file, for whoever brings the content.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Syncs what it has written every now and then.
///
/// *Why:* a filesystem with a journal makes whoever syncs another file wait until the new blocks of this one are written, and that
/// other file is the log, for which commands wait.
struct Steady<'a> {
    file: &'a File,
    unsynced: usize,
}

impl Write for Steady<'_> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let written = self.file.write(content)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_EVERY {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // What is left is removed by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Reads from where the file is, in pieces.
pub fn reader(file: &File) -> impl io::BufRead {
    BufReader::with_capacity(PIECE, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(snapshots: &SnapshotDir) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        snapshots.newest().unwrap().map(|mut file| file.read_to_end(&mut content).map(|_| content).unwrap())
    }

    #[test]
    fn the_newest_snapshot_counts_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(&dir.path().join("snapshots")).unwrap();
        assert_eq!(newest(&snapshots), None);
        snapshots.save(9, "a", b"nine").unwrap();
        snapshots.save(10, "b", b"ten").unwrap();
        snapshots.save(8, "c", b"eight").unwrap();
        assert_eq!(newest(&snapshots).unwrap(), b"ten");
        let left = fs::read_dir(dir.path().join("snapshots")).unwrap().count();
        assert_eq!((snapshots.names().unwrap().len(), left), (1, 1), "of what was not needed nothing is left either");
    }

    #[test]
    fn a_draft_that_nobody_keeps_is_gone_and_one_of_a_killed_process_goes_with_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        let count = || fs::read_dir(dir.path()).unwrap().count();
        drop(snapshots.draft().unwrap());
        assert_eq!(count(), 0);
        std::mem::forget(snapshots.draft().unwrap());
        assert_eq!((count(), newest(&snapshots)), (1, None), "half of one is none");
        SnapshotDir::open(dir.path()).unwrap();
        assert_eq!(count(), 0);
    }

    #[test]
    fn a_snapshot_lies_on_disk_as_earlier_versions_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        let content: Vec<u8> = (0..3 * PIECE).map(|n| n as u8).collect();
        snapshots.save(1, "a", &content).unwrap();
        let path = dir.path().join(&snapshots.names().unwrap()[0]);
        assert!(fs::read(&path).unwrap() == record::seal(KEY, &content));
        fs::write(&path, record::seal(KEY, b"earlier")).unwrap();
        assert_eq!(newest(&snapshots).unwrap(), b"earlier");
    }

    #[test]
    fn a_reader_never_misses_the_snapshot_that_is_being_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        snapshots.save(0, "a", b"x").unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for index in 1..300 {
                    snapshots.save(index, "a", b"x").unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                assert_eq!(newest(&snapshots).unwrap(), b"x");
            }
        });
    }

    #[test]
    fn a_damaged_snapshot_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        snapshots.save(1, "a", b"content").unwrap();
        let path = dir.path().join(&snapshots.names().unwrap()[0]);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        for bytes in [&bytes[..], &whole[..whole.len() - 1], &whole[..3], b""] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(snapshots.newest().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
