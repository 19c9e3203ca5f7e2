//! What only claims to be a node's, or a caller's of this cluster: turned away and counted, and nobody takes up anything of it.

mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/nodes.rs"]
mod nodes;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/watched.rs"]
mod watched;

use std::time::Duration;

use common::{Caller, do_request};
use nodes::ALL;
use prost::Message;
use raw::framed;
use tokio::runtime::Runtime;
use tonic::Code;
use treelease_proto::id::ClusterId;
use treelease_proto::wire;
use treelease_server::config::Config;
use treelease_server::node::Node;
use watched::{Cluster, add_tree};

/// For whatever happens by itself.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_no_member_has_said_or_nobody_can_have_counted_is_turned_away_and_the_term_stays() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let hellos: Vec<wire::HelloAnswer> = cluster.runtime.block_on(async {
        let mut hellos = Vec::new();
        for id in ALL {
            let mut client =
                wire::raft_client::RaftClient::connect(format!("http://{}", cluster.nodes.address(id))).await.unwrap();
            hellos.push(client.hello(wire::HelloRequest { node: 1 }).await.unwrap().into_inner());
        }
        hellos
    });
    let named = hellos[0].formation.clone().unwrap().cluster;
    let turned_away = cluster.counted("treelease_raft_rejected_messages_total");
    // What a term or an index would be that does harm: the others would follow it, or it would overflow.
    let (high, overflow) = (1u64 << 40, u64::MAX);
    let mut sent = 0.0;
    for to in 0..3usize {
        let from = (to + 1) % 3;
        let good = wire::Stamp {
            cluster: named.clone(),
            node: from as u64 + 1,
            disk: hellos[from].disk.clone(),
            to: to as u64 + 1,
            to_disk: hellos[to].disk.clone(),
            state_version: hellos[to].state_version,
        };
        let forged = [
            wire::Stamp { cluster: ClusterId::random().to_string(), ..good.clone() },
            wire::Stamp { cluster: String::new(), ..good.clone() },
            wire::Stamp { disk: uuid_like(), ..good.clone() },
            wire::Stamp { disk: String::new(), ..good.clone() },
            wire::Stamp { disk: hellos[to].disk.clone(), ..good.clone() },
            wire::Stamp { node: good.to, ..good.clone() },
            wire::Stamp { node: 77, ..good.clone() },
            wire::Stamp { node: u64::MAX, disk: String::new(), ..good.clone() },
            wire::Stamp { to: good.node, ..good.clone() },
            wire::Stamp { to_disk: good.disk.clone(), ..good.clone() },
            wire::Stamp { to_disk: String::new(), ..good.clone() },
            wire::Stamp { state_version: good.state_version + 1, ..good.clone() },
            wire::Stamp { state_version: 0, ..good.clone() },
        ];
        let vote = |term, committed| Some(wire::Vote { term, node: from as u64 + 1, committed });
        let log_id = |term, index| Some(wire::LogId { term, node: from as u64 + 1, index });
        let blank = |id| wire::LogEntry { id, payload: Some(wire::log_entry::Payload::Blank(wire::Blank {})) };
        let stamps = forged.into_iter().map(Some).chain([None]);
        for stamp in stamps {
            let call = Some(wire::forward_request::Call::Do(do_request(&add_tree("forged"))));
            let (last, entries) = (log_id(high, high), vec![blank(log_id(high, 0))]);
            let messages = [
                ("Vote", wire::VoteRequest { stamp: stamp.clone(), vote: vote(high, false), last }.encode_to_vec()),
                (
                    "Append",
                    wire::AppendRequest { stamp: stamp.clone(), vote: vote(high, true), entries, ..Default::default() }
                        .encode_to_vec(),
                ),
                (
                    "Snapshot",
                    wire::SnapshotRequest { stamp: stamp.clone(), vote: vote(high, true), done: true, ..Default::default() }
                        .encode_to_vec(),
                ),
                ("Forward", wire::ForwardRequest { stamp: stamp.clone(), limit_ms: 1_000, call }.encode_to_vec()),
                ("ForwardRenewals", {
                    let session = cluster.session.to_string();
                    let renewal = Some(wire::RenewRequest { session, incarnation: 1, number: 1 << 40, ..Default::default() });
                    let asked = vec![wire::RenewalAsked { tag: 1, limit_ms: 0, renewal }];
                    wire::RenewalsForwarded { stamp: stamp.clone(), asked }.encode_to_vec()
                }),
                ("TakeOver", wire::TakeOverRequest { stamp: stamp.clone() }.encode_to_vec()),
            ];
            for (method, message) in messages {
                let status = cluster.call(to, &format!("/treelease.v1.Raft/{method}"), framed(&message));
                assert_eq!(status.code(), Code::FailedPrecondition, "{method}, {stamp:?}: {status}");
                sent += 1.0;
            }
        }
        // A member's own, and still nothing that can be read.
        let stamp = Some(good);
        let append =
            |vote, prev, entries| wire::AppendRequest { stamp: stamp.clone(), vote, prev, entries, ..Default::default() };
        let unreadable = [
            ("Vote", wire::VoteRequest { stamp: stamp.clone(), vote: None, last: None }.encode_to_vec()),
            ("Vote", wire::VoteRequest { stamp: stamp.clone(), vote: vote(overflow, false), last: None }.encode_to_vec()),
            ("Vote", {
                wire::VoteRequest { stamp: stamp.clone(), vote: vote(high, false), last: log_id(overflow, 1) }.encode_to_vec()
            }),
            ("Append", append(None, None, vec![]).encode_to_vec()),
            ("Append", append(vote(high, true), None, vec![wire::LogEntry::default()]).encode_to_vec()),
            ("Append", append(vote(high, true), log_id(1, overflow), vec![]).encode_to_vec()),
            ("Append", append(vote(high, true), log_id(1, 5), vec![blank(log_id(1, 9))]).encode_to_vec()),
            ("Append", append(vote(high, true), None, vec![blank(log_id(1, 0)), blank(log_id(1, 0))]).encode_to_vec()),
            (
                "Snapshot",
                wire::SnapshotRequest { stamp: stamp.clone(), vote: vote(high, true), ..Default::default() }.encode_to_vec(),
            ),
            ("Snapshot", {
                let meta = Some(wire::SnapshotHeader { format: 1, ..Default::default() });
                let (stamp, vote) = (stamp.clone(), vote(high, true));
                wire::SnapshotRequest { stamp, vote, meta, offset: u64::MAX, data: vec![1], ..Default::default() }.encode_to_vec()
            }),
        ];
        for (method, message) in unreadable {
            let status = cluster.call(to, &format!("/treelease.v1.Raft/{method}"), framed(&message));
            assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status}");
            sent += 1.0;
        }
    }
    assert_eq!(cluster.state(None), before);
    assert!(cluster.counted("treelease_raft_rejected_messages_total") >= turned_away + sent, "each is counted");
    assert!(cluster.counted("treelease_raft_term") < high as f64, "and nobody took up a forged term");
    cluster.serves_on(None);
}

/// A node that was away believes numbers that it has never heard of, or nobody could bring it back. One that leads was not away.
#[test]
fn a_leader_believes_no_number_that_was_never_a_members() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::alone(dir.path());
        // A starved machine must not make it doubt that it leads.
        (config.pace.election_min, config.pace.election_max) = (LIMIT, 2 * LIMIT);
        let node = Node::start(config).await.unwrap();
        let mut client = wire::raft_client::RaftClient::connect(format!("http://{}", node.address())).await.unwrap();
        let hello = client.hello(wire::HelloRequest { node: 77 }).await.unwrap().into_inner();
        let cluster = node.cluster().to_string();
        let stamp =
            wire::Stamp { cluster, node: 77, disk: uuid_like(), to: 1, to_disk: hello.disk, state_version: hello.state_version };
        let term = node.consensus().gauges().term;
        let vote = Some(wire::Vote { term: term + 100, node: 77, committed: false });
        let last = Some(wire::LogId { term: term + 100, node: 77, index: 1 << 20 });
        let asked = client.vote(wire::VoteRequest { stamp: Some(stamp.clone()), vote, last }).await;
        assert_eq!(asked.unwrap_err().code(), Code::FailedPrecondition);
        let call = Some(wire::forward_request::Call::Do(do_request(&add_tree("forged"))));
        let forwarded = client.forward(wire::ForwardRequest { stamp: Some(stamp), limit_ms: 1_000, call }).await;
        assert_eq!(forwarded.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(node.consensus().gauges().term, term);
        let caller = Caller::new(node.address());
        caller.add_tree("dev").await;
        assert_eq!(caller.status().await.trees.len(), 1);
        node.stop().await;
    });
}

fn uuid_like() -> String {
    ClusterId::random().to_string()
}

#[test]
fn a_caller_who_follows_another_cluster_changes_nothing() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    for node in 0..3 {
        let other = ClusterId::random().to_string();
        let doing = wire::DoRequest { cluster: other.clone(), ..do_request(&add_tree("another")) }.encode_to_vec();
        let session = cluster.session.to_string();
        let renew = wire::RenewRequest { session, incarnation: 1, number: 9, cluster: other.clone(), ..Default::default() };
        let change = Some(wire::members_request::Change::Remove(wire::RemoveNode { node: 3 }));
        let members = wire::MembersRequest { change, cluster: other, ..Default::default() };
        for (method, message) in [("Do", doing), ("Renew", renew.encode_to_vec()), ("ChangeMembers", members.encode_to_vec())] {
            let status = cluster.call(node, &format!("/treelease.v1.Lease/{method}"), framed(&message));
            assert_eq!(status.code(), Code::FailedPrecondition, "{method}: {status}");
        }
    }
    assert_eq!(cluster.state(None), before);
    let renewed = cluster.runtime.block_on(async { cluster.nodes.caller(1).renew(&cluster.session, 1, 0).await });
    assert!(renewed.alive, "the session was touched by none of them");
    cluster.serves_on(None);
}
