//! Snapshots as plain files: `DIR/snapshots/INDEX-ID.snap`, the highest index counts.
//!
//! Promises: a snapshot is durable before [`SnapshotDir::save`] returns, and only then are older ones removed, so that
//! there is always one that covers what was purged from the log; a damaged newest one is an error, never passed over for
//! an older one (the log between them is gone). It does not know what is inside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{damaged, files, record};

const SUFFIX: &str = ".snap";
/// How often a reader looks again when the snapshot that it was about to read was replaced: snapshots come minutes apart.
const REPLACED_TRIES: u32 = 16;
const KEY: &[u8] = b"treelease snapshot 1";

/// The directory of one node's snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotDir(PathBuf);

impl SnapshotDir {
    /// Makes the directory if it is missing and removes half-written files.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // Also when it was there: perhaps since a start that was cut off just here.
        files::sync_dir(dir.parent().unwrap_or(dir))?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(files::TEMPORARY) {
                files::remove(&path)?;
            }
        }
        Ok(Self(dir.to_owned()))
    }

    /// Makes a snapshot durable, then removes those before it. Does nothing if there is a newer one.
    pub fn save(&self, index: u64, id: &str, content: &[u8]) -> io::Result<()> {
        let name = format!("{index:020}-{id}{SUFFIX}");
        let before = self.names()?;
        if before.last().is_some_and(|newest| newest[..20] > name[..20]) {
            return Ok(());
        }
        files::replace(&self.0.join(&name), &record::seal(KEY, content))?;
        for old in before.iter().filter(|old| **old != name) {
            files::remove(&self.0.join(old))?;
        }
        Ok(())
    }

    /// The newest snapshot, if there is any.
    pub fn newest(&self) -> io::Result<Option<Vec<u8>>> {
        let mut tries = 0;
        let (path, content) = loop {
            let Some(name) = self.names()?.pop() else { return Ok(None) };
            let path = self.0.join(name);
            match fs::read(&path) {
                Ok(content) => break (path, content),
                // A newer one was saved since, and this one removed.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < REPLACED_TRIES => tries += 1,
                Err(e) => return Err(e),
            }
        };
        record::open(KEY, &content).map(Some).map_err(|e| damaged(format!("the snapshot {}: {e}", path.display())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_snapshot_counts_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(&dir.path().join("snapshots")).unwrap();
        assert_eq!(snapshots.newest().unwrap(), None);
        snapshots.save(9, "a", b"nine").unwrap();
        snapshots.save(10, "b", b"ten").unwrap();
        snapshots.save(8, "c", b"eight").unwrap();
        assert_eq!(snapshots.newest().unwrap().unwrap(), b"ten");
        assert_eq!(snapshots.names().unwrap().len(), 1);
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
                assert_eq!(snapshots.newest().unwrap().unwrap(), b"x");
            }
        });
    }

    #[test]
    fn a_damaged_snapshot_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        snapshots.save(1, "a", b"content").unwrap();
        let path = dir.path().join(&snapshots.names().unwrap()[0]);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(snapshots.newest().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
