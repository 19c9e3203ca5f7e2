//! Coming back to a path on which a dead mount of ours lies (its guard was killed), without showing for a moment what is below.
//!
//! The new mount is made detached, served, and then put *beneath* the dead one (`MOVE_MOUNT_BENEATH`, Linux 6.5); only then is the
//! dead one taken away. What lies below both, the tree itself, is opened by a thread in a mount namespace of its own, in which the
//! dead mount was taken away: nobody else sees that.
//!
//! # Promises
//!
//! - While a dead mount lies at the path and the kernel can do this, a program that hammers the path meets the dead mount or the
//!   new one, never the raw tree.
//! - Only mounts of ours are taken away, and only dead ones.
//!
//! # Does not know
//!
//! Kernels before 6.5, and users who may not mount: for them the dead mount is taken away first, and whoever came in between is
//! found by the look at all processes afterwards ([`crate::lower::inside`]).

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use super::mount::{MountError, absolute};
use super::mounting::{self, FSTYPE};

/// `MOVE_MOUNT_BENEATH`.
const BENEATH: u32 = 0x200;
/// Dead mounts on one path: each start of a guard that was killed in the middle of this may leave one.
const STACKED: usize = 32;

/// Opens what lies below the dead mounts of ours at a path, and runs `look` on it, in a place where its path leads to it. None:
/// this user or kernel cannot.
pub fn below_dead<T: Send + 'static>(at: &Path, look: impl FnOnce(OwnedFd) -> T + Send + 'static) -> Option<T> {
    let at = absolute(at).ok()?;
    let alone = move || -> Result<T, String> {
        let said = |what: &str, why: &dyn std::fmt::Display| format!("{what}: {why}");
        unshare(CloneFlags::CLONE_NEWNS).map_err(|why| said("a mount namespace", &why))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|why| said("a private one", &why))?;
        for _ in 0..STACKED {
            if mounting::top_at(&at).is_none_or(|top| top.fstype != FSTYPE) {
                break;
            }
            umount2(&at, MntFlags::MNT_DETACH).map_err(|why| said("the dead mount", &why))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&at, flags, Mode::empty()).map_err(|why| said("what is below", &why))?;
        Ok(look(fd))
    };
    // The namespace ends with the thread; the descriptor stays.
    let thread = std::thread::Builder::new().name("below-dead".into()).spawn(alone).ok()?;
    match thread.join().ok()? {
        Ok(found) => Some(found),
        Err(why) => {
            tracing::info!(why, "what lies below the dead mount cannot be opened while that is there");
            None
        }
    }
}

/// Makes a mount that is nowhere yet, served by whoever has the device.
pub(super) fn detached(device: &File, name: &str, allow_other: bool) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let set = |key: &str, value: String| fsconfig_set_string(&fs, key, value);
    set("source", format!("treelease:{name}"))?;
    set("subtype", "treelease".into())?;
    set("fd", device.as_raw_fd().to_string())?;
    set("rootmode", "40000".into())?;
    set("user_id", uid.to_string())?;
    set("group_id", gid.to_string())?;
    set("max_read", mounting::MAX_READ.to_string())?;
    if allow_other {
        fsconfig_set_flag(&fs, "allow_other")?;
        fsconfig_set_flag(&fs, "default_permissions")?;
    }
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Puts a served, detached mount in the place of the dead one at a path.
pub(super) fn take_over(tree: &OwnedFd, at: &Path) -> Result<(), MountError> {
    let system = |what: &str, why: &dyn std::fmt::Display| MountError::System(format!("{}: {what}: {why}", at.display()));
    let put = |flags| move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | flags);
    for _ in 0..STACKED {
        // A guard that was killed between the two steps has left two: what is shown when the upper one goes is the other.
        let stack = mounting::stack_at(at);
        let ours = stack.iter().rev().take_while(|m| m.fstype == FSTYPE).count();
        if ours < 2 {
            break;
        }
        remove_dead(at)?;
    }
    let dead = mounting::top_at(at).filter(|top| top.fstype == FSTYPE);
    let Some(dead) = dead else { return put(MoveMountFlags::empty()).map_err(|why| system("cannot be mounted on", &why)) };
    match put(MoveMountFlags::from_bits_retain(BENEATH)) {
        Ok(()) => {
            // Somebody may have taken it away by hand meanwhile.
            if mounting::top_at(at).is_some_and(|top| top.id == dead.id) { remove_dead(at) } else { Ok(()) }
        }
        Err(why) => {
            tracing::warn!(at = %at.display(), %why, "the new mount cannot go beneath the dead one: the path shows the raw tree for a moment");
            remove_dead(at)?;
            put(MoveMountFlags::empty()).map_err(|why| system("cannot be mounted on", &why))
        }
    }
}

fn remove_dead(at: &Path) -> Result<(), MountError> {
    if !mounting::is_dead(at) {
        return Err(MountError::InTheWay(format!("{} is guarded already: `treelease status` says by whom", at.display())));
    }
    mounting::unmount(at, true).map_err(|busy| MountError::System(format!("a dead mount at {}: {}", at.display(), busy.why)))
}
