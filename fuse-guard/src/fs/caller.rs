//! Acting as the caller: its fsuid, fsgid and supplementary groups, undone on drop.
//!
//! A daemon of an ordinary user acts as itself, and nothing here does anything. A daemon that runs as root user, with one
//! mount for many users, carries out every operation as its caller, so that permissions, ownership, quotas and a
//! root-squashed export see the caller. *Why it is safe:* fsuid, fsgid and groups are set by raw system calls, which change
//! the calling thread alone (glibc's `setgroups` would change all threads); [`ActingAs`] cannot leave its thread; and that
//! the kernel obeys is tried once at start ([`Callers::try_out`]), so a daemon without the capability mounts nothing.
//!
//! Also here: the creation mask. The kernel sends each caller's umask; the process's own must not mask a second time, so each
//! serving thread gets a mask of its own, zero ([`own_mask`]).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::time::Duration;

use nix::libc;
use treelease_client::words::time::BootTime;

use super::error::{Errno, Result};
use crate::sync::lock;

/// How long a process's groups are believed; newly added groups need a new login anyway.
const GROUPS_KEPT: Duration = Duration::from_secs(1);
/// Processes whose groups are remembered; at the limit all are forgotten.
const GROUPS_MAX: usize = 1024;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// Its fsuid.
    pub uid: u32,
    /// Its fsgid.
    pub gid: u32,
    /// Its thread's id, 0 when the kernel asks for itself.
    pub pid: u32,
}

/// How to act as callers.
pub struct Callers {
    privileged: bool,
    own_groups: Vec<libc::gid_t>,
    groups: Mutex<BTreeMap<u32, (BootTime, Vec<libc::gid_t>)>>,
}

/// While this lives, the thread acts as the caller.
pub struct ActingAs<'a> {
    restore: Option<&'a [libc::gid_t]>,
    groups_changed: bool,
    _this_thread: PhantomData<*const ()>,
}

fn set_groups(groups: &[libc::gid_t]) -> Result<()> {
    // SAFETY: the pointer and the length describe one live slice; the call reads it and changes this thread's groups only.
    let rc = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(Errno::PERM) }
}

fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: no pointers; both calls change this thread's credentials only. Gid first: it needs the capability.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

impl Callers {
    /// As this process may.
    pub fn new() -> Self {
        let privileged = rustix::process::geteuid().is_root();
        let own_groups =
            rustix::process::getgroups().map(|all| all.into_iter().map(|g| g.as_raw()).collect()).unwrap_or_default();
        Callers { privileged, own_groups, groups: Mutex::new(BTreeMap::new()) }
    }

    /// Whether acting as another user works here. Always true for an ordinary user, who acts as nobody else.
    pub fn try_out(&self, now: BootTime) -> bool {
        if !self.privileged {
            return true;
        }
        const NOBODY: u32 = 65534;
        let Ok(_acting) = self.act(Caller { uid: NOBODY, gid: NOBODY, pid: 0 }, now) else { return false };
        // SAFETY: no pointers; an impossible uid changes nothing and returns the present one.
        let present = unsafe { libc::syscall(libc::SYS_setfsuid, u32::MAX) };
        present == i64::from(NOBODY)
    }

    /// Acts as `caller` from here to the value's drop.
    pub fn act(&self, caller: Caller, now: BootTime) -> Result<ActingAs<'_>> {
        let mut acting = ActingAs { restore: None, groups_changed: false, _this_thread: PhantomData };
        if !self.privileged || (caller.uid == 0 && caller.gid == 0) {
            return Ok(acting);
        }
        if caller.uid != 0 {
            let groups = self.groups_of(caller.pid, now);
            if groups != self.own_groups {
                set_groups(&groups)?;
                acting.groups_changed = true;
            }
        }
        acting.restore = Some(&self.own_groups);
        set_fs_ids(caller.uid, caller.gid);
        Ok(acting)
    }

    /// None where the process cannot be read any more: fewer rights, never more.
    fn groups_of(&self, pid: u32, now: BootTime) -> Vec<libc::gid_t> {
        if pid == 0 {
            return Vec::new();
        }
        let mut cache = lock(&self.groups);
        if let Some((read, groups)) = cache.get(&pid)
            && now.since(*read) < GROUPS_KEPT
        {
            return groups.clone();
        }
        let groups: Vec<libc::gid_t> = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .map(|list| list.split_whitespace().filter_map(|g| g.parse().ok()).collect())
            .unwrap_or_default();
        if cache.len() >= GROUPS_MAX {
            cache.clear();
        }
        cache.insert(pid, (now, groups.clone()));
        groups
    }
}

impl Default for Callers {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ActingAs<'_> {
    fn drop(&mut self) {
        let Some(own_groups) = self.restore else { return };
        set_fs_ids(0, 0);
        if self.groups_changed {
            // A root daemon that could change its groups can change them back.
            let _ = set_groups(own_groups);
        }
    }
}

thread_local! {
    static MASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The creation mask that still works on this thread: zero once the thread has a mask of its own, else (where `unshare` is
/// forbidden) the process's, whose effect the caller must undo.
pub fn own_mask() -> u32 {
    MASK.with(|cell| {
        if let Some(mask) = cell.get() {
            return mask;
        }
        // SAFETY: no pointers; from here on this thread has its own root, working directory and umask, copies of the present ones.
        let mask = if unsafe { libc::unshare(libc::CLONE_FS) } == 0 {
            // SAFETY: no pointers; the mask is this thread's own since the line above.
            unsafe { libc::umask(0) };
            0
        } else {
            std::fs::read_to_string("/proc/self/status")
                .unwrap_or_default()
                .lines()
                .find_map(|line| line.strip_prefix("Umask:"))
                .and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
                .unwrap_or(0o777)
        };
        cell.set(Some(mask));
        mask
    })
}
