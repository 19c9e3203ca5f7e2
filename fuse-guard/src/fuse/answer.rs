//! From the filesystem's answers to fuser's replies. What carries names or attributes gets its time-out here, at the moment
//! of sending, by [`Fs::ttl`].

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyOpen, ReplyWrite, ReplyXattr,
};

use crate::fs::attr::Attr;
use crate::fs::caching::{Keeping, Kept};
use crate::fs::error::{Errno, Result};
use crate::fs::{Attributes, Entry, Fs};
use crate::gate::Standing;

/// A reply that knows what it carries.
pub(super) trait Answer: Send + 'static {
    /// What.
    type Value;
    /// Sends it, or the error.
    fn send(self, fs: &Fs, result: Result<Self::Value>);
    /// The kernel is told an error in its place: so it will never forget the node, nor release the handle.
    fn untold(_fs: &Fs, _value: Self::Value) {}
}

/// The same error in fuser's words.
pub(super) fn errno(why: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(why.raw_os_error())
}

/// The file type of type bits.
pub(super) fn file_type(kind: u32) -> FileType {
    match kind {
        0o010_000 => FileType::NamedPipe,
        0o020_000 => FileType::CharDevice,
        0o040_000 => FileType::Directory,
        0o060_000 => FileType::BlockDevice,
        0o120_000 => FileType::Symlink,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 { SystemTime::UNIX_EPOCH.checked_add(whole) } else { SystemTime::UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(Duration::new(0, nanos))).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Attributes under a node id (or, for the root, its own number).
pub(super) fn file_attr(attr: &Attr, id: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// A number and a type, and nothing else.
pub(super) fn bare_attr(ino: u64, kind: u32) -> FileAttr {
    let zero = (0, 0);
    let (size, blocks, nlink, uid, gid, rdev, blksize) = (0, 0, 1, 0, 0, 0, 4096);
    let attr = Attr { ino, size, blocks, atime: zero, mtime: zero, ctime: zero, mode: kind, nlink, uid, gid, rdev, blksize };
    file_attr(&attr, ino)
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's buffer for one read.
pub(super) fn with_buffer<T>(size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buf| {
        if buf.len() < size {
            buf.resize(size, 0);
        }
        work(&mut buf[..size])
    })
}

/// An attribute's value, or its size where only that was asked for.
pub(super) fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(why) => reply.error(errno(why)),
    }
}

impl Answer for ReplyEmpty {
    type Value = ();
    fn send(self, _fs: &Fs, result: Result<()>) {
        match result {
            Ok(()) => self.ok(),
            Err(why) => self.error(errno(why)),
        }
    }
}

impl Answer for ReplyEntry {
    type Value = Entry;
    fn send(self, fs: &Fs, result: Result<Entry>) {
        match result {
            Ok(entry) => {
                let ttl = fs.ttl(&entry.seen, Kept::with(&entry.node, &entry.attr));
                self.entry(&ttl, &file_attr(&entry.attr, entry.node.id), Generation(entry.node.generation));
            }
            Err(why) => self.error(errno(why)),
        }
    }
    fn untold(fs: &Fs, entry: Entry) {
        fs.forget(entry.node.id, 1);
    }
}

impl Answer for ReplyAttr {
    type Value = Attributes;
    fn send(self, fs: &Fs, result: Result<Attributes>) {
        match result {
            Ok(a) => self.attr(&fs.ttl(&a.seen, a.kept), &file_attr(&a.attr, a.attr.ino)),
            Err(why) => self.error(errno(why)),
        }
    }
}

/// How the kernel is told what becomes of a file that is opened now.
fn flags(keeping: Keeping) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, keeping.pages);
    flags.set(FopenFlags::FOPEN_NOFLUSH, keeping.quiet_close);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, keeping.nothing);
    flags
}

impl Answer for ReplyOpen {
    /// The handle, and the standing under which it was opened.
    type Value = (u64, Standing);
    fn send(self, fs: &Fs, result: Result<(u64, Standing)>) {
        match result {
            Ok((fh, seen)) => self.opened(FileHandle(fh), flags(fs.keeping(fh, &seen))),
            Err(why) => self.error(errno(why)),
        }
    }
    fn untold(fs: &Fs, (fh, _): Self::Value) {
        fs.release(fh);
    }
}

impl Answer for ReplyCreate {
    type Value = (Entry, u64);
    fn send(self, fs: &Fs, result: Result<(Entry, u64)>) {
        match result {
            Ok((entry, fh)) => {
                let ttl = fs.ttl(&entry.seen, Kept::with(&entry.node, &entry.attr));
                let attr = file_attr(&entry.attr, entry.node.id);
                let generation = Generation(entry.node.generation);
                self.created(&ttl, &attr, generation, FileHandle(fh), flags(fs.keeping(fh, &entry.seen)));
            }
            Err(why) => self.error(errno(why)),
        }
    }
    fn untold(fs: &Fs, (entry, fh): Self::Value) {
        fs.release(fh);
        fs.forget(entry.node.id, 1);
    }
}

impl Answer for ReplyWrite {
    type Value = usize;
    fn send(self, _fs: &Fs, result: Result<usize>) {
        match result {
            Ok(n) => self.written(n as u32),
            Err(why) => self.error(errno(why)),
        }
    }
}

impl Answer for ReplyData {
    type Value = Vec<u8>;
    fn send(self, _fs: &Fs, result: Result<Vec<u8>>) {
        match result {
            Ok(data) => self.data(&data),
            Err(why) => self.error(errno(why)),
        }
    }
}

impl Answer for ReplyIoctl {
    type Value = Vec<u8>;
    fn send(self, _fs: &Fs, result: Result<Vec<u8>>) {
        match result {
            Ok(data) => self.ioctl(0, &data),
            Err(why) => self.error(errno(why)),
        }
    }
}
