//! A storage that does not answer, while calls wait and the gate opens. Needs /dev/fuse.
//!
//! The storage is a second guard below the first: what changes something waits there for a lease that does not come, as at a server that
//! has gone. Reading goes on, so that the calls come so far.

mod fs_support;

use std::fs;
use std::thread::JoinHandle;
use std::time::Duration;

use fs_support::{Tree, errno, eventually};
use nix::libc::{EIO, EROFS};
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_guard::gate::carriers::CARRIERS;
use treelease_guard::gate::{Outcome, Right, Standing};

/// As long as a lease without renewals.
const LEASE: Duration = Duration::from_secs(15);

/// What waited, and has not begun when the gate opens since the storage does not answer, is refused at the deadline (EROFS), and is not
/// carried out when the storage answers again. What hung in it by then is EIO.
#[test]
fn what_waited_and_was_not_begun_is_refused_at_the_deadline_though_the_storage_does_not_answer() {
    const MORE: usize = 5;
    let storage = Tree::mounted(true, |lower| {
        for n in 0..CARRIERS + MORE {
            fs::create_dir(lower.join(n.to_string())).unwrap();
        }
    });
    storage.hold(1, 1);
    let guard = Tree::over(&storage.at);
    guard.free();
    let make = |n: usize| {
        let path = guard.at.join(format!("{n}/made"));
        std::thread::spawn(move || errno(fs::create_dir(path)))
    };
    let calls: Vec<JoinHandle<i32>> = (0..CARRIERS + MORE).map(make).collect();
    eventually("all wait", || guard.mount.waiting() == calls.len());
    storage.free();
    let (before, epoch) = (guard.mount.standing(), Epoch::from_raw(2));
    let until = guard.clock.now().after(LEASE);
    let opening = Standing { serial: before.serial + 1, epoch, stale_below: epoch, right: Right::Opening { until }, ..before };
    guard.mount.publish(opening);
    guard.mount.answer_waiters(Outcome::Granted { run_start: RunStart(epoch), epoch });
    eventually("those that are carried out hang", || storage.mount.waiting() == CARRIERS);
    guard.clock.advance(LEASE + Duration::from_millis(1));
    eventually("all others are answered", || calls.iter().filter(|call| call.is_finished()).count() == MORE);
    assert_eq!((storage.mount.waiting(), guard.mount.in_flight()), (CARRIERS, CARRIERS));
    // As the daemon does at the deadline; and the storage answers.
    guard.mount.publish(Standing { serial: before.serial + 2, right: Right::Read, ..opening });
    storage.hold(2, 1);
    let said: Vec<i32> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    let how_many = |errno| said.iter().filter(|said| **said == errno).count();
    assert_eq!((how_many(EROFS), how_many(EIO)), (MORE, CARRIERS), "{said:?}");
    let on_the_storage = |n: usize| storage.lower.join(format!("{n}/made")).exists();
    assert!((0..said.len()).all(|n| on_the_storage(n) == (said[n] == EIO)), "{said:?}");
}
