//! Listing directories: readdir and readdirplus.
//!
//! Offsets are the lower filesystem's own cookies, passed through: so a listing that goes on after names were made or removed
//! shows each name that was there all the time exactly once, as POSIX asks.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, RawDir, SeekFrom, statat};

use super::caller::Caller;
use super::error::{Errno, Result};
use super::handle::Open;
use super::inode::{ROOT, TYPE_BITS};
use super::status_dir::{self, StatusDir};
use super::{Entry, Fs, is_hidden};
use crate::sync::lock;

/// What one listing call reads from below at a time.
const CHUNK: usize = 32 << 10;

/// Ids for names that are listed and could not be looked at: the kernel may keep such a node, with a time-out of zero, and asks
/// for the name again before it uses it. No node of ours has one of them.
const UNSEEN_IDS: u64 = 1 << 61;

/// One name of a listing.
pub struct Item {
    /// The name.
    pub name: OsString,
    /// Its inode number, as the lower directory has it.
    pub ino: u64,
    /// Its file type bits.
    pub kind: u32,
    /// Where the listing goes on after it.
    pub cookie: u64,
}

/// Whether a name is kept out of listings: the guard's own, and what an NFS client leaves of a file that is still open.
fn unlisted(dir: u64, name: &OsStr) -> bool {
    is_hidden(name) || name.as_bytes().starts_with(b".nfs") || (dir == ROOT && name == status_dir::NAME)
}

impl Fs {
    /// Lists names from `offset` on, until `full` says that it has taken no more.
    pub fn readdir(&self, fh: u64, offset: u64, mut full: impl FnMut(&Item) -> bool) -> Result<()> {
        let open = self.handles.get(fh)?;
        let Open::Dir(node, fd) = &*open else { return Err(Errno::NOTDIR) };
        if offset == 0 {
            self.freshen(node, &self.gate.standing())?;
        }
        let fd = lock(fd);
        rustix::fs::seek(&*fd, SeekFrom::Start(offset))?;
        let mut buf = vec![MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(&*fd, &mut buf);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if unlisted(node.id, name) {
                continue;
            }
            // Some storages list names without types (NFS without READDIRPLUS); `find` and `ls` believe what they are told.
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&node.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat.st_mode & TYPE_BITS,
                    Err(_) => continue,
                },
                known => known.as_raw_mode(),
            };
            let item = Item { name: name.to_owned(), ino: entry.ino(), kind, cookie: entry.next_entry_cookie() };
            if full(&item) {
                break;
            }
        }
        Ok(())
    }

    /// Lists the virtual directory.
    pub fn readdir_status(&self, offset: u64, mut full: impl FnMut(&Item) -> bool) {
        for (n, (id, name)) in self.status.names().into_iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let item = Item { name: name.into(), ino: id, kind: 0o100_000, cookie: n as u64 + 1 };
            if full(&item) {
                break;
            }
        }
    }

    /// As [`Fs::readdir`], with the entry of each name that could be looked at; `full` gives back an entry that it did not take.
    pub fn readdirplus(
        &self,
        who: Caller,
        fh: u64,
        offset: u64,
        mut full: impl FnMut(&Item, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let seen = self.gate.standing();
        let open = self.handles.get(fh)?;
        let Open::Dir(node, _) = &*open else { return Err(Errno::NOTDIR) };
        let node = node.clone();
        drop(open);
        let mut items = Vec::new();
        // A reply holds fewer entries than this many bytes of names below; the rest is asked for again.
        let mut bytes = 0;
        self.readdir(fh, offset, |item| {
            bytes += item.name.len() + 152;
            items.push(Item { name: item.name.clone(), ..*item });
            bytes > CHUNK
        })?;
        let _acting = self.act(who)?;
        for mut item in items {
            let entry = if item.name == "." || item.name == ".." {
                None
            } else {
                match self.find(&node, &item.name, &seen) {
                    Ok(entry) => Some(entry),
                    // Gone meanwhile.
                    Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR) => continue,
                    // Who may list a directory and not enter it sees its names all the same; so it is where descriptors run short.
                    Err(_) => {
                        item.ino |= UNSEEN_IDS;
                        None
                    }
                }
            };
            if full(&item, entry.as_ref()) {
                if let Some(entry) = entry {
                    self.forget(entry.node.id, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// Whether a directory handle is the virtual directory's.
    pub fn lists_status(&self, id: u64) -> bool {
        StatusDir::has(id)
    }
}
