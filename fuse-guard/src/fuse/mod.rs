//! The face: each call of the kernel in a few lines: who asks, the gate, the filesystem, the reply.
//!
//! With [`mount`] and [`notify`] the only modules that name fuser. Nothing is decided here. A mutation that may wait is put
//! away with its reply ([`Call::start`]): it occupies no thread. Locks are the kernel's own of this one mount: there are no
//! lock callbacks (process-owned locks of other processes, taken by one process, corrupt databases, m).

mod answer;
mod beneath;
mod call;
mod counts;
mod crew;
mod journals;
mod keeper;
mod locks;
mod mount;
mod mounting;
mod notify;
mod pushing;
mod shared;
mod shedding;
mod write_back;

pub use beneath::below_dead;
pub use mount::{Busy, FlushFailed, Flushed, Mount, MountError, MountOptions, Writer, clear_dead, lies_dead};

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::fs::attr::{Changes, SetTime};
use crate::fs::caching::Kept;
use crate::fs::caller::Caller;
use crate::fs::error::{Result, reason};
use crate::fs::inode::ROOT;
use crate::fs::names::Making;
use crate::fs::status_dir::{self, StatusDir};
use crate::fs::{Entry, Fs, io};
use crate::gate::{Admission, Op};
use crate::sync::{Arc, Ordering};
use answer::{Answer, errno, file_attr, file_type};
use call::Call;
use counts::Kind;
use crew::Serving;
pub(crate) use shared::Shared;

/// The largest write that the kernel is asked to send at once: its own limit for one request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests that nobody waits for (reading ahead, writing back) at the same time; the kernel's own default is 12.
const BACKGROUND: u16 = 64;

/// fuser's view of a mount.
pub(crate) struct Face(pub(crate) Arc<Shared>);

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

impl Face {
    fn fs(&self) -> &Fs {
        &self.0.fs
    }

    /// Until what it returns is dropped, this thread is at work.
    fn serve(&self, kind: Kind, req: &Request) -> Serving<'_> {
        self.0.requests.count(kind);
        if self.fs().nodes.descriptors.take_crowded() {
            self.0.keeper.crowded();
        }
        self.0.crew.serve(kind, req.pid(), || self.fs().gate.at_latest())
    }

    fn call(&self, req: &Request, op: Op, on: INodeNo) -> Call {
        let (name, handle, bytes) = (None, None, 0);
        Call { shared: self.0.clone(), who: caller(req), op, on: on.0, name, handle, bytes }
    }

    fn named(&self, req: &Request, op: Op, parent: INodeNo, name: &OsStr) -> (Call, OsString) {
        let mut call = self.call(req, op, parent);
        call.name = Some(name.to_owned());
        (call, name.to_owned())
    }

    fn by_handle(&self, req: &Request, op: Op, on: INodeNo, fh: FileHandle) -> Call {
        let mut call = self.call(req, op, on);
        call.handle = self.fs().opened_under(fh.0);
        call
    }

    fn status_entry(&self, id: Result<u64>, reply: ReplyEntry) {
        match id.and_then(|id| self.fs().status.attr(id)) {
            Ok(attr) => reply.entry(&std::time::Duration::ZERO, &file_attr(&attr, attr.ino), fuser::Generation(0)),
            Err(why) => reply.error(errno(why)),
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => SetTime::At(after.as_secs() as i64, after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                let nanos = before.subsec_nanos();
                let seconds = -(before.as_secs() as i64);
                if nanos == 0 { SetTime::At(seconds, 0) } else { SetTime::At(seconds - 1, 1_000_000_000 - nanos) }
            }
        },
    }
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Not FUSE_ATOMIC_O_TRUNC: with it the open that cuts a file comes before the kernel has asked whether a program runs from
        // it (ETXTBSY), and the program is gone.
        if self.0.fs.faults.cut_at_open {
            let _known = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        }
        // Each alone: an older kernel may lack one of them.
        for flag in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HAS_IOCTL_DIR,
            // A symlink never changes; what its name leads to is asked as every name is.
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel lacks it");
            }
        }
        // By the mode alone the kernel would refuse whom an access control list lets in, and let in whom it refuses. On a mount for
        // one user the storage judges, as that user.
        if self.0.kernel_permits && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::debug!("the kernel knows no access control lists here");
        }
        let expire = config.add_capabilities(InitFlags::FUSE_HAS_EXPIRE_ONLY).is_ok();
        self.0.expire_only.store(expire, Ordering::Relaxed);
        // Only where it checks permissions by itself: nobody asks us then whether a directory may be read.
        let unopened = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT) && self.0.kernel_permits;
        self.0.unopened.store(unopened, Ordering::Relaxed);
        let _nearest = config.set_max_write(MAX_WRITE);
        let _nearest = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.serve(Kind::Lookup, req);
        if parent.0 == ROOT && name == status_dir::NAME {
            return self.status_entry(Ok(StatusDir::ID), reply);
        }
        if StatusDir::has(parent.0) {
            return self.status_entry(self.fs().status.find(name), reply);
        }
        let seen = self.fs().gate.standing();
        match self.fs().lookup(caller(req), parent.0, name) {
            Err(crate::fs::error::Errno::NOENT) => match self.fs().absent_for(parent.0, name, &seen) {
                // No node: the kernel may believe for so long that the name is not there.
                Some(ttl) => reply.entry(&ttl, &answer::bare_attr(0, 0), fuser::Generation(0)),
                None => reply.error(fuser::Errno::ENOENT),
            },
            found => reply.send(self.fs(), found),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.crew.aside(|| self.fs().forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _serving = self.serve(Kind::Getattr, req);
        reply.send(self.fs(), self.fs().getattr(ino.0));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _serving = self.serve(Kind::Setattr, req);
        let op = if size.is_some() { Op::Truncate } else { Op::Setattr };
        let mut call = self.call(req, op, ino);
        call.handle = fh.and_then(|fh| self.fs().opened_under(fh.0));
        let set = Changes { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        call.start(reply, move |fs, who, seen| fs.setattr(who, seen, ino.0, fh.map(|fh| fh.0), set));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _serving = self.serve(Kind::Readlink, req);
        reply.send(self.fs(), self.fs().readlink(caller(req), ino.0));
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let _serving = self.serve(Kind::Mknod, req);
        let (call, name) = self.named(req, Op::Mknod, parent, name);
        let making = Making { mode, umask, rdev };
        call.start(reply, move |fs, who, seen| fs.mknod(who, seen, parent.0, &name, making));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _serving = self.serve(Kind::Mkdir, req);
        let (call, name) = self.named(req, Op::Mkdir, parent, name);
        let making = Making { mode, umask, rdev: 0 };
        call.start(reply, move |fs, who, seen| fs.mkdir(who, seen, parent.0, &name, making));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Unlink, req);
        let (call, name) = self.named(req, Op::Unlink, parent, name);
        call.start(reply, move |fs, who, seen| fs.remove(who, seen, parent.0, &name, false));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Rmdir, req);
        let (call, name) = self.named(req, Op::Rmdir, parent, name);
        call.start(reply, move |fs, who, seen| fs.remove(who, seen, parent.0, &name, true));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _serving = self.serve(Kind::Symlink, req);
        let (call, name) = self.named(req, Op::Symlink, parent, link_name);
        let target = target.as_os_str().to_owned();
        call.start(reply, move |fs, who, seen| fs.symlink(who, seen, parent.0, &name, &target));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(Kind::Rename, req);
        let (call, name) = self.named(req, Op::Rename, parent, name);
        let newname = newname.to_owned();
        call.start(reply, move |fs, who, seen| fs.rename(who, seen, (parent.0, &name), (newparent.0, &newname), flags.bits()));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _serving = self.serve(Kind::Link, req);
        let (call, name) = self.named(req, Op::Link, newparent, newname);
        call.start(reply, move |fs, who, seen| fs.link(who, seen, ino.0, newparent.0, &name));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.serve(Kind::Open, req);
        if !io::opens_for_writing(flags.0) {
            let seen = self.fs().gate.standing();
            return reply.send(self.fs(), self.fs().open(caller(req), &seen, ino.0, flags.0).map(|fh| (fh, seen)));
        }
        let call = self.call(req, Op::OpenWrite, ino);
        let call = if flags.0 & nix::libc::O_TRUNC != 0 { Call { op: Op::Truncate, ..call } } else { call };
        let shared = self.0.clone();
        call.start(reply, move |fs, who, seen| {
            // After a wait, as everything: another side's turn may lie in it.
            if let Some(holder) = shared.locked_in_an_earlier_run(ino.0) {
                let why = "an exclusive lock from before another side's turn is still held: EBUSY";
                tracing::warn!(ino = ino.0, holder, "{why}");
                return Err(reason::LOCKED);
            }
            if shared.opens_to_undo_a_turn(who.pid, ino.0) {
                return Err(reason::STALE);
            }
            fs.open(who, seen, ino.0, flags.0).map(|fh| (fh, *seen))
        });
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let _serving = self.serve(Kind::Create, req);
        let fs = self.fs();
        let seen = fs.gate.standing();
        let exclusive = flags & nix::libc::O_EXCL != 0;
        // The kernel may not know that the file is there; then this is an open, and for reading it needs no lease.
        if !seen.holds(fs.gate.now())
            && (exclusive || !io::opens_for_writing(flags))
            && let Some(opened) = fs.open_existing(caller(req), &seen, (parent.0, name), flags)
        {
            return reply.send(fs, opened);
        }
        let in_git = fs.nodes.get(parent.0).is_ok_and(|dir| dir.in_git);
        let op = if in_git && name == "index.lock" { Op::IndexLock } else { Op::Create };
        let (call, name) = self.named(req, op, parent, name);
        let making = Making { mode, umask, rdev: 0 };
        let shared = self.0.clone();
        call.start(reply, move |fs, who, seen| match shared.undoes_a_turn(who.pid, parent.0, &name) {
            true => Err(reason::STALE),
            false => fs.create(who, seen, (parent.0, &name), making, flags),
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _serving = self.serve(Kind::Read, req);
        answer::with_buffer(size as usize, |buf| match self.fs().read(fh.0, offset, buf) {
            Ok(n) => reply.data(&buf[..n]),
            Err(why) => reply.error(errno(why)),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _serving = self.serve(Kind::Write, req);
        let fs = self.fs();
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mut call = match pages {
            true => self.call(req, Op::PageWrite, ino),
            false => self.by_handle(req, Op::Write, ino, fh),
        };
        let node = if pages { fs.nodes.get(ino.0).ok() } else { None };
        if node.as_ref().is_some_and(|node| node.is_replaced()) {
            fs.gate.refused_page();
            return call.refuse(reason::STALE, reply);
        }
        let Some(room) = fs.write_back.room(data.len() as u64) else {
            let data = data.to_vec();
            call.bytes = data.len();
            return call.start_in_turn(data.len() as u64, reply, move |fs, who, seen| match pages {
                true => fs.write_pages(seen, ino.0, offset, &data),
                false => fs.write(who, fh.0, offset, &data, kill),
            });
        };
        // The common case without a copy; only a write that waits takes its data along.
        match fs.gate.admit(call.op, call.handle) {
            Admission::Permit(permit) => {
                crate::failpoint::here("write-admitted");
                let result = match pages && !fs.faults.pages_by_handle {
                    true => fs.write_pages(permit.standing(), ino.0, offset, data),
                    false => fs.write(call.who, fh.0, offset, data, kill),
                };
                reply.send(fs, call.finish::<ReplyWrite>(permit, result));
            }
            Admission::Refuse(why) => {
                node.iter().for_each(|node| node.spoil());
                call.refuse(why, reply);
            }
            Admission::Wait => {
                let data = data.to_vec();
                call.bytes = data.len();
                call.start(reply, move |fs, who, seen| {
                    let _until_then = room;
                    match pages {
                        true => fs.write_pages(seen, ino.0, offset, &data),
                        false => fs.write(who, fh.0, offset, &data, kill),
                    }
                });
            }
        }
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Flush, req);
        reply.send(self.fs(), self.fs().flush(fh.0));
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(Kind::Release, req);
        self.fs().release(fh.0);
        reply.ok();
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Fsync, req);
        reply.send(self.fs(), self.fs().fsync(fh.0, datasync));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.serve(Kind::Opendir, req);
        if self.0.unopened.load(Ordering::Relaxed) {
            // From now on the kernel opens directories by itself, and keeps their listings: see `keeper` for how long.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let seen = self.fs().gate.standing();
        match self.fs().opendir(caller(req), &seen, ino.0) {
            Ok(fh) if self.fs().keeps_listing(ino.0, &seen) => {
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(why) => reply.error(errno(why)),
        }
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _serving = self.serve(Kind::Readdir, req);
        self.0.lists(ino.0, offset);
        let mut add = |item: &crate::fs::dir::Item| reply.add(INodeNo(item.ino), item.cookie, file_type(item.kind), &item.name);
        let result = match self.fs().lists_status(ino.0) {
            true => {
                self.fs().readdir_status(offset, add);
                Ok(())
            }
            false => self.fs().readdir(caller(req), (ino.0, fh.0), offset, &mut add),
        };
        match result {
            Ok(()) => reply.ok(),
            Err(why) => reply.error(errno(why)),
        }
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let _serving = self.serve(Kind::Readdirplus, req);
        let fs = self.fs();
        self.0.lists(ino.0, offset);
        let zero = std::time::Duration::ZERO;
        if fs.lists_status(ino.0) {
            // Their ids are never forgotten: no lookup is counted.
            fs.readdir_status(offset, |item| {
                let attr =
                    fs.status.attr(item.ino).map_or_else(|_| answer::bare_attr(item.ino, item.kind), |a| file_attr(&a, a.ino));
                reply.add(INodeNo(item.ino), item.cookie, &item.name, &zero, &attr, fuser::Generation(0))
            });
            return reply.ok();
        }
        let before = fs.gate.standing();
        let result = fs.readdirplus(caller(req), (ino.0, fh.0), offset, |item, entry| match entry {
            Some(Entry { node, attr, seen }) => {
                let ttl = fs.ttl(seen, Kept::with(node, attr));
                let generation = fuser::Generation(node.generation);
                reply.add(INodeNo(node.id), item.cookie, &item.name, &ttl, &file_attr(attr, node.id), generation)
            }
            // "." and "..": the kernel takes number and type, and counts no lookup.
            None => {
                let attr = answer::bare_attr(item.ino, item.kind);
                reply.add(INodeNo(item.ino), item.cookie, &item.name, &zero, &attr, fuser::Generation(0))
            }
        });
        match result {
            Ok(()) => reply.ok(),
            Err(why) => reply.error(errno(why)),
        }
        // The kernel keeps the listing from now on; and what the licence said of its first names may be wrong by now.
        self.0.lists(ino.0, offset);
        let now = fs.gate.now();
        if before.caches(now) != fs.gate.standing().caches(now) || before.serial != fs.gate.standing().serial {
            self.0.keeper.licence_ends();
        }
    }

    fn releasedir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Releasedir, req);
        self.fs().release(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Fsyncdir, req);
        let fs = self.fs();
        let result = if fh.0 == 0 { fs.fsync_dir(caller(req), ino.0) } else { fs.fsync(fh.0, datasync) };
        reply.send(fs, result);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _serving = self.serve(Kind::Statfs, req);
        match self.fs().statfs() {
            Ok(s) => {
                let (bsize, namelen, frsize) = (s.f_bsize as u32, s.f_namemax as u32, s.f_frsize as u32);
                reply.statfs(s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, bsize, namelen, frsize);
            }
            Err(why) => reply.error(errno(why)),
        }
    }

    fn setxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _pos: u32, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Setxattr, req);
        let (name, value) = (name.to_owned(), value.to_owned());
        let call = self.call(req, Op::Setxattr, ino);
        call.start(reply, move |fs, who, seen| fs.setxattr(who, seen, ino.0, &name, &value, flags));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _serving = self.serve(Kind::Getxattr, req);
        answer::xattr(reply, size, self.fs().getxattr(caller(req), ino.0, name));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _serving = self.serve(Kind::Listxattr, req);
        answer::xattr(reply, size, self.fs().listxattr(caller(req), ino.0));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Removexattr, req);
        let name = name.to_owned();
        self.call(req, Op::Removexattr, ino).start(reply, move |fs, who, seen| fs.removexattr(who, seen, ino.0, &name));
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Access, req);
        let fs = self.fs();
        let judged = match mask.contains(AccessFlags::W_OK) {
            true => fs.vet(ino.0, None).and_then(|()| match fs.gate.admit(Op::AccessWrite, None) {
                Admission::Permit(_) => Ok(()),
                Admission::Refuse(why) => Err(why),
                Admission::Wait => Err(reason::READ_ONLY),
            }),
            false => Ok(()),
        };
        reply.send(fs, judged.and_then(|()| fs.access(caller(req), ino.0, mask.bits() as u32)));
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _serving = self.serve(Kind::Ioctl, req);
        if io::reads_flags(cmd) {
            let seen = self.fs().gate.standing();
            return reply.send(self.fs(), self.fs().ioctl(caller(req), &seen, (ino.0, fh.0), cmd, &[]));
        }
        if !io::known_ioctl(cmd) {
            return reply.error(fuser::Errno::ENOTTY);
        }
        let input = in_data.to_vec();
        self.call(req, Op::SetFlags, ino).start(reply, move |fs, who, seen| fs.ioctl(who, seen, (ino.0, fh.0), cmd, &input));
    }

    fn fallocate(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let _serving = self.serve(Kind::Fallocate, req);
        let call = self.by_handle(req, Op::Fallocate, ino, fh);
        call.start(reply, move |fs, who, _| fs.fallocate(who, fh.0, offset, length, mode));
    }

    fn lseek(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _serving = self.serve(Kind::Lseek, req);
        match self.fs().lseek(fh.0, offset, whence) {
            Ok(at) => reply.offset(at as i64),
            Err(why) => reply.error(errno(why)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _serving = self.serve(Kind::CopyFileRange, req);
        let call = self.by_handle(req, Op::CopyRange, ino_out, fh_out);
        let room = len.min(io::COPY_MAX);
        call.start_in_turn(room, reply, move |fs, who, seen| {
            fs.copy_range(who, seen, (fh_in.0, offset_in), (fh_out.0, offset_out), len)
        });
    }
}
