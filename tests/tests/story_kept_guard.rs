//! A killed guard that the kernel keeps: a thread of it waits for a page that a program is writing, and the program waits for
//! the guard's answer. The next command ends that, and the guard comes back.

use std::time::Duration;

use treelease_tests::hosts::{Signal, World, quick, signal, wait_for};

const SOON: Duration = Duration::from_secs(60);
/// Long enough that no busy machine lets it expire here.
const TTL: &str = "20s";
/// How long the machine is paused: far more than a round trip, far less than the time to live.
const PAUSE: Duration = Duration::from_secs(3);

/// Whether a thread of the process drops caches and cannot be interrupted in it.
fn is_stuck(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.any(|stat| stat.contains("(drop-caches) D "))
}

/// Of each thread of the process, as `stat` shows it.
fn states(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}

/// A killed guard that the kernel keeps, since a program waits for its answer and it for that program's page, is let go by the
/// next command: the program is told ENOTCONN (`fusectl` must be mounted at `/sys/fs/fuse/connections`).
#[test]
fn a_killed_guard_that_the_kernel_keeps_makes_way_for_the_next() {
    let world = World::new();
    let server = world.server();
    let side = world.side("workstation", &server).ttl(TTL).fault("paused_clock");
    world.tree(&side, "dev", &quick(&[]));
    std::fs::create_dir_all(side.at("dev")).unwrap();
    side.configure_mount("dev", &world.lower("dev"));
    side.ok(&["up"]);
    side.ok(&["acquire", "dev", "--wait", "20s"]);
    let file = side.file("dev", "f");
    std::fs::write(world.lower("dev").join("f"), [1; 8192]).unwrap();
    // A write that the guard has taken and does not answer: of a part of a page that the kernel has not read, so that it keeps
    // the page locked meanwhile.
    let stopped = side.stop_at("write-admitted");
    let of = format!("of={file}");
    let dd = ["if=/dev/zero", of.as_str(), "bs=100", "count=1", "conv=notrunc"];
    let mut writer = side.command("dd").args(dd).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for(SOON, "the write is in the guard", || stopped.reached());
    // The clock is found wrong: the guard tells the kernel to forget that page.
    let clock = side.stop_at("clock-paused");
    wait_for(SOON, "its clock stands still", || clock.reached());
    side.signal_daemon(Signal::STOP);
    std::thread::sleep(PAUSE);
    side.signal_daemon(Signal::CONT);
    drop(clock);
    let daemon = side.daemon().unwrap();
    wait_for(SOON, "it waits for the page", || is_stuck(daemon));
    signal(daemon, Signal::KILL);
    wait_for(SOON, "its other threads have ended, or wait as it does", || {
        states(daemon).chars().all(|state| "DZ".contains(state))
    });
    assert!(is_stuck(daemon), "control: the kernel keeps it");
    drop(stopped);
    // Control: nobody who does not know the connection gets past it.
    let (note, away) = (side.dir().join("state/guard.json"), side.dir().join("guard.json.away"));
    std::fs::rename(&note, &away).unwrap();
    assert_ne!(side.run(&["up"]).code, 0, "the killed guard has the socket and the lock");
    assert!(is_stuck(daemon), "and will have them for ever");
    std::fs::rename(&away, &note).unwrap();
    side.ok(&["up"]);
    assert!(!writer.wait().unwrap().success(), "nobody has confirmed that write");
    assert_ne!(side.daemon().unwrap(), daemon);
    side.ok(&["acquire", "dev", "--wait", "40s"]);
    std::fs::write(&file, "again").unwrap();
    assert_eq!(std::fs::read(world.lower("dev").join("f")).unwrap(), b"again");
}
