//! One tree that goes from side to side again and again, while programs on both sides make, move, look for and remove names in one
//! directory: the kernel keeps that directory locked for a call that waits, and is told all the time to forget names in it. Nobody
//! hangs. Needs /dev/fuse.
//!
//! The test plays both daemons, in their order. Time is its own: what waits is answered by it alone, never by a limit.

mod fs_support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fs_support::{HOUR, LIMIT, Tree, eventually};
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::policy::OnClose;
use treelease_guard::gate::{Outcome, Right, Standing};

/// Programs on each side.
const PROGRAMS: usize = 4;
/// Names that they fight for.
const NAMES: u64 = 6;
/// No call of theirs lasts longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long pages are pushed: a call that waits keeps its own locked.
const PUSH: Duration = Duration::from_millis(200);
/// What each of them does in a turn at least.
const CALLS: u64 = 8;

/// A side, and how many calls each of its programs has ended.
struct Side {
    tree: Tree,
    ended: [AtomicU64; PROGRAMS],
}

impl Side {
    fn over(lower: &Path) -> Side {
        Side { tree: Tree::over(lower), ended: Default::default() }
    }

    /// As the daemon publishes: with another serial.
    fn publish(&self, change: impl FnOnce(Standing) -> Standing) {
        let before = self.tree.mount.standing();
        self.tree.mount.publish(Standing { serial: before.serial + 1, ..change(before) });
    }

    fn until(&self) -> treelease_client::words::time::BootTime {
        self.tree.clock.now().after(HOUR)
    }

    /// Granted, in the daemon's order.
    fn granted(&self, epoch: Epoch) {
        let (mount, until) = (&self.tree.mount, self.until());
        mount.begin_epoch(epoch).unwrap();
        let opening = Right::Opening { until };
        self.publish(|s| Standing { epoch, stale_below: epoch, right: opening, may_wait: true, free: false, ..s });
        mount.forget_attributes();
        mount.answer_waiters(Outcome::Granted { run_start: RunStart(epoch), epoch });
        assert!(mount.drop_caches(PATIENCE), "stuck at {:?}", mount.dropping());
        self.publish(|s| Standing { right: Right::Write { until }, ..s });
    }

    /// For a moment it is at rest: all that comes waits, and goes on.
    fn rests(&self) {
        let until = self.until();
        self.publish(|s| Standing { right: Right::Resting { until }, ..s });
        self.tree.mount.drain(LIMIT);
        self.publish(|s| Standing { right: Right::Write { until }, ..s });
    }

    /// Hands over, in the daemon's order.
    fn hands_over(&self, on_close: OnClose) {
        let (mount, until) = (&self.tree.mount, self.until());
        // A page that waits is pushed no further than to its limit; the rest goes on.
        let _pushed = mount.push_mapped(PUSH);
        self.publish(|s| Standing { right: Right::Closing { until }, on_close, ..s });
        let _pushed = mount.push_mapped(PUSH);
        self.publish(|s| Standing { right: Right::Read, may_wait: on_close == OnClose::Wait, ..s });
        assert!(mount.drain(PATIENCE), "{} calls are in flight", mount.in_flight());
        mount.flush(PATIENCE).unwrap();
        self.publish(|s| Standing { free: true, may_wait: true, ..s });
        // What comes now waits for a lease that it does not get: the daemon says so, and the caches wait for that.
        std::thread::scope(|threads| {
            let drops = threads.spawn(|| mount.drop_caches(PATIENCE));
            while !drops.is_finished() {
                mount.answer_waiters(Outcome::Refused);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(drops.join().unwrap(), "stuck at {:?}", mount.dropping());
        });
    }

    /// Another side has it now: what has waited for it here is refused, and later calls wait or not.
    fn hears(&self, epoch: Epoch, may_wait: bool) {
        self.publish(|s| Standing { epoch, stale_below: epoch, right: Right::Read, free: false, may_wait, ..s });
        self.tree.mount.answer_waiters(Outcome::Refused);
    }

    fn calls(&self) -> Vec<u64> {
        self.ended.iter().map(|n| n.load(Ordering::SeqCst)).collect()
    }

    /// Ends the connection: whoever hangs in it gets an error.
    fn abort(&self) {
        let _gone = fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.tree.mount.connection()), b"1");
    }
}

/// A small generator of its own: what is done must differ, not be well spread.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One call, or some that belong together; whatever comes out.
fn call(dir: &Path, random: &mut u64) -> std::io::Result<()> {
    let kind = next(random) % 12;
    let name = |random: &mut u64| dir.join(format!("n{}", next(random) % NAMES));
    let (one, other) = (name(random), name(random));
    match kind {
        0 | 1 => OpenOptions::new().write(true).create(true).truncate(true).open(one)?.write_all(b"text"),
        2 => OpenOptions::new().write(true).create_new(true).open(one)?.write_all(b"new"),
        3 => OpenOptions::new().append(true).open(one)?.write_all(b"+"),
        4 | 5 => fs::rename(one, other),
        6 | 7 => fs::remove_file(one),
        8 => fs::hard_link(one, other),
        9 => fs::create_dir(dir.join("made")).and_then(|()| fs::remove_dir(dir.join("made"))),
        10 => fs::metadata(one).map(|_| ()),
        _ => fs::read_dir(dir)?.try_for_each(|entry| entry.map(|_| ())),
    }
}

/// Where every thread of this process is in the kernel: guards and programs live together here.
fn where_they_are() -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |task: fs::DirEntry| {
        let read = |what: &str| fs::read_to_string(task.path().join(what)).unwrap_or_default();
        format!("{}{}\n", read("comm"), read("stack"))
    };
    tasks.map(of).collect()
}

/// Ends the programs, also when the test fails.
struct Ends<'a>(&'a AtomicBool, [&'a Side; 2]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        if std::thread::panicking() {
            eprintln!("{}", where_they_are());
            self.1.iter().for_each(|side| side.abort());
        }
        self.1.iter().for_each(|side| side.tree.free_for_nobody());
    }
}

/// Whatever waits in a directory, is forgotten in it and is handed over meanwhile: every call of every program ends.
#[test]
fn no_call_hangs_while_a_tree_goes_from_side_to_side() {
    let turns = if std::env::var_os("TREELEASE_LONG").is_some() { 10_000 } else { 100 };
    // In memory, where there is room for that: a sync of the machine's disk may take long.
    let storage = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    fs::create_dir(storage.path().join("d")).unwrap();
    let sides = [Side::over(storage.path()), Side::over(storage.path())];
    let over = AtomicBool::new(false);
    let moved = std::thread::scope(|threads| {
        let ends = Ends(&over, [&sides[0], &sides[1]]);
        for (s, side) in sides.iter().enumerate() {
            for (p, ended) in side.ended.iter().enumerate() {
                let over = &over;
                threads.spawn(move || {
                    let mut random = 1 + (s * PROGRAMS + p) as u64;
                    while !over.load(Ordering::SeqCst) {
                        let done = call(&side.tree.at.join("d"), &mut random);
                        ended.fetch_add(1, Ordering::SeqCst);
                        if done.is_err() {
                            // Refused: a program would think about it.
                            std::thread::sleep(Duration::from_micros(200));
                        }
                    }
                });
            }
        }
        for turn in 0..turns {
            let (here, there) = (&sides[turn % 2], &sides[1 - turn % 2]);
            let epoch = Epoch::from_raw(turn as u64 + 1);
            there.hears(epoch, turn % 3 == 0);
            here.granted(epoch);
            let before = here.calls();
            let goes_on = || here.calls().iter().zip(&before).all(|(now, then)| *now >= then + CALLS);
            patiently(turn, "the holder's programs go on", goes_on);
            if turn % 5 == 0 {
                here.rests();
            }
            here.hands_over(if turn % 4 < 2 { OnClose::Wait } else { OnClose::Refuse });
            // So that what is forgotten after a time is.
            sides.iter().for_each(|side| side.tree.clock.advance(Duration::from_millis(350)));
        }
        // Nobody has it now: whoever waits is refused, and everybody has ended a call since.
        sides.iter().for_each(|side| side.hears(Epoch::from_raw(turns as u64 + 1), false));
        let before = [sides[0].calls(), sides[1].calls()];
        let all_ended = || sides.iter().zip(&before).all(|(s, then)| s.calls().iter().zip(then).all(|(now, then)| now > then));
        patiently(turns, "every program has ended its call", all_ended);
        drop(ends);
        sides.iter().flat_map(Side::calls).sum::<u64>()
    });
    eprintln!("{turns} turns, {moved} calls");
    eventually("whoever told the kernel to forget has come back", || {
        sides.iter().all(|side| side.tree.mount.lost_threads() == 0)
    });
}

fn patiently(turn: usize, what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 2 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("turn {turn}, not within {PATIENCE:?}: {what}");
}
