//! I6: what belongs to an earlier run never writes in a later one: old mappings, finished lock files, old locks.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use rustix::fs::{FlockOperation, flock};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use treelease_tests::hosts::{Server, Side, World, quick, wait_for};

const SIZE: usize = 4096;

/// A shared writable mapping of a file's first page.
struct Mapping(*mut u8);

impl Mapping {
    fn of(file: &std::fs::File) -> Mapping {
        // SAFETY: a new mapping at a place of the kernel's choice; nothing else refers to it.
        let at = unsafe { mmap(std::ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) };
        Mapping(at.expect("a mapping").cast())
    }

    fn store(&self, at: usize, byte: u8) {
        assert!(at < SIZE);
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { self.0.add(at).write_volatile(byte) }
    }

    /// Pushes the page to the filesystem; whether that was said to have worked.
    fn push(&self) -> bool {
        // SAFETY: the range is this mapping.
        unsafe { msync(self.0.cast(), SIZE, MsyncFlags::SYNC) }.is_ok()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `of` and ends here.
        let _ended = unsafe { munmap(self.0.cast(), SIZE) };
    }
}

/// The other side has a turn in which it does `work`; then the tree comes back.
fn turn(a: &Side, b: &Side, work: impl FnOnce()) {
    b.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
    work();
    b.ok(&["release", "dev"]);
    a.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
}

fn read(side: &Side, name: &str) -> Vec<u8> {
    std::fs::read(side.at("dev").join(name)).expect("readable")
}

fn open_rw(side: &Side, name: &str) -> std::fs::File {
    std::fs::File::options().read(true).write(true).open(side.at("dev").join(name)).expect("opened for writing")
}

/// Two sides, of which the first has a rule switched off.
fn two_hosts(world: &World, fault: &str, policy: &[&str]) -> (Server, Side, Side) {
    let server = world.server();
    let (a, b) = (world.side("workstation", &server).fault(fault), world.side("pod", &server));
    world.tree(&a, "dev", &quick(policy));
    a.mount("dev", &world.lower("dev"));
    b.mount("dev", &world.lower("dev"));
    (server, a, b)
}

fn mapped_story(fault: &str) -> (u8, u8) {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, fault, &["fence=none"]);
    a.ok(&["acquire", "dev"]);
    std::fs::write(a.at("dev").join("mapped"), vec![b'a'; SIZE]).unwrap();
    let mapping = Mapping::of(&open_rw(&a, "mapped"));
    mapping.store(0, b'A');
    assert!(mapping.push());
    turn(&a, &b, || std::fs::write(b.at("dev").join("mapped"), vec![b'b'; SIZE]).unwrap());
    mapping.store(0, b'X');
    let _said = mapping.push();
    let new_reader = read(&a, "mapped")[0];
    drop(mapping);
    let storage = std::fs::read(world.lower("dev").join("mapped")).unwrap()[0];
    (storage, new_reader)
}

#[test]
fn i6_a_store_through_an_old_mapping_reaches_neither_the_file_nor_a_new_reader() {
    assert_eq!(mapped_story(""), (b'b', b'b'));
}

#[test]
fn control_without_the_rule_an_old_mapping_overwrites_the_other_side() {
    assert_eq!(mapped_story("no_stale"), (b'X', b'X'));
}

/// A store through a mapping of a file that was opened with O_APPEND, and an append: the file's length, the stored
/// byte, and what lies behind the page.
fn appended(fault: &str) -> (usize, u8, Vec<u8>) {
    let world = World::new();
    let (_server, a, _b) = two_hosts(&world, fault, &["fence=none"]);
    a.ok(&["acquire", "dev"]);
    let path = a.at("dev").join("log");
    std::fs::write(&path, vec![b'-'; SIZE]).unwrap();
    // The kernel sends pages under the handles through which the file was mapped: here there is only one with O_APPEND.
    let mut appending = std::fs::File::options().read(true).append(true).open(&path).unwrap();
    let mapping = Mapping::of(&appending);
    mapping.store(7, b'M');
    assert!(mapping.push());
    appending.write_all(b"end").unwrap();
    let now = std::fs::read(world.lower("dev").join("log")).unwrap();
    (now.len(), now[7], now[SIZE..].to_vec())
}

#[test]
fn a_mapped_file_that_is_open_for_appending_is_not_torn() {
    assert_eq!(appended(""), (SIZE + 3, b'M', b"end".to_vec()));
}

#[test]
fn control_if_a_page_goes_down_through_its_handle_a_mapped_file_is_torn() {
    let (size, stored, _) = appended("pages_by_handle");
    assert_eq!((size, stored), (2 * SIZE + 3, b'-'), "the page was appended");
}

#[test]
fn a_finished_lock_file_from_before_the_others_turn_is_not_renamed_into_place_but_a_new_one_is() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&["fence=none"]));
    a.ok(&["acquire", "dev"]);
    let (index, locked) = (a.at("dev").join("index"), a.at("dev").join("index.new"));
    std::fs::write(&index, "first").unwrap();
    std::fs::write(&locked, "old work of this very process").unwrap();
    turn(&a, &b, || std::fs::write(b.at("dev").join("index"), "the other side's").unwrap());
    let moved = std::fs::rename(&locked, &index).expect_err("made before the other side's turn");
    assert_eq!(moved.raw_os_error(), Some(Errno::ESTALE as i32));
    let linked = std::fs::hard_link(&locked, a.at("dev").join("linked")).expect_err("nor linked");
    assert_eq!(linked.raw_os_error(), Some(Errno::ESTALE as i32));
    assert_eq!(read(&a, "index"), b"the other side's");
    // Somebody who looked, with a program of today.
    a.tool("mv", &[locked.to_str().unwrap(), index.to_str().unwrap()]).expect(0);
    assert_eq!(read(&a, "index"), b"old work of this very process");
    // And what this process makes anew.
    std::fs::write(&locked, "new work").unwrap();
    std::fs::rename(&locked, &index).unwrap();
    assert_eq!(read(&a, "index"), b"new work");
}

#[test]
fn control_without_the_rule_a_finished_lock_file_undoes_the_others_turn() {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, "no_stale", &["fence=none"]);
    a.ok(&["acquire", "dev"]);
    let (index, locked) = (a.at("dev").join("index"), a.at("dev").join("index.new"));
    std::fs::write(&locked, "old work of this very process").unwrap();
    turn(&a, &b, || std::fs::write(b.at("dev").join("index"), "the other side's").unwrap());
    std::fs::rename(&locked, &index).expect("nothing stops it");
    assert_eq!(std::fs::read(world.lower("dev").join("index")).unwrap(), b"old work of this very process");
}

/// A lock from before the other side's turn: what opening the file for writing says here afterwards, and whether a second
/// exclusive lock can be had. Readers are never in its way, and when it is gone nobody is.
fn locked(fault: &str) -> (Option<i32>, bool) {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, fault, &["fence=none", "handoff_wait=500ms"]);
    a.ok(&["acquire", "dev"]);
    std::fs::write(a.at("dev").join("db"), "x").unwrap();
    let old = open_rw(&a, "db");
    flock(old.as_fd(), FlockOperation::NonBlockingLockExclusive).unwrap();
    // Busy: it is given away past the lock, by force.
    b.run(&["acquire", "dev", "--ask", "--wait", "20s"]).refused(75, &["declined"]);
    a.ok(&["release", "dev", "--now"]);
    b.ok(&["acquire", "dev", "--wait", "20s"]);
    std::fs::write(b.at("dev").join("db"), "y").unwrap();
    b.ok(&["release", "dev"]);
    a.ok(&["acquire", "dev", "--wait", "20s"]);
    let open = || std::fs::File::options().write(true).open(a.at("dev").join("db"));
    let said = open();
    let errno = said.as_ref().err().and_then(std::io::Error::raw_os_error);
    let second = said.is_ok_and(|file| flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok());
    assert_eq!(read(&a, "db"), b"y", "readers are not in its way");
    if errno.is_some() {
        let log = std::fs::read_to_string(a.dir().join("state/log/guard.log")).unwrap();
        assert!(log.contains(&format!("(pid {})", std::process::id())), "the process is named");
    }
    drop(old);
    wait_for(Duration::from_secs(30), "the lock is gone", || open().is_ok());
    (errno, second)
}

/// While somebody holds an exclusive lock on a file since before the turn, opening it for writing is EBUSY.
#[test]
fn while_an_old_exclusive_lock_is_held_the_file_is_busy_for_writers() {
    assert_eq!(locked(""), (Some(Errno::EBUSY as i32), false));
}

#[test]
fn control_without_the_rule_two_processes_have_the_same_file_exclusively() {
    assert_eq!(locked("no_lock_check"), (None, true));
}

/// A finished lock file, then the guard is killed, the other side has a turn, and the guard comes back: what this old process is
/// told that moves it into place, and what the file holds then.
fn moved_after_a_restart(fault: &str) -> (Option<i32>, Vec<u8>) {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, fault, &["fence=none"]);
    a.configure_mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    let (index, locked) = (a.at("dev").join("index"), a.at("dev").join("index.new"));
    std::fs::write(&locked, "old work of this very process").unwrap();
    a.kill_daemon();
    b.ok(&["acquire", "dev", "--wait", "30s"]);
    std::fs::write(b.at("dev").join("index"), "the other side's").unwrap();
    b.ok(&["release", "dev"]);
    wait_for(Duration::from_secs(60), "the guard is back", || a.run(&["up"]).code == 0);
    a.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
    let said = std::fs::rename(&locked, &index).err().and_then(|why| why.raw_os_error());
    let holds = read(&a, "index");
    if said.is_some() {
        a.tool("mv", &[locked.to_str().unwrap(), index.to_str().unwrap()]).expect(0);
        assert_eq!(read(&a, "index"), b"old work of this very process", "a program of today may");
    }
    (said, holds)
}

#[test]
fn a_finished_lock_file_from_before_a_restart_and_the_others_turn_is_not_renamed_into_place() {
    assert_eq!(moved_after_a_restart(""), (Some(Errno::ESTALE as i32), b"the other side's".to_vec()));
}

#[test]
fn control_without_the_rule_a_lock_file_from_before_a_restart_undoes_the_others_turn() {
    assert_eq!(moved_after_a_restart("no_earlier_mount"), (None, b"old work of this very process".to_vec()));
}

/// An open that has waited shows the size of now: who writes at the end writes at the end.
#[test]
fn an_open_that_waited_for_the_lease_shows_the_size_of_now_not_of_before_the_wait() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&["idle=60s"]));
    let (theirs, ours) = (a.at("dev").join("log"), b.at("dev").join("log"));
    for round in 1..=4 {
        a.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
        let mut log = std::fs::File::options().create(true).append(true).open(&theirs).unwrap();
        log.write_all(b"one").unwrap();
        drop(log);
        // The kernel remembers this size for half a second.
        let before = std::fs::metadata(&ours).unwrap().len();
        std::fs::File::options().append(true).open(&theirs).unwrap().write_all(b"two").unwrap();
        a.ok(&["release", "dev"]);
        let opened = std::fs::File::options().write(true).open(&ours).unwrap();
        let size = opened.metadata().unwrap().len();
        assert_eq!(
            size,
            6 * round,
            "it was {before} before the other side's last write: what is written at the end lands on that"
        );
        drop(opened);
        b.ok(&["release", "dev"]);
    }
}
