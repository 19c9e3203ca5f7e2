//! Where a side keeps its state and its socket (CLI.md), and that nobody else can reach them.
//!
//! Another user's directory is never used (77): who owns the socket's directory decides who answers there. Directories are
//! made with 0700; an existing one is never changed, only refused if others may write it.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Env, MountConfig, Overrides};
use crate::error::Failure;
use crate::place;
use crate::words::refusal::Code;

/// The state directory: given, XDG's, the home's; not on shared storage and not in a guarded tree.
pub(super) fn state(given: &Overrides, env: &Env, mounts: &[MountConfig], notes: &mut Vec<String>) -> PathBuf {
    if let Some(dir) = &given.state_dir {
        if let Some(why) = shared(dir, mounts) {
            notes.push(format!(
                "the state directory {} {why}: a lease server's log there is neither safe nor fast",
                dir.display()
            ));
        }
        return dir.clone();
    }
    let base = env.xdg_state_home.clone().or_else(|| env.home.as_ref().map(|home| home.join(".local/state")));
    let Some(usual) = base.map(|base| base.join("treelease")) else {
        return fallback_state(env.uid);
    };
    match shared(&usual, mounts) {
        Some(why) => {
            let dir = fallback_state(env.uid);
            notes.push(moved_note(&dir, &format!("{} {why}", usual.display())));
            dir
        }
        None => usual,
    }
}

pub(super) fn fallback_state(uid: u32) -> PathBuf {
    PathBuf::from(format!("/var/tmp/treelease-{uid}"))
}

pub(super) fn moved_note(dir: &Path, why: &str) -> String {
    format!("state is kept in {}: {why}", dir.display())
}

/// Why a path is no place for state, if it is none. Asks the mount table first: it answers also when the storage hangs.
fn shared(dir: &Path, mounts: &[MountConfig]) -> Option<String> {
    if let Some(mount) = mounts.iter().find(|m| dir.starts_with(&m.at) || dir.starts_with(&m.lower)) {
        return Some(format!("lies in the guarded tree `{}`", mount.tree));
    }
    let on_shared = |path: &Path| place::mount_of(path).filter(place::MountEntry::is_shared);
    let real = || {
        let existing = dir.ancestors().find(|p| p.exists())?;
        on_shared(&std::fs::canonicalize(existing).ok()?)
    };
    let mount = on_shared(dir).or_else(real)?;
    Some(match mount.guarded_tree() {
        Some(tree) => format!("lies in the guarded tree `{tree}`"),
        None => format!("lies on shared storage ({} at {})", mount.fstype, mount.at.display()),
    })
}

/// The runtime directory: given, XDG's, systemd's, else one in /tmp.
pub(super) fn runtime(given: &Overrides, env: &Env) -> PathBuf {
    if let Some(dir) = &given.runtime_dir {
        return dir.clone();
    }
    let of_user = PathBuf::from(format!("/run/user/{}", env.uid));
    let ours = |dir: &PathBuf| std::fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == env.uid);
    env.xdg_runtime_dir
        .clone()
        .filter(|dir| dir.is_dir())
        .or_else(|| Some(of_user).filter(ours))
        .map_or_else(|| PathBuf::from(format!("/tmp/treelease-{}", env.uid)), |dir| dir.join("treelease"))
}

/// Makes it, or checks it; and checks what was made, since in /tmp somebody may have been faster.
pub(super) fn ensure(dir: &Path, uid: u32, what: &str, variable: &str) -> Result<(), Failure> {
    if dir.symlink_metadata().is_err() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| {
            Failure::io(format_args!("cannot make the {what} {}", dir.display()), &e)
                .hint(format!("choose another place with {variable}"))
        })?;
    }
    check(dir, uid, what, variable)
}

/// An existing directory must be ours alone to write; a missing one is fine.
pub(super) fn check(dir: &Path, uid: u32, what: &str, variable: &str) -> Result<(), Failure> {
    check_owner(dir, uid, what, variable)?;
    let Ok(meta) = std::fs::metadata(dir) else { return Ok(()) };
    if !meta.is_dir() {
        return Err(Failure::new(Code::Config, format!("the {what} {} is no directory", dir.display()))
            .hint(format!("remove it, or choose another place with {variable}")));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return Err(Failure::new(Code::Denied, format!("other users may write to the {what} {}", dir.display()))
            .hint(format!("`chmod 700 {}`, or choose another place with {variable}", dir.display())));
    }
    Ok(())
}

/// Neither the name nor what it leads to may be another user's; a missing one is fine.
pub(super) fn check_owner(path: &Path, uid: u32, what: &str, variable: &str) -> Result<(), Failure> {
    let owner = |meta: std::io::Result<std::fs::Metadata>| meta.ok().map(|m| m.uid()).filter(|owner| *owner != uid);
    match owner(path.symlink_metadata()).or_else(|| owner(path.metadata())) {
        None => Ok(()),
        Some(other) => Err(Failure::new(
            Code::Denied,
            format!("the {what} {} belongs to another user (uid {other}, this is uid {uid})", path.display()),
        )
        .hint(format!("choose a place of your own with {variable}"))),
    }
}
