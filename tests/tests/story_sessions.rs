//! A side's daemon comes back, comes twice, or comes without what it knew; and what a grant is that does not last.

use std::time::Duration;

use treelease_proto::time::WallTime;
use treelease_tests::hosts::{Server, Side, World, holds_within, quick, wait_for};

/// Until something has happened, on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// What should not happen is watched for so long.
const WATCHED: Duration = Duration::from_secs(3);

fn entries(side: &Side) -> Vec<serde_json::Value> {
    side.ok(&["history", "dev", "-o", "json"]).json()["entries"].as_array().expect("entries").clone()
}

fn trouble(side: &Side) -> String {
    side.status()["server"]["trouble"].as_str().unwrap_or_default().to_owned()
}

/// One side that is at rest, with a long time to live, whose daemon was killed and has resumed its session and its lease.
fn resumed_at_rest(world: &World, fault: Option<&str>) -> (Server, Side) {
    let server = world.server();
    let mut a = world.side("workstation", &server).ttl("20s");
    if let Some(fault) = fault {
        a = a.fault(fault);
    }
    world.tree(&a, "dev", &quick(&[]));
    a.mount("dev", &world.lower("dev"));
    a.configure_mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    std::fs::write(a.at("dev").join("one"), "x").unwrap();
    wait_for(LONG, "it is at rest", || a.tree_status("dev")["at_rest"] == true);
    let epoch = a.tree_status("dev")["epoch"].clone();
    a.kill_daemon();
    a.ok(&["up"]);
    wait_for(LONG, "it has resumed its lease", || a.holds("dev"));
    let tree = a.tree_status("dev");
    assert_eq!(
        (&tree["epoch"], &tree["at_rest"]),
        (&epoch, &true.into()),
        "the same lease, and the server believes that it rests"
    );
    (server, a)
}

#[test]
fn a_lease_that_was_resumed_at_rest_writes_nothing_before_the_servers_know() {
    let world = World::new();
    let (server, a) = resumed_at_rest(&world, None);
    server.pause();
    let path = a.at("dev").join("two");
    let writer = std::thread::spawn(move || std::fs::write(path, "y"));
    let lower = world.lower("dev").join("two");
    assert!(!holds_within(WATCHED, || lower.exists()), "written while the server believes that nothing is unconfirmed");
    server.resume();
    writer.join().unwrap().expect("it goes on by itself once the servers know");
    assert_eq!(std::fs::read(lower).unwrap(), b"y");
}

#[test]
fn control_without_the_rule_a_resumed_lease_writes_while_the_server_believes_that_it_rests() {
    let world = World::new();
    let (server, a) = resumed_at_rest(&world, Some("resume_awake,no_lock"));
    server.pause();
    let path = a.at("dev").join("two");
    let writer = std::thread::spawn(move || std::fs::write(path, "y"));
    wait_for(LONG, "it is on the storage", || world.lower("dev").join("two").exists());
    server.resume();
    let _whatever = writer.join().unwrap();
}

#[test]
fn each_restart_is_a_new_incarnation_of_the_same_session_and_keeps_the_lease() {
    let world = World::new();
    let server = world.server();
    let a = world.side("workstation", &server).ttl("20s");
    world.tree(&a, "dev", &quick(&[]));
    a.mount("dev", &world.lower("dev"));
    a.configure_mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    let epoch = a.tree_status("dev")["epoch"].clone();
    let session = |a: &Side| {
        let file = std::fs::read_to_string(a.dir().join("state/session.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        (file["session"].clone(), file["secret"].clone())
    };
    let mut secrets = vec![session(&a).1];
    let first = session(&a).0;
    for round in 0..3 {
        std::fs::write(a.at("dev").join(format!("file-{round}")), "x").unwrap();
        a.kill_daemon();
        a.ok(&["up"]);
        wait_for(LONG, "it has resumed its lease", || a.holds("dev"));
        let (now, secret) = session(&a);
        assert_eq!(now, first);
        assert!(!secrets.contains(&secret), "the secret of the run before would do no more");
        secrets.push(secret);
        assert_eq!(a.tree_status("dev")["epoch"], epoch);
        std::fs::write(a.at("dev").join(format!("file-{round}")), "y").unwrap();
    }
    assert_eq!(entries(&a).iter().filter(|e| e["event"] == "granted").count(), 1);
}

#[test]
fn a_second_daemon_of_a_side_is_told_who_has_it_and_gets_it_when_that_one_has_ended() {
    let world = World::new();
    let server = world.server();
    let (a, twin) = (world.side("workstation", &server), world.side("twin", &server));
    let config = std::fs::read_to_string(twin.config()).unwrap().replace("\"twin\"", "\"workstation\"");
    std::fs::write(twin.config(), config).unwrap();
    world.tree(&a, "dev", &quick(&[]));
    a.mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    twin.run(&["acquire", "dev", "--wait", "2s"]);
    wait_for(LONG, "it is told", || trouble(&twin).contains("side workstation is in use by"));
    assert!(a.holds("dev") && !twin.holds("dev"));
    a.ok(&["down"]);
    twin.ok(&["acquire", "dev", "--wait", "60s"]);
}

#[test]
fn a_side_that_was_rebuilt_without_its_secret_waits_until_its_old_session_has_ended() {
    let world = World::new();
    let server = world.server();
    let a = world.side("workstation", &server).ttl("5s");
    world.tree(&a, "dev", &quick(&["fence=none"]));
    a.mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    let epoch = a.tree_status("dev")["epoch"].as_u64().unwrap();
    a.kill_daemon();
    std::fs::remove_dir_all(a.dir().join("state")).unwrap();
    // Starts a daemon that knows nothing.
    a.run(&["acquire", "dev", "-n"]);
    wait_for(LONG, "its old session has ended, and it has one", || a.status()["server"]["reachable"] == true);
    let (lower, at) = (world.lower("dev"), a.at("dev"));
    a.ok(&["mount", "dev", "--lower", lower.to_str().unwrap(), "--at", at.to_str().unwrap()]);
    a.ok(&["acquire", "dev", "--wait", "60s"]);
    assert_eq!(a.tree_status("dev")["epoch"].as_u64().unwrap(), epoch + 1, "another lease of another session");
    assert!(entries(&a).iter().any(|e| e["event"] == "expired"), "the old one was waited out");
}

#[test]
fn a_grant_whose_gate_cannot_open_is_given_back_and_the_tree_is_free_for_others() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&[]));
    let (marker, aside) = (world.lower("dev").join(".treelease-tree"), world.path("aside"));
    std::fs::rename(&marker, &aside).unwrap();
    a.run(&["acquire", "dev", "--wait", "30s"]).refused(78, &["marker"]);
    wait_for(LONG, "it is given back", || b.tree_status("dev")["state"] == "free");
    let back = entries(&b).into_iter().rfind(|e| e["event"] == "released").expect("its end");
    assert!(back["clean"] == true && back["reason"].as_str().unwrap().contains("given back"), "{back}");
    std::fs::rename(&aside, &marker).unwrap();
    b.ok(&["acquire", "dev", "--wait", "30s"]);
}

#[test]
fn a_fresh_grant_is_kept_for_min_hold_though_another_side_asks() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&["grace=200ms", "idle=300ms", "quiet=50ms", "min_hold=4s"]);
    a.ok(&["acquire", "dev"]);
    b.ok(&["acquire", "dev", "--ask", "--wait", "60s"]);
    let at = |event: &str| {
        let entry = entries(&b).into_iter().find(|e| e["event"] == event && e["side"] == "workstation").expect("it happened");
        WallTime::parse(entry["at"].as_str().unwrap()).0.as_millisecond()
    };
    let kept = at("released") - at("granted");
    assert!(kept >= 4_000, "handed over after {kept} ms");
}
