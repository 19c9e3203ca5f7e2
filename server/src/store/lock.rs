//! One process per data directory.
//!
//! Promises: while a [`DirLock`] lives, no other process has one for the same directory; it ends with the process,
//! however that ends. It does not know what the directory holds.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::failure::{Failure, Result};

/// The right to use a data directory.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes it, or says who has it (73).
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(|e| {
            Failure::cannot_create(format!("cannot open {}: {e}; check the directory's owner and mode", path.display()))
        })?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            // Its text is for the message only: an unreadable one leaves the message shorter.
            let _ = file.read_to_string(&mut pid);
            let whose = match pid.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            return Err(Failure::cannot_create(format!(
                "the data directory {} is in use: {} is locked by another treelease-server{whose}; stop that one, or choose another --data-dir",
                dir.display(),
                path.display(),
            )));
        }
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| Failure::storage(format!("cannot write {}: {e}; is the disk full?", path.display())))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use treelease_proto::refusal::Code;

    #[test]
    fn a_second_process_on_a_data_directory_is_refused_and_told_where() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let refused = DirLock::take(dir.path()).unwrap_err();
        assert_eq!(refused.code, Code::CannotCreate);
        assert!(refused.message.contains("lock"), "{refused}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }
}
