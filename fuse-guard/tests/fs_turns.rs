//! Another side had a turn while the kernel knew names, waited with calls, or had been mounted on before (DESIGN 4, I6); and what
//! the kernel must not do or believe on its own account. Each with its control: the rule switched off shows the damage. Needs /dev/fuse.

mod fs_support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use fs_support::{HOUR, Mapping, Small, Tree, errno, eventually};
use nix::libc::{ENOSPC, EROFS, ESTALE, ETXTBSY};
use rustix::fs::{CWD, Mode, OFlags};
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::OnClose;
use treelease_guard::fs::faults::Faults;
use treelease_guard::gate::{Outcome, Right, Standing};

fn no_second_look() -> Faults {
    Faults { no_second_look: true, ..Faults::default() }
}

/// What another side leaves when it makes a file anew under the same name, as SQLite does with a `-wal`.
fn make_anew(path: &Path, text: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, text).unwrap();
}

fn appending(t: &Tree, name: &str) -> JoinHandle<std::io::Result<()>> {
    let path = t.at.join(name);
    std::thread::spawn(move || OpenOptions::new().append(true).open(path)?.write_all(b" ours"))
}

/// An open that waits for the lease while the other side makes the file anew; what the file holds then, by its name.
fn waited(faults: Faults) -> (std::io::Result<()>, Vec<u8>) {
    let t = Tree::with(faults, None, true, |lower| fs::write(lower.join("db-wal"), b"old").unwrap());
    assert_eq!(fs::metadata(t.at.join("db-wal")).unwrap().len(), 3);
    t.free();
    let open = appending(&t, "db-wal");
    eventually("the open waits", || t.mount.waiting() == 1);
    make_anew(&t.lower.join("db-wal"), b"theirs");
    t.hold(2, 2);
    (open.join().unwrap(), fs::read(t.lower.join("db-wal")).unwrap())
}

/// A call goes to what has the name when it goes on: the first time in a run that a file is opened or changed by a path, the
/// guard asks the storage whether every name of it, and of the directories above it, still leads there. If not, the kernel looks
/// up again and tries once more, by itself.
#[test]
fn an_open_that_waited_goes_to_what_has_the_name_when_it_goes_on() {
    let (said, text) = waited(Faults::default());
    said.unwrap();
    assert_eq!(text, b"theirs ours");
}

#[test]
fn control_without_a_second_look_a_write_after_a_wait_is_acknowledged_and_lost() {
    let (said, text) = waited(no_second_look());
    said.unwrap();
    assert_eq!(text, b"theirs");
}

/// The same with the whole directory replaced, and several calls that wait in it.
fn waited_in_a_directory(faults: Faults) -> Vec<(&'static str, bool)> {
    let t = Tree::with(faults, None, true, |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("d/f"), b"old").unwrap();
    });
    assert_eq!(fs::metadata(t.at.join("d/f")).unwrap().len(), 3);
    t.free();
    let at = t.at.clone();
    let calls: Vec<JoinHandle<()>> = vec![
        std::thread::spawn({
            let at = at.clone();
            move || fs::create_dir(at.join("d/made")).unwrap()
        }),
        std::thread::spawn({
            let at = at.clone();
            move || std::os::unix::fs::symlink("x", at.join("d/linked")).unwrap()
        }),
        std::thread::spawn({
            let at = at.clone();
            move || fs::write(at.join("d/f"), b"ours").unwrap()
        }),
        std::thread::spawn(move || fs::write(at.join("top"), b"ours").unwrap()),
    ];
    // Calls in one directory wait for one another in the kernel: so it is one of them and the one above, at least.
    eventually("they wait", || t.mount.waiting() >= 2);
    fs::rename(t.lower.join("d"), t.lower.join("away")).unwrap();
    fs::create_dir(t.lower.join("d")).unwrap();
    fs::write(t.lower.join("d/f"), b"theirs").unwrap();
    t.hold(2, 2);
    calls.into_iter().for_each(|call| call.join().unwrap());
    vec![
        ("mkdir", t.lower.join("d/made").is_dir() && !t.lower.join("away/made").exists()),
        ("symlink", t.lower.join("d/linked").is_symlink() && !t.lower.join("away/linked").is_symlink()),
        ("write", fs::read(t.lower.join("d/f")).unwrap() == b"ours" && fs::read(t.lower.join("away/f")).unwrap() == b"old"),
        ("above", t.lower.join("top").exists()),
    ]
}

/// Calls that waited in a directory go to the one that has its name by then.
#[test]
fn calls_that_waited_in_a_directory_go_to_the_one_that_has_its_name() {
    for (row, right) in waited_in_a_directory(Faults::default()) {
        assert!(right, "{row}");
    }
}

#[test]
fn control_without_a_second_look_calls_that_waited_change_the_directory_that_was_moved_away() {
    let wrong: Vec<_> = waited_in_a_directory(no_second_look()).into_iter().filter(|(_, right)| !right).collect();
    assert!(!wrong.is_empty());
}

/// An open by an inode that was looked up before another side's turn and arrives when the gate is open: a path through a
/// descriptor is not looked up again by the kernel.
fn on_its_way(faults: Faults) -> (i32, Vec<u8>) {
    let t = Tree::with(faults, None, true, |lower| fs::write(lower.join("db-wal"), b"old").unwrap());
    let known = rustix::fs::open(t.at.join("db-wal"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    make_anew(&t.lower.join("db-wal"), b"theirs");
    t.hold(2, 2);
    let open = OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", known.as_raw_fd()));
    let said = errno(open.and_then(|mut file| file.write_all(b" ours")));
    // Whoever comes by the name meets what has it.
    appending(&t, "db-wal").join().unwrap().unwrap();
    (said, fs::read(t.lower.join("db-wal")).unwrap())
}

/// What has no path to look up again (`/proc/PID/fd/N`) is told ESTALE.
#[test]
fn an_open_that_was_looked_up_before_another_sides_turn_and_comes_after_the_grant_is_stale() {
    assert_eq!(on_its_way(Faults::default()), (ESTALE, b"theirs ours".to_vec()));
}

#[test]
fn control_without_a_second_look_an_open_on_its_way_writes_into_a_file_that_is_gone() {
    assert_eq!(on_its_way(no_second_look()), (0, b"theirs ours".to_vec()), "acknowledged, and in no file");
}

#[test]
fn what_the_kernel_believed_just_before_a_grant_is_opened_by_nobody() {
    let t = Tree::mounted(true, |lower| {
        fs::write(lower.join("a"), b"1").unwrap();
        fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
    });
    for name in ["a", "b"] {
        fs::metadata(t.at.join(name)).unwrap();
    }
    make_anew(&t.lower.join("a"), b"theirs");
    // The gate opens and the kernel has not been told to forget.
    let before = t.mount.standing();
    let (epoch, until) = (Epoch::from_raw(2), t.clock.now().after(HOUR));
    t.mount.begin_epoch(epoch).unwrap();
    t.mount.publish(Standing { serial: 9, epoch, stale_below: epoch, right: Right::Write { until }, ..before });
    appending(&t, "a").join().unwrap().unwrap();
    appending(&t, "b").join().unwrap().unwrap();
    nix::unistd::truncate(&t.at.join("b"), 3).unwrap();
    assert_eq!(fs::read(t.lower.join("a")).unwrap(), b"theirs ours");
    assert_eq!(fs::read(t.lower.join("b")).unwrap(), b"1 o");
}

/// A process that works in a directory which the other side has moved goes on there when somebody has come to it by its new name;
/// until then it reads, and makes and removes nothing.
#[test]
fn a_file_that_another_side_moved_is_written_under_its_new_name_and_a_working_directory_goes_along() {
    let t = Tree::mounted(true, |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("log"), b"1").unwrap();
    });
    t.hold(1, 1);
    fs::metadata(t.at.join("log")).unwrap();
    let mut inside = Command::new("sh")
        .args(["-c", "read go; echo x > made && cat made"])
        .current_dir(t.at.join("d"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    t.release();
    t.elsewhere(2);
    fs::rename(t.lower.join("log"), t.lower.join("log.1")).unwrap();
    fs::rename(t.lower.join("d"), t.lower.join("e")).unwrap();
    t.hold(3, 3);
    appending(&t, "log.1").join().unwrap().unwrap();
    fs::write(t.at.join("log"), b"new").unwrap();
    assert_eq!(fs::read(t.lower.join("log.1")).unwrap(), b"1 ours");
    assert_eq!(fs::read(t.lower.join("log")).unwrap(), b"new");
    // By its new name somebody comes to it: then whoever works in it goes on.
    assert!(fs::metadata(t.at.join("e")).unwrap().is_dir());
    inside.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(inside.wait_with_output().unwrap().stdout, b"x\n");
    assert!(t.lower.join("e/made").exists());
}

/// A program that runs from the mount, and what cutting its file says and leaves.
fn cut_a_running_program(faults: Faults) -> (i32, i32, bool) {
    let t = Tree::with(faults, None, true, |_| {});
    t.hold(1, 1);
    let program = t.at.join("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let whole = fs::metadata("/bin/sleep").unwrap().len();
    let mut child = Command::new(&program).arg("600").spawn().unwrap();
    let by_writer = errno(OpenOptions::new().write(true).truncate(true).open(&program));
    let by_reader = errno(
        rustix::fs::openat(CWD, &program, OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from),
    );
    let left = fs::metadata(t.lower.join("program")).unwrap().len();
    child.kill().unwrap();
    child.wait().unwrap();
    (by_writer, by_reader, left == whole)
}

/// The file of a running program is ETXTBSY for whoever would write or cut it, and stays whole.
#[test]
fn the_file_of_a_running_program_is_not_cut() {
    assert_eq!(cut_a_running_program(Faults::default()), (ETXTBSY, ETXTBSY, true));
}

#[test]
fn control_if_the_kernel_may_cut_at_open_a_running_program_is_cut_and_then_refused() {
    let (_, by_reader, whole) = cut_a_running_program(Faults { cut_at_open: true, ..Faults::default() });
    // 0: it had died of the cut before the kernel asked.
    assert!([ETXTBSY, 0].contains(&by_reader) && !whole, "{by_reader}");
}

/// O_TRUNC with O_RDONLY is a mutation: the holder's cuts, others are EROFS.
#[test]
fn an_open_that_cuts_still_cuts() {
    let t = Tree::held();
    fs::write(t.at.join("f"), b"long text").unwrap();
    let open = || rustix::fs::open(t.at.join("f"), OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty());
    drop(open().unwrap());
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"");
    fs::write(t.at.join("f"), b"long text").unwrap();
    t.release();
    assert_eq!(open().unwrap_err(), rustix::io::Errno::ROFS);
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"long text");
}

/// Stores through a mapping of a sparse file that the storage has no room for: what msync and fsync say, and whether the
/// storage has it.
fn map_what_has_no_room(faults: Faults) -> (i32, bool) {
    // One request of the kernel, of which the storage takes the half.
    const SIZE: usize = 64 << 10;
    let mut small = None;
    let t = Tree::with(faults, None, true, |lower| small = Some(Small::over(lower)));
    t.hold(1, 1);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(t.at.join("sparse")).unwrap();
    file.set_len(SIZE as u64).unwrap();
    let map = Mapping::of(&file, SIZE);
    for page in 0..SIZE / 4096 {
        map.put(page * 4096, b'x');
    }
    let synced = map.sync();
    drop(map);
    let mut stored = Vec::new();
    File::open(t.lower.join("sparse")).unwrap().read_to_end(&mut stored).unwrap();
    let whole = (0..SIZE / 4096).all(|page| stored[page * 4096] == b'x');
    (synced, whole)
}

/// Mapped pages for which the storage has no room are an error of msync and fsync.
#[test]
fn mapped_pages_that_the_storage_has_no_room_for_are_an_error_of_msync() {
    assert_eq!(map_what_has_no_room(Faults::default()), (ENOSPC, false));
}

#[test]
fn control_if_a_part_of_the_pages_were_enough_msync_would_say_that_all_is_well() {
    // The kernel may send the pages in two requests, when it writes back by itself in that moment.
    let short = Faults { short_pages: true, ..Faults::default() };
    assert!((0..10).any(|_| map_what_has_no_room(short) == (0, false)));
}

/// A file from an earlier mount, moved by this process after another side's turn.
fn move_after_a_restart(faults: Faults, run: u64) -> (i32, i32) {
    let began = || fs::read_to_string("/proc/thread-self/stat").unwrap().split_whitespace().nth(21).unwrap().to_owned();
    let mine = fs::read_to_string("/proc/self/stat").unwrap().split_whitespace().nth(21).unwrap().to_owned();
    // This process must be older than the mount by more than the kernel can tell.
    eventually("a tick has passed", || std::thread::spawn(began).join().unwrap() != mine);
    let t = Tree::with(faults, Some(1), true, |lower| fs::write(lower.join("index.lock"), b"of before").unwrap());
    t.hold(run, run);
    let moved = errno(fs::rename(t.at.join("index.lock"), t.at.join("index")));
    if moved != 0 {
        // A program of today, and what this process makes anew.
        assert!(Command::new("mv").arg(t.at.join("index.lock")).arg(t.at.join("index")).status().unwrap().success());
        fs::write(t.at.join("index.lock"), b"new").unwrap();
        fs::rename(t.at.join("index.lock"), t.at.join("index")).unwrap();
    }
    let hard = errno({
        fs::write(t.lower.join("old"), b"x").unwrap();
        fs::hard_link(t.at.join("old"), t.at.join("new"))
    });
    (moved, hard)
}

/// After a restart of the guard and another side's turn since its last lease, a process older than the mount renames and links
/// nothing that it has not written through this mount: ESTALE.
#[test]
fn after_a_restart_and_another_sides_turn_an_older_process_moves_nothing_that_it_has_not_written_since() {
    assert_eq!(move_after_a_restart(Faults::default(), 3), (ESTALE, ESTALE));
    assert_eq!(move_after_a_restart(Faults::default(), 1), (0, 0), "no turn since");
}

#[test]
fn control_without_the_rule_an_older_process_moves_its_old_work_into_place() {
    let off = Faults { no_earlier_mount: true, ..Faults::default() };
    assert_eq!(move_after_a_restart(off, 3), (0, 0));
}

/// Through an old handle, the file's size and times are asked for each time.
#[test]
fn a_replaced_file_is_asked_each_time_and_answers_from_no_cache() {
    let t = Tree::held();
    fs::write(t.at.join("f"), b"1").unwrap();
    let held = OpenOptions::new().read(true).write(true).open(t.at.join("f")).unwrap();
    t.release();
    t.elsewhere(2);
    t.hold(3, 3);
    for size in 2..50 {
        fs::write(t.lower.join("f"), vec![b'x'; size]).unwrap();
        assert_eq!(held.metadata().unwrap().len(), size as u64);
    }
}

/// Waiting calls occupy no thread, ask for the lease once, and readers are served meanwhile.
#[test]
fn many_calls_wait_without_a_thread_each_and_ask_for_the_lease_once() {
    const MANY: usize = 64;
    let t = Tree::mounted(true, |lower| {
        for n in 0..MANY {
            fs::create_dir(lower.join(format!("{n}"))).unwrap();
        }
        fs::write(lower.join("f"), b"text").unwrap();
    });
    t.free();
    let make = |n: usize| {
        let path = t.at.join(format!("{n}/made"));
        std::thread::spawn(move || errno(fs::create_dir(path)))
    };
    let calls: Vec<JoinHandle<i32>> = (0..MANY).map(make).collect();
    eventually("all wait", || t.mount.waiting() == MANY);
    // Sixteen times as many as threads that serve: readers are served all the same.
    assert_eq!(fs::read(t.at.join("f")).unwrap(), b"text");
    assert_eq!(t.ears.wanted.load(Ordering::SeqCst), 1, "one request");
    t.hold(2, 2);
    assert!(calls.into_iter().all(|call| call.join().unwrap() == 0));
    assert!((0..MANY).all(|n| t.lower.join(format!("{n}/made")).is_dir()));
}

/// A wait that has no answer ends after 2 s with EROFS. A signal ends the waiting program only then: FUSE servers of this library
/// are not told of interrupts.
#[test]
fn a_wait_for_the_lease_has_an_end() {
    let t = Tree::new();
    t.free();
    let at = t.at.join("d");
    let call = std::thread::spawn(move || errno(fs::create_dir(at)));
    eventually("it waits", || t.mount.waiting() == 1);
    t.clock.advance(Duration::from_secs(3));
    assert_eq!(call.join().unwrap(), EROFS);
    assert_eq!(t.mount.waiting(), 0);
}

/// With `on_close=wait` they wait instead: they go on if the gate opens again, and are EROFS if the lease goes.
#[test]
fn what_waits_for_a_closing_gate_goes_on_if_it_opens_again_and_is_refused_if_the_lease_goes() {
    let closing = |t: &Tree| {
        let before = t.mount.standing();
        let (until, on_close) = (t.clock.now().after(HOUR), OnClose::Wait);
        t.mount.publish(Standing { serial: before.serial + 1, right: Right::Closing { until }, on_close, ..before });
    };
    let write = |file: &std::sync::Arc<File>, text: &'static [u8]| {
        let file = file.clone();
        std::thread::spawn(move || errno(file.write_all_at(text, 0)))
    };
    let t = Tree::held();
    let file = std::sync::Arc::new(File::create(t.at.join("f")).unwrap());
    closing(&t);
    let kept = write(&file, b"1");
    eventually("it waits", || t.mount.waiting() == 1);
    let before = t.mount.standing();
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: before.serial + 1, right: Right::Write { until }, ..before });
    assert_eq!(kept.join().unwrap(), 0, "the handoff was declined");
    // The answer is sent before its carrier counts itself out.
    eventually("nobody waits", || t.mount.waiting() == 0);
    closing(&t);
    let given = write(&file, b"2");
    eventually("it waits", || t.mount.waiting() == 1);
    // As the daemon does when the lease has gone, before it drops the caches.
    t.mount.answer_waiters(Outcome::Refused);
    assert_eq!(given.join().unwrap(), EROFS);
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"1");
}

/// One copy_file_range moves at most 64 MiB; programs go on where it stopped.
#[test]
fn one_permit_of_a_copy_moves_at_most_64_mib() {
    let t = Tree::held();
    let source = OpenOptions::new().read(true).write(true).create_new(true).open(t.at.join("source")).unwrap();
    source.set_len(80 << 20).unwrap();
    let target = File::create(t.at.join("target")).unwrap();
    let moved = rustix::fs::copy_file_range(&source, None, &target, None, 80 << 20).unwrap();
    assert_eq!(moved, 64 << 20);
}

/// A rename or a link of what the same process made or wrote before the turn (a file, directory, symlink or FIFO) is ESTALE; made
/// anew, or moved by another process, it goes on.
#[test]
fn a_link_or_directory_made_before_another_sides_turn_is_not_moved_into_place_after_it() {
    let t = Tree::held();
    std::os::unix::fs::symlink("v1", t.at.join("current")).unwrap();
    std::os::unix::fs::symlink("v2", t.at.join(".tmp")).unwrap();
    std::fs::create_dir(t.at.join("made")).unwrap();
    nix::unistd::mkfifo(&t.at.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    t.release();
    t.elsewhere(2);
    std::fs::remove_file(t.lower.join("current")).unwrap();
    std::os::unix::fs::symlink("v3", t.lower.join("current")).unwrap();
    t.hold(3, 3);
    let rename = |from: &str, to: &str| errno(std::fs::rename(t.at.join(from), t.at.join(to)));
    let stale = nix::libc::ESTALE;
    assert_eq!([rename(".tmp", "current"), rename("made", "place"), rename("fifo", "pipe")], [stale; 3]);
    assert_eq!(std::fs::read_link(t.lower.join("current")).unwrap(), Path::new("v3"), "what the other side has set");
    std::fs::remove_file(t.at.join(".tmp")).unwrap();
    std::os::unix::fs::symlink("v4", t.at.join(".tmp")).unwrap();
    assert_eq!(rename(".tmp", "current"), 0, "made anew in this run");
}
