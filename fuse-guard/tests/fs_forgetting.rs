//! What the kernel is told to forget, or to write back, and what it must not go on believing, at the seams: while calls wait, when a
//! policy begins to refuse, after a refused page. Needs /dev/fuse.

mod fs_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fs_support::{HOUR, Mapping, Tree, errno, eventually};
use nix::libc::EROFS;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use treelease_client::words::clock::Clock;
use treelease_client::words::policy::{Mode, OnClose};
use treelease_guard::gate::{Outcome, Right, Standing};

const SIZE: usize = 4096;

/// Sets the time of last change, as a storage with coarse time stamps would leave it.
fn set_time(path: &Path) {
    let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A call that waits keeps its directory locked in the kernel: the names in it can be forgotten only when it has been answered. All
/// other directories are forgotten meanwhile.
#[test]
fn a_call_that_waits_keeps_no_other_directory_from_being_forgotten() {
    let t = Tree::mounted(true, |lower| {
        fs::create_dir(lower.join("busy")).unwrap();
        fs::write(lower.join("busy/known"), b"").unwrap();
        fs::create_dir(lower.join("other")).unwrap();
        set_time(&lower.join("other"));
    });
    t.hold(1, 1);
    let count = |dir: &str| fs::read_dir(t.at.join(dir)).unwrap().count();
    fs::metadata(t.at.join("busy/known")).unwrap();
    assert_eq!((count("busy"), count("other")), (1, 0));
    let before = t.mount.standing();
    let (until, on_close) = (t.clock.now().after(HOUR), OnClose::Wait);
    t.mount.publish(Standing { serial: before.serial + 1, right: Right::Closing { until }, on_close, ..before });
    let path = t.at.join("busy/made");
    let call = std::thread::spawn(move || errno(fs::create_dir(path)));
    eventually("it waits", || t.mount.waiting() == 1);
    // The second round of forgetting, which meets the locked directory.
    t.clock.advance(Duration::from_secs(1));
    for n in 1..=3 {
        count("other");
        fs::write(t.lower.join(format!("other/{n}")), b"").unwrap();
        set_time(&t.lower.join("other"));
        t.clock.advance(Duration::from_secs(1));
        eventually("a new name is seen", || {
            t.clock.advance(Duration::from_millis(5));
            count("other") == n
        });
        assert_eq!(t.mount.waiting(), 1);
    }
    t.mount.answer_waiters(Outcome::Refused);
    assert_eq!(call.join().unwrap(), EROFS);
}

/// The same for names, when the licence to keep them ends while a call waits.
#[test]
fn a_call_that_waits_keeps_no_name_in_another_directory_from_being_forgotten() {
    const NAMES: usize = 20;
    let t = Tree::mounted(true, |lower| {
        fs::create_dir(lower.join("busy")).unwrap();
        fs::create_dir(lower.join("other")).unwrap();
        (0..NAMES).for_each(|n| fs::write(lower.join(format!("busy/{n}")), b"").unwrap());
        (0..NAMES).for_each(|n| fs::write(lower.join(format!("other/{n}")), b"").unwrap());
    });
    t.hold(1, 1);
    let there = |dir: &str| (0..NAMES).filter(|n| t.at.join(dir).join(n.to_string()).exists()).count();
    assert_eq!((there("busy"), there("other")), (NAMES, NAMES));
    let before = t.mount.standing();
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: before.serial + 1, right: Right::Resting { until }, ..before });
    let path = t.at.join("busy/made");
    let call = std::thread::spawn(move || errno(fs::create_dir(path)));
    eventually("it waits", || t.mount.waiting() == 1);
    (0..NAMES).for_each(|n| fs::remove_file(t.lower.join(format!("other/{n}"))).unwrap());
    assert_eq!(there("other"), NAMES, "they are believed to be there");
    t.mount.publish(Standing { serial: before.serial + 2, right: Right::Read, ..before });
    eventually("they are not", || there("other") == 0);
    assert_eq!(t.mount.waiting(), 1);
    t.mount.answer_waiters(Outcome::Refused);
    assert_eq!(call.join().unwrap(), EROFS);
}

/// Where nobody is refused, others write while it is read here. When the policy begins to refuse, the licence to keep begins with what
/// is read from then on.
#[test]
fn what_was_read_where_nobody_is_refused_is_read_anew_when_the_policy_begins_to_refuse() {
    let t = Tree::mounted(true, |lower| {
        fs::write(lower.join("data"), [b'1'; SIZE]).unwrap();
        set_time(&lower.join("data"));
    });
    let before = t.mount.standing();
    t.mount.publish(Standing { serial: before.serial + 1, mode: Mode::Observe, ..before });
    t.hold(1, 1);
    assert_eq!(fs::read(t.at.join("data")).unwrap(), [b'1'; SIZE]);
    fs::write(t.lower.join("data"), [b'2'; SIZE]).unwrap();
    set_time(&t.lower.join("data"));
    let before = t.mount.standing();
    t.mount.publish(Standing { serial: before.serial + 1, mode: Mode::Enforce, ..before });
    // Before the daemon has told the kernel to forget.
    assert_eq!(fs::read(t.at.join("data")).unwrap(), [b'2'; SIZE]);
}

#[test]
fn a_mapped_page_that_waited_and_was_refused_is_dropped_by_the_next_open() {
    let t = Tree::held();
    fs::write(t.at.join("m"), [b'1'; SIZE]).unwrap();
    let file = Arc::new(OpenOptions::new().read(true).write(true).open(t.at.join("m")).unwrap());
    // The kernel knows the time of the write: else it would take it for another's, and drop the pages.
    file.metadata().unwrap();
    let map = Mapping::of(&file, SIZE);
    assert_eq!(map.get(0), b'1');
    let held = t.mount.standing();
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: held.serial + 1, right: Right::Resting { until }, ..held });
    map.put(0, b'a');
    let sync = std::thread::spawn({
        let file = file.clone();
        move || errno(file.sync_all())
    });
    eventually("the page waits", || t.mount.waiting() == 1);
    t.mount.answer_waiters(Outcome::Refused);
    assert_ne!(sync.join().unwrap(), 0);
    // The lease goes on.
    t.mount.publish(Standing { serial: held.serial + 2, ..held });
    let below = fs::read(t.lower.join("m")).unwrap();
    assert_eq!(below[0], b'1');
    assert!(fs::read(t.at.join("m")).unwrap() == below, "what is not on the storage is read");
}

/// Opens the gate again, also when the test fails: else who waits would wait for ever.
struct Reopens<'a>(&'a Tree, Standing);

impl Drop for Reopens<'_> {
    fn drop(&mut self) {
        self.0.mount.publish(Standing { serial: self.1.serial + 2, ..self.1 });
    }
}

/// While the gate closes with `on_close=wait`, a write that waits keeps its own pages from being pushed, and no other file's.
#[test]
fn mapped_pages_are_pushed_though_a_write_to_another_file_waits() {
    let t = Tree::held();
    let open = |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(t.at.join(name)).unwrap();
    let written: Vec<File> = (0..3).map(|n| open(&format!("written-{n}"))).collect();
    let files: Vec<File> = (0..8).map(|n| open(&format!("mapped-{n}"))).collect();
    files.iter().for_each(|file| file.write_all_at(&[b'1'; SIZE], 0).unwrap());
    let maps: Vec<Mapping> = files.iter().map(|file| Mapping::of(file, SIZE)).collect();
    maps.iter().for_each(|map| map.put(0, b'2'));
    let held = t.mount.standing();
    let (until, on_close) = (t.clock.now().after(HOUR), OnClose::Wait);
    t.mount.publish(Standing { serial: held.serial + 1, right: Right::Closing { until }, on_close, ..held });
    std::thread::scope(|threads| {
        let reopens = Reopens(&t, held);
        let calls: Vec<_> = written.iter().map(|file| threads.spawn(|| errno(file.write_all_at(b"waits", 0)))).collect();
        eventually("they wait", || t.mount.waiting() == calls.len());
        // It does not end as long as they wait.
        assert!(t.mount.push_mapped(Duration::from_millis(10)).is_err());
        let below = |n: usize| fs::read(t.lower.join(format!("mapped-{n}"))).unwrap()[0];
        eventually("all others are on the storage", || (0..maps.len()).all(|n| below(n) == b'2'));
        assert_eq!(t.mount.waiting(), calls.len());
        drop(reopens);
        calls.into_iter().for_each(|call| assert_eq!(call.join().unwrap(), 0));
    });
    eventually("whoever pushed has come back", || t.mount.lost_threads() == 0);
}
