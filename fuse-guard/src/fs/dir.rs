//! Listing directories: readdir and readdirplus, with a handle or, where the kernel opens directories by itself, without.
//!
//! Offsets are the lower filesystem's own cookies, passed through: so a listing that goes on after names were made or removed
//! shows each name that was there all the time exactly once, as POSIX asks. What was read from below and did not fit into an
//! answer waits for the next one ([`Listing`]); without a handle it is found again by who asks and where the listing goes on.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom, statat};
use treelease_client::words::time::BootTime;

use super::caller::Caller;
use super::error::{Errno, Result, reason};
use super::handle::Open;
use super::inode::{Node, ROOT, TYPE_BITS};
use super::status_dir::{self, StatusDir};
use super::{Entry, Fs, is_hidden, reopen};
use crate::gate::Standing;
use crate::sync::{Arc, Mutex, lock};

/// What is read from below at a time.
const CHUNK: usize = 32 << 10;
/// Listings without a handle that can go on where they stopped; the oldest is let go of, and then reads on by its cookie.
const LISTINGS: usize = 64;

/// What was read ahead longer ago is read anew.
const READ_AHEAD_MAX: Duration = Duration::from_secs(1);

/// Ids for names that are listed and could not be looked at: the kernel may keep such a node, with a time-out of zero, and asks
/// for the name again before it uses it. No node of ours has one of them.
const UNSEEN_IDS: u64 = super::inode::NATURAL_IDS;

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

/// A directory that is being listed.
pub struct Listing {
    /// Opened as who lists it.
    pub fd: OwnedFd,
    /// Where `rest` begins.
    at: u64,
    /// Read from below and not taken yet.
    rest: VecDeque<Item>,
}

/// Listings without a handle that stopped before their end.
#[derive(Default)]
pub struct Listings(Mutex<VecDeque<Stopped>>);

struct Stopped {
    /// The node's generation, who lists it, and under which serial.
    of: (u64, u32, u32, u64),
    since: BootTime,
    listing: Listing,
}

/// Whether a name is kept out of listings: the guard's own, and what an NFS client leaves of a file that is still open.
fn unlisted(dir: u64, name: &OsStr) -> bool {
    is_hidden(name) || name.as_bytes().starts_with(b".nfs") || (dir == ROOT && name == status_dir::NAME)
}

impl Listing {
    /// At its beginning.
    pub fn of(fd: OwnedFd) -> Self {
        Listing { fd, at: 0, rest: VecDeque::new() }
    }

    fn go_to(&mut self, offset: u64) -> Result<()> {
        // A listing that begins anew shows what is there now.
        if offset != self.at || offset == 0 {
            self.rest.clear();
            rustix::fs::seek(&self.fd, SeekFrom::Start(offset))?;
            self.at = offset;
        }
        Ok(())
    }

    /// Forgets what was read ahead.
    fn read_anew(&mut self) -> Result<()> {
        self.rest.clear();
        rustix::fs::seek(&self.fd, SeekFrom::Start(self.at)).map(drop)
    }

    /// Reads on. False: there is nothing more.
    fn fill(&mut self, node: &Node) -> Result<bool> {
        let mut buf = [MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(&self.fd, &mut buf);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            // Some storages list names without types (NFS without READDIRPLUS); `find` and `ls` believe what they are told.
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    statat(&node.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).ok().map(|s| s.st_mode & TYPE_BITS)
                }
                known => Some(known.as_raw_mode()),
            };
            if let Some(kind) = kind.filter(|_| !unlisted(node.id, name)) {
                let (name, ino, cookie) = (name.to_owned(), entry.ino(), entry.next_entry_cookie());
                self.rest.push_back(Item { name, ino, kind, cookie });
            }
            if entries.is_buffer_empty() && !self.rest.is_empty() {
                return Ok(true);
            }
        }
        Ok(!self.rest.is_empty())
    }

    /// Lists names from `offset` on, until `full` says that it has not taken one. True: there may be more.
    fn list(&mut self, node: &Node, offset: u64, mut full: impl FnMut(&Item) -> bool) -> Result<bool> {
        self.go_to(offset)?;
        loop {
            let Some(item) = self.rest.front() else {
                if self.fill(node)? {
                    continue;
                }
                return Ok(false);
            };
            if full(item) {
                return Ok(true);
            }
            self.at = item.cookie;
            self.rest.pop_front();
        }
    }
}

impl Fs {
    /// Opens a directory to be listed, after its first touch in a run.
    fn open_dir(&self, who: Caller, node: &Arc<Node>, seen: &Standing) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let _acting = self.act(who)?;
        let quiet = if seen.holds(self.gate.now()) { OFlags::empty() } else { OFlags::NOATIME };
        // Not by "." beneath it: who may list a directory need not be one who may enter it.
        let open = |flags| reopen(&node.fd, flags);
        match open(flags | quiet) {
            Err(_) if !quiet.is_empty() => open(flags),
            other => other,
        }
    }

    /// opendir(3).
    pub fn opendir(&self, who: Caller, seen: &Standing, id: u64) -> Result<u64> {
        if StatusDir::has(id) {
            return Ok(self.handles.add(Open::Status(Vec::new())));
        }
        let node = self.nodes.get(id)?;
        self.freshen(&node, seen)?;
        self.settle(who, &node, seen)?;
        let fd = self.open_dir(who, &node, seen)?;
        Ok(self.handles.add(Open::Dir(node, Mutex::new(Listing::of(fd)))))
    }

    /// A directory that the kernel has opened by itself, for a call that needs a descriptor.
    pub(super) fn dir_unopened(&self, who: Caller, id: u64) -> Result<(Arc<Node>, OwnedFd)> {
        let node = self.nodes.get(id)?;
        if !node.is_dir() {
            return Err(Errno::BADF);
        }
        let fd = self.open_dir(who, &node, &self.gate.standing())?;
        Ok((node, fd))
    }

    /// Lists names from `offset` on, until `full` says that it has not taken one. `fh` is 0 where the kernel opened by itself.
    pub fn readdir(&self, who: Caller, (id, fh): (u64, u64), offset: u64, full: impl FnMut(&Item) -> bool) -> Result<()> {
        self.list(who, (id, fh), offset, &self.gate.standing(), |_| full)
    }

    fn list<F: FnMut(&Item) -> bool>(
        &self,
        who: Caller,
        (id, fh): (u64, u64),
        offset: u64,
        seen: &Standing,
        full: impl FnOnce(&Arc<Node>) -> F,
    ) -> Result<()> {
        if fh != 0 {
            let open = self.handles.get(fh)?;
            let Open::Dir(node, listing) = &*open else { return Err(Errno::NOTDIR) };
            // A listing that goes on after a grant looks at the storage anew: what it finds the kernel may keep.
            if offset == 0 || seen.caches(self.gate.now()) {
                self.freshen(node, seen)?;
            }
            let full = full(node);
            return lock(listing).list(node, offset, full).map(drop);
        }
        let node = self.nodes.get(id)?;
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let of = (node.generation, who.uid, who.gid, seen.serial);
        let mut listing = match self.listings.take(of, offset, self.gate.now()) {
            Some(listing) => listing,
            None => {
                self.freshen(&node, seen)?;
                match self.settle(who, &node, seen) {
                    // Whoever has it open reads it on, wherever its name leads now; no name is looked up again for this call.
                    Ok(()) | Err(reason::STALE) => {}
                    Err(why) => return Err(why),
                }
                Listing::of(self.open_dir(who, &node, seen)?)
            }
        };
        let full = full(&node);
        if listing.list(&node, offset, full)? {
            self.listings.stop(Stopped { of, since: self.gate.now(), listing });
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
        (id, fh): (u64, u64),
        offset: u64,
        mut full: impl FnMut(&Item, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let seen = &self.gate.standing();
        let mut failed = None;
        let (full, refused) = (&mut full, &mut failed);
        let result = self.list(who, (id, fh), offset, seen, move |node| {
            let (node, acting) = (node.clone(), self.act(who));
            move |item: &Item| {
                if let Err(why) = &acting {
                    *refused = Some(*why);
                    return true;
                }
                if item.name == "." || item.name == ".." {
                    return full(item, None);
                }
                let short = self.nodes.descriptors.is_short();
                let entry = match if short { Err(Errno::MFILE) } else { self.find(&node, &item.name, seen) } {
                    Ok(entry) => entry,
                    // Gone meanwhile.
                    Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR) => return false,
                    // Who may list a directory and not enter it sees its names all the same; so it is where descriptors run short.
                    Err(_) => {
                        return full(&Item { name: item.name.clone(), ino: (item.ino % UNSEEN_IDS) | UNSEEN_IDS, ..*item }, None);
                    }
                };
                let is_full = full(item, Some(&entry));
                if is_full {
                    self.forget(entry.node.id, 1);
                }
                is_full
            }
        });
        match failed {
            Some(why) => Err(why),
            None => result,
        }
    }

    /// Whether a directory handle is the virtual directory's.
    pub fn lists_status(&self, id: u64) -> bool {
        StatusDir::has(id)
    }
}

impl Listings {
    /// The listing of that directory by that caller that stopped there.
    ///
    /// One that begins anew ends all others of the same directory and caller: what those had read ahead is older than it.
    fn take(&self, of: (u64, u32, u32, u64), offset: u64, now: BootTime) -> Option<Listing> {
        let mut stopped = lock(&self.0);
        if offset == 0 {
            stopped.retain(|s| (s.of.0, s.of.1, s.of.2) != (of.0, of.1, of.2));
            return None;
        }
        let position = stopped.iter().rposition(|s| s.of == of && s.listing.at == offset)?;
        let mut one = stopped.remove(position)?;
        if now.since(one.since) > READ_AHEAD_MAX {
            one.listing.read_anew().ok()?;
        }
        Some(one.listing)
    }

    fn stop(&self, one: Stopped) {
        let mut stopped = lock(&self.0);
        if stopped.len() >= LISTINGS {
            stopped.pop_front();
        }
        stopped.push_back(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(of: (u64, u32, u32, u64), name: &str) -> Stopped {
        let fd = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        let item = Item { name: name.into(), ino: 2, kind: 0, cookie: 8 };
        Stopped { of, since: BootTime::default(), listing: Listing { fd, at: 7, rest: VecDeque::from([item]) } }
    }

    #[test]
    fn what_was_read_ahead_goes_on_only_in_its_own_listing_and_not_for_long() {
        let (listings, now, of) = (Listings::default(), BootTime::default(), (1, 1000, 1000, 5));
        let ahead = |listing: &Listing| listing.rest.iter().map(|item| item.name.clone()).collect::<Vec<_>>();
        listings.stop(stopped(of, "old"));
        listings.stop(stopped(of, "new"));
        assert_eq!(ahead(&listings.take(of, 7, now).unwrap()), ["new"], "the last one that stopped there");
        // Another listing of that directory begins, under another serial too: what was read before it is older than it.
        assert!(listings.take((1, 1000, 1000, 6), 0, now).is_none());
        assert!(listings.take(of, 7, now).is_none());
        listings.stop(stopped(of, "old"));
        let later = now.after(READ_AHEAD_MAX + Duration::from_millis(1));
        assert!(ahead(&listings.take(of, 7, later).unwrap()).is_empty(), "it is read anew");
    }
}
