//! The bypass alarm: what goes past the mount is on record, and what goes through a guard, anybody's, never is.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use treelease_tests::hosts::{Server, Side, World, quick, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// Two sides of one tree, whose leases last even where nothing gets a turn for long.
fn two_hosts(world: &World) -> (Server, Side, Side) {
    let server = world.server();
    let (workstation, pod) = (world.side("workstation", &server).ttl("20s"), world.side("pod", &server).ttl("20s"));
    world.tree(&workstation, "dev", &quick(&[]));
    workstation.mount("dev", &world.lower("dev"));
    pod.mount("dev", &world.lower("dev"));
    (server, workstation, pod)
}

/// What both sides have told.
fn alarms(side: &Side) -> Vec<Value> {
    let history = side.ok(&["history", "dev", "-n", "1000", "-o", "json"]).json();
    let entries = history["entries"].as_array().unwrap_or_else(|| panic!("{history}")).clone();
    entries.into_iter().filter(|e| e["event"] == "bypass").collect()
}

fn last_path(side: &Side) -> Value {
    side.tree_status("dev")["bypassed"]["path"].clone()
}

/// This process writes to the storage until both sides have seen it: from then on they look.
fn both_look(world: &World, sides: [&Side; 2]) {
    for side in sides {
        wait_for(LONG, "a write past the mount is noticed", || {
            std::fs::write(world.lower("dev").join("control-1"), "past the mount").unwrap();
            last_path(side) == "control-1"
        });
    }
}

/// Who writes to the storage past the mount, on this host, is on record within seconds, with path and process, and `status` says so.
#[test]
fn a_write_past_the_mount_is_on_record_with_its_path_and_process() {
    let world = World::new();
    let (_server, workstation, pod) = two_hosts(&world);
    both_look(&world, [&workstation, &pod]);
    wait_for(LONG, "both have told it", || alarms(&workstation).len() >= 2);
    for alarm in alarms(&workstation) {
        let reason = alarm["reason"].as_str().unwrap_or_default();
        let me = format!("(pid {})", std::process::id());
        assert!(reason.contains("control-1") && reason.contains(&me), "{alarm}");
        assert!(alarm["count"].as_u64() >= Some(1) && alarm["side"].is_string(), "{alarm}");
    }
    let status = workstation.ok(&["status"]).stdout;
    assert!(status.contains("past the mount") && status.contains("control-1"), "{status}");
    assert_eq!(workstation.tree_status("dev")["bypassed"]["pid"], std::process::id());
}

/// Programs at work, as people run them.
fn work(side: &Side, ack: &Path) {
    let script = "set -e; git init -q one; cd one; for i in $(seq 40); do echo $i > f$i; done; git add .; git commit -q -m one; cd ..
        git clone -q one two; cd two; git mv f1 g1; git commit -q -m two; git gc -q; cd ..; rm -rf one
        mkdir -p deep/er/st; for i in $(seq 200); do echo $i > deep/er/st/$i; done; tar cf all.tar deep; rm -rf deep; tar xf all.tar
        chmod 700 deep; ln all.tar hard; ln -s all.tar soft; mv two three; truncate -s 0 hard";
    let mut command = side.command("sh");
    command.args(["-c", script]).current_dir(side.at("dev"));
    treelease_tests::hosts::finish(command).expect(0);
    let db = side.file("dev", "ledger.db");
    let ack = ack.to_str().expect("our own path");
    for n in 0..5 {
        side.tool("ledger", &["add", &db, ack, "--id", &format!("{n}")]).expect(0);
    }
}

/// What comes through a guard, this side's or the other's on the same host, is never told as written past the mount: git, archives,
/// databases, links and renames.
#[test]
fn what_goes_through_a_guard_is_never_an_alarm() {
    let world = World::new();
    let (_server, workstation, pod) = two_hosts(&world);
    both_look(&world, [&workstation, &pod]);
    workstation.ok(&["acquire", "dev", "--wait", "60s"]);
    work(&workstation, &world.path("ack-1"));
    workstation.ok(&["release", "dev"]);
    pod.ok(&["acquire", "dev", "--ask", "--wait", "60s"]);
    pod.tool("rm", &["-rf", &pod.file("dev", "three"), &pod.file("dev", "deep"), &pod.file("dev", "ledger.db")]).expect(0);
    for name in ["all.tar", "hard", "soft"] {
        std::fs::remove_file(pod.at("dev").join(name)).unwrap();
    }
    work(&pod, &world.path("ack-2"));
    // Each side reads what happened in its order: when it has told this one, it has seen all that came before.
    let past = format!("echo x > '{}'; exec sleep 120", world.lower("dev").join("control-2").display());
    let mut stranger = std::process::Command::new("sh").args(["-c", &past]).spawn().unwrap();
    for side in [&workstation, &pod] {
        wait_for(LONG, "the control is noticed", || last_path(side) == "control-2");
    }
    wait_for(LONG, "and told", || {
        alarms(&pod).iter().filter(|a| a["reason"].as_str().is_some_and(|r| r.contains("control-2"))).count() == 2
    });
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    for alarm in alarms(&pod) {
        assert!(alarm["reason"].as_str().is_some_and(|reason| reason.contains(": control-")), "{alarm}");
    }
}

/// The control of the test above: where guards are taken for strangers, the same is told.
#[test]
fn where_guards_are_taken_for_strangers_what_goes_through_them_is_an_alarm() {
    let world = World::new();
    let server = world.server();
    let side = world.side("workstation", &server).ttl("20s").fault("guards_told");
    world.tree(&side, "dev", &quick(&[]));
    side.mount("dev", &world.lower("dev"));
    wait_for(LONG, "the guard is told", || {
        // Refused at first, where the lease does not come in time.
        let _again = std::fs::write(side.at("dev").join("through"), "the mount");
        alarms(&side).iter().any(|a| a["reason"].as_str().is_some_and(|r| r.contains("treelease-guard") && r.contains("through")))
    });
}
