//! More files than the guard may have descriptors: it has one for each that the kernel knows. Needs /dev/fuse.

mod fs_support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fs_support::{HOUR, Tree, errno, eventually};
use nix::libc::EROFS;
use nix::sys::resource::{Resource, setrlimit};
use treelease_client::words::clock::Clock;
use treelease_guard::fs::faults::Faults;
use treelease_guard::gate::{Outcome, Right, Standing};

/// Descriptors of this process, in which guard and programs live together.
const MAY: u64 = 1600;
const DIRS: usize = 40;
const FILES: usize = 6000;

/// One at a time has all descriptors of this process.
static ALONE: Mutex<()> = Mutex::new(());

fn file(below: &Path, n: usize) -> std::path::PathBuf {
    below.join(format!("d{}/f{n}", n % DIRS))
}

/// A tree may have more files than the guard may have descriptors: all can be looked at, by several programs at once, and as many can
/// be made and written under one lease. The kernel is made to forget those that it has known longest.
#[test]
fn a_tree_may_have_more_files_than_the_guard_may_have_descriptors() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Files that a call which waits keeps from being forgotten by their names: more than are shed in a round.
const BUSY: usize = 500;
/// Files elsewhere.
const ELSEWHERE: usize = 3000;

/// Looks at more files than there may be descriptors, while a call waits in the directory whose files the kernel has known longest.
fn all_are_seen_while_a_call_waits(faults: Faults) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    setrlimit(Resource::RLIMIT_NOFILE, MAY, MAY).unwrap();
    let storage = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let busy = |below: &Path, n: usize| below.join(format!("busy/f{n}"));
    fs::create_dir(storage.path().join("busy")).unwrap();
    (0..BUSY).for_each(|n| fs::write(busy(storage.path(), n), b"old").unwrap());
    (0..DIRS).for_each(|n| fs::create_dir(storage.path().join(format!("d{n}"))).unwrap());
    (0..ELSEWHERE).for_each(|n| fs::write(file(storage.path(), n), b"old").unwrap());
    let t = Tree::over_with(storage.path(), faults);
    t.hold(1, 1);
    (0..BUSY).for_each(|n| assert_eq!(fs::metadata(busy(&t.at, n)).unwrap().len(), 3));
    let before = t.mount.standing();
    // At rest: it waits, and what is looked at is kept as under the lease.
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: before.serial + 1, right: Right::Resting { until }, ..before });
    let path = t.at.join("busy/made");
    let call = std::thread::spawn(move || errno(fs::create_dir(path)));
    eventually("it waits", || t.mount.waiting() == 1);
    for n in 0..ELSEWHERE {
        assert_eq!(fs::metadata(file(&t.at, n)).unwrap_or_else(|why| panic!("file {n}: {why}")).len(), 3);
    }
    assert_eq!(t.mount.waiting(), 1);
    t.mount.answer_waiters(Outcome::Refused);
    assert_eq!(call.join().unwrap(), EROFS);
    eventually("whoever was stuck has come back", || t.mount.lost_threads() == 0);
}

#[test]
fn a_call_that_waits_in_a_directory_keeps_no_other_files_from_being_shed() {
    all_are_seen_while_a_call_waits(Faults::default());
}

#[test]
fn nor_does_it_where_the_kernel_drops_files_by_their_names_only() {
    all_are_seen_while_a_call_waits(Faults { no_prune: true, ..Faults::default() });
}
