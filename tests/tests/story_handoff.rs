//! A lease that moves at its holder's consent, and what people and scripts see of it (CLI.md).

use std::time::Duration;

use treelease_tests::hosts::{World, quick, wait_for};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_busy_holder_is_waited_for_declines_at_its_limit_and_hands_over_when_it_is_done() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&["handoff_wait=700ms"]));
    let mut busy = workstation.treelease(&["run", "--tree", "dev", "--", "sleep", "600"]).spawn().unwrap();
    wait_for(SOON, "it holds", || workstation.holds("dev"));
    pod.run(&["acquire", "dev", "-n"]).refused(75, &["workstation"]);
    pod.run(&["acquire", "dev", "--ask", "--wait", "3s"]).refused(75, &["workstation"]);
    workstation.run(&["release", "dev"]).refused(75, &["sleep"]);
    assert!(workstation.holds("dev"));
    busy.kill().unwrap();
    busy.wait().unwrap();
    pod.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
    assert!(pod.holds("dev"));
    assert_eq!(workstation.run(&["status", "--check", "dev"]).code, 75);
}

#[test]
fn a_handoff_names_its_side_and_the_history_says_that_it_was_clean() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    workstation.ok(&["acquire", "dev", "--note", "first"]);
    std::fs::write(workstation.at("dev").join("f"), "0123456789").unwrap();
    pod.run(&["handoff", "dev", "--to", "workstation"]).refused(75, &["acquire"]);
    workstation.run(&["handoff", "dev", "--to", "nobody"]).refused(66, &["nobody"]);
    workstation.ok(&["handoff", "dev", "--to", "pod", "--note", "yours"]);
    wait_for(SOON, "pod holds", || pod.holds("dev"));
    assert_eq!(std::fs::read_to_string(pod.at("dev").join("f")).unwrap(), "0123456789");
    let history = pod.ok(&["history", "dev", "-o", "json"]).json();
    assert_eq!(history["schema"], 1);
    let entries = history["entries"].as_array().unwrap();
    let released = entries.iter().find(|e| e["event"] == "released").unwrap_or_else(|| panic!("{history}"));
    assert_eq!((&released["side"], &released["clean"]), (&"workstation".into(), &true.into()), "{released}");
    assert!(released["files"].as_u64() >= Some(1) && released["bytes"].as_u64() >= Some(10), "{released}");
}

/// With a TTL of five minutes renewals go out once a minute: nothing but the server's event tells of a grant sooner.
#[test]
fn who_waits_hears_of_its_grant_long_before_a_renewal_is_due() {
    let world = World::new();
    let server = world.server();
    let sides = ["workstation", "pod"].map(|name| world.side(name, &server).ttl("5m"));
    let [workstation, pod] = &sides;
    world.tree(workstation, "dev", &quick(&[]));
    sides.iter().for_each(|side| side.mount("dev", &world.lower("dev")));
    workstation.ok(&["acquire", "dev"]);
    let mut waiter = pod.treelease(&["acquire", "dev", "--wait", "40s"]).spawn().unwrap();
    wait_for(SOON, "it queues", || workstation.tree_status("dev")["waiters"].as_array().is_some_and(|w| !w.is_empty()));
    workstation.ok(&["release", "dev"]);
    assert!(waiter.wait().unwrap().success(), "not before its next renewal");
    assert!(pod.holds("dev"));
}

#[test]
fn status_names_holder_waiters_and_holds_as_the_contract_says() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&["idle=60s"]));
    assert_eq!(pod.tree_status("dev")["state"], "free");
    workstation.ok(&["acquire", "dev", "--note", "a long story"]);
    let mut waiter = pod.treelease(&["acquire", "dev", "--wait", "60s"]).spawn().unwrap();
    wait_for(SOON, "it queues", || workstation.tree_status("dev")["waiters"].as_array().is_some_and(|w| !w.is_empty()));
    let status = workstation.status();
    assert_eq!((&status["schema"], &status["side"]), (&1.into(), &"workstation".into()), "{status}");
    assert_eq!((&status["server"]["reachable"], &status["server"]["secure"]), (&true.into(), &false.into()), "{status}");
    let tree = workstation.tree_status("dev");
    assert_eq!((&tree["state"], &tree["mode"], &tree["mine"]), (&"held".into(), &"enforce".into(), &true.into()), "{tree}");
    assert_eq!((&tree["holder"]["side"], &tree["holder"]["note"]), (&"workstation".into(), &"a long story".into()), "{tree}");
    assert_eq!((&tree["waiters"][0]["side"], &tree["waiters"][0]["asked"]), (&"pod".into(), &false.into()), "{tree}");
    assert_eq!(tree["ttl_ms"], 2000, "{tree}");
    assert!(
        tree["mounted_at"]
            .as_str()
            .is_some_and(|at| workstation.at("dev").ends_with(at) || at == workstation.file("dev", "").trim_end_matches('/'))
    );
    assert!(tree["writes_until"].is_string() && tree["expires_in_ms"].is_u64(), "{tree}");
    for key in ["id", "at_rest", "epoch", "run_start", "last_end", "requests", "holds", "not_enforced_by", "roots"] {
        assert!(tree.get(key).is_some(), "no {key} in {tree}");
    }
    assert_eq!(tree["holds"][0]["kind"], "acquire", "{tree}");
    let virtually = || std::fs::read_to_string(workstation.at("dev").join(".treelease/holder")).unwrap();
    wait_for(SOON, "the virtual file follows", || virtually().contains("workstation"));
    workstation.ok(&["release", "dev"]);
    assert!(waiter.wait().unwrap().success());
    pod.ok(&["wait", "dev", "--until", "mine", "--wait", "5s"]);
    workstation.run(&["wait", "dev", "--until", "free", "--wait", "300ms"]).refused(75, &[]);
}

#[test]
fn run_passes_the_exit_code_and_the_environment_and_adds_nothing_to_stdout() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let run = |script: &str| workstation.run(&["run", "--tree", "dev", "--", "sh", "-c", script]);
    assert_eq!(run("exit 7").code, 7);
    assert_eq!(run("kill -TERM $$").code, 128 + 15);
    let told = run("echo $TREELEASE_HELD_TREE $TREELEASE_SIDE; echo $TREELEASE_EPOCH > /dev/null").expect(0);
    assert_eq!(
        (told.stdout.as_str(), told.stderr.as_str()),
        ("dev workstation\n", ""),
        "nothing more, and not a word without a wait"
    );
    assert_eq!(workstation.run(&["run", "--tree", "dev", "--", "/no/such/tool"]).code, 127);
    let file = workstation.file("dev", "f");
    let inner = format!("run --tree dev -- sh -c 'echo x > {file}'");
    let treelease = treelease_tests::hosts::executable("treelease");
    assert_eq!(run(&format!("{} {inner}", treelease.display())).code, 0, "it does not wait for itself");
    pod.ok(&["acquire", "dev", "--ask", "--wait", "20s"]);
    assert_eq!(workstation.run(&["run", "--tree", "dev", "-n", "-E", "9", "--", "true"]).code, 9);
    workstation.run(&["run", "--tree", "dev", "-n", "--", "true"]).refused(75, &["pod"]);
}

#[test]
fn a_command_whose_lease_is_lost_is_ended_with_79() {
    let world = World::new();
    let (mut server, workstation, _pod) = world.two_hosts(&quick(&[]));
    let mut run = workstation.treelease(&["run", "--tree", "dev", "--", "sleep", "600"]).spawn().unwrap();
    wait_for(SOON, "it holds", || workstation.holds("dev"));
    server.kill();
    let mut status = None;
    wait_for(SOON, "it is ended", || {
        status = run.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|s| s.code()), Some(79));
}

#[test]
fn without_a_mount_a_tree_is_handed_over_only_when_the_command_under_the_lease_has_ended() {
    let world = World::new();
    let (server, _, pod) = world.two_hosts(&quick(&[]));
    let agent = world.side("agent", &server);
    let written = world.path("written-by-the-command");
    // It does not listen to SIGTERM, and no gate keeps it from writing: it goes on until it is killed.
    let script = format!("trap '' TERM; while :; do echo x >> '{}'; done", written.display());
    let mut command = agent.treelease(&["run", "--tree", "dev", "--", "sh", "-c", &script]).spawn().unwrap();
    let length = || std::fs::metadata(&written).map_or(0, |m| m.len());
    wait_for(SOON, "it holds and writes", || agent.holds("dev") && length() > 0);
    agent.ok(&["release", "dev", "--now"]);
    pod.ok(&["acquire", "dev", "--wait", "60s"]);
    let at_the_grant = length();
    assert_eq!(command.wait().unwrap().code(), Some(79));
    assert_eq!(length(), at_the_grant, "it wrote beside the next holder");
}
