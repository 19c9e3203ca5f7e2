//! I4, the one way in which a write can be late: the guard itself is stopped between the gate's word and the system call.

use std::time::Duration;

use nix::errno::Errno;
use treelease_tests::hosts::{World, quick, wait_for};

const LONG: Duration = Duration::from_secs(10);

#[test]
fn i4_a_write_admitted_before_the_deadline_and_finished_after_it_is_an_error_and_on_record() {
    let world = World::new();
    let (server, a, b) = world.two_hosts(&quick(&["fence=none"]));
    a.ok(&["acquire", "dev"]);
    std::fs::write(a.at("dev").join("ready"), "x").unwrap();
    let file = std::fs::File::create(a.at("dev").join("late")).unwrap();
    let stopped = a.stop_at("write-admitted");
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        (&file).write_all(b"too late").map_err(|e| e.raw_os_error())
    });
    wait_for(LONG, "the write is admitted", || stopped.reached());
    server.pause();
    wait_for(LONG, "the deadline has passed", || !a.holds("dev"));
    drop(stopped);
    assert_eq!(writer.join().unwrap(), Err(Some(Errno::EIO as i32)), "the application learns of it");
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
}
