//! Which backend keeps log and vote, and the way to open it.
//!
//! Promises: a data directory that has never been complete (nobody was answered from it, no vote of it counted) and whose
//! database was cut off half made begins anew; any other one that cannot be read stays as it is, and is an error. It does not
//! know what is in the records.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::journal::Journaled;
use super::redb::RedbBackend;
use super::sled::SledBackend;
use super::{Backend, files};
use crate::fault::{Fault, Faults};

/// Bytes of pages in memory, if nothing else is said. The live log is in our own memory; a store's pages are for recovery, and the
/// last of them for the next append.
pub const CACHE: u64 = 1 << 20;
/// The least: a store keeps the last pages in any case.
pub const CACHE_LEAST: u64 = 1 << 20;
/// The most: the live log is never larger.
pub const CACHE_MOST: u64 = 4 << 30;

/// Which backend keeps log and vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// sled, with a sync of our own.
    #[default]
    Sled,
    /// redb.
    Redb,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 2] = [Kind::Sled, Kind::Redb];

    /// As `--store` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Sled => "sled",
            Kind::Redb => "redb",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Opens the database in this directory, or makes one.
    pub fn open(self, dir: &Path, faults: Faults) -> io::Result<Box<dyn Backend>> {
        self.open_with(dir, CACHE, faults)
    }

    /// The same with so many bytes of pages in memory.
    pub fn open_with(self, dir: &Path, cache: u64, faults: Faults) -> io::Result<Box<dyn Backend>> {
        if dir.exists() {
            files::forget_pages(dir)?;
        }
        let behind = if faults.has(Fault::NoStoreSync) { faults.with(Fault::NoSync) } else { faults };
        Ok(match self {
            Kind::Sled => Box::new(Journaled::open(dir, SledBackend::open_with(dir, cache)?.with_faults(behind), faults)?),
            Kind::Redb => Box::new(Journaled::open(dir, RedbBackend::open(dir, cache, behind)?, faults)?),
        })
    }

    /// The same for a directory that has never been complete: what cannot be opened was cut off half made, and nobody has
    /// relied on it.
    pub fn open_unfinished(self, dir: &Path, cache: u64, faults: Faults) -> io::Result<Box<dyn Backend>> {
        let read = |mut backend: Box<dyn Backend>| backend.load().map(|_| backend);
        match self.open_with(dir, cache, faults).and_then(read) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("{} was cut off while it was made ({e}); it is made anew", dir.display());
                fs::remove_dir_all(dir)?;
                files::sync_dir(dir.parent().unwrap_or(dir))?;
                self.open_with(dir, cache, faults)
            }
            opened => opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Meta, WriteSet};
    use super::*;

    fn filled(kind: Kind, dir: &Path) {
        let puts = (0..50).map(|index| (index, vec![index as u8; 300])).collect();
        let change = WriteSet { puts, meta: vec![(Meta::Vote, b"mine".to_vec())], ..WriteSet::default() };
        kind.open(dir, Faults::default()).unwrap().commit(&change).unwrap();
    }

    /// The file that holds the records.
    fn database(kind: Kind, dir: &Path) -> std::path::PathBuf {
        dir.join(match kind {
            Kind::Sled => "db",
            Kind::Redb => "redb",
        })
    }

    #[test]
    fn a_half_made_database_is_made_anew_only_where_nobody_has_relied_on_it() {
        for kind in Kind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            filled(kind, &log);
            // sled takes noise in its records for an empty database: what the identity says is then missed (`identity`).
            let file = if kind == Kind::Sled { log.join("conf") } else { database(kind, &log) };
            let noise: Vec<u8> = fs::read(&file).unwrap().iter().map(|byte| byte ^ 0x5a).collect();
            fs::write(&file, noise).unwrap();
            let refused = kind.open(&log, Faults::default()).and_then(|mut backend| backend.load().map(drop));
            assert!(refused.is_err(), "{kind:?}");
            let anew = kind.open_unfinished(&log, CACHE, Faults::default()).unwrap().load().unwrap();
            assert!(anew.log.is_empty() && anew.meta.is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn i7_a_database_cut_short_anywhere_is_damage_or_lacks_records_but_never_has_wrong_ones() {
        for kind in Kind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            filled(kind, &log);
            let whole = kind.open(&log, Faults::default()).unwrap().load().unwrap();
            let bytes = fs::read(database(kind, &log)).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            for part in 0..8 {
                let cut = dir.path().join(format!("cut-{part}"));
                copy(&log, &cut);
                fs::write(database(kind, &cut), &bytes[..used * part / 8]).unwrap();
                if let Ok(read) = kind.open(&cut, Faults::default()).and_then(|mut backend| backend.load()) {
                    assert!(read.log.iter().all(|(index, record)| whole.log[index] == *record), "{kind:?} {part}");
                    assert!(read.meta.iter().all(|(meta, record)| whole.meta[meta] == *record), "{kind:?} {part}");
                }
            }
        }
    }

    #[test]
    fn a_directory_of_an_earlier_version_goes_on_behind_a_journal() {
        for kind in Kind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            let mut bare: Box<dyn Backend> = match kind {
                Kind::Sled => Box::new(SledBackend::open_with(&log, CACHE).unwrap()),
                Kind::Redb => Box::new(RedbBackend::open(&log, CACHE, Faults::default()).unwrap()),
            };
            let put = |index, content: &[u8]| WriteSet { puts: vec![(index, content.to_vec())], ..WriteSet::default() };
            bare.commit(&put(0, b"before")).unwrap();
            drop(bare);
            kind.open(&log, Faults::default()).unwrap().commit(&put(1, b"after")).unwrap();
            let found = kind.open(&log, Faults::default()).unwrap().load().unwrap();
            assert_eq!(found.log.into_values().collect::<Vec<_>>(), [b"before".to_vec(), b"after".to_vec()]);
            assert!(found.meta.is_empty(), "the journal's number is its own");
        }
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &to);
            } else {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
}
