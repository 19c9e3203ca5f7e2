//! The storage is a witness (DESIGN 3): while a tree is fenced, the old holder's lock in a waiter's hand says that it is gone. On one
//! local filesystem of one boot, where a free lock means that the process is gone.
//!
//! Nobody's policy is asked here: `fence=manual`, the default, without anybody who confirms.

use std::path::Path;
use std::time::Duration;

use treelease_tests::hosts::{Server, Side, Signal, World, holds_within, quick, signal, wait_for};

/// Until something has happened, on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// What should not happen is watched for so long: several times what it would take.
const WATCHED: Duration = Duration::from_secs(8);

/// A holder and a waiter over one directory on a filesystem that can be a witness, perhaps with a rule left out in the holder's guard.
fn two_hosts(world: &World, fault: Option<&str>) -> (Server, Side, Side) {
    let server = world.server();
    let (mut a, b) = (world.side("workstation", &server), world.side("pod", &server));
    if let Some(fault) = fault {
        a = a.fault(fault);
    }
    local(world.directory("lower-dev").as_path());
    world.tree(&a, "dev", &quick(&[]));
    a.mount("dev", &world.lower("dev"));
    b.mount("dev", &world.lower("dev"));
    (server, a, b)
}

/// Where the world lies on a filesystem that is no witness (a container's overlay), the tree gets one of its own.
fn local(lower: &Path) {
    const LOCAL: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
    let kind = nix::sys::statfs::statfs(lower).expect("a directory").filesystem_type().0 as u64 & 0xffff_ffff;
    if !LOCAL.contains(&kind) {
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(lower).status();
        assert!(mounted.is_ok_and(|s| s.success()), "these stories need a local filesystem or the right to mount a tmpfs");
    }
}

/// Writes until it is dropped, so that its side is never at rest. A process of its own: a child of the test's process would inherit a
/// descriptor on the mount, and close it, and wait for a stopped daemon's answer to that.
struct Writer(std::process::Child);

impl Writer {
    fn on(side: &Side) -> Writer {
        let mut shell = side.command("sh");
        shell.args(["-c", "while :; do echo x > \"$0\"; sleep 0.02; done"]).arg(side.at("dev").join("log"));
        Writer(shell.stderr(std::process::Stdio::null()).spawn().expect("sh runs"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn events(side: &Side) -> Vec<serde_json::Value> {
    side.ok(&["history", "dev", "-o", "json"]).json()["entries"].as_array().expect("entries").clone()
}

fn happened(side: &Side, event: &str, why: &str) -> bool {
    events(side).iter().any(|e| e["event"] == event && e["reason"].as_str().is_some_and(|r| r.contains(why)))
}

/// The servers know that this holder's marker is locked, and that it writes.
fn known_to_be_locked(a: &Side, b: &Side) {
    wait_for(LONG, "the servers are told of the lock", || b.tree_status("dev")["marker_locked"] == true);
    assert!(a.holds("dev"));
}

/// Whether a process of that side can write there now.
fn writes(side: &Side, name: &str) -> bool {
    side.tool("sh", &["-c", "echo \"the next one's\" > \"$0\"", &side.file("dev", name)]).code == 0
}

fn state(side: &Side) -> String {
    side.tree_status("dev")["state"].as_str().unwrap_or_default().to_owned()
}

/// A holder that died while it wrote is followed without a person's word where the lock tells that its process is gone.
#[test]
fn a_holder_that_was_killed_while_it_wrote_is_followed_without_anybody_who_vouches() {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, None);
    a.ok(&["acquire", "dev"]);
    let writer = Writer::on(&a);
    known_to_be_locked(&a, &b);
    a.kill_daemon();
    b.ok(&["acquire", "dev", "--wait", "60s"]);
    drop(writer);
    assert!(happened(&b, "fencing", "") && happened(&b, "witnessed", "pod has got the marker's lock"), "{:?}", events(&b));
    assert!(!happened(&b, "fenced", ""), "nobody vouched");
    wait_for(LONG, "it writes", || writes(&b, "log"));
    // The next turns find the lock in order.
    known_to_be_locked(&b, &b);
    b.ok(&["release", "dev"]);
    assert_eq!(state(&b), "free");
}

#[test]
fn control_a_holder_without_the_lock_needs_somebody_who_vouches() {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, Some("no_lock"));
    a.ok(&["acquire", "dev"]);
    let writer = Writer::on(&a);
    wait_for(LONG, "it writes", || world.lower("dev").join("log").exists());
    a.kill_daemon();
    let mut waiting = b.treelease(&["acquire", "dev", "--wait", "85s"]).spawn().unwrap();
    wait_for(LONG, "it waits for a fence", || state(&b) == "fencing");
    drop(writer);
    assert!(!holds_within(WATCHED, || state(&b) != "fencing"), "{:?}", events(&b));
    assert!(b.tree_status("dev")["fence"]["witness"].is_null());
    confirm(&b);
    assert!(waiting.wait().unwrap().success());
}

fn confirm(side: &Side) {
    let epoch = side.tree_status("dev")["ended_epoch"].as_u64().expect("an end").to_string();
    side.ok(&["fence", "confirm", "dev", "--epoch", &epoch, "--reason", "the story stopped it"]);
}

/// Stops a process, and waits until each of its threads stands still: on a busy machine some go on for a while.
fn stop_all_of(pid: u32) {
    signal(pid, Signal::STOP);
    wait_for(LONG, "it has stopped", || {
        std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    });
}

/// A stopped holder with a write that its gate admitted and that has not reached the storage. `b` waits for the tree.
fn stopped_in_a_write(world: &World, fault: Option<&str>, story: impl FnOnce(&Side, &Side)) -> String {
    let (_server, a, b) = two_hosts(world, fault);
    a.ok(&["acquire", "dev"]);
    let writer = Writer::on(&a);
    known_to_be_locked(&a, &b);
    drop(writer);
    let stop = a.stop_at("write-admitted");
    let mut late = a.command("sh");
    late.args(["-c", "printf 'too late' > \"$0\""]).arg(a.at("dev").join("file")).stderr(std::process::Stdio::null());
    let mut late = late.spawn().expect("sh runs");
    wait_for(LONG, "the write is admitted", || stop.reached());
    let pid = a.daemon().expect("a daemon runs");
    stop_all_of(pid);
    drop(stop);
    story(&a, &b);
    signal(pid, Signal::CONT);
    assert!(!late.wait().unwrap().success(), "the application learns that it was late, or refused");
    wait_for(LONG, "what is written now is refused", || !writes(&a, "after"));
    std::fs::read_to_string(world.lower("dev").join("file")).unwrap()
}

#[test]
fn a_holder_that_is_only_stopped_still_has_the_lock_and_nobody_is_granted_until_somebody_vouches() {
    let world = World::new();
    stopped_in_a_write(&world, None, |_, b| {
        let mut waiting = b.treelease(&["acquire", "dev", "--wait", "85s"]).spawn().unwrap();
        wait_for(LONG, "the storage is asked", || b.tree_status("dev")["fence"]["witness"] == "asking");
        assert!(!holds_within(WATCHED, || state(b) != "fencing"), "{:?}", events(b));
        let said = b.run(&["status", "dev"]);
        assert!(said.stdout.contains("asks the storage"), "{said}");
        confirm(b);
        assert!(waiting.wait().unwrap().success());
    });
}

#[test]
fn control_a_lock_that_is_only_said_to_be_there_lets_a_stopped_holder_write_over_the_next_ones_work() {
    let world = World::new();
    let found = stopped_in_a_write(&world, Some("only_says_locked"), |_, b| {
        b.ok(&["acquire", "dev", "--wait", "60s"]);
        wait_for(LONG, "the next holder writes", || writes(b, "file"));
    });
    assert!(found.starts_with("too late"), "the damage that the lock prevents: {found}");
}

#[test]
fn a_stopped_holder_that_goes_on_gives_its_word_through_the_storage() {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, None);
    a.ok(&["acquire", "dev"]);
    let writer = Writer::on(&a);
    known_to_be_locked(&a, &b);
    stop_all_of(a.daemon().expect("a daemon runs"));
    let mut waiting = b.treelease(&["acquire", "dev", "--ask", "--wait", "85s"]).spawn().unwrap();
    wait_for(LONG, "the storage is asked", || b.tree_status("dev")["fence"]["witness"] == "asking");
    // It finds its deadline passed, flushes, lets go: no kill, and nobody who vouches. It may also come back first, by I2's way for
    // the same kernel, and hand over because it is asked.
    a.signal_daemon(Signal::CONT);
    assert!(waiting.wait().unwrap().success());
    drop(writer);
    assert!(!happened(&b, "fenced", ""), "{:?}", events(&b));
    assert!(!writes(&a, "after"), "its gate stays shut");
}

#[test]
fn in_another_pid_namespace_the_lock_says_the_same() {
    let world = World::new();
    let server = world.server();
    let (a, b) = (world.side("workstation", &server), world.side("pod", &server));
    local(world.directory("lower-dev").as_path());
    world.tree(&a, "dev", &quick(&[]));
    // The holder's daemon is the first process of a namespace of its own, as in a container.
    let mut unshare = a.command("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).arg(treelease_tests::hosts::executable("treelease-guard"));
    let mut container = unshare.spawn().expect("unshare runs (util-linux)");
    wait_for(LONG, "its daemon runs", || a.dir().join("run/socket").exists());
    a.mount("dev", &world.lower("dev"));
    b.mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    let writer = Writer::on(&a);
    known_to_be_locked(&a, &b);
    a.kill_daemon();
    b.ok(&["acquire", "dev", "--wait", "60s"]);
    drop(writer);
    assert!(happened(&b, "witnessed", "") && !happened(&b, "fenced", ""), "{:?}", events(&b));
    let _ended = container.kill();
    let _ended = container.wait();
}

/// A new holder's gate opens only when its guard has the marker's lock. After a clean end it waits up to 10 s for it and then
/// gives the grant back, naming who has it; after an unclean end it goes on without.
#[test]
fn after_a_clean_end_a_new_holder_gives_the_grant_back_while_another_daemon_still_has_the_lock() {
    let world = World::new();
    let (_server, a, b) = two_hosts(&world, None);
    a.ok(&["acquire", "dev"]);
    a.ok(&["release", "dev"]);
    // Some process that never let go, as a daemon does after a flush that failed.
    let stray = lock_marker(&world.lower("dev").join(".treelease-tree"));
    let refused = b.run(&["acquire", "dev", "--wait", "60s"]);
    assert!(refused.code != 0 && refused.stderr.contains(&format!("(pid {})", std::process::id())), "{refused}");
    wait_for(LONG, "it is given back", || state(&b) == "free");
    drop(stray);
    b.ok(&["acquire", "dev", "--wait", "60s"]);
}

#[test]
fn control_without_the_lock_a_new_holder_does_not_notice_who_is_still_connected() {
    let world = World::new();
    let (_server, a, _b) = two_hosts(&world, Some("no_lock"));
    let _stray = lock_marker(&world.lower("dev").join(".treelease-tree"));
    a.ok(&["acquire", "dev", "--wait", "60s"]);
}

/// The marker's lock, until it is dropped.
fn lock_marker(marker: &Path) -> std::fs::File {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let file = std::fs::File::options().read(true).write(true).open(marker).unwrap();
    let byte = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 1 << 40,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)).expect("nobody has it");
    file
}
