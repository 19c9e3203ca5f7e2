//! Attributes: getattr, setattr, access, statfs.

use rustix::fs::{Access, AtFlags, Gid, OFlags, StatVfs, Statx, Timestamps, Uid};

use super::caching::Kept;
use super::caller::Caller;
use super::error::{Errno, Result};
use super::inode::{Key, Node, ROOT, TYPE_BITS, stat_fd};
use super::status_dir::StatusDir;
use super::{Attributes, Fs, chmod, proc_path, reopen};
use crate::gate::Standing;
use crate::sync::Arc;

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // stat(2)
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// With the file type bits.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// As the protocol encodes it.
    pub rdev: u32,
    pub blksize: u32,
}

impl Attr {
    /// Of a node whose status was read.
    pub fn of(node: &Node, s: &Statx) -> Self {
        let ino = if node.id == ROOT { s.stx_ino } else { node.id };
        let (major, minor) = (s.stx_rdev_major, s.stx_rdev_minor);
        Attr {
            ino,
            size: s.stx_size,
            blocks: s.stx_blocks,
            atime: (s.stx_atime.tv_sec, s.stx_atime.tv_nsec),
            mtime: (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec),
            ctime: (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec),
            mode: u32::from(s.stx_mode),
            nlink: s.stx_nlink,
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            blksize: s.stx_blksize,
        }
    }
    /// Its file type bits.
    pub fn kind(&self) -> u32 {
        self.mode & TYPE_BITS
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Now, by the lower filesystem's clock.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// What to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // chmod(2), chown(2), truncate(2), utimensat(2)
pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

impl Fs {
    /// The node's status, as fresh as this standing asks for.
    pub(super) fn stat(&self, node: &Node, seen: &Standing) -> Result<Attr> {
        let sync = !self.believes(node, seen);
        let stat = stat_fd(&node.fd, sync)?;
        if sync {
            node.set_fresh(seen.serial);
        }
        Ok(Attr::of(node, &stat))
    }

    /// getattr(2).
    pub fn getattr(&self, id: u64) -> Result<Attributes> {
        let seen = self.gate.standing();
        if StatusDir::has(id) {
            return Ok(Attributes { attr: self.status.attr(id)?, kept: Kept::Never, seen });
        }
        let node = self.nodes.get(id)?;
        let attr = self.stat(&node, &seen)?;
        Ok(Attributes { attr, kept: Kept::with(&node, &attr), seen })
    }

    /// chmod, chown, truncate, utimens, in the order in which a later one cannot undo an earlier one.
    pub fn setattr(&self, who: Caller, seen: &Standing, id: u64, fh: Option<u64>, set: Changes) -> Result<Attributes> {
        let node = self.changeable(id)?;
        if fh.is_none() {
            self.settle_to_change(who, &node, seen)?;
        }
        {
            let _acting = self.act(who)?;
            if set.uid.is_some() || set.gid.is_some() {
                self.still_in_time(seen)?;
                let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
                rustix::fs::chownat(&node.fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            if let Some(mode) = set.mode {
                self.still_in_time(seen)?;
                chmod(&node.fd, mode)?;
            }
            if let Some(size) = set.size {
                self.truncate(&node, fh, size, seen)?;
                // Cut to nothing, nothing of an earlier run is in it.
                self.authors.wrote(who.pid, node.key, seen.epoch, size == 0, self.gate.now());
            }
            if set.atime.is_some() || set.mtime.is_some() {
                self.still_in_time(seen)?;
                let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
                match rustix::fs::utimensat(&node.fd, "", &times, AtFlags::EMPTY_PATH) {
                    // Kernels before 5.8 do not take an empty path.
                    Err(Errno::NOENT | Errno::INVAL) => {
                        rustix::fs::utimensat(rustix::fs::CWD, proc_path(&node.fd), &times, AtFlags::empty())?;
                    }
                    other => other?,
                }
            }
        }
        self.dirty.wrote(&node, 0);
        let attr = Attr::of(&node, &stat_fd(&node.fd, false)?);
        Ok(Attributes { attr, kept: Kept::with(&node, &attr), seen: *seen })
    }

    fn truncate(&self, node: &Arc<Node>, fh: Option<u64>, size: u64, seen: &Standing) -> Result<()> {
        if let Some(fh) = fh
            && let Ok(open) = self.handles.get(fh)
            && let Ok(file) = open.file()
            && file.writable
        {
            self.still_in_time(seen)?;
            return rustix::fs::ftruncate(&*file.fd, size);
        }
        if !node.is_file() {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::INVAL });
        }
        let fd = reopen(&node.fd, OFlags::WRONLY)?;
        self.still_in_time(seen)?;
        rustix::fs::ftruncate(&fd, size)
    }

    /// access(2), for a mount on which the kernel does not check permissions itself. The gate has been asked about `W_OK`.
    pub fn access(&self, who: Caller, id: u64, mask: u32) -> Result<()> {
        if StatusDir::has(id) {
            return Ok(());
        }
        let node = self.nodes.get(id)?;
        self.freshen_open(&node)?;
        let _acting = self.act(who)?;
        let access = Access::from_bits_truncate(mask);
        rustix::fs::accessat(rustix::fs::CWD, proc_path(&node.fd), access, AtFlags::EACCESS)
    }

    /// statfs(2).
    pub fn statfs(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(&self.nodes.root().fd)
    }

    /// The lower inode of a name, where there is one, and how many names it has.
    pub(super) fn key_at(&self, dir: &Node, name: &std::ffi::OsStr) -> Option<(Key, u32)> {
        use rustix::fs::{StatxFlags, statx};
        let asked = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::NLINK;
        let stat = statx(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW, asked).ok()?;
        Some((Key::of(&stat), stat.stx_nlink))
    }
}

fn timespec(time: Option<SetTime>) -> rustix::fs::Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, rustix::fs::UTIME_OMIT),
        Some(SetTime::Now) => (0, rustix::fs::UTIME_NOW),
        Some(SetTime::At(seconds, nanos)) => (seconds, nanos.into()),
    };
    rustix::fs::Timespec { tv_sec, tv_nsec }
}
