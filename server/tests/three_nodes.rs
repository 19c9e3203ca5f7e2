//! Three nodes, real processes: one cluster in any start order, no lease lost with one node, none acknowledged by a
//! minority, and never a second cluster (I3, I5, I7).

mod common;
#[path = "common/held.rs"]
mod held;
#[path = "common/nodes.rs"]
mod nodes;

use std::time::Duration;

use common::{acquire, open_session, until};
use futures::StreamExt;
use held::{Held, TTL, renew};
use nodes::{ALL, Nodes};
use rustix::process::Signal;
use tokio::time::Instant;
use tonic::{Code, Request};
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::{ClusterId, TreeId};
use treelease_proto::wire;
use treelease_proto::wire::raft_client::RaftClient;
use treelease_proto::wire::watch_answer::Kind;

#[tokio::test]
async fn empty_nodes_form_one_cluster_in_any_start_order() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let mut nodes = Nodes::new();
        for id in order {
            // Whoever was started waits, and says so, as long as one is missing.
            for before in order.iter().take_while(|before| **before != id) {
                assert_eq!(nodes.status(*before).await.unwrap_err().code(), Code::Unavailable, "{order:?}");
            }
            nodes.start(id);
            let nodes = &nodes;
            until("it answers", || async move { answers(nodes, id).await }).await;
        }
        nodes.all_serve().await;
        let mut clusters = Vec::new();
        for id in ALL {
            let status = nodes.status(id).await.unwrap();
            assert_eq!(status.nodes, 3, "{order:?}");
            // It is written after the first answer.
            let written = nodes.data(id).join("address");
            until("its address is written", || async { written.exists() }).await;
            clusters.push(status.cluster);
        }
        assert!(clusters.iter().all(|c| *c == clusters[0]), "{order:?}: {clusters:?}");
    }
}

#[tokio::test]
async fn any_node_answers_any_request() {
    let nodes = Nodes::running().await;
    let held = Held::take(&nodes, 1, "dev").await;
    for id in ALL {
        let caller = nodes.caller(id);
        let renewed = caller.renew(&held.session, id, 0).await;
        assert!(renewed.alive && renewed.pairs.len() == 1, "node {id}");
        let since = caller.status().await.revision;
        let name = format!("tree-{id}");
        let tree = caller.add_tree(&name).await;
        assert!(caller.status().await.trees.iter().any(|t| t.name == name), "node {id} shows what it has just acknowledged");
        for other in ALL {
            let mut watch = nodes.caller(other).watch(since, &[&name]).await;
            let session = nodes.caller(other).open(&format!("side-{id}-{other}"), TTL).await;
            let grant = nodes.caller(other).acquire(&tree, &session).await;
            loop {
                match watch.next().await.unwrap().unwrap().kind.unwrap() {
                    Kind::Event(event) if event.event == "granted" && event.epoch == grant.epoch.get() => break,
                    Kind::Lagged(_) => panic!("nothing was missed"),
                    _ => {}
                }
            }
            assert_eq!(nodes.caller(id).release(&tree, &session, &grant).await, Answer::Done);
        }
    }
    // A time to live that an election could eat is refused, with the least that is taken.
    let Answer::Refused(refusal) = nodes.caller(2).command(open_session("hasty", Duration::from_secs(2))).await else {
        panic!("two seconds are too short for three nodes")
    };
    assert!(refusal.message.contains("5850ms"), "{refusal}");
}

#[tokio::test]
async fn a_lease_outlives_its_leader_and_a_rolling_restart() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    let leader = nodes.all_serve().await;
    nodes.kill_9(leader);
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    held.stays(&nodes, &rest).await;
    let next = nodes.agree(&rest).await;
    assert_ne!(next, leader);
    held.stays(&nodes, &rest).await;
    nodes.start(leader);
    nodes.all_serve().await;
    for id in ALL {
        nodes.stop(id).await;
        let rest: Vec<u64> = ALL.into_iter().filter(|other| *other != id).collect();
        held.stays(&nodes, &rest).await;
        nodes.start(id);
        nodes.all_serve().await;
        held.stays(&nodes, &ALL).await;
    }
    let history = nodes.caller(3).history("dev").await;
    assert!(history.iter().all(|e| e.event != "expired"), "{history:?}");
    assert_eq!(history.iter().filter(|e| e.event == "granted").count(), 1);
}

#[tokio::test]
async fn a_wiped_node_is_refused_and_forms_no_second_cluster() {
    let mut nodes = Nodes::running().await;
    let cluster = nodes.status(1).await.unwrap().cluster;
    // The lowest, which would begin a cluster.
    nodes.stop(1).await;
    nodes.wipe(1);
    nodes.start(1);
    assert_eq!(nodes.end(1).await, 78);
    assert!(nodes.log(1).contains("under a new node id"), "{}", nodes.log(1));
    nodes.agree(&[2, 3]).await;

    // Nor while the others are away, nor when two of three were wiped.
    nodes.stop(2).await;
    nodes.wipe(2);
    nodes.stop(3).await;
    nodes.start(1);
    nodes.start(2);
    let both = &nodes;
    until("both wait for the third", || async move { answers(both, 1).await && answers(both, 2).await }).await;
    assert_eq!(nodes.status(1).await.unwrap_err().code(), Code::Unavailable);
    nodes.start(3);
    assert_eq!(nodes.end(1).await, 78);
    assert_eq!(nodes.end(2).await, 78);
    let left = nodes.status(3).await.unwrap();
    assert_eq!((left.cluster, left.quorum, left.nodes), (cluster, false, 3));
}

#[tokio::test]
async fn a_node_of_another_cluster_or_another_disk_counts_for_nothing() {
    let mut nodes = Nodes::running().await;
    let cluster = nodes.status(1).await.unwrap().cluster;
    nodes.stop(3).await;
    let rest = nodes.agree(&[1, 2]).await;
    std::fs::rename(nodes.data(3), nodes.data(3).with_extension("away")).unwrap();
    // A cluster of its own, at the address and under the number of the member.
    let mut alone = std::process::Command::new(env!("CARGO_BIN_EXE_treelease-server"));
    alone.args(["--insecure", "--node-id", "3", "--listen", &nodes.address(3), "--data-dir"]).arg(nodes.data(3));
    nodes.start_as(3, alone);
    let three = &nodes;
    until("the stranger serves", || async move { three.status(3).await.is_ok() }).await;
    nodes.caller(rest).add_tree("ours").await;
    nodes.caller(3).add_tree("theirs").await;
    let stranger = nodes.status(3).await.unwrap();
    assert_ne!(stranger.cluster, cluster);
    assert_eq!((stranger.nodes, stranger.trees.len()), (1, 1));
    nodes.stop(3).await;
    nodes.start(3);
    assert_eq!(nodes.end(3).await, 78, "a cluster of its own does not become a member by --peer");
    std::fs::remove_dir_all(nodes.data(3)).unwrap();
    std::fs::rename(nodes.data(3).with_extension("away"), nodes.data(3)).unwrap();
    nodes.start(3);
    nodes.all_serve().await;

    let mut client = RaftClient::connect(format!("http://{}", nodes.address(1))).await.unwrap();
    let hello = client.hello(wire::HelloRequest { node: 2 }).await.unwrap().into_inner();
    let (members, state_version) = (hello.formation.unwrap().members, hello.state_version);
    let disk = |id: u64| members.iter().find(|m| m.id == id).unwrap().disk.clone();
    let good = wire::Stamp { cluster, node: 2, disk: disk(2), to: 1, to_disk: disk(1), state_version };
    let vote = Some(wire::Vote { term: 0, node: 2, committed: false });
    for wrong in [
        wire::Stamp { cluster: ClusterId::random().to_string(), ..good.clone() },
        wire::Stamp { disk: "wiped".into(), ..good.clone() },
        wire::Stamp { to_disk: disk(3), ..good.clone() },
        wire::Stamp { node: 4, ..good.clone() },
        wire::Stamp { state_version: state_version + 1, ..good.clone() },
    ] {
        let asked = wire::VoteRequest { stamp: Some(wrong.clone()), vote, last: None };
        assert_eq!(client.vote(asked).await.unwrap_err().code(), Code::FailedPrecondition, "{wrong:?}");
        let said = wire::AppendRequest { stamp: Some(wrong), vote, ..Default::default() };
        assert_eq!(client.append(said).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    // The control: a member's own word is heard (and its old vote refused by the log, not at the door).
    assert!(!client.vote(wire::VoteRequest { stamp: Some(good), vote, last: None }).await.unwrap().into_inner().granted);
}

#[tokio::test]
async fn a_minority_acknowledges_nothing_and_says_that_it_is_one() {
    for stays_leader in [true, false] {
        let mut nodes = Nodes::running().await;
        let mut held = Held::take(&nodes, 1, "dev").await;
        let leader = nodes.all_serve().await;
        let last = if stays_leader { leader } else { ALL.into_iter().find(|id| *id != leader).unwrap() };
        // What it answers alone is what it knows by now.
        let whole = &nodes;
        until("the node knows of the lease", || async move { whole.status(last).await.unwrap().trees[0].state == "held" }).await;
        for id in ALL.into_iter().filter(|id| *id != last) {
            nodes.kill_9(id);
        }
        let (alone, caller) = (&nodes, nodes.caller(last));
        until("it says that it has no quorum", || async move { !alone.status(last).await.unwrap().quorum }).await;
        let status = nodes.status(last).await.unwrap();
        assert_eq!((status.leader, status.trees[0].state.as_str()), (0, "held"), "a marked read");
        let began = Instant::now();
        let refused = caller.try_command(&add("never")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(held.renew(&caller, 1).await.unwrap_err().code(), Code::Unavailable);

        let other = ALL.into_iter().find(|id| *id != last).unwrap();
        nodes.start(other);
        nodes.agree(&[last, other]).await;
        assert!(nodes.status(last).await.unwrap().trees.iter().all(|t| t.name != "never"));
        held.stays(&nodes, &[last, other]).await;
    }
}

#[tokio::test]
async fn a_leader_that_was_stopped_past_an_expiry_acknowledges_no_renewal() {
    let mut nodes = Nodes::running().await;
    let held = Held::take(&nodes, 1, "dev").await;
    let old = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != old).collect();
    let caller = nodes.caller(old);
    assert!(held.renew(&caller, 10).await.unwrap().alive);
    nodes.signal(old, Signal::STOP);
    // They lie in its sockets, and are the first that it reads when it wakes, before it has heard of anybody else.
    let queued: Vec<_> = (11..31)
        .map(|number| {
            let (caller, session) = (caller.clone(), held.session.clone());
            tokio::spawn(async move { renew(&caller, &session, number).await })
        })
        .collect();
    let leader = nodes.agree(&rest).await;
    let other = nodes.caller(leader).open("pod", Duration::from_secs(60)).await;
    assert!(matches!(nodes.caller(leader).command(acquire(&held.tree, &other)).await, Answer::Queued { .. }));
    let (asked, waiter) = (&nodes.caller(leader), &other);
    until(
        "the other side is granted",
        || async move { renew(asked, waiter, 1).await.is_ok_and(|answer| !answer.pairs.is_empty()) },
    )
    .await;
    nodes.signal(old, Signal::CONT);
    for renewal in queued {
        if let Ok(answer) = renewal.await.unwrap() {
            assert!(!answer.alive, "acknowledged though the other side holds the tree: {answer:?}");
        }
    }
    nodes.all_serve().await;
    let (asked, gone) = (&nodes.caller(old), &held);
    until("it answers again, and knows that the session has ended", || async move {
        let after = gone.renew(asked, 100).await;
        assert!(after.as_ref().map_or(true, |after| !after.alive && after.pairs.is_empty()), "{after:?}");
        after.is_ok()
    })
    .await;
}

#[tokio::test]
async fn peers_show_the_token_and_a_node_without_it_is_kept_out() {
    let mut nodes = Nodes::new();
    let file = nodes.data(1).with_extension("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    nodes.args = vec!["--token-file".into(), file.to_str().unwrap().into()];
    nodes.start(1);
    nodes.start(2);
    nodes.args.clear();
    nodes.start(3);
    let all = &nodes;
    until("node 1 is told", || async move { all.log(1).contains("node 3") || all.log(3).contains("token") }).await;
    nodes.kill_9(3);
    nodes.args = vec!["--token-file".into(), file.to_str().unwrap().into()];
    nodes.start(3);
    for id in ALL {
        let caller = nodes.caller(id).with_token("s3cret");
        let caller = &caller;
        until("it serves", || async move { caller.try_status().await.is_ok_and(|s| s.quorum) }).await;
    }
    nodes.caller(2).with_token("s3cret").open("workstation", TTL).await;
}

/// Whether a node says who it is, be it in a cluster or not.
async fn answers(nodes: &Nodes, id: u64) -> bool {
    let Ok(mut client) = RaftClient::connect(format!("http://{}", nodes.address(id))).await else { return false };
    client.hello(Request::new(wire::HelloRequest { node: 0 })).await.is_ok_and(|hello| hello.into_inner().node == id)
}

fn add(name: &str) -> Command {
    Command::AddTree { name: name.parse().unwrap(), tree: TreeId::random(), policy: vec![], root: None }
}
