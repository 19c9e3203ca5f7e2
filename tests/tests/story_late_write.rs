//! I4, the one way in which a write can be late: the guard itself is stopped between the gate's word and the system call.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use nix::errno::Errno;
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use treelease_tests::hosts::{World, quick, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// One call that is stopped at a place in the guard, on an open file, until the deadline has passed: what the application is told.
fn late(place: &str, call: impl FnOnce(&File, &File) -> std::io::Result<()> + Send + 'static) -> Option<i32> {
    let world = World::new();
    let (server, a, b) = world.two_hosts(&quick(&["fence=none"]));
    a.ok(&["acquire", "dev"]);
    std::fs::write(a.at("dev").join("source"), "text").unwrap();
    let source = File::open(a.at("dev").join("source")).unwrap();
    let file = File::create(a.at("dev").join("late")).unwrap();
    let stopped = a.stop_at(place);
    let caller = std::thread::spawn(move || call(&file, &source).err().and_then(|why| why.raw_os_error()));
    wait_for(LONG, "the call is admitted", || stopped.reached());
    server.pause();
    wait_for(LONG, "the deadline has passed", || !a.holds("dev"));
    drop(stopped);
    let said = caller.join().unwrap();
    server.resume();
    let late = || {
        let history = b.ok(&["history", "dev", "-o", "json"]).json();
        let entries = history["entries"].as_array().expect("entries").clone();
        entries.into_iter().find(|e| e["event"] == "late_write")
    };
    wait_for(LONG, "it is on record", || late().is_some());
    let entry = late().unwrap();
    assert_eq!(entry["count"], 1);
    assert!(entry["reason"].as_str().unwrap().contains("late"), "{entry}: the file is named");
    said
}

/// A call that was admitted before the deadline and ended after it is EIO, and in the history with its file's name.
#[test]
fn i4_a_write_admitted_before_the_deadline_and_finished_after_it_is_an_error_and_on_record() {
    let said = late("write-admitted", |mut file, _| file.write_all(b"too late"));
    assert_eq!(said, Some(Errno::EIO as i32), "the application learns of it");
}

#[test]
fn i4_so_is_an_allocation() {
    let said = late("call-admitted", |file, _| Ok(fallocate(file, FallocateFlags::empty(), 0, 4096)?));
    assert_eq!(said, Some(Errno::EIO as i32));
}

#[test]
fn i4_so_is_a_copy_within_the_kernel() {
    let said = late("copy-judged", |file, source| Ok(copy_file_range(source, None, file, None, 4).map(|_| ())?));
    assert_eq!(said, Some(Errno::EIO as i32));
}
