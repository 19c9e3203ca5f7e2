//! A tree that is handed over again and again between two real sides, while programs on both make, move, look for and remove names in one
//! directory: no call hangs, and every turn comes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use treelease_tests::hosts::{Side, Signal, World, quick, signal, wait_for};

/// No call, and no turn, lasts longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Programs on each side.
const PROGRAMS: usize = 3;
const NAMES: u64 = 5;
/// Between two calls of a program: it does something else, too.
const PAUSE: Duration = Duration::from_millis(15);

/// A program: the calls that it has ended, and those of them that changed something.
#[derive(Default)]
struct Program {
    ended: AtomicU64,
    changed: AtomicU64,
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One call; whether it has changed something.
fn call(dir: &Path, random: &mut u64) -> bool {
    let name = |random: &mut u64| dir.join(format!("n{}", next(random) % NAMES));
    let (one, other) = (name(random), name(random));
    match next(random) % 8 {
        0..=2 => fs::write(one, b"text").is_ok(),
        3 => fs::rename(one, other).is_ok(),
        4 => fs::remove_file(one).is_ok(),
        5 => fs::create_dir(dir.join("made")).and_then(|()| fs::remove_dir(dir.join("made"))).is_ok(),
        6 => fs::metadata(one).is_ok_and(|_| false),
        _ => fs::read_dir(dir).is_ok_and(|entries| entries.count() == usize::MAX),
    }
}

/// Where the threads of a process are in the kernel.
fn where_it_is(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| {
        let read = |what: &str| fs::read_to_string(task.path().join(what)).unwrap_or_default();
        format!("{}{}\n", read("comm"), read("stack"))
    };
    tasks.map(of).collect()
}

/// Ends the programs; of a test that fails says where everybody is, and frees who hangs.
struct Ends<'a>(&'a AtomicBool, [&'a Side; 2]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        if std::thread::panicking() {
            eprintln!("--- the programs\n{}", where_it_is(std::process::id()));
            for side in self.1 {
                if let Some(pid) = side.daemon() {
                    eprintln!("--- the guard of {}\n{}", side.name(), where_it_is(pid));
                    signal(pid, Signal::KILL);
                }
            }
        }
    }
}

#[test]
fn no_call_hangs_while_the_tree_is_handed_over_again_and_again() {
    let turns = if std::env::var_os("TREELEASE_LONG").is_some() { 1000 } else { 8 };
    let world = World::new();
    let server = world.server();
    let (a, b) = (world.side("workstation", &server).ttl("20s"), world.side("pod", &server).ttl("20s"));
    world.tree(&a, "dev", &quick(&["fence=none", "quiet=1ms"]));
    [&a, &b].iter().for_each(|side| side.mount("dev", &world.lower("dev")));
    let sides = [&a, &b];
    let programs: [[Program; PROGRAMS]; 2] = Default::default();
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let ends = Ends(&over, sides);
        for (s, side) in sides.into_iter().enumerate() {
            for (p, program) in programs[s].iter().enumerate() {
                let over = &over;
                threads.spawn(move || {
                    let mut random = 1 + (s * PROGRAMS + p) as u64;
                    while !over.load(Ordering::SeqCst) {
                        let changed = call(&side.at("dev"), &mut random);
                        program.changed.fetch_add(changed.into(), Ordering::SeqCst);
                        program.ended.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(PAUSE);
                    }
                });
            }
        }
        for turn in 0..turns {
            let here = turn % 2;
            let of = |count: fn(&Program) -> &AtomicU64| {
                programs.each_ref().map(|of_side| of_side.each_ref().map(|p| count(p).load(Ordering::SeqCst)))
            };
            sides[here].ok(&["acquire", "dev", "--ask", "--wait", "60s"]);
            let (ended, changed) = (of(|p| &p.ended), of(|p| &p.changed));
            let what = format!("turn {turn}: every program has ended a call");
            wait_for(PATIENCE, &what, || {
                of(|p| &p.ended).iter().flatten().zip(ended.iter().flatten()).all(|(now, then)| now > then)
            });
            let what = format!("turn {turn}: the holder's programs write");
            wait_for(PATIENCE, &what, || of(|p| &p.changed)[here].iter().zip(&changed[here]).all(|(now, then)| now > then));
        }
        drop(ends);
    });
    let ended: u64 = programs.iter().flatten().map(|p| p.ended.load(Ordering::SeqCst)).sum();
    println!("{turns} turns, {ended} calls");
}
