//! Two sides of a cluster of three nodes: one node's end is nobody's business but the operator's (DESIGN 7).

use std::time::Duration;

use treelease_tests::hosts::{Cluster, Side, Timer, World, Writer, quick, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// More than a time to live: a session that was not renewed would have expired.
const LONG: Duration = Duration::from_secs(9);

#[test]
fn writing_goes_on_while_the_leader_is_killed_and_the_lease_still_moves_afterwards() {
    let world = World::new();
    let mut cluster = world.cluster();
    let sides = ["workstation", "pod"].map(|name| world.side_at(name, &cluster.urls()).ttl("6s"));
    let [workstation, pod] = &sides;
    world.tree(workstation, "dev", &quick(&[]));
    workstation.mount("dev", &world.lower("dev"));
    pod.mount("dev", &world.lower("dev"));
    workstation.ok(&["acquire", "dev", "--wait", "20s"]);

    let leader: usize = workstation.status()["server"]["leader"].as_str().unwrap().parse().unwrap();
    cluster.kill(leader);
    let (timer, mut written) = (Timer::start(), 0);
    while timer.elapsed() < LONG {
        written += 1;
        std::fs::write(workstation.at("dev").join("f"), written.to_string()).expect("the lease stands, so writing goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(workstation.holds("dev"));
    let status = workstation.status();
    let server = &status["server"];
    assert_eq!((&server["quorum"], &server["nodes"]), (&true.into(), &3.into()), "{server}");
    assert_ne!(server["leader"], leader.to_string(), "{server}");

    workstation.ok(&["release", "dev"]);
    pod.ok(&["acquire", "dev", "--wait", "20s"]);
    assert_eq!(std::fs::read_to_string(pod.at("dev").join("f")).unwrap(), written.to_string());
    cluster.start_node(leader);
    cluster.wait_serving(leader);
    let history = pod.ok(&["history", "dev", "-o", "json"]).json();
    let entries = history["entries"].as_array().unwrap();
    assert!(entries.iter().all(|e| e["event"] != "expired"), "{history}");
}

#[test]
fn a_holder_keeps_its_lease_and_writes_on_through_the_loss_of_any_one_node() {
    let world = World::new();
    let mut cluster = world.cluster();
    let (side, epoch) = holder(&world, &cluster, "12s");
    let writer = Writer::start(side.at("dev").join("f"));
    for node in 1..=3 {
        // Each one is away for longer than the session lives: one is killed, the others accept calls and never answer.
        match node {
            2 => cluster.kill(node),
            _ => cluster.pause(node),
        }
        std::thread::sleep(Duration::from_secs(14));
        writer.goes_on();
        match node {
            2 => cluster.start_node(node),
            _ => cluster.resume(node),
        }
        all_answer(&side);
    }
    writer.ends_well();
    kept(&side, epoch);
}

#[test]
fn a_holder_keeps_its_lease_and_writes_on_through_a_rolling_restart() {
    let world = World::new();
    let mut cluster = world.cluster();
    let (side, epoch) = holder(&world, &cluster, "12s");
    let writer = Writer::start(side.at("dev").join("f"));
    for node in 1..=3 {
        cluster.stop(node);
        writer.goes_on();
        cluster.start_node(node);
        cluster.wait_serving(node);
        all_answer(&side);
    }
    writer.ends_well();
    kept(&side, epoch);
}

#[test]
fn a_dead_node_is_replaced_by_two_commands_while_the_holder_writes() {
    let world = World::new();
    let mut cluster = world.cluster();
    let (side, epoch) = holder(&world, &cluster, "12s");
    let writer = Writer::start(side.at("dev").join("f"));
    cluster.kill(3);
    let new = cluster.start_newcomer();
    let node = format!("{new}={}", cluster.address(new));
    side.run(&["cluster", "add", "nonsense"]).refused(2, &["4=10.0.0.4:7420"]);
    side.ok(&["cluster", "add", &node, "--dry-run"]);
    side.ok(&["cluster", "add", &node]);
    writer.goes_on();
    side.ok(&["cluster", "remove", "3"]);
    // To do either again changes nothing.
    side.ok(&["cluster", "remove", "3"]);
    side.ok(&["cluster", "add", &node]);
    writer.goes_on();
    let status = side.ok(&["cluster", "status", "-o", "json"]).json();
    let members = status["members"].as_array().unwrap().iter();
    let members: Vec<_> = members.map(|m| (m["id"].as_str().unwrap(), m["role"].as_str().unwrap())).collect();
    assert_eq!(members, [("1", "voter"), ("2", "voter"), ("4", "voter")], "{status}");
    assert_eq!(status["joint"], false);
    let text = side.ok(&["cluster", "status"]).stdout;
    assert!(text.contains("leader") && text.contains(&cluster.address(new)), "{text}");
    side.run(&["cluster", "add", &format!("3={}", cluster.address(3))]).refused(78, &["never given again"]);
    side.run(&["cluster", "remove", "9"]).refused(66, &["no node 9"]);
    // The new one is as good as the one that died: the cluster survives the loss of another.
    cluster.kill(1);
    writer.goes_on();
    wait_for(SOON, "there is a leader again", || side.status()["server"]["quorum"] == true);
    writer.ends_well();
    kept(&side, epoch);
}

#[test]
fn control_without_two_nodes_the_writer_is_told_at_the_deadline() {
    let world = World::new();
    let mut cluster = world.cluster();
    let (side, _) = holder(&world, &cluster, "6s");
    let writer = Writer::start(side.at("dev").join("f"));
    (1..=2).for_each(|node| cluster.kill(node));
    wait_for(SOON, "writes are refused", || writer.failed());
    assert_eq!(writer.end(), Some(nix::errno::Errno::EROFS as i32));
}

#[test]
fn without_a_quorum_the_last_node_says_so_and_nothing_is_granted() {
    let world = World::new();
    let mut cluster = world.cluster();
    let side = world.side_at("workstation", &cluster.urls()).ttl("6s");
    world.tree(&side, "dev", &quick(&[]));
    let leader: usize = side.status()["server"]["leader"].as_str().unwrap().parse().unwrap();
    let last = if leader == 3 { 2 } else { 3 };
    let others: Vec<usize> = (1..=3).filter(|node| *node != last).collect();
    others.iter().for_each(|node| cluster.kill(*node));
    wait_for(SOON, "the status is marked", || side.status()["server"]["quorum"] == false);
    side.run(&["tree", "add", "other"]).refused(69, &[]);
    let cluster_status = side.ok(&["cluster", "status", "-o", "json"]).json();
    assert_eq!((&cluster_status["quorum"], &cluster_status["nodes"]), (&false.into(), &3.into()), "{cluster_status}");
    let reachable: Vec<bool> = cluster_status["endpoints"].as_array().unwrap().iter().map(|e| e["reachable"] == true).collect();
    assert_eq!(reachable, [last == 1, last == 2, last == 3], "{cluster_status}");
    cluster.start_node(leader);
    wait_for(SOON, "there is a quorum again", || side.status()["server"]["quorum"] == true);
    side.ok(&["acquire", "dev", "--wait", "20s"]);
}

/// A side that holds `dev`, and the epoch.
fn holder(world: &World, cluster: &Cluster, ttl: &str) -> (Side, u64) {
    let side = world.side_at("workstation", &cluster.urls()).ttl(ttl);
    world.tree(&side, "dev", &quick(&[]));
    side.mount("dev", &world.lower("dev"));
    side.ok(&["acquire", "dev", "--wait", "20s"]);
    let epoch = side.tree_status("dev")["epoch"].as_u64().unwrap();
    (side, epoch)
}

/// Until every node answers, and all have a quorum.
fn all_answer(side: &Side) {
    wait_for(SOON, "all nodes answer", || {
        let said = side.run(&["cluster", "status", "-o", "json"]);
        said.code == 0 && said.json()["endpoints"].as_array().is_some_and(|all| all.iter().all(|e| e["quorum"] == true))
    });
}

/// The lease is the very same, and nothing but its grant is in the history.
fn kept(side: &Side, epoch: u64) {
    assert!(side.holds("dev"));
    assert_eq!(side.tree_status("dev")["epoch"], epoch);
    let history = side.ok(&["history", "dev", "-n", "1000", "-o", "json"]).json();
    let events: Vec<&str> = history["entries"].as_array().unwrap().iter().filter_map(|e| e["event"].as_str()).collect();
    assert_eq!(events.iter().filter(|e| **e == "granted").count(), 1, "{history}");
    assert!(!events.iter().any(|e| ["expired", "cooling", "clock_disagrees", "copied"].contains(e)), "{history}");
}
