//! Which tree is meant (CLI.md): `--tree`, else the guarded mount or marker above the working directory, else
//! `TREELEASE_TREE`, else the only one, else 66.
//!
//! It reads the kernel's mount table and the *name* of the working directory, and looks for a marker only where no guarded
//! mount is above: so it never waits for a mount that hangs.

use std::path::Path;

use treelease_client::error::Failure;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::{marker, place};

/// What can be said without asking anybody.
pub fn named(explicit: Option<&TreeName>) -> Result<Option<TreeName>, Failure> {
    if let Some(name) = explicit {
        return Ok(Some(name.clone()));
    }
    if let Ok(here) = std::env::current_dir()
        && let Some(name) = above(&here)?
    {
        return Ok(Some(name));
    }
    match std::env::var("TREELEASE_TREE") {
        Ok(name) if !name.is_empty() => {
            let bad = |e| Failure::new(Code::Usage, format!("TREELEASE_TREE: {e}"));
            name.parse().map(Some).map_err(bad)
        }
        _ => Ok(None),
    }
}

/// The only tree of those that there are.
pub fn only(trees: &[String]) -> Result<TreeName, Failure> {
    match trees {
        [one] => one.parse().map_err(Failure::from),
        [] => Err(Failure::new(Code::NotFound, "this directory is in no tree, and this side knows none")
            .hint("guard a directory with `treelease up DIR`")),
        many => Err(Failure::new(
            Code::NotFound,
            format!("this directory is in no tree, and this side knows several: {}", many.join(", ")),
        )
        .hint("name one with `--tree NAME`, or set TREELEASE_TREE")),
    }
}

/// The tree of the guarded mount, or else of the marker, above a path.
pub fn above(path: &Path) -> Result<Option<TreeName>, Failure> {
    match place::mount_of(path) {
        Some(mount) if mount.is_guarded() => Ok(mount.guarded_tree().and_then(|name| name.parse().ok())),
        _ => Ok(marker::find_above(path)?.map(|(_, found)| found.marker.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_tree_is_meant_where_nothing_is_said() {
        assert_eq!(only(&["dev".into()]).unwrap().as_str(), "dev");
        assert_eq!(only(&[]).unwrap_err().exit().code(), 66);
        assert_eq!(only(&["a".into(), "b".into()]).unwrap_err().exit().code(), 66);
    }
}
