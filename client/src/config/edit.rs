//! Writing `[[mount]]` into the side's file: everything else in it, comments too, stays as a person wrote it.
//!
//! The file is replaced by rename, so that a crash leaves the old one or the new one. Where the file that was read is the
//! machine's (`/etc`) and this user may not write it, the user's own file is made from it, with its relative paths made
//! absolute: a file of one's own hides the machine's.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{Config, MountConfig};
use crate::error::Failure;
use crate::words::id::TreeName;
use crate::words::refusal::Code;

pub(super) fn add_mount(config: &mut Config, mount: &MountConfig) -> Result<(), Failure> {
    if config.mounts.contains(mount) {
        return Ok(());
    }
    let lower = utf8(&mount.lower)?;
    let at = (mount.at != mount.lower).then(|| utf8(&mount.at)).transpose()?;
    change(config, |tables| {
        let mut place = tables.iter_mut().find(|t| t.get("tree").and_then(Item::as_str) == Some(mount.tree.as_str()));
        let mut fresh = Table::new();
        let table = place.as_deref_mut().unwrap_or(&mut fresh);
        table["tree"] = value(mount.tree.as_str());
        table["lower"] = value(lower.as_str());
        match &at {
            Some(at) => table["at"] = value(at.as_str()),
            None => drop(table.remove("at")),
        }
        if place.is_none() {
            tables.push(fresh);
        }
    })?;
    config.mounts.retain(|m| m.tree != mount.tree);
    config.mounts.push(mount.clone());
    Ok(())
}

pub(super) fn remove_mount(config: &mut Config, tree: &TreeName) -> Result<bool, Failure> {
    if !config.mounts.iter().any(|m| m.tree == *tree) {
        return Ok(false);
    }
    change(config, |tables| tables.retain(|t| t.get("tree").and_then(Item::as_str) != Some(tree.as_str())))?;
    config.mounts.retain(|m| m.tree != *tree);
    Ok(true)
}

/// Reads the file, lets `edit` change its mounts, writes it back.
fn change(config: &mut Config, edit: impl FnOnce(&mut ArrayOfTables)) -> Result<(), Failure> {
    let source = config.file.clone();
    // Through a link (a person's dotfiles), not over it.
    let target = match &source {
        Some(file) if *file == config.write_to || writable(file) => std::fs::canonicalize(file).unwrap_or_else(|_| file.clone()),
        _ => config.write_to.clone(),
    };
    let dir = target.parent().unwrap_or(Path::new("/")).to_path_buf();
    std::fs::create_dir_all(&dir).map_err(|e| Failure::io(format_args!("cannot make {}", dir.display()), &e))?;
    // Two `up` at once must not lose each other's mount. Where a directory cannot be locked, that remains possible.
    let lock = std::fs::File::open(&dir).ok();
    if let Some(lock) = &lock {
        let _ = rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive);
    }
    let text = match &source {
        Some(file) => {
            std::fs::read_to_string(file).map_err(|e| Failure::io(format_args!("cannot read {}", file.display()), &e))?
        }
        None => match std::fs::read_to_string(&target) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Failure::io(format_args!("cannot read {}", target.display()), &e)),
        },
    };
    let mut doc: DocumentMut = text.parse().map_err(|e| Failure::new(Code::Config, format!("{}: {e}", target.display())))?;
    if let Some(source) = source.as_deref().filter(|source| source.parent() != target.parent() && !same(source, &target)) {
        make_absolute(&mut doc, source);
    }
    let mounts = doc.entry("mount").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(tables) = mounts.as_array_of_tables_mut() else {
        return Err(Failure::new(Code::Config, format!("{}: `mount` is not written as [[mount]] tables", target.display()))
            .hint("write each mount as its own [[mount]] table, then try again"));
    };
    edit(tables);
    if tables.is_empty() {
        doc.remove("mount");
    }
    replace(&target, doc.to_string().as_bytes())?;
    let file = if source.as_deref().is_some_and(|s| same(s, &target)) { source.unwrap_or(target) } else { target };
    config.write_to = file.clone();
    config.file = Some(file);
    Ok(())
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || std::fs::canonicalize(a).is_ok_and(|a| a == b)
}

/// Whether a file can be replaced here: its directory takes new files from us.
fn writable(file: &Path) -> bool {
    let dir = file.parent().unwrap_or(Path::new("/"));
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

fn make_absolute(doc: &mut DocumentMut, source: &Path) {
    let base = source.parent().unwrap_or(Path::new("/")).to_path_buf();
    let fix = |table: &mut dyn toml_edit::TableLike, key: &str| {
        if let Some(path) = table.get(key).and_then(Item::as_str).filter(|p| Path::new(p).is_relative()) {
            let full = base.join(path).to_string_lossy().into_owned();
            table.insert(key, value(full));
        }
    };
    fix(doc.as_table_mut(), "token_file");
    if let Some(tls) = doc.get_mut("tls").and_then(Item::as_table_like_mut) {
        ["ca", "cert", "key"].iter().for_each(|key| fix(tls, key));
    }
    if let Some(mounts) = doc.get_mut("mount").and_then(Item::as_array_of_tables_mut) {
        for mount in mounts.iter_mut() {
            ["lower", "at"].iter().for_each(|key| fix(mount, key));
        }
    }
}

/// Writes a temporary file beside it and renames: readers see the old one or the new one.
fn replace(target: &Path, text: &[u8]) -> Result<(), Failure> {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".new-{}", std::process::id()));
    let temp: PathBuf = target.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        if let Ok(old) = std::fs::metadata(target) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&temp, target)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&temp);
        Failure::io(format_args!("cannot write the configuration {}", target.display()), &e)
    })
}

fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_string).ok_or_else(|| {
        Failure::new(Code::Config, format!("{} is not UTF-8, so it cannot stand in the configuration", path.display()))
    })
}
