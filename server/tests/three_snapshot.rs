//! A node that was away so long that the log does not reach back to it any more is brought up by a snapshot.

mod common;
#[path = "common/nodes.rs"]
mod nodes;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::{Caller, until};
use treelease_proto::id::NodeId;
use treelease_server::config::Config;
use treelease_server::node::Node;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_what_was_purged_gets_a_snapshot_and_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = addresses();
    let start = |id: NodeId| Node::start(config(dir.path(), id, &set));
    let (one, two, three) = tokio::join!(start(1), start(2), start(3));
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    assert!(one.cluster() == two.cluster() && two.cluster() == three.cluster());
    let caller = Caller::new(one.address());
    caller.open("workstation", Duration::from_secs(60)).await;
    three.stop().await;
    for n in 0..150 {
        let name = format!("tree-{n}");
        let (caller, name) = (&caller, &name);
        // An election may be under way, if the node that was stopped led.
        until("the tree is added", || async move {
            caller.try_status().await.is_ok_and(|s| s.trees.iter().any(|t| t.name == *name))
                || caller.try_command(&common_add(name)).await.is_ok()
        })
        .await;
    }
    let snapshots = |id: u64| snapshots_in(&dir.path().join(format!("{id}/snapshots")));
    until("those that run have a snapshot", || async { snapshots(1) == 1 && snapshots(2) == 1 }).await;
    assert_eq!(snapshots(3), 0);
    let three = start(3).await.unwrap();
    let back = Caller::new(three.address());
    let caught_up = &back;
    until("the third has all trees", || async move {
        caught_up.try_status().await.is_ok_and(|s| s.quorum && s.trees.len() == 150 && s.sessions.len() == 1)
    })
    .await;
    assert_eq!(snapshots(3), 1, "it came as a snapshot: the log did not reach back");
    back.add_tree("after").await;
    until("all go on together", || async { caller.status().await.trees.len() == 151 }).await;
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_gets_a_snapshot_and_votes_and_starts_again_from_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let set = addresses();
    let start = |id: NodeId| Node::start(config(dir.path(), id, &set));
    let (one, two, three) = tokio::join!(start(1), start(2), start(3));
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    let caller = Caller::new(one.address());
    for n in 0..60 {
        caller.add_tree(&format!("tree-{n}")).await;
    }
    let snapshots = |id: u64| snapshots_in(&dir.path().join(format!("{id}/snapshots")));
    until("there is a snapshot", || async move { snapshots(1) == 1 && snapshots(2) == 1 && snapshots(3) == 1 }).await;
    let joins = config(dir.path(), 4, &set);
    let address = joins.advertise.clone().unwrap();
    let (asked, change) = (&caller, &common::add_node(4, &address));
    let added = until("it is added", || async move { asked.change_members(change).await.is_ok_and(|answer| answer.done) });
    let (new, ()) = tokio::join!(Node::start(joins), added);
    let new = new.unwrap();
    assert_eq!(new.cluster(), one.cluster());
    assert_eq!(snapshots(4), 1, "the log did not reach back to nothing");
    let back = Caller::new(new.address());
    let caught_up = &back;
    until("it has all trees", || async move {
        caught_up.try_status().await.is_ok_and(|s| s.quorum && s.trees.len() == 60 && s.members.len() == 4)
    })
    .await;
    new.stop().await;
    let new = start(4).await.unwrap();
    let again = Caller::new(new.address());
    let again = &again;
    until("it is back", || async move { again.try_status().await.is_ok_and(|s| s.quorum && s.trees.len() == 60) }).await;
    for node in [one, two, three, new] {
        node.stop().await;
    }
}

/// Without one that is only being made.
fn snapshots_in(dir: &Path) -> usize {
    let Ok(files) = std::fs::read_dir(dir) else { return 0 };
    files.filter(|file| file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|end| end == "snap"))).count()
}

fn common_add(name: &str) -> treelease_proto::command::Command {
    let tree = treelease_proto::id::TreeId::random();
    treelease_proto::command::Command::AddTree { name: name.parse().unwrap(), tree, policy: vec![], root: None }
}

fn config(dir: &Path, id: NodeId, set: &BTreeMap<NodeId, String>) -> Config {
    let mut config = Config::alone(&dir.join(id.to_string()));
    config.node_id = id;
    config.listen = vec![set[&id].parse().unwrap()];
    config.advertise = Some(set[&id].clone());
    // The first three found a cluster, the fourth joins it.
    config.peers = set.iter().filter(|(other, _)| **other != id && **other <= 3).map(|(id, addr)| (*id, addr.clone())).collect();
    config.pace.heartbeat = Duration::from_millis(100);
    config.pace.election_min = Duration::from_millis(500);
    config.pace.election_max = Duration::from_millis(900);
    (config.pace.snapshot_after, config.pace.log_kept) = (40, 5);
    config
}

/// Where the nodes listen.
fn addresses() -> BTreeMap<NodeId, String> {
    nodes::free_ports(4).into_iter().zip(1..).map(|(port, id)| (id, format!("127.0.0.1:{port}"))).collect()
}
