//! Contents: open, read, write, flush, release, fsync, fallocate, lseek, copy_file_range, ioctl.
//!
//! # Promises
//!
//! - I6, mapped pages: a page-cache write is judged by its inode, never by its handle (the kernel sends it under any writable
//!   handle of the inode), and goes down through a plain read-write descriptor of the inode, never one with `O_APPEND`.
//! - A page-cache write is taken whole or is an error, which msync and fsync tell.
//! - One permit moves at most [`COPY_MAX`] bytes.
//! - Who does not hold the lease writes no access times (`O_NOATIME`, where the owner of the process may ask for it).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::caller::Caller;
use super::error::{Errno, Result, reason};
use super::handle::{Handle, Open};
use super::inode::Node;
use super::status_dir::StatusDir;
use super::{Fs, reopen};
use crate::gate::Standing;
use crate::sync::{Arc, lock};

/// What a single permit of copy_file_range moves at most: it goes on at an NFS server after the client is gone.
pub const COPY_MAX: u64 = 64 << 20;
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;

/// The flags that the lower descriptor gets: creation and alignment are the guard's own matter.
pub(super) fn lower_flags(asked: OFlags) -> OFlags {
    asked - (OFlags::CREATE | OFlags::EXCL | OFlags::NOCTTY | OFlags::DIRECT | OFlags::NOFOLLOW | OFlags::NOATIME)
}

/// Whether an open with these flags is a mutation.
pub fn opens_for_writing(flags: i32) -> bool {
    let flags = OFlags::from_bits_retain(flags as u32);
    flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC)
}

/// Whether an ioctl only reads the file's flags.
pub fn reads_flags(cmd: u32) -> bool {
    cmd == GETFLAGS
}

/// Whether an ioctl is one that is passed on.
pub fn known_ioctl(cmd: u32) -> bool {
    matches!(cmd, GETFLAGS | SETFLAGS)
}

impl Fs {
    /// Counts a handle and gives it a number. ESTALE: another side has had a turn while the open hung (I6).
    pub(super) fn add_handle(&self, node: &Arc<Node>, fd: OwnedFd, asked: OFlags, seen: &Standing) -> Result<u64> {
        let fd = Arc::new(fd);
        let writable = asked.intersects(OFlags::WRONLY | OFlags::RDWR);
        if writable {
            // Before the descriptor can be used: I6's replacement must find it.
            self.nodes.note_writable(node, seen.epoch)?;
            let mut side = lock(&node.writable);
            if asked.contains(OFlags::RDWR) && side.pages.is_none() {
                side.pages = Some(match asked.contains(OFlags::APPEND) {
                    false => fd.clone(),
                    true => Arc::new(reopen(&node.fd, OFlags::RDWR)?),
                });
            }
            side.handles += 1;
        }
        let opened = writable.then(|| self.opened(seen));
        Ok(self.handles.add(Open::File(Handle { node: node.clone(), fd, opened, writable })))
    }

    /// open(2) of a file. The gate was asked if it is for writing.
    pub fn open(&self, who: Caller, seen: &Standing, id: u64, flags: i32) -> Result<u64> {
        if StatusDir::has(id) {
            return Ok(self.handles.add(Open::Status(self.status.contents(id)?)));
        }
        let node = self.nodes.get(id)?;
        if !node.is_file() {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::NXIO });
        }
        self.freshen(&node, seen)?;
        self.settle(who, &node, seen)?;
        if node.is_replaced() && (opens_for_writing(flags) || self.run_of(seen) != 0) {
            return Err(reason::STALE);
        }
        let asked = OFlags::from_bits_retain(flags as u32);
        let lower = lower_flags(asked);
        // To the end: a second descriptor for pages is opened as the caller too.
        let _acting = self.act(who)?;
        let fd = match opens_for_writing(flags) {
            false if !seen.holds(self.gate.now()) => {
                reopen(&node.fd, lower | OFlags::NOATIME).or_else(|_| reopen(&node.fd, lower))?
            }
            writes => {
                if writes {
                    self.still_in_time(seen)?;
                }
                reopen(&node.fd, lower)?
            }
        };
        self.drop_old_pages(&node, &fd, seen);
        if asked.contains(OFlags::TRUNC) {
            self.dirty.wrote(&node, 0);
        }
        if opens_for_writing(flags) {
            self.authors.wrote(who.pid, node.key, seen.epoch, asked.contains(OFlags::TRUNC), self.gate.now());
        }
        self.add_handle(&node, fd, asked, seen)
    }

    /// read(2): fills as much of `buf` as there is.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match &*self.handles.get(fh)? {
            Open::File(file) => {
                self.freshen_open(&file.node)?;
                if self.first_reads.matter {
                    self.drop_old_pages(&file.node, &file.fd, &self.gate.standing());
                }
                let mut done = 0;
                while done < buf.len() {
                    match rustix::io::pread(&*file.fd, &mut buf[done..], offset + done as u64) {
                        Ok(0) => break,
                        Ok(n) => done += n,
                        Err(Errno::INTR) => {}
                        Err(why) if done == 0 => return Err(why),
                        Err(_) => break,
                    }
                }
                Ok(done)
            }
            Open::Status(contents) => {
                let rest = usize::try_from(offset).ok().and_then(|o| contents.get(o..)).unwrap_or_default();
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
            Open::Dir(..) => Err(Errno::ISDIR),
        }
    }

    /// write(2). `kill`: the caller may not keep set-user-id bits, so the system call is made as the caller.
    pub fn write(&self, who: Caller, fh: u64, offset: u64, data: &[u8], kill: bool) -> Result<usize> {
        let open = self.handles.get(fh)?;
        let file = open.file()?;
        if file.node.is_replaced() {
            return Err(reason::STALE);
        }
        if !file.writable {
            return Err(Errno::BADF);
        }
        let _acting = if kill { Some(self.act(who)?) } else { None };
        self.dirty.wrote(&file.node, data.len() as u64);
        // With O_APPEND the kernel below ignores the offset, as it must.
        let written = write_all(&file.fd, offset, data);
        self.write_back.wrote(&file.node, data.len() as u64);
        written
    }

    /// A write from the page cache, of the node `id`.
    pub fn write_pages(&self, seen: &Standing, id: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let node = self.changeable(id)?;
        let pages = lock(&node.writable).pages.clone();
        let fd = match pages {
            Some(fd) => fd,
            None => Arc::new(reopen(&node.fd, OFlags::RDWR)?),
        };
        self.dirty.wrote(&node, data.len() as u64);
        let written = match self.still_in_time(seen).and_then(|()| write_all(&fd, offset, data)) {
            // The kernel does not look how much of a page-cache write was taken: what is not an error was written (m). So the rest
            // is tried once more, for the error's name.
            Ok(n) if n < data.len() && !self.faults.short_pages => {
                let rest = &data[n..];
                match write_all(&fd, offset + n as u64, rest) {
                    Ok(more) if more == rest.len() => Ok(data.len()),
                    Ok(_) => Err(Errno::IO),
                    Err(why) => Err(why),
                }
            }
            other => other,
        };
        self.write_back.wrote(&node, data.len() as u64);
        if let Err(why) = written {
            node.spoil();
            if why == reason::READ_ONLY {
                self.gate.refused_page();
                self.late.note(self.nodes.path_of(&node));
            }
            tracing::warn!(path = self.nodes.path_of(&node), %why, "mapped pages could not be written: msync and fsync say so");
        }
        written
    }

    /// close(2): on network storage this writes back and reports, as the storage's own client does.
    pub fn flush(&self, fh: u64) -> Result<()> {
        let open = self.handles.get(fh)?;
        let Open::File(file) = &*open else { return Ok(()) };
        if !file.writable {
            return Ok(());
        }
        let twin = rustix::io::dup(&*file.fd)?;
        // SAFETY: `twin` is a descriptor of our own; into_raw_fd gives it up, and close is called once.
        let rc = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(twin)) };
        let result = if rc == 0 { Ok(()) } else { Err(last_errno()) };
        self.confirmed(&file.node, result)
    }

    /// The last use of the handle has ended.
    pub fn release(&self, fh: u64) {
        self.handles.remove(fh);
    }

    /// fsync(2), fdatasync(2), of files and directories.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        match &*self.handles.get(fh)? {
            Open::File(file) => {
                let mark = self.write_back.mark(&file.node);
                let result = if data_only { rustix::fs::fdatasync(&*file.fd) } else { rustix::fs::fsync(&*file.fd) };
                if result.is_ok() {
                    self.write_back.confirmed(&file.node, mark);
                }
                self.confirmed(&file.node, result)
            }
            Open::Dir(node, listing) => {
                let result = rustix::fs::fsync(&lock(listing).fd);
                self.confirmed(node, result)
            }
            Open::Status(_) => Ok(()),
        }
    }

    /// fsync(2) of a directory that the kernel has opened by itself.
    pub fn fsync_dir(&self, who: Caller, id: u64) -> Result<()> {
        if StatusDir::has(id) {
            return Ok(());
        }
        let (node, fd) = self.dir_unopened(who, id)?;
        let result = rustix::fs::fsync(&fd);
        self.confirmed(&node, result)
    }

    /// fallocate(2).
    pub fn fallocate(&self, who: Caller, fh: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let open = self.handles.get(fh)?;
        let file = open.file()?;
        if file.node.is_replaced() {
            return Err(reason::STALE);
        }
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let _acting = self.act(who)?;
        self.dirty.wrote(&file.node, 0);
        let done = rustix::fs::fallocate(&*file.fd, mode, offset, length);
        self.write_back.wrote(&file.node, 0);
        done
    }

    /// lseek(2) to data or a hole.
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<u64> {
        let open = self.handles.get(fh)?;
        let from = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let seek = match whence {
            libc::SEEK_DATA => SeekFrom::Data(from),
            libc::SEEK_HOLE => SeekFrom::Hole(from),
            _ => return Err(Errno::INVAL),
        };
        let file = open.file()?;
        self.freshen_open(&file.node)?;
        rustix::fs::seek(&*file.fd, seek)
    }

    /// copy_file_range(2), at most [`COPY_MAX`] bytes. As the caller, who may not keep set-user-id bits.
    pub fn copy_range(&self, who: Caller, seen: &Standing, from: (u64, u64), to: (u64, u64), len: u64) -> Result<usize> {
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let (source, target) = (source.file()?, target.file()?);
        if target.node.is_replaced() {
            return Err(reason::STALE);
        }
        self.freshen_open(&source.node)?;
        self.drop_old_pages(&source.node, &source.fd, seen);
        let (mut off_in, mut off_out) = (from.1, to.1);
        let len = usize::try_from(len.min(COPY_MAX)).map_err(|_| Errno::INVAL)?;
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        crate::failpoint::here("copy-judged");
        let n = rustix::fs::copy_file_range(&*source.fd, Some(&mut off_in), &*target.fd, Some(&mut off_out), len)?;
        self.dirty.wrote(&target.node, n as u64);
        self.write_back.wrote(&target.node, n as u64);
        Ok(n)
    }

    /// ioctl(2): the file's flags, and nothing else. `fh` is 0 for a directory that the kernel has opened by itself.
    pub fn ioctl(&self, who: Caller, seen: &Standing, (id, fh): (u64, u64), cmd: u32, input: &[u8]) -> Result<Vec<u8>> {
        if StatusDir::has(id) {
            return Err(Errno::NOTTY);
        }
        let (open, unopened);
        let (raw, node) = if fh == 0 {
            unopened = self.dir_unopened(who, id)?;
            (unopened.1.as_raw_fd(), &unopened.0)
        } else {
            open = self.handles.get(fh)?;
            match &*open {
                Open::File(file) => (file.fd.as_raw_fd(), &file.node),
                Open::Dir(node, listing) => (lock(listing).fd.as_raw_fd(), node),
                Open::Status(_) => return Err(Errno::NOTTY),
            }
        };
        let mut flags: libc::c_int = 0;
        match cmd {
            GETFLAGS => {
                // SAFETY: `raw` is open as long as `open` or `unopened` lives; the kernel writes one int to a live int.
                if unsafe { libc::ioctl(raw, libc::Ioctl::from(GETFLAGS), &mut flags) } != 0 {
                    return Err(last_errno());
                }
                Ok(flags.to_ne_bytes().to_vec())
            }
            SETFLAGS => {
                if node.is_replaced() {
                    return Err(reason::STALE);
                }
                let bytes = input.get(..4).and_then(|b| b.try_into().ok()).ok_or(Errno::INVAL)?;
                flags = libc::c_int::from_ne_bytes(bytes);
                let _acting = self.act(who)?;
                self.still_in_time(seen)?;
                // SAFETY: as above; the kernel reads one int.
                if unsafe { libc::ioctl(raw, libc::Ioctl::from(SETFLAGS), &flags) } != 0 {
                    return Err(last_errno());
                }
                Ok(Vec::new())
            }
            _ => Err(Errno::NOTTY),
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// All of it, or what could be written before an error.
fn write_all(fd: &OwnedFd, offset: u64, data: &[u8]) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(fd, &data[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(why) if done == 0 => return Err(why),
            Err(_) => break,
        }
    }
    Ok(done)
}
