//! All nodes of a cluster are replaced while a side holds a tree and writes: what its configuration names is gone in the end (DESIGN 2:
//! the configured endpoints are seeds).

use std::time::Duration;

use treelease_tests::hosts::{Cluster, Side, Timer, World, Writer, quick, wait_for};

/// Until something happens by itself, on a machine that does ten things at once.
const SOON: Duration = Duration::from_secs(60);
const TTL: &str = "12s";
/// Twice that: who was not answered since the beginning has lost its right to write, whatever the moment of its last renewal.
const LONG: Duration = Duration::from_secs(24);

/// A side that holds a tree of its own, and writes there.
struct Holder {
    side: Side,
    tree: &'static str,
    epoch: u64,
    writer: Writer,
}

impl Holder {
    fn new(world: &World, side: Side, tree: &'static str) -> Holder {
        world.tree(&side, tree, &quick(&[]));
        side.mount(tree, &world.lower(tree));
        side.ok(&["acquire", tree, "--wait", "30s"]);
        let epoch = side.tree_status(tree)["epoch"].as_u64().expect("a number");
        let writer = Writer::start(side.at(tree).join("f"));
        Holder { side, tree, epoch, writer }
    }

    /// Whether its daemon has noted that address as a node's.
    fn knows(&self, address: &str) -> bool {
        let noted = std::fs::read(self.side.dir().join("state/nodes.json")).unwrap_or_default();
        let noted: serde_json::Value = serde_json::from_slice(&noted).unwrap_or_default();
        noted["nodes"].as_array().into_iter().flatten().any(|node| node == address)
    }

    /// It has had the tree all the time, under the grant that it began with.
    fn kept(&self) {
        assert!(self.side.holds(self.tree));
        assert_eq!(self.side.tree_status(self.tree)["epoch"], self.epoch);
        let history = self.side.ok(&["history", self.tree, "-n", "1000", "-o", "json"]).json();
        let events: Vec<&str> = history["entries"].as_array().unwrap().iter().filter_map(|e| e["event"].as_str()).collect();
        assert_eq!(events.iter().filter(|event| **event == "granted").count(), 1, "{history}");
        assert!(!events.iter().any(|event| ["expired", "cooling", "clock_disagrees", "copied"].contains(event)), "{history}");
    }
}

/// A new node in the place of an old one, which is gone then.
fn replace(cluster: &mut Cluster, old: usize, holder: &Holder) {
    let new = cluster.start_newcomer();
    let address = cluster.address(new);
    let added = || holder.side.run(&["cluster", "add", &format!("{new}={address}")]).code == 0;
    wait_for(SOON, "the new node is taken in", added);
    // An operator who waits less long than a look takes (five seconds) may outrun it; this one waits.
    wait_for(SOON, "the side has heard of it", || holder.knows(&address));
    let removed = || holder.side.run(&["cluster", "remove", &old.to_string()]).code == 0;
    wait_for(SOON, "the old node is let go", removed);
    cluster.kill(old);
    holder.writer.goes_on();
}

#[test]
fn a_holder_writes_on_while_all_nodes_are_replaced_by_others_and_who_asks_only_the_configured_ones_cannot() {
    let world = World::new();
    let mut cluster = world.cluster();
    let side = |name| world.side_at(name, &cluster.urls()).ttl(TTL);
    let holder = Holder::new(&world, side("workstation"), "dev");
    let control = Holder::new(&world, side("pod").fault("seeds_only"), "docs");
    for old in 1..=3 {
        replace(&mut cluster, old, &holder);
        let seeds_are_left = old < 3;
        if seeds_are_left {
            control.writer.goes_on();
        }
    }
    let timer = Timer::start();
    while timer.elapsed() < LONG {
        holder.writer.goes_on();
    }
    wait_for(SOON, "the control is refused at its deadline", || control.writer.failed());
    assert_eq!(control.writer.end(), Some(nix::errno::Errno::EROFS as i32));

    // The commands ask the new nodes too, and so does a daemon that is started now.
    holder.kept();
    let Holder { side, epoch, writer, .. } = holder;
    writer.ends_well();
    side.kill_daemon();
    let again = || side.run(&["acquire", "dev", "--wait", "30s"]).code == 0;
    wait_for(SOON, "its daemon resumes the session", again);
    assert!(side.tree_status("dev")["epoch"].as_u64() >= Some(epoch));
}
