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

#[cfg(test)]
mod tests {
    use std::ffi::{c_int, c_uchar, c_void};
    use std::path::PathBuf;
    use std::ptr::null_mut;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use tempfile::TempDir;

    use super::*;

    /// Of each file. So many pages at the most.
    const LENGTH: usize = 4 << 20;
    const PAGES: usize = LENGTH / 4_096;
    /// Somebody else may have some of them in hand just then; more than so many there are with the largest pages, too.
    const FEW: usize = 16;

    unsafe extern "C" {
        /// 0: the lowest bit of each byte says whether that page is in memory.
        fn mincore(at: *mut c_void, length: usize, pages: *mut c_uchar) -> c_int;
    }

    /// Pages of a file that are in memory.
    fn in_memory(path: &Path) -> usize {
        let file = File::open(path).unwrap();
        let mut pages = vec![0; PAGES];
        // SAFETY: a new mapping, which nobody reads and which is taken away again; there is a byte for each of its pages.
        unsafe {
            let at = mmap(null_mut(), LENGTH, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
            assert_eq!(mincore(at, LENGTH, pages.as_mut_ptr()), 0);
            munmap(at, LENGTH).unwrap();
        }
        pages.into_iter().filter(|page| page & 1 == 1).count()
    }

    fn filled(path: &Path) -> PathBuf {
        fs::write(path, vec![7; LENGTH]).unwrap();
        assert!(in_memory(path) > FEW, "what was just written is in memory: the control");
        path.to_owned()
    }

    /// A directory whose files lie elsewhere than in memory.
    fn on_a_disk() -> TempDir {
        let own = std::env::current_exe().unwrap();
        let places = [own.parent().unwrap().to_owned(), "/var/tmp".into(), std::env::temp_dir()];
        let dirs = places.iter().filter_map(|place| tempfile::tempdir_in(place).ok());
        let is_on_disk = |dir: &TempDir| {
            let path = filled(&dir.path().join("probe"));
            let file = File::open(&path).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            in_memory(&path) <= FEW
        };
        dirs.into_iter().find(is_on_disk).unwrap_or_else(|| panic!("of {places:?} one must lie on a disk, not in memory"))
    }

    #[test]
    fn i7_what_a_start_reads_comes_from_the_disk_and_not_from_memory() {
        let dir = on_a_disk();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        let files = ["journal", "blobs/1"].map(|name| filled(&dir.path().join(name)));
        forget_pages(dir.path()).unwrap();
        for file in &files {
            let left = in_memory(file);
            assert!(left <= FEW, "{left} pages of {} are in memory", file.display());
        }
        assert!(fs::read(&files[1]).unwrap().iter().all(|byte| *byte == 7), "and they are as they were");
    }
}
