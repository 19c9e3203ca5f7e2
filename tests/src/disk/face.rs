//! The disk as the kernel sees it. Nothing is kept in the kernel's caches longer than a call, so that all that a program writes
//! is in the model when its call returns.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

use super::hang::Hangs;
use super::model::{Model, No};
use super::pace::Pace;

/// How long the kernel may believe an answer.
const TTL: Duration = Duration::ZERO;
const NO_HANDLE: FileHandle = FileHandle(0);
/// As a disk of 1 TiB, half full.
const BLOCKS: u64 = 1 << 28;

/// See the module.
pub struct Face(pub Arc<Mutex<Model>>, pub Hangs, pub Option<Arc<Pace>>);

impl Face {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.1.wait();
        self.0.lock().expect("the disk does not panic")
    }

    fn attr(&self, ino: u64) -> Result<FileAttr, Errno> {
        let (is_dir, size) = self.model().stat(ino).map_err(errno)?;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_dir { FileType::Directory } else { FileType::RegularFile },
            perm: if is_dir { 0o700 } else { 0o600 },
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, found: Result<u64, No>, reply: ReplyEntry) {
        match found.map_err(errno).and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(e) => reply.error(e),
        }
    }
}

fn errno(no: No) -> Errno {
    match no {
        No::Power | No::Broken => Errno::EIO,
        No::Entry => Errno::ENOENT,
        No::Exists => Errno::EEXIST,
        No::NotDir => Errno::ENOTDIR,
        No::IsDir => Errno::EISDIR,
        No::NotEmpty => Errno::ENOTEMPTY,
    }
}

fn done(result: Result<(), No>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(no) => reply.error(errno(no)),
    }
}

impl Filesystem for Face {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.model().lookup(parent.0, name);
        self.entry(found, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Modes and times are not what this disk is about.
        let resized = match size {
            Some(len) => self.model().resize(ino.0, len),
            None => Ok(()),
        };
        match resized.map_err(errno).and_then(|()| self.attr(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.model().make(parent.0, name, true);
        self.entry(made, reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.model().make(parent.0, name, false);
        match made.map_err(errno).and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), NO_HANDLE, FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.model().remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.model().remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        done(self.model().rename((parent.0, name), (newparent.0, newname)), reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.model().read(ino.0, offset, size as usize) {
            Ok(data) => reply.data(data),
            Err(no) => reply.error(errno(no)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.model().write(ino.0, offset, data);
        match written {
            Ok(()) => {
                self.2.iter().for_each(|pace| pace.wrote(ino.0, data.len() as u64));
                reply.written(data.len() as u32);
            }
            Err(no) => reply.error(errno(no)),
        }
    }

    /// Room at the end of a file is a change of its length: lost, like any other, until the file is synced.
    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut model = self.model();
        let grown = model.stat(ino.0).and_then(|(_, now)| model.resize(ino.0, now.max(offset + length)));
        drop(model);
        done(grown, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(pace) = self.2.clone() else { return done(self.model().sync(ino.0), reply) };
        let model = self.0.clone();
        // Other calls are answered meanwhile.
        std::thread::spawn(move || {
            let result = pace.sync(ino.0, || model.lock().expect("the disk does not panic").sync(ino.0));
            done(result, reply);
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.model().sync(ino.0), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let model = self.model();
        let names = match model.names(ino.0) {
            Ok(names) => names,
            Err(no) => return reply.error(errno(no)),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ino.0)];
        let all = dots.into_iter().chain(names.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (n, (name, ino)) in all.enumerate().skip(offset as usize) {
            let kind = match model.stat(ino) {
                Ok((true, _)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), n as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS / 2, BLOCKS / 2, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
