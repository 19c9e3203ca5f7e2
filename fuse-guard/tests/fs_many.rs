//! More files than the guard may have descriptors: it has one for each that the kernel knows. Needs /dev/fuse.

mod fs_support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use fs_support::{Tree, errno};
use nix::sys::resource::{Resource, setrlimit};

/// Descriptors of this process, in which guard and programs live together.
const MAY: u64 = 1600;
const DIRS: usize = 40;
const FILES: usize = 6000;

fn file(below: &Path, n: usize) -> std::path::PathBuf {
    below.join(format!("d{}/f{n}", n % DIRS))
}

/// A tree may have more files than the guard may have descriptors: all can be looked at, by several programs at once, and as many can
/// be made and written under one lease. The kernel is made to forget those that it has known longest.
#[test]
fn a_tree_may_have_more_files_than_the_guard_may_have_descriptors() {
    setrlimit(Resource::RLIMIT_NOFILE, MAY, MAY).unwrap();
    // In memory, where there is room for that: a sync of the machine's disk may take long.
    let storage = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    (0..DIRS).for_each(|n| fs::create_dir(storage.path().join(format!("d{n}"))).unwrap());
    (0..FILES).for_each(|n| fs::write(file(storage.path(), n), b"old").unwrap());
    let t = Tree::over(storage.path());
    t.hold(1, 1);
    let (seen, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        for part in 0..3 {
            let (t, seen, most) = (&t, &seen, &most);
            threads.spawn(move || {
                for n in (part..FILES).step_by(3) {
                    assert_eq!(fs::metadata(file(&t.at, n)).unwrap_or_else(|why| panic!("file {n}: {why}")).len(), 3);
                    seen.fetch_add(1, Ordering::Relaxed);
                    most.fetch_max(t.mount.known().0, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(seen.load(Ordering::Relaxed), FILES);
    assert!(most.load(Ordering::Relaxed) < MAY as usize);
    for n in FILES..FILES + FILES / 2 {
        assert_eq!(errno(fs::write(file(&t.at, n), b"new")), 0, "file {n}");
    }
    t.release();
    assert!((FILES..FILES + FILES / 2).all(|n| fs::read(file(&t.lower, n)).unwrap() == b"new"));
}
