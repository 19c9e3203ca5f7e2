//! What the kernel may keep of our answers, and for how long: the lease is a licence to cache (DESIGN 4).
//!
//! # Promises
//!
//! - Names, names that are not there, attributes and listings are kept to the lease's deadline and no longer, or, without the
//!   lease, for [`READER_TTL`]; names that are not there not at all then. An answer that was computed under another standing than
//!   the present one is kept by nobody.
//! - The licence is for what the lease keeps others from writing: not in `off` and `observe`, and not below another tree's marker.
//! - An open keeps the pages that the kernel has of a file only for the holder. *Why they are right:* everything was dropped when
//!   the lease came, before the gate opened; what the kernel has read since, nobody but this kernel has changed. A file is
//!   not known again by its times: they may be too coarse to tell two writes apart. Pages that the storage did not take (a mapped
//!   page that was refused, no room) are not on it: the next open drops them.
//! - The end of a lease does not wait for a time-out: the kernel is told to forget ([`crate::fuse`]).
//! - On network storage close(2) comes down to the guard, which flushes and reports; elsewhere there is nothing to say at close.
//!
//! # Does not know
//!
//! What the kernel really has. Which flags say so: [`crate::fuse`].

use std::ffi::OsStr;
use std::time::Duration;

use super::Fs;
use super::attr::Attr;
use super::handle::Open;
use super::inode::Node;
use crate::gate::{Right, Standing};

/// How long answers are kept without the lease: what the other side writes is seen so soon.
pub const READER_TTL: Duration = Duration::from_millis(500);

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// What the kernel may do with an answer about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Keep it as long as the lease lasts, or as a reader does.
    Licensed,
    /// Keep it as a reader does: it is below another tree's marker, and whoever holds that one writes.
    AsReader,
    /// Ask each time: another side has had a turn since it could be written (I6).
    Never,
}

impl Kept {
    /// Of this node, whose attributes are these. *Why never for a file with a set-user-id bit:* a write takes it away below, and the
    /// kernel believes what it has been told.
    pub fn with(node: &Node, attr: &Attr) -> Kept {
        match attr.mode & SET_ID != 0 && !node.is_dir() {
            true => Kept::Never,
            false => Kept::of(node),
        }
    }

    /// Of this node.
    pub fn of(node: &Node) -> Kept {
        match (node.is_replaced(), node.is_foreign()) {
            (true, _) => Kept::Never,
            (false, true) => Kept::AsReader,
            (false, false) => Kept::Licensed,
        }
    }
}

/// What becomes of a file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// The pages that the kernel has already stay.
    pub pages: bool,
    /// A close of it has nothing to say.
    pub quiet_close: bool,
    /// It is read as it is now, whatever size the kernel believes.
    pub nothing: bool,
}

impl Fs {
    /// How long the kernel may keep an answer that was computed under `seen`.
    pub fn ttl(&self, seen: &Standing, kept: Kept) -> Duration {
        let present = self.gate.standing();
        if kept == Kept::Never || present.serial != seen.serial {
            return Duration::ZERO;
        }
        match present.right {
            Right::Opening { .. } | Right::Closing { .. } => Duration::ZERO,
            Right::Write { until } | Right::Resting { until } => {
                let now = self.gate.now();
                if kept == Kept::Licensed && present.caches(now) { until.since(now) } else { READER_TTL }
            }
            Right::Read => READER_TTL,
        }
    }

    /// Whether what the kernel has of a node may stay when it is opened under `seen`.
    fn keeps(&self, node: &Node, seen: &Standing) -> bool {
        let present = self.gate.standing();
        let ours = present.serial == seen.serial && present.caches(self.gate.now());
        // Without the licence this open drops all that the kernel has: the file is as good as the storage again.
        let spoiled = node.unspoil();
        (ours && !spoiled && Kept::of(node) == Kept::Licensed) || self.faults.keep_always
    }

    /// What becomes of the file of this handle, opened under `seen`.
    pub fn keeping(&self, fh: u64, seen: &Standing) -> Keeping {
        match self.handles.get(fh).as_deref() {
            Ok(Open::File(file)) => {
                Keeping { pages: self.keeps(&file.node, seen), quiet_close: !file.writable || !self.network, nothing: false }
            }
            _ => Keeping { pages: false, quiet_close: true, nothing: true },
        }
    }

    /// Whether the kernel may keep the listing of a directory that is opened under `seen`.
    pub fn keeps_listing(&self, id: u64, seen: &Standing) -> bool {
        self.nodes.get(id).is_ok_and(|node| self.keeps(&node, seen))
    }

    /// How long the kernel may believe that a name, not found under `seen`, is not there; None: it asks each time.
    pub fn absent_for(&self, parent: u64, name: &OsStr, seen: &Standing) -> Option<Duration> {
        let ours = self.nodes.get(parent).is_ok_and(|dir| Kept::of(&dir) == Kept::Licensed);
        let now = self.gate.now();
        let ttl = Some(self.ttl(seen, Kept::Licensed)).filter(|ttl| ours && seen.caches(now) && !ttl.is_zero())?;
        // Known first, so that whoever tells the kernel to forget knows of it when the answer leaves; then looked at once more.
        let noted = self.absent.note(parent, name, now.after(ttl), now);
        let ttl = ttl.min(self.ttl(seen, Kept::Licensed));
        (noted && !ttl.is_zero()).then_some(ttl)
    }
}
