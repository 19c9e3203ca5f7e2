//! A machine that is paused as a whole sees no gap in its own clock (DESIGN 3, Clocks): the server's clock tells it.

use std::process::Child;
use std::time::Duration;

use treelease_tests::hosts::{Server, Side, Signal, World, quick, wait_for};

const SOON: Duration = Duration::from_secs(60);
/// Long enough that no busy machine lets it expire here.
const TTL: &str = "20s";
/// How long the machine is paused: far more than a round trip, far less than the time to live.
const PAUSE: Duration = Duration::from_secs(3);

/// A side that holds `dev`, has written to it, and runs a command under the lease.
fn holder(world: &World, fault: &str) -> (Server, Side, Child) {
    let server = world.server();
    let side = world.side("workstation", &server).ttl(TTL).fault(fault);
    world.tree(&side, "dev", &quick(&[]));
    side.mount("dev", &world.lower("dev"));
    let run = side.treelease(&["run", "--tree", "dev", "--", "sleep", "600"]).spawn().unwrap();
    wait_for(SOON, "it holds", || side.holds("dev"));
    std::fs::write(side.at("dev").join("before"), "x").unwrap();
    (server, side, run)
}

/// Pauses the side's machine: its daemon and, as a virtual machine's, its clock.
fn pause(side: &Side, with_its_clock: bool) {
    let clock = with_its_clock.then(|| side.stop_at("clock-paused"));
    wait_for(SOON, "its clock stands still", || clock.as_ref().is_none_or(|clock| clock.reached()));
    side.signal_daemon(Signal::STOP);
    std::thread::sleep(PAUSE);
    side.signal_daemon(Signal::CONT);
    drop(clock);
}

fn events(side: &Side) -> Vec<serde_json::Value> {
    let history = side.ok(&["history", "dev", "-n", "1000", "-o", "json"]).json();
    history["entries"].as_array().expect("entries").clone()
}

fn told(side: &Side) -> Option<serde_json::Value> {
    events(side).into_iter().find(|e| e["event"] == "clock_disagrees")
}

/// Time for the renewals after a pause, which go out at a fifth of the time to live. Nothing is to happen meanwhile.
fn renewals_pass() {
    std::thread::sleep(Duration::from_secs(9));
}

#[test]
fn a_pause_that_this_machine_does_not_see_is_found_by_the_servers_clock_and_shuts_the_gate() {
    let world = World::new();
    let (_server, side, mut run) = holder(&world, "paused_clock");
    let epoch = side.tree_status("dev")["epoch"].clone();
    pause(&side, true);
    wait_for(SOON, "it is on record", || told(&side).is_some());
    let entry = told(&side).unwrap();
    assert_eq!((&entry["side"], &entry["epoch"]), (&"workstation".into(), &epoch), "{entry}");
    assert!(entry["reason"].as_str().unwrap().contains("paused or copied"), "{entry}");
    let mut ended = None;
    wait_for(SOON, "the command under the lease ends: the right to write was gone", || {
        ended = run.try_wait().expect("our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(79));
    wait_for(SOON, "a later renewal opens again", || std::fs::write(side.at("dev").join("after"), "x").is_ok());
    let tree = side.tree_status("dev");
    assert_eq!(tree["epoch"], epoch, "the lease is the same: {tree}");
    assert!(tree["notes"].to_string().contains("paused or copied"), "{tree}");
    assert!(events(&side).iter().all(|e| e["event"] != "expired"));
}

#[test]
fn control_a_pause_that_the_clock_shows_is_no_disagreement() {
    let world = World::new();
    let (_server, side, mut run) = holder(&world, "none");
    pause(&side, false);
    renewals_pass();
    assert!(told(&side).is_none(), "{:?}", told(&side));
    assert!(run.try_wait().unwrap().is_none(), "the command goes on");
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn control_a_side_that_does_not_listen_to_the_servers_clock_notices_nothing() {
    let world = World::new();
    let (_server, side, mut run) = holder(&world, "paused_clock,clock_believed");
    pause(&side, true);
    renewals_pass();
    assert!(told(&side).is_none());
    assert!(run.try_wait().unwrap().is_none(), "the command goes on, with the old right");
    run.kill().unwrap();
    run.wait().unwrap();
}
