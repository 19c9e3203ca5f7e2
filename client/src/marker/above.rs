//! Looking up from a directory: which tree is this in, and do roots overlap.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{Found, Mismatch, read};
use crate::error::Failure;
use crate::place;
use crate::words::id::TreeId;
use crate::words::refusal::Code;

/// The marker in this directory or the nearest one above it, and that directory. Through a guarded mount markers are hidden:
/// look at the mount table there ([`place::mount_of`]).
pub fn find_above(path: &Path) -> Result<Option<(PathBuf, Found)>, Failure> {
    first_marker(real(path)?.ancestors())
}

/// Refuses a root that lies strictly below another root's marker, or inside a guarded mount (78). `tree` is the tree that the
/// root is for, where it exists already; even its own marker above is an overlap.
pub fn overlap(path: &Path, tree: Option<&TreeId>) -> Result<(), Failure> {
    let path = real(path)?;
    let refuse = |above: &Path, whose: String| {
        let message = format!("{} lies inside {}, the root of {whose}: roots never overlap", path.display(), above.display());
        Failure::new(Code::Config, message).hint(format!(
            "guard {} as a whole, or move {} out of it",
            above.display(),
            path.display()
        ))
    };
    if let Some(mount) = place::mount_of(&path).filter(|mount| mount.is_guarded() && mount.at != path) {
        return Err(refuse(&mount.at, format!("the guarded tree `{}`", mount.guarded_tree().unwrap_or("?"))));
    }
    match first_marker(path.ancestors().skip(1))? {
        Some((above, found)) if Some(&found.marker.tree) == tree => Err(refuse(&above, "this very tree".into())),
        Some((above, found)) => Err(refuse(&above, format!("the tree `{}`", found.marker.name))),
        None => Ok(()),
    }
}

/// A mismatch as a failure about this directory, with the ways out.
pub fn mismatch_failure(dir: &Path, found: &Found, mismatch: &Mismatch) -> Failure {
    let (dir, marker) = (dir.display(), &found.marker);
    let takeover = format!("make it this cluster's: `treelease tree takeover {dir} --reason TEXT`");
    match mismatch {
        Mismatch::Foreign { cluster } => {
            let at = marker.endpoints.first().map(|e| format!(" (last at {e})")).unwrap_or_default();
            Failure::new(
                Code::Config,
                format!("{dir} belongs to another cluster: its marker names tree `{}` of cluster {cluster}{at}", marker.name),
            )
            .hint("become a side of that cluster: `treelease join TOKEN`, with a token made there by `treelease side token NAME`")
            .hint("if this side's cluster was restored from a backup of that one: `treelease follow CLUSTER --reason TEXT`, with the new one's id")
            .hint(takeover)
        }
        Mismatch::OtherTree { tree, name } => {
            Failure::new(Code::Config, format!("{dir} is the root of another tree: `{name}` ({tree})"))
                .hint(format!("guard it under its own name: `treelease up {dir}`"))
        }
        Mismatch::Copied { noted, actual } => Failure::new(
            Code::Config,
            format!("{dir} is a copy of tree `{}`: its marker was made as inode {noted} and is inode {actual} here", marker.name),
        )
        .hint(format!("if it is a copy, remove its marker and stamps and make it a tree of its own: `rm {dir}/.treelease-tree*`, then `treelease up {dir} --tree NAME`"))
        .hint(format!("if the files were moved here and the old place is gone, {takeover}")),
        Mismatch::OtherRoot { root } => Failure::new(
            Code::Config,
            format!("{dir} is not the live root of `{}`: its marker names root {root}", marker.name),
        )
        .hint(format!("`treelease tree show {}` lists the tree's roots", marker.name)),
    }
}

fn real(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|e| Failure::io(format_args!("cannot look at {}", path.display()), &e))
}

fn first_marker<'a>(dirs: impl Iterator<Item = &'a Path>) -> Result<Option<(PathBuf, Found)>, Failure> {
    for dir in dirs {
        // A directory that may be passed through but not read, and one that is gone meanwhile, has nothing to tell us; a file
        // as the first one neither.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::open(dir, flags, rustix::fs::Mode::empty()) else { continue };
        match read(fd.as_fd()) {
            Ok(Some(found)) => return Ok(Some((dir.to_path_buf(), found))),
            Ok(None) => {}
            Err(e) => {
                let mut failure = Failure::from(e);
                failure.message = format!("{}: {}", dir.display(), failure.message);
                return Err(failure);
            }
        }
    }
    Ok(None)
}
