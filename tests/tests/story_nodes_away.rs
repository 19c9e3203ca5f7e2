//! What befalls the nodes of a cluster while a holder on a real mount writes all the time: each restarted in order, one after the other;
//! a leader whose disk hangs. Every node and every side is on a host of its own (a network namespace).

use std::time::Duration;

use treelease_tests::disk::{Disk, Model};
use treelease_tests::ends::net::Network;
use treelease_tests::hosts::{Cluster, Pace, Side, Timer, World, Writer, quick, wait_for};

/// Until something happens by itself: elections, connections that are made anew, a machine that does ten things at once.
const SOON: Duration = Duration::from_secs(90);
/// The holder's time to live: it lives through many elections.
const TTL: &str = "12s";
/// Longer than that.
const LONG: Duration = Duration::from_secs(14);
const HOSTS: [&str; 5] = ["node-1", "node-2", "node-3", "workstation", "pod"];

/// Dropped from the first to the last: the daemons, the nodes, what they ran on.
struct Rig {
    workstation: Side,
    pod: Side,
    cluster: Cluster,
    disks: Vec<Disk>,
    _network: Network,
    world: World,
}

impl Rig {
    /// The workstation holds the tree; the pod has mounted it.
    fn new() -> Self {
        let (world, network) = (World::new(), Network::new(&HOSTS));
        let disk = |node: usize| Disk::mount(Model::new(), &world.directory(&format!("cluster/data-{node}")));
        let disks: Vec<Disk> = (1..=3).map(disk).collect();
        let cluster = world.cluster_on([network.host(0), network.host(1), network.host(2)], &Pace::default());
        let side = |n: usize| world.side_at(HOSTS[n], &cluster.urls()).ttl(TTL).on(network.host(n));
        let (workstation, pod) = (side(3), side(4));
        world.tree(&workstation, "dev", &quick(&[]));
        for side in [&workstation, &pod] {
            side.mount("dev", &world.lower("dev"));
        }
        workstation.ok(&["acquire", "dev", "--wait", "30s"]);
        Self { workstation, pod, cluster, disks, _network: network, world }
    }

    fn writer(&self) -> Writer {
        Writer::start(self.workstation.at("dev").join("f"))
    }

    /// What each node says by itself, in their order.
    fn nodes(&self) -> Vec<serde_json::Value> {
        let said = self.pod.run(&["cluster", "status", "-o", "json"]);
        let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        let nodes = said["endpoints"].as_array().cloned().unwrap_or_default();
        let of = |url: String| nodes.iter().find(|node| node["endpoint"] == url).cloned().unwrap_or_default();
        self.cluster.urls().into_iter().map(of).collect()
    }

    /// Who leads, once all three have a quorum, name it, and know the same.
    fn leader(&self) -> usize {
        let mut leader = None;
        wait_for(SOON, "all nodes agree", || {
            let nodes = self.nodes();
            leader = nodes[0]["leader"].as_str().and_then(|id| id.parse().ok());
            let like = |node: &serde_json::Value| ["leader", "revision"].iter().all(|key| node[key] == nodes[0][key]);
            leader.is_some() && nodes.iter().all(|node| node["quorum"] == true && like(node))
        });
        leader.expect("just found")
    }

    fn epoch(&self) -> u64 {
        self.workstation.tree_status("dev")["epoch"].as_u64().expect("a number")
    }

    /// The lease is the very same, and nothing has ended it in between.
    fn kept(&self, epoch: u64) {
        assert!(self.workstation.holds("dev"));
        assert_eq!(self.epoch(), epoch);
        assert_eq!(self.count(&["granted"]), 1);
        assert_eq!(self.count(&["expired", "cooling", "clock_disagrees", "copied"]), 0);
    }

    /// How many of these events there were.
    fn count(&self, kinds: &[&str]) -> usize {
        let history = self.workstation.ok(&["history", "dev", "-n", "1000", "-o", "json"]).json();
        let entries = history["entries"].as_array().into_iter().flatten();
        entries.filter_map(|e| e["event"].as_str()).filter(|event| kinds.contains(event)).count()
    }

    /// The pod gets the tree and writes, though the workstation had it.
    fn passes_to_the_pod(&self) {
        wait_for(SOON, "the workstation gives it back", || {
            self.workstation.run(&["release", "dev", "--now"]).code == 0 || !self.workstation.holds("dev")
        });
        wait_for(SOON, "the pod is granted it", || self.pod.run(&["acquire", "dev", "--wait", "10s"]).code == 0);
        wait_for(SOON, "the pod writes", || std::fs::write(self.pod.at("dev").join("f"), "the pod").is_ok());
    }
}

#[test]
fn i3_a_holder_keeps_its_lease_and_no_write_is_refused_while_all_nodes_are_restarted_in_turn() {
    let mut rig = Rig::new();
    let epoch = rig.epoch();
    let writer = rig.writer();
    for node in 1..=3 {
        rig.leader();
        rig.cluster.stop(node);
        writer.goes_on();
        rig.cluster.start_node(node);
        rig.cluster.wait_serving(node);
        writer.goes_on();
    }
    rig.leader();
    writer.ends_well();
    rig.kept(epoch);
}

#[test]
fn control_all_nodes_away_for_longer_than_the_lease_is_noticed_by_the_writer() {
    let mut rig = Rig::new();
    let writer = rig.writer();
    writer.goes_on();
    (1..=3).for_each(|node| rig.cluster.kill(node));
    wait_for(SOON, "writes are refused", || writer.failed());
    assert_eq!(writer.end(), Some(nix::errno::Errno::EROFS as i32));
    (1..=3).for_each(|node| rig.cluster.start_node(node));
    rig.leader();
    wait_for(SOON, "it writes again", || std::fs::write(rig.workstation.at("dev").join("f"), "again").is_ok());
}

#[test]
fn with_a_leader_whose_disk_hangs_the_holder_writes_on_the_tree_is_handed_over_and_the_leader_does_no_harm_when_it_goes_on() {
    let mut rig = Rig::new();
    let (leader, epoch) = (rig.leader(), rig.epoch());
    let writer = rig.writer();
    let hung = rig.disks[leader - 1].hang();
    let timer = Timer::start();
    while timer.elapsed() < LONG {
        writer.goes_on();
    }
    writer.ends_well();
    rig.kept(epoch);
    rig.passes_to_the_pod();
    // What it knows may be old, and it says so.
    wait_for(SOON, "it says that it has no quorum", || {
        let node = rig.nodes()[leader - 1].clone();
        node["reachable"] == true && node["quorum"] == false
    });
    drop(hung);

    rig.leader();
    let refused = std::fs::write(rig.workstation.at("dev").join("f"), "late").expect_err("the pod holds it");
    assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EROFS as i32));
    assert_eq!(std::fs::read_to_string(rig.world.lower("dev").join("f")).unwrap(), "the pod");
    assert!(rig.count(&["granted"]) >= 2);
    assert!(rig.epoch() > epoch);
    // What its disk has is what the others have.
    rig.cluster.stop(leader);
    rig.cluster.start_node(leader);
    rig.cluster.wait_serving(leader);
    rig.leader();
}

#[test]
fn control_with_the_disks_of_two_nodes_hanging_nothing_is_granted_until_they_go_on() {
    let rig = Rig::new();
    let leader = rig.leader();
    rig.workstation.ok(&["release", "dev", "--now"]);
    let hung: Vec<_> = (1..=3).filter(|node| *node != leader).map(|node| rig.disks[node - 1].hang()).collect();
    let refused = rig.pod.run(&["acquire", "dev", "--wait", "5s"]);
    assert!(refused.code != 0 && !rig.pod.holds("dev"), "{refused}");
    drop(hung);
    wait_for(SOON, "the pod is granted it", || rig.pod.run(&["acquire", "dev", "--wait", "10s"]).code == 0);
}
