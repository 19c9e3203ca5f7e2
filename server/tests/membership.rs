//! Nodes are added, moved, replaced and removed while they serve, with real processes: the lease is never lost, a number is
//! never given twice, a directory that lost what it acknowledged never votes, and what was left half done is finished (I3, I7).

mod common;
#[path = "common/held.rs"]
mod held;
#[path = "common/nodes.rs"]
mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Caller, add_node, remove_node, until};
use held::{Held, TTL};
use nodes::{ALL, ELECTION_MAX, Nodes};
use rustix::process::Signal;
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::TreeId;
use treelease_proto::wire;
use treelease_proto::wire::members_request::Change;

#[tokio::test]
async fn a_node_is_added_under_load_and_a_dead_one_replaced_and_the_lease_is_never_lost() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    let load = Load::begin(&nodes);
    nodes.start(4);
    let waiting = &nodes;
    until("node 4 says what takes it in", || async { waiting.log(4).contains("cluster add 4=") }).await;
    assert!(nodes.status(4).await.is_err(), "it belongs to no cluster yet");
    changed(&nodes, &ALL, add_node(4, &nodes.address(4))).await;
    held.stays(&nodes, &ALL).await;
    until("node 4 serves", || async { waiting.status(4).await.is_ok() }).await;
    nodes.agree(&[1, 2, 3, 4]).await;
    assert_eq!(roles(&nodes, 4).await, "1 voter, 2 voter, 3 voter, 4 voter");
    held.stays(&nodes, &[4]).await;

    // One of the first dies for good, and is replaced.
    nodes.kill_9(1);
    nodes.agree(&[2, 3, 4]).await;
    held.stays(&nodes, &[2, 3, 4]).await;
    changed(&nodes, &[2, 3, 4], remove_node(1)).await;
    changed(&nodes, &[4], remove_node(1)).await;
    assert_eq!(roles(&nodes, 4).await, "2 voter, 3 voter, 4 voter");
    let acknowledged = load.end().await;
    held.stays(&nodes, &[2, 3, 4]).await;
    assert!(acknowledged > 0);
    let new = &nodes;
    until("the new node has all that was acknowledged", || async {
        new.status(4).await.is_ok_and(|s| s.trees.len() > acknowledged)
    })
    .await;

    // Removed, it comes back with all that it had: nobody listens, and its number is used for ever.
    nodes.start(1);
    let again = &nodes;
    until("node 1 is turned away", || async { (2..5).any(|id| again.log(id).contains("node 1 was removed")) }).await;
    assert!(!status(&nodes, 1).await.quorum);
    let why = refused(&nodes, &[2, 3, 4], add_node(1, &nodes.address(1))).await;
    assert!(why.message.contains("never given again"), "{why:?}");
    held.stays(&nodes, &[2, 3, 4]).await;
    let history = nodes.caller(4).history("dev").await;
    assert!(history.iter().all(|e| e.event != "expired"), "{history:?}");
}

#[tokio::test]
async fn one_node_becomes_three_and_outlives_the_first() {
    let mut nodes = Nodes::new();
    let alone = nodes.program_at(1, &nodes.address(1), &[]);
    nodes.start_as(1, alone);
    nodes.all_serve().await;
    let cluster = status(&nodes, 1).await.cluster;
    // So short a time to live would not outlive an election among several.
    let quick = nodes.caller(1).open("quick", Duration::from_secs(2)).await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    assert_eq!(nodes.caller(1).renew(&quick, 1, 0).await.ttl_ms, 2_000);
    for id in [2, 3] {
        let joins = nodes.program_at(id, &nodes.address(id), &[1]);
        nodes.start_as(id, joins);
        changed(&nodes, &[1], add_node(id, &nodes.address(id))).await;
        held.stays(&nodes, &[1]).await;
    }
    nodes.agree(&ALL).await;
    assert_eq!(roles(&nodes, 1).await, "1 voter, 2 voter, 3 voter");
    let status = status(&nodes, 2).await;
    assert_eq!((status.cluster, status.nodes, status.ttl_min_ms), (cluster, 3, 5_850));
    nodes.kill_9(1);
    nodes.agree(&[2, 3]).await;
    held.stays(&nodes, &[2, 3]).await;
    // As it always was started: the membership is in its log, not in its flags.
    let alone = nodes.program_at(1, &nodes.address(1), &[]);
    nodes.start_as(1, alone);
    nodes.all_serve().await;
    held.stays(&nodes, &ALL).await;
}

#[tokio::test]
async fn i3_living_sessions_get_longer_when_a_second_node_votes() {
    let mut nodes = Nodes::new();
    let alone = nodes.program_at(1, &nodes.address(1), &[]);
    nodes.start_as(1, alone);
    nodes.all_serve().await;
    let quick = nodes.caller(1).open("quick", Duration::from_secs(2)).await;
    let (caller, ended, session) = (nodes.caller(1), Arc::new(AtomicBool::new(false)), quick.clone());
    let until_then = ended.clone();
    let renewing = tokio::spawn(async move {
        let mut number = 0;
        let mut last = 0;
        while !until_then.load(Ordering::SeqCst) {
            number += 1;
            if let Ok(answer) = held::renew(&caller, &session, number).await {
                assert!(answer.alive, "{}", answer.why_not);
                last = answer.ttl_ms;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        last
    });
    let joins = nodes.program_at(2, &nodes.address(2), &[1]);
    nodes.start_as(2, joins);
    changed(&nodes, &[1], add_node(2, &nodes.address(2))).await;
    let caller = nodes.caller(1);
    until("the session has the longer time to live", || async {
        caller.status().await.sessions.iter().all(|session| session.ttl_ms == 5_850)
    })
    .await;
    ended.store(true, Ordering::SeqCst);
    renewing.await.unwrap();
}

/// The leader is killed when the first of the two steps is agreed upon, at the very moment before it asks for the second.
#[tokio::test]
async fn a_change_that_was_left_half_done_is_shown_and_finished_by_the_same_command() {
    let mut nodes = Nodes::new();
    let mut dies = nodes.program_at(1, &nodes.address(1), &[]);
    dies.env("TREELEASE_TEST_FAULT", "die_in_joint");
    nodes.start_as(1, dies);
    nodes.all_serve().await;
    let tree = nodes.caller(1).add_tree("dev").await;
    let joins = nodes.program_at(2, &nodes.address(2), &[1]);
    nodes.start_as(2, joins);
    let (caller, change) = (nodes.caller(1), add_node(2, &nodes.address(2)));
    let asking = {
        let change = change.clone();
        tokio::spawn(async move { while caller.change_members(&change).await.is_ok_and(|answer| !answer.done) {} })
    };
    assert_eq!(nodes.end(1).await, -1, "it was killed by a signal");
    asking.await.unwrap();

    let whole = nodes.program_at(1, &nodes.address(1), &[]);
    nodes.start_as(1, whole);
    nodes.agree(&[1, 2]).await;
    assert!(status(&nodes, 1).await.joint, "the control: it was left half done");
    assert_eq!(roles(&nodes, 2).await, "1 voter, 2 joining");
    assert!(nodes.caller(2).status().await.trees.iter().any(|t| t.id == tree.to_string()), "and it serves all the same");
    changed(&nodes, &[1, 2], change).await;
    assert_eq!(roles(&nodes, 1).await, "1 voter, 2 voter");
    let both = &nodes;
    until("nobody sees it half done", || async { both.status(2).await.is_ok_and(|s| !s.joint) }).await;
}

#[tokio::test]
async fn i7_a_wiped_member_never_votes_again_and_is_replaced_under_a_new_number() {
    let mut nodes = Nodes::running().await;
    nodes.caller(1).add_tree("dev").await;
    nodes.stop(3).await;
    nodes.wipe(3);
    nodes.start(3);
    assert_eq!(nodes.end(3).await, 78);
    assert!(nodes.log(3).contains("treelease cluster remove 3"), "{}", nodes.log(3));
    nodes.agree(&[1, 2]).await;
    changed(&nodes, &[1, 2], remove_node(3)).await;
    // Under its old number never, also now that it is no member.
    nodes.start(3);
    assert_eq!(nodes.end(3).await, 78);
    nodes.start(4);
    changed(&nodes, &[1, 2], add_node(4, &nodes.address(4))).await;
    nodes.agree(&[1, 2, 4]).await;
    assert_eq!(roles(&nodes, 4).await, "1 voter, 2 voter, 4 voter");

    // One that is wiped before it has caught up, too.
    nodes.stop(4).await;
    nodes.wipe(4);
    nodes.start(4);
    assert_eq!(nodes.end(4).await, 78);
    let why = refused(&nodes, &[1, 2], add_node(3, &nodes.address(3))).await;
    assert!(why.message.contains("take 5"), "{why:?}");
}

#[tokio::test]
async fn a_stranger_is_not_taken_in() {
    let mut nodes = Nodes::running().await;
    let alone = nodes.program_at(5, &nodes.address(5), &[]);
    nodes.start_as(5, alone);
    nodes.agree(&[5]).await;
    let cluster = status(&nodes, 5).await.cluster;
    let why = refused(&nodes, &ALL, add_node(5, &nodes.address(5))).await;
    assert!(why.code == "config" && why.message.contains(&cluster), "{why:?}");
    let why = refused(&nodes, &ALL, add_node(4, &nodes.address(5))).await;
    assert!(why.message.contains("is node 5"), "{why:?}");
    let why = refused(&nodes, &ALL, remove_node(9)).await;
    assert_eq!(why.code, "not_found");
    for bad in [add_node(0, "host:1"), add_node(4, "host"), add_node(4, "host:0"), add_node(4, "")] {
        let status = nodes.caller(1).change_members(&bad).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{bad:?}");
    }
    assert_eq!(roles(&nodes, 1).await, "1 voter, 2 voter, 3 voter");
    assert_eq!(status(&nodes, 5).await.cluster, cluster);
}

#[tokio::test]
async fn the_leader_is_removed_and_the_last_quorum_is_not() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    let leader = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    changed(&nodes, &ALL, remove_node(leader)).await;
    held.stays(&nodes, &rest).await;
    nodes.agree(&rest).await;
    let gone = &nodes;
    until("the removed one has no quorum", || async { !gone.status(leader).await.is_ok_and(|s| s.quorum) }).await;
    nodes.kill_9(leader);
    // Two are left. One of them is silent: without the other one nothing could be agreed upon.
    let leader = nodes.agree(&rest).await;
    let other = rest.iter().copied().find(|id| *id != leader).unwrap();
    assert_eq!(status(&nodes, leader).await.members.len(), 2);
    nodes.signal(other, Signal::STOP);
    let alone = &nodes;
    until("it is refused, or nobody leads", || async {
        match alone.caller(leader).change_members(&remove_node(leader)).await {
            Ok(answer) => answer.refused.is_some_and(|refused| refused.message.contains("only")),
            Err(status) => status.code() == tonic::Code::Unavailable,
        }
    })
    .await;
    nodes.signal(other, Signal::CONT);
    nodes.agree(&rest).await;
    held.stays(&nodes, &rest).await;
    assert_eq!(status(&nodes, leader).await.members.len(), 2);
}

#[tokio::test]
async fn a_live_node_is_not_removed_while_the_others_would_be_no_quorum() {
    let mut nodes = Nodes::running().await;
    let leader = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    nodes.kill_9(rest[0]);
    let one = &nodes;
    until("the leader has noticed", || async { reached(one, leader, rest[0]).await == Some(false) }).await;
    let why = refused(&nodes, &[leader], remove_node(rest[1])).await;
    assert!(why.code == "unreachable" && why.message.contains(&format!("not {}", rest[0])), "{why:?}");
    // The dead one itself can go; then the other one cannot either, for it would leave the leader alone... which is a majority.
    changed(&nodes, &[leader], remove_node(rest[0])).await;
    changed(&nodes, &[leader], remove_node(rest[1])).await;
    assert_eq!(roles(&nodes, leader).await, format!("{leader} voter"));
    let why = refused(&nodes, &[leader], remove_node(leader)).await;
    assert!(why.message.contains("only one that votes"), "{why:?}");
}

#[tokio::test]
async fn a_node_moves_to_another_address() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    nodes.stop(3).await;
    let elsewhere = nodes.address(6);
    let moved = nodes.program_at(3, &elsewhere, &[1, 2]);
    nodes.start_as(3, moved);
    nodes.agree(&[1, 2]).await;
    changed(&nodes, &[1, 2], add_node(3, &elsewhere)).await;
    let caller = Caller::new(&elsewhere);
    until("it has a quorum there", || async { caller.try_status().await.is_ok_and(|s| s.quorum) }).await;
    let members = caller.status().await.members;
    assert_eq!(members.iter().find(|m| m.id == 3).unwrap().addr, elsewhere);
    held.stays(&nodes, &[1, 2]).await;
    // The others need it now.
    let leader = nodes.agree(&[1, 2]).await;
    nodes.kill_9(3 - leader);
    until("what is left goes on", || async { caller.try_status().await.is_ok_and(|s| s.quorum) }).await;
    held.stays(&nodes, &[leader]).await;
}

/// With four nodes a leader can hear one other and have no quorum: then that one has none either, though it hears a leader.
#[tokio::test]
async fn a_follower_that_is_cut_off_with_its_leader_says_so() {
    let mut nodes = Nodes::running().await;
    nodes.start(4);
    changed(&nodes, &ALL, add_node(4, &nodes.address(4))).await;
    let leader = nodes.agree(&[1, 2, 3, 4]).await;
    let rest: Vec<u64> = (1..=4).filter(|id| *id != leader).collect();
    let follower = rest[0];
    let whole = &nodes;
    until("it has a quorum, and says how old that is", || async {
        whole.status(follower).await.is_ok_and(|s| s.quorum && s.age_ms.is_some())
    })
    .await;
    rest[1..].iter().for_each(|id| nodes.signal(*id, Signal::STOP));
    let cut_off = &nodes;
    until("the follower says so", || async { cut_off.status(follower).await.is_ok_and(|s| !s.quorum) }).await;
    let marked = status(&nodes, follower).await;
    assert!(marked.age_ms.unwrap() >= ELECTION_MAX.as_millis() as u64, "{:?}", marked.age_ms);
    rest[1..].iter().for_each(|id| nodes.signal(*id, Signal::CONT));
    nodes.agree(&[1, 2, 3, 4]).await;
}

/// Asked again, as the command does, until it is so.
async fn changed(nodes: &Nodes, through: &[u64], change: Change) {
    let answer = decided(nodes, through, change).await;
    assert!(answer.done, "{answer:?}");
}

async fn refused(nodes: &Nodes, through: &[u64], change: Change) -> wire::Refused {
    decided(nodes, through, change).await.refused.expect("it is refused")
}

async fn decided(nodes: &Nodes, through: &[u64], change: Change) -> wire::MembersAnswer {
    let (answered, tries) = (std::sync::Mutex::new(None), AtomicUsize::new(0));
    until("a change of the members is decided", || async {
        let id = through[tries.fetch_add(1, Ordering::SeqCst) % through.len()];
        match nodes.caller(id).change_members(&change).await {
            Ok(answer) if answer.done || answer.refused.is_some() => *answered.lock().unwrap() = Some(answer),
            Ok(_) => {}
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
        answered.lock().unwrap().is_some()
    })
    .await;
    answered.into_inner().unwrap().unwrap()
}

/// What a node says; a busy machine may take more than one call.
async fn status(nodes: &Nodes, id: u64) -> wire::StatusAnswer {
    let said = std::sync::Mutex::new(None);
    until("it says how it stands", || async {
        let answer = nodes.status(id).await.ok();
        *said.lock().unwrap() = answer;
        said.lock().unwrap().is_some()
    })
    .await;
    said.into_inner().unwrap().unwrap()
}

async fn roles(nodes: &Nodes, id: u64) -> String {
    let status = status(nodes, id).await;
    status.members.iter().map(|m| format!("{} {}", m.id, m.role)).collect::<Vec<_>>().join(", ")
}

async fn reached(nodes: &Nodes, leader: u64, id: u64) -> Option<bool> {
    nodes.status(leader).await.ok()?.members.into_iter().find(|m| m.id == id)?.reached
}

/// Callers that add trees all the time, at every node that answers.
struct Load {
    ended: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    fn begin(nodes: &Nodes) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let caller = |id: u64| {
            let (caller, ended) = (nodes.caller(id), ended.clone());
            tokio::spawn(async move {
                let mut acknowledged = 0;
                for n in 0.. {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    let name = format!("load-{id}-{n}").parse().unwrap();
                    let add = Command::AddTree { name, tree: TreeId::random(), policy: vec![], root: None };
                    match caller.try_command(&add).await {
                        Ok(Answer::TreeAdded { .. }) => acknowledged += 1,
                        _ => tokio::time::sleep(TTL / 60).await,
                    }
                }
                acknowledged
            })
        };
        let callers = ALL.map(caller).into();
        Self { ended, callers }
    }

    async fn end(self) -> usize {
        self.ended.store(true, Ordering::SeqCst);
        let mut acknowledged = 0;
        for caller in self.callers {
            acknowledged += caller.await.unwrap();
        }
        acknowledged
    }
}
