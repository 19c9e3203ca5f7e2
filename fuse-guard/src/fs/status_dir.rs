//! The virtual `.treelease/` in the root: who holds the tree, for scripts, without a round trip to any server.
//!
//! It is found by name and listed by nobody, so that no tool that walks the tree meets it. The daemon sets its files; a
//! reader sees a file as it was when it was opened.

use std::sync::Mutex;

use super::attr::Attr;
use super::error::{Errno, Result};
use crate::sync::lock;

/// Its name.
pub const NAME: &str = ".treelease";
/// Node ids of the directory and its files; no lower inode number and no id of ours reaches so high.
const BASE: u64 = (1 << 63) - 4096;
/// Files that it may have.
const FILES_MAX: usize = 16;

/// The virtual directory.
#[derive(Default)]
pub struct StatusDir {
    files: Mutex<Vec<(String, Vec<u8>)>>,
}

impl StatusDir {
    /// The directory's id.
    pub const ID: u64 = BASE;

    /// Whether a node id is one of this directory's.
    pub fn has(id: u64) -> bool {
        (BASE..=BASE + FILES_MAX as u64).contains(&id)
    }

    /// Sets all files; a file that was there keeps its id.
    pub fn set(&self, new: Vec<(String, Vec<u8>)>) {
        let mut files = lock(&self.files);
        for (name, contents) in new {
            match files.iter().position(|(n, _)| *n == name) {
                Some(at) => files[at].1 = contents,
                None if files.len() < FILES_MAX => files.push((name, contents)),
                None => tracing::warn!(name, "too many status files"),
            }
        }
    }

    /// Ids and names.
    pub fn names(&self) -> Vec<(u64, String)> {
        lock(&self.files).iter().enumerate().map(|(n, (name, _))| (BASE + 1 + n as u64, name.clone())).collect()
    }

    /// The id of a file.
    pub fn find(&self, name: &std::ffi::OsStr) -> Result<u64> {
        self.names().into_iter().find(|(_, n)| name == n.as_str()).map(|(id, _)| id).ok_or(Errno::NOENT)
    }

    /// A file's contents.
    pub fn contents(&self, id: u64) -> Result<Vec<u8>> {
        let n = usize::try_from(id - BASE).map_err(|_| Errno::NOENT)?;
        let n = n.checked_sub(1).ok_or(Errno::ISDIR)?;
        lock(&self.files).get(n).map(|(_, contents)| contents.clone()).ok_or(Errno::NOENT)
    }

    /// Attributes: everybody may read, nobody may write.
    pub fn attr(&self, id: u64) -> Result<Attr> {
        let (mode, size, nlink) =
            if id == Self::ID { (0o040_555, 0, 2) } else { (0o100_444, self.contents(id)?.len() as u64, 1) };
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let zero = (0, 0);
        Ok(Attr {
            ino: id,
            size,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            mode,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
        })
    }
}
