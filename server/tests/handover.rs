//! A node that ends by SIGTERM: its streams are told, another node leads before it goes, and nobody loses a lease (DESIGN 7).

mod common;
#[path = "common/held.rs"]
mod held;
#[path = "common/nodes.rs"]
mod nodes;

use common::until;
use futures::StreamExt;
use held::Held;
use nodes::{ALL, Nodes};
use tonic::Code;

/// What the node says that gave its leadership away.
fn heir(log: &str) -> Option<u64> {
    let (before, _) = log.rsplit_once(" leads now")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_leader_that_ends_in_order_is_followed_at_once_by_the_node_that_it_chose() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    // Each leads once, and ends while it does.
    for _ in 0..3 {
        let leader = nodes.all_serve().await;
        let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
        held.stays(&nodes, &[leader]).await;
        let mut watch = nodes.caller(leader).watch(0, &[]).await;
        let before = nodes.log(leader).len();
        nodes.stop(leader).await;
        let said = nodes.log(leader)[before..].to_owned();
        let chosen = heir(&said).unwrap_or_else(|| panic!("it gave its leadership away:\n{said}"));
        assert!(rest.contains(&chosen), "{said}");
        // It began to lead before the old one went: no election was waited for.
        let now = &nodes;
        until("the chosen one leads", || async { now.status(chosen).await.is_ok_and(|s| s.quorum && s.leader == chosen) }).await;
        let end = loop {
            match watch.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => break status,
                None => panic!("the watch ends with a word"),
            }
        };
        assert_eq!(end.code(), Code::Unavailable, "{end}");
        held.stays(&nodes, &rest).await;
        nodes.start(leader);
    }
    nodes.all_serve().await;
    held.stays(&nodes, &ALL).await;
    let history = nodes.caller(1).history("dev").await;
    assert!(history.iter().all(|e| e.event != "expired"), "{history:?}");
    assert_eq!(history.iter().filter(|e| e.event == "granted").count(), 1);
}

#[tokio::test]
async fn with_nobody_to_follow_it_a_leader_ends_all_the_same() {
    let mut nodes = Nodes::running().await;
    let leader = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    // They run, and answer nothing.
    rest.iter().for_each(|id| nodes.signal(*id, rustix::process::Signal::STOP));
    nodes.stop(leader).await;
    assert_eq!(heir(&nodes.log(leader)), None, "{}", nodes.log(leader));
}

#[tokio::test]
async fn a_node_stands_for_election_only_on_the_leaders_word() {
    use treelease_proto::wire;
    let nodes = Nodes::running().await;
    let leader = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    let at = format!("http://{}", nodes.address(rest[0]));
    let mut client = wire::raft_client::RaftClient::connect(at).await.unwrap();
    let hello = client.hello(wire::HelloRequest { node: rest[1] }).await.unwrap().into_inner();
    let formation = hello.formation.unwrap();
    let disk = |id: u64| formation.members.iter().find(|m| m.id == id).unwrap().disk.clone();
    let stamp = |from: u64, disk: String| wire::Stamp {
        cluster: formation.cluster.clone(),
        node: from,
        disk,
        to: rest[0],
        to_disk: hello.disk.clone(),
        state_version: hello.state_version,
    };
    let another = wire::TakeOverRequest { stamp: Some(stamp(rest[1], disk(rest[1]))) };
    let why = client.take_over(another).await.unwrap().into_inner().why_not;
    assert!(why.contains(&format!("node {leader} leads")), "{why}");
    let forged = wire::TakeOverRequest { stamp: Some(stamp(leader, "forged".into())) };
    assert_eq!(client.take_over(forged).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(nodes.all_serve().await, leader);
    // The control: the leader's word counts.
    let from_leader = wire::TakeOverRequest { stamp: Some(stamp(leader, disk(leader))) };
    let asked = &nodes;
    until("it leads", || async {
        let _ = client.clone().take_over(from_leader.clone()).await;
        asked.status(rest[0]).await.is_ok_and(|s| s.quorum && s.leader == rest[0])
    })
    .await;
}
