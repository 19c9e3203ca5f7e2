//! The server goes away, and processes die: writes stop at the deadline by themselves, reads go on, nothing acknowledged is lost,
//! and everything comes back.

use std::io::Write;
use std::time::Duration;

use treelease_tests::hosts::{Side, Signal, Timer, World, executable, holds_within, quick, signal, wait_for};
use treelease_tests::ledger;

const EROFS: i32 = nix::errno::Errno::EROFS as i32;
/// Until everything is as before, on a busy machine.
const BACK: Duration = Duration::from_secs(20);

fn write(side: &Side, name: &str) -> Result<(), i32> {
    std::fs::write(side.at("dev").join(name), "x").map_err(|e| e.raw_os_error().unwrap_or(0))
}

#[test]
fn writes_stop_at_the_deadline_reads_go_on_and_old_handles_write_again_when_the_server_is_back() {
    let world = World::new();
    let (mut server, workstation, _pod) = world.two_hosts(&quick(&[]));
    workstation.ok(&["acquire", "dev"]);
    let mut file = std::fs::File::create(workstation.at("dev").join("log")).unwrap();
    file.write_all(b"one\n").unwrap();
    server.kill();
    let away = Timer::start();
    let mut refused = 0;
    let stopped = holds_within(Duration::from_secs(4), || match file.write_all(b".") {
        Ok(()) => false,
        Err(e) => {
            refused = e.raw_os_error().unwrap_or(0);
            true
        }
    });
    assert!(stopped, "writes go on {:?} after the server went (TTL 2 s)", away.elapsed());
    assert_eq!(refused, EROFS, "it is this side's own handle, and nobody else had a turn");
    assert_eq!(write(&workstation, "new"), Err(EROFS));
    assert!(std::fs::read_to_string(workstation.at("dev").join("log")).unwrap().starts_with("one\n"), "reads go on");

    let status = workstation.run(&["status", "-o", "json"]);
    assert_eq!(status.code, 69, "{status}");
    assert_eq!(status.json()["server"]["reachable"], false, "{status}");
    assert_eq!(status.json()["trees"][0]["name"], "dev", "the last known table\n{status}");
    assert_eq!(workstation.run(&["status", "--check", "dev"]).code, 69);

    server.restart();
    wait_for(BACK, "the lease resumes", || file.write_all(b"two\n").is_ok());
    assert!(workstation.holds("dev"));
    assert_eq!(write(&workstation, "new"), Ok(()));
    assert!(std::fs::read_to_string(world.lower("dev").join("log")).unwrap().ends_with("two\n"));
}

#[test]
fn a_server_that_stands_still_stops_writes_too_and_nothing_hangs() {
    let world = World::new();
    let (server, workstation, _pod) = world.two_hosts(&quick(&[]));
    workstation.ok(&["acquire", "dev"]);
    assert_eq!(write(&workstation, "f"), Ok(()));
    server.pause();
    wait_for(Duration::from_secs(4), "writes stop", || write(&workstation, "f") == Err(EROFS));
    let timer = Timer::start();
    std::fs::read_dir(workstation.at("dev")).unwrap().count();
    let told = workstation.run(&["status", "--check", "dev"]);
    assert!(timer.elapsed() < Duration::from_secs(2), "{:?}", timer.elapsed());
    assert_ne!(told.code, 0, "what may not be written is not called mine");
    wait_for(Duration::from_secs(10), "nobody knows whose it is", || workstation.run(&["status", "--check", "dev"]).code == 69);
    server.resume();
    wait_for(BACK, "writes go on", || write(&workstation, "f").is_ok());
}

#[test]
fn kill_9_of_the_server_loses_nothing_that_was_acknowledged() {
    let world = World::new();
    let (mut server, workstation, pod) = world.two_hosts(&quick(&[]));
    let ack = world.path("acknowledged");
    for round in 0..3 {
        for (side, base) in [(&workstation, 1000), (&pod, 2000)] {
            let id = (base + round).to_string();
            let (tool, db) = (executable("ledger"), side.file("dev", "ledger.db"));
            let add = [tool.to_str().unwrap(), "add", &db, ack.to_str().unwrap(), "--id", &id];
            let run = [&["run", "--tree", "dev", "--ask", "--wait", "60s", "--"][..], &add].concat();
            wait_for(BACK, "a row is added", || side.run(&run).code == 0 || ledger_has(&ack, &id));
        }
        let before = pod.tree_status("dev")["epoch"].as_u64().unwrap();
        server.kill();
        server.restart();
        wait_for(BACK, "the server is back", || pod.run(&["status", "-o", "json"]).code == 0);
        assert!(pod.tree_status("dev")["epoch"].as_u64().unwrap() >= before, "epochs only grow");
    }
    for side in [&workstation, &pod] {
        side.ok(&["down"]);
    }
    let verdict = ledger::check(&world.lower("dev").join("ledger.db"), &[&ack]).unwrap();
    verdict.must_be_sound();
    assert_eq!(verdict.acknowledged, 6);
}

fn ledger_has(ack: &std::path::Path, id: &str) -> bool {
    std::fs::read_to_string(ack).unwrap_or_default().lines().any(|l| l == format!("add {id}"))
}

#[test]
fn kill_9_of_the_daemon_shows_enotconn_and_never_the_raw_tree_and_up_resumes_the_session() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    workstation.configure_mount("dev", &world.lower("dev"));
    workstation.ok(&["acquire", "dev"]);
    assert_eq!(write(&workstation, "f"), Ok(()));
    let epoch = workstation.tree_status("dev")["epoch"].clone();
    workstation.kill_daemon();
    wait_for(BACK, "the path says ENOTCONN", || {
        let dead = std::fs::metadata(workstation.at("dev")).map_err(|e| e.raw_os_error());
        assert!(dead.is_err(), "the raw directory shows");
        dead.is_err_and(|e| e == Some(nix::errno::Errno::ENOTCONN as i32))
    });
    workstation.ok(&["up"]);
    wait_for(BACK, "it holds the tree again", || workstation.run(&["acquire", "dev", "--wait", "10s"]).code == 0);
    wait_for(BACK, "it writes", || write(&workstation, "f").is_ok());
    let now = workstation.tree_status("dev");
    assert_eq!(now["run_start"], pod.tree_status("dev")["run_start"], "{now}");
    assert!(now["epoch"].as_u64() >= epoch.as_u64(), "{now}");
    assert!(!pod.holds("dev"));
}

#[test]
fn kill_9_of_a_command_drops_its_hold_and_the_other_side_gets_the_tree() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let mut run = workstation.treelease(&["run", "--tree", "dev", "--", "sleep", "600"]).spawn().unwrap();
    wait_for(BACK, "it holds", || workstation.holds("dev"));
    let holds = workstation.ok(&["holds", "dev", "-o", "json"]).json();
    assert_eq!(holds["holds"][0]["kind"], "run", "{holds}");
    signal(run.id(), Signal::KILL);
    run.wait().unwrap();
    wait_for(BACK, "the hold is dropped", || {
        workstation.ok(&["holds", "dev", "-o", "json"]).json()["holds"].as_array().is_some_and(Vec::is_empty)
    });
    pod.ok(&["run", "--tree", "dev", "--ask", "--wait", "30s", "--", "true"]);
}

#[test]
fn a_holder_that_vanishes_is_waited_out_and_fenced_before_the_other_side_is_granted() {
    let world = World::new();
    // Without the marker's lock: with it the storage would be a witness, and nobody would have to vouch (`story_witness`).
    let server = world.server();
    let (workstation, pod) = (world.side("workstation", &server).fault("no_lock"), world.side("pod", &server));
    world.tree(&workstation, "dev", &quick(&["fence=manual"]));
    workstation.mount("dev", &world.lower("dev"));
    pod.mount("dev", &world.lower("dev"));
    workstation.ok(&["acquire", "dev"]);
    assert_eq!(write(&workstation, "f"), Ok(()));
    let epoch = workstation.tree_status("dev")["epoch"].as_u64().unwrap();
    workstation.kill_daemon();
    wait_for(BACK, "it is to be fenced", || pod.tree_status("dev")["state"] == "fencing");
    pod.run(&["acquire", "dev", "-n"]).refused(75, &["fence confirm"]);
    assert_eq!(write(&pod, "g"), Err(EROFS));
    pod.run(&["fence", "confirm", "dev", "--epoch", &(epoch + 7).to_string(), "--reason", "x"]).refused(75, &[]);
    pod.ok(&["fence", "confirm", "dev", "--epoch", &epoch.to_string(), "--reason", "it is off"]);
    pod.ok(&["acquire", "dev", "--wait", "10s"]);
    wait_for(BACK, "it writes", || write(&pod, "g").is_ok());
    let history = pod.ok(&["history", "dev", "-o", "json"]).json();
    let events: Vec<&str> = history["entries"].as_array().unwrap().iter().filter_map(|e| e["event"].as_str()).collect();
    for event in ["granted", "expired", "cooling", "fencing", "fenced"] {
        assert!(events.contains(&event), "no {event} in {events:?}");
    }
}

#[test]
fn with_fence_none_the_other_side_is_granted_after_ttl_and_grace_and_not_before() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&["fence=none"]));
    workstation.ok(&["acquire", "dev"]);
    wait_for(BACK, "it writes", || write(&workstation, "f").is_ok());
    let timer = Timer::start();
    workstation.kill_daemon();
    pod.ok(&["acquire", "dev", "--wait", "30s"]);
    let after = timer.elapsed();
    // The last renewal was at most TTL/5 before the kill: 2 s - 0.4 s + 0.2 s grace.
    assert!(after >= Duration::from_millis(1750), "granted {after:?} after the holder was last heard of");
}
