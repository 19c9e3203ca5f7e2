//! The filesystems that are mounted below a directory: `syncfs` of the directory does not reach them.
//!
//! Promises: each is opened once, by the way that the directory itself leads there, so what lies over the directory (our own
//! mount) is not mistaken for what lies below it. It looks at storage: it may hang as that does.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::mountinfo;

/// Filesystems that are opened; more are left to the fsync of each file that is written.
const FILESYSTEMS_MAX: usize = 64;
/// These keep nothing, mount something when one looks (autofs), or have a guard of their own.
const PASSED_BY: [&str; 9] = ["autofs", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "fuse.treelease"];

/// A directory of each filesystem that is mounted below this one, open for reading. Those that cannot be opened are left out.
pub fn filesystems_below(root: &OwnedFd) -> Vec<OwnedFd> {
    let Ok(own) = fstat(root) else { return Vec::new() };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()));
    let (Ok(path), Ok(mounts)) = (path, mountinfo::of("self")) else { return Vec::new() };
    let mut seen = BTreeSet::from([own.st_dev]);
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|mount| !PASSED_BY.contains(&mount.fs_type.as_str())) {
        let Ok(below) = mount.at.strip_prefix(&path) else { continue };
        if below.as_os_str().is_empty() || found.len() == FILESYSTEMS_MAX {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // A file that is mounted alone is none of ours to open: it is fsynced if it is written.
        let Ok(fd) = openat(root, below, flags, Mode::empty()) else { continue };
        if fstat(&fd).is_ok_and(|stat| seen.insert(stat.st_dev)) {
            found.push(fd);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Mounted(PathBuf);

    impl Mounted {
        fn new(at: PathBuf) -> Self {
            std::fs::create_dir_all(&at).unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=32k")).expect("tests run as root");
            Self(at)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn each_filesystem_below_is_found_once_and_what_lies_beside_or_over_the_root_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let a = Mounted::new(root.join("a b/deep"));
        let _b = Mounted::new(root.join("c"));
        let _beside = Mounted::new(dir.path().join("root-beside"));
        // The same filesystem once more.
        let again = root.join("again");
        std::fs::create_dir(&again).unwrap();
        nix::mount::mount(Some(&a.0), &again, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        let _again = Mounted(again);
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        // As our own mount over the storage, with something in it.
        let over = Mounted::new(root.clone());
        let _in_it = Mounted::new(root.join("in it"));
        let device = |path: PathBuf| rustix::fs::stat(path).unwrap().st_dev;
        assert_ne!(device(root), fstat(&fd).unwrap().st_dev, "it lies over");
        assert_eq!(filesystems_below(&fd).len(), 2);
        drop(over);
    }
}
