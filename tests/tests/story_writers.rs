//! Who wrote lately and who was refused; a policy that only observes; and `enforce`, which is complete when every side says so.

use std::time::Duration;

use serde_json::Value;
use treelease_tests::hosts::{Server, Side, Signal, World, quick, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// Two sides of one tree, whose leases last even where nothing gets a turn for long.
fn two_hosts(world: &World, policy: &[&str]) -> (Server, Side, Side) {
    let server = world.server();
    let (workstation, pod) = (world.side("workstation", &server).ttl("20s"), world.side("pod", &server).ttl("20s"));
    world.tree(&workstation, "dev", &quick(policy));
    workstation.mount("dev", &world.lower("dev"));
    pod.mount("dev", &world.lower("dev"));
    (server, workstation, pod)
}

/// The writers of that command on a side.
fn writers(side: &Side, command: &str) -> Vec<Value> {
    let report = side.ok(&["writers", "dev", "-o", "json"]).json();
    assert_eq!(report["schema"], 1);
    let all = report["writers"].as_array().unwrap_or_else(|| panic!("{report}")).clone();
    all.into_iter().filter(|w| w["command"] == command).collect()
}

/// A shell that appends to a file in a mount three times; its exit code.
fn append(side: &Side, name: &str) -> i32 {
    let script = format!("for i in 1 2 3; do echo $i >> '{}' || exit 9; done", side.file("dev", name));
    side.tool("sh", &["-c", &script]).code
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_report_names_who_wrote_and_who_was_refused() {
    let world = World::new();
    let (_server, workstation, pod) = two_hosts(&world, &[]);
    workstation.ok(&["acquire", "dev"]);
    assert_eq!(append(&workstation, "notes"), 0);
    assert_eq!(append(&pod, "notes"), 9);
    let wrote = &writers(&workstation, "sh")[0];
    assert_eq!((&wrote["tree"], &wrote["path"], &wrote["refused"]), (&"dev".into(), &"notes".into(), &0.into()), "{wrote}");
    assert!(number(&wrote["count"]) >= 3 && number(&wrote["pid"]) > 1, "{wrote}");
    assert_eq!(number(&wrote["uid"]), u64::from(rustix::process::geteuid().as_raw()));
    assert!(wrote["first"].as_str() <= wrote["last"].as_str() && wrote["first"].is_string(), "{wrote}");
    let refused = &writers(&pod, "sh")[0];
    assert_eq!((&refused["count"], &refused["path"]), (&0.into(), &"notes".into()), "{refused}");
    assert!(number(&refused["refused"]) >= 1, "{refused}");
    let table = workstation.ok(&["writers"]).stdout;
    assert!(table.lines().any(|line| line.contains("dev") && line.contains("sh") && line.ends_with("notes")), "{table}");
    workstation.run(&["writers", "nothere"]).refused(66, &["nothere"]);
}

/// In `observe` a write that would have waited for the lease asks for it all the same and goes on at once; while another side holds the
/// tree it is recorded as one that would have been refused, with process, user and path.
#[test]
fn observe_refuses_nothing_and_records_who_would_have_been() {
    let world = World::new();
    let (_server, workstation, pod) = two_hosts(&world, &["mode=observe", "idle=60s"]);
    assert_eq!(append(&pod, "first"), 0);
    wait_for(LONG, "a write has taken the free lease, as it would have", || pod.holds("dev"));
    assert_eq!(writers(&pod, "sh")[0]["refused"], 0, "that is no refusal");
    pod.ok(&["release", "dev"]);
    workstation.ok(&["acquire", "dev"]);
    // From when pod has heard of it.
    let would_have_been = || {
        assert_eq!(append(&pod, "second"), 0, "let through all the same");
        writers(&pod, "sh").into_iter().find(|w| number(&w["refused"]) > 0)
    };
    let mut record = None;
    wait_for(LONG, "it is recorded", || {
        record = would_have_been();
        record.is_some()
    });
    let record = record.unwrap();
    assert_eq!((&record["path"], &record["uid"]), (&"second".into(), &rustix::process::geteuid().as_raw().into()), "{record}");
    assert!(number(&record["count"]) >= 3, "{record}");
    assert!(std::fs::read_to_string(world.lower("dev").join("second")).unwrap().starts_with("1\n2\n3\n"));
    assert_eq!(append(&workstation, "third"), 0);
    assert!(writers(&workstation, "sh").iter().all(|w| w["refused"] == 0), "the holder's own");
}

/// After a change to `mode=enforce` a side says that it enforces when its gate does, and what the earlier mode let through has ended and
/// is on the storage; until then `status` names it.
#[test]
fn enforce_is_complete_when_every_side_that_mounted_the_tree_has_confirmed_it() {
    let world = World::new();
    let (_server, workstation, pod) = two_hosts(&world, &["mode=observe", "fence=none"]);
    let guards = || workstation.tree_status("dev")["guards"].as_array().cloned().unwrap_or_default();
    wait_for(LONG, "both are known", || guards().len() == 2 && guards().iter().all(|g| g["obeys"] == true));
    let missing = || workstation.tree_status("dev")["not_enforced_by"].clone();
    assert_eq!(missing(), Value::Array(Vec::new()), "nothing is to be enforced");
    pod.signal_daemon(Signal::STOP);
    workstation.ok(&["tree", "set", "dev", "mode=enforce"]);
    wait_for(LONG, "one has confirmed", || missing() == serde_json::json!(["pod"]));
    let status = workstation.ok(&["status"]).stdout;
    assert!(status.contains("enforcing, not yet: pod"), "{status}");
    pod.signal_daemon(Signal::CONT);
    wait_for(LONG, "both have", || missing() == serde_json::json!([]));
    let status = workstation.ok(&["status"]).stdout;
    assert!(!status.contains("not yet"), "{status}");
    let history = workstation.ok(&["history", "dev", "-o", "json"]).json();
    let told = |e: &Value| e["event"] == "policy" && e["reason"].as_str().is_some_and(|r| r.contains("every side"));
    assert!(history["entries"].as_array().is_some_and(|entries| entries.iter().any(told)), "{history}");
    workstation.ok(&["acquire", "dev", "--wait", "60s"]);
    assert_eq!(append(&pod, "late"), 9, "and it is so");
}
