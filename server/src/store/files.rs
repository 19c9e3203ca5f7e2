//! Plain files that are there as a whole or not at all.
//!
//! Promises: after [`replace`] has returned, the file has its new content, also after a power cut; before, its old one or
//! none. It does not know what is in them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

/// Suffix of a file that is still being written; a left-over is of no use to anybody.
pub const TEMPORARY: &str = ".tmp";

/// Writes a file beside its place, syncs it, renames it into place and syncs the directory.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a file longer, with zeros, and has the disk keep the room: what is written there later changes nothing but the data, and
/// syncing it takes half the time (a file that grows needs the filesystem's journal, too). It touches no byte that was written.
/// `false`: this filesystem cannot, or has no room; nothing depends on it.
pub fn reserve(file: &File, from: u64, more: u64) -> io::Result<bool> {
    match fallocate(file, FallocateFlags::empty(), from, more) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOSPC | Errno::FBIG | Errno::DQUOT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Has every file below a directory read from the disk from now on, as far as it was written. *Why:* after a sync that failed the kernel
/// takes the pages for written and lets them be read, and no later sync says that they are not on the disk.
pub fn forget_pages(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            forget_pages(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Makes names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
