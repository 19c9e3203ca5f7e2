//! One node in this process, over real gRPC: what a side and an operator can rely on.

mod common;

use std::time::Duration;

use common::{Caller, acquire, do_request, open_session, until};
use futures::StreamExt;
use tempfile::TempDir;
use treelease_proto::command::{Answer, Command, Leadership};
use treelease_proto::id::{ClusterId, SessionId, TreeId};
use treelease_proto::refusal::Code;
use treelease_proto::time::Ttl;
use treelease_proto::wire;
use treelease_proto::wire::watch_answer::Kind;
use treelease_server::config::{Config, Token};
use treelease_server::node::Node;

const TTL: Duration = Duration::from_secs(15);
const SHORT: Duration = Duration::from_secs(2);

async fn node() -> (TempDir, Node, Caller) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let caller = Caller::new(node.address());
    (dir, node, caller)
}

#[tokio::test]
async fn a_side_opens_a_session_takes_a_tree_renews_it_and_hands_it_back() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    let grant = caller.acquire(&tree, &session).await;
    assert_eq!(grant.epoch.get(), 1);

    let renewed = caller.renew(&session, 1, 0).await;
    assert!(renewed.alive);
    assert_eq!((renewed.number, renewed.ttl_ms, renewed.elapsed_us), (1, 15_000, 0));
    assert_eq!(renewed.cluster, node.cluster().as_str());
    assert_eq!(renewed.pairs.len(), 1);
    assert_eq!((renewed.pairs[0].tree.as_str(), renewed.pairs[0].epoch), (tree.as_str(), 1));

    let status = caller.status().await;
    assert!(status.quorum && !status.secure && status.nodes == 1 && status.leader == 1);
    assert_eq!(status.trees[0].state, "held");
    assert!(status.trees[0].remaining_ms.unwrap() <= 15_000);

    assert_eq!(caller.release(&tree, &session, &grant).await, Answer::Done);
    let again = caller.renew(&session, 2, renewed.nonce).await;
    assert!(again.alive && again.pairs.is_empty() && again.elapsed_us > 0);
    let events: Vec<_> = caller.history("dev").await.into_iter().map(|e| e.event).collect();
    assert!(events.iter().any(|e| e == "granted") && events.last().unwrap() == "released", "{events:?}");
    assert_eq!(caller.history(tree.as_str()).await.len(), events.len());
    node.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_state_the_leases_and_the_cluster() {
    let (dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    caller.acquire(&tree, &session).await;
    let before = caller.renew(&session, 1, 0).await;
    let revision = caller.status().await.revision;
    assert!(dir.path().join("address").exists());
    node.stop().await;
    assert!(!dir.path().join("address").exists(), "the address is there only while the node serves");

    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let caller = Caller::new(node.address());
    let written = std::fs::read_to_string(dir.path().join("address")).unwrap();
    assert_eq!(written.trim(), node.address());
    let after = caller.renew(&session, 2, before.nonce).await;
    assert!(after.alive);
    assert_eq!((after.pairs, after.cluster), (before.pairs, before.cluster));
    assert!(after.leadership > before.leadership, "a restarted node begins a new leadership, also in the same term");
    assert_eq!(caller.status().await.revision, revision);
    node.stop().await;
}

#[tokio::test]
async fn a_purged_log_and_its_snapshot_bring_everything_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = Config::alone(dir.path());
        (config.pace.snapshot_after, config.pace.log_kept) = (40, 5);
        config
    };
    let node = Node::start(config()).await.unwrap();
    let caller = Caller::new(node.address());
    let session = caller.open("workstation", TTL).await;
    for n in 0..150 {
        let tree = caller.add_tree(&format!("tree-{n}")).await;
        caller.acquire(&tree, &session).await;
    }
    let snapshots = || std::fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    until("a snapshot is made", || async { snapshots() == 1 }).await;
    let before = caller.status().await;
    node.stop().await;

    let node = Node::start(config()).await.unwrap();
    let caller = Caller::new(node.address());
    let after = caller.status().await;
    assert_eq!(after.revision, before.revision);
    assert_eq!(after.trees.iter().map(|t| &t.name).collect::<Vec<_>>(), before.trees.iter().map(|t| &t.name).collect::<Vec<_>>());
    assert_eq!(caller.renew(&session, 1, 0).await.pairs.len(), 150);
    node.stop().await;

    std::fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    assert_eq!(Node::start(config()).await.err().unwrap().code, Code::Storage, "what the log has lost must be in a snapshot");
}

#[tokio::test]
async fn a_session_that_is_not_renewed_expires_and_one_that_is_does_not() {
    let (_dir, node, caller) = node().await;
    let lazy = caller.open("pod", SHORT).await;
    let eager = caller.open("workstation", SHORT).await;
    let tree = caller.add_tree("dev").await;
    caller.acquire(&tree, &lazy).await;
    let started = tokio::time::Instant::now();
    let mut number = 0;
    loop {
        number += 1;
        assert!(caller.renew(&eager, number, 0).await.alive);
        let status = caller.status().await;
        if status.sessions.iter().all(|s| s.side != "pod") {
            assert!(started.elapsed() >= SHORT - Duration::from_millis(100), "never before a full TTL");
            break;
        }
        assert!(started.elapsed() < SHORT * 4, "the session does not expire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let gone = caller.renew(&lazy, 1, 0).await;
    assert!(!gone.alive && gone.pairs.is_empty() && !gone.why_not.is_empty());
    let status = caller.status().await;
    assert_eq!(status.trees[0].state, "cooling");
    assert!(status.trees[0].remaining_ms.unwrap() <= 5_000);
    node.stop().await;
}

#[tokio::test]
async fn grace_ends_by_the_leaders_timer() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("pod", SHORT).await;
    let tree = TreeId::random();
    let policy = vec![("grace".into(), "200ms".into()), ("fence".into(), "none".into())];
    caller.command(Command::AddTree { name: "dev".parse().unwrap(), tree: tree.clone(), policy, root: None }).await;
    caller.acquire(&tree, &session).await;
    let waiter = caller.open("workstation", TTL).await;
    assert!(matches!(caller.command(acquire(&tree, &waiter)).await, Answer::Queued { place: 1, .. }));
    let (caller, waiter) = (&caller, &waiter);
    until("the waiter is granted after TTL and grace", || async move { !caller.renew(waiter, 1, 0).await.pairs.is_empty() })
        .await;
    let epoch = caller.renew(waiter, 2, 0).await.pairs[0].epoch;
    assert_eq!(epoch, 2);
    node.stop().await;
}

#[tokio::test]
async fn renewals_write_nothing_to_the_log_or_the_disk() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let before = (node.last_log(), node.commits_and_syncs());
    let mut nonce = 0;
    for number in 1..200 {
        nonce = caller.renew(&session, number, nonce).await.nonce;
    }
    assert_eq!((node.last_log(), node.commits_and_syncs()), before);
    node.stop().await;
}

#[tokio::test]
async fn commands_that_come_together_share_entries_and_every_commit_is_synced() {
    let (_dir, node, caller) = node().await;
    let before = node.last_log();
    let calls = (0..400).map(|n| {
        let caller = caller.clone();
        tokio::spawn(async move { caller.command(open_session(&format!("side-{n}"), TTL)).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.unwrap(), Answer::Opened { .. }));
    }
    let entries = node.last_log() - before;
    assert!(entries < 200, "{entries} entries for 400 commands");
    let (commits, syncs) = node.commits_and_syncs();
    assert_eq!(commits, syncs);
    assert_eq!(caller.status().await.sessions.len(), 400);
    node.stop().await;
}

#[tokio::test]
async fn i2_a_session_that_two_machines_renew_ends_for_both_and_the_history_says_why() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    caller.acquire(&tree, &session).await;
    let first = caller.renew(&session, 1, 0).await;
    // Both go on from here: one learns of a later nonce than the other.
    let one = caller.renew(&session, 2, first.nonce).await;
    let other = caller.renew(&session, 2, first.nonce).await;
    assert!(one.alive && other.alive && one.nonce != other.nonce, "it looks like a repeated request");
    assert!(caller.renew(&session, 3, one.nonce).await.alive);
    for (number, nonce) in [(3, other.nonce), (4, one.nonce), (4, other.nonce)] {
        let answer = caller.renew(&session, number, nonce).await;
        assert!(!answer.alive && answer.pairs.is_empty(), "{answer:?}");
    }
    let status = caller.status().await;
    assert_eq!((status.sessions.len(), status.trees[0].state.as_str()), (0, "cooling"));
    assert!(status.trees[0].remaining_ms.unwrap() > 15_000, "a full TTL and grace: {:?}", status.trees[0].remaining_ms);
    let history = caller.history("dev").await;
    let copied = history.iter().find(|e| e.event == "copied").unwrap_or_else(|| panic!("{history:?}"));
    assert_eq!((copied.side.as_str(), copied.end.as_str(), copied.epoch), ("workstation", "unclean", 1));
    assert!(copied.reason.contains("two machines"), "{}", copied.reason);
    // One of them has a new session, and waits like anybody.
    let again = caller.open("workstation", TTL).await;
    assert!(matches!(caller.command(acquire(&tree, &again)).await, Answer::Queued { .. }));
    node.stop().await;
}

#[tokio::test]
async fn a_leader_that_finds_nobody_to_lead_in_its_place_goes_on() {
    let (_dir, node, caller) = node().await;
    let why = node.consensus().hand_over().await.unwrap_err();
    assert!(why.contains("no other voter"), "{why}");
    // Else it would say no to everybody for as long as it leads, and it goes on leading.
    caller.add_tree("dev").await;
    node.stop().await;
}

#[tokio::test]
async fn a_repeated_request_key_does_nothing_twice() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    let request = do_request(&acquire(&tree, &session));
    let first = caller.ask(request.clone()).await.unwrap();
    let again = caller.ask(request).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(caller.history("dev").await.iter().filter(|e| e.event == "granted").count(), 1);
    node.stop().await;
}

#[tokio::test]
async fn what_only_a_server_decides_is_refused_from_outside_and_not_logged() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let before = node.last_log();
    let decided_under = Leadership(caller.renew(&session, 1, 0).await.leadership);
    for command in [
        Command::Lead { node: 1 },
        Command::ExpireSession { session: session.clone(), decided_under },
        Command::EndCopied { session: session.clone(), incarnation: 1 },
        Command::Found { cluster: ClusterId::random(), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX },
    ] {
        let Answer::Refused(refusal) = caller.command(command).await else { panic!("not refused") };
        assert_eq!(refusal.code, Code::Denied);
    }
    assert_eq!(node.last_log(), before);
    assert!(caller.renew(&session, 2, 0).await.alive);
    node.stop().await;
}

#[tokio::test]
async fn bad_messages_and_another_cluster_are_named_and_change_nothing() {
    let (_dir, node, caller) = node().await;
    let good = do_request(&open_session("workstation", TTL));
    let no_key = wire::DoRequest { request_key: "x".into(), ..good.clone() };
    assert_eq!(caller.ask(no_key).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let no_command = wire::DoRequest { command: None, ..good.clone() };
    assert_eq!(caller.ask(no_command).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let too_long = Command::Break { tree: TreeId::random(), epoch: Default::default(), reason: "x".repeat(100_000) };
    let mut raw = do_request(&too_long);
    if let Some(wire::command::Kind::Break(b)) = raw.command.as_mut().and_then(|c| c.kind.as_mut()) {
        b.reason = "x".repeat(100_000);
    }
    assert!(caller.ask(raw).await.is_err());

    let other = ClusterId::random();
    let elsewhere = wire::DoRequest { cluster: other.to_string(), ..good };
    let refused = caller.ask(elsewhere).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains(other.as_str()) && refused.message().contains(node.cluster().as_str()));
    let renewal =
        wire::RenewRequest { session: SessionId::random().to_string(), cluster: other.to_string(), ..Default::default() };
    assert_eq!(caller.try_renew(renewal).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    assert!(caller.status().await.sessions.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_of_every_call() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { token: Some(Token::new("s3cret")), ..Config::alone(dir.path()) };
    let node = Node::start(config).await.unwrap();
    let caller = Caller::new(node.address());
    for wrong in [caller.clone(), caller.clone().with_token("s3cre"), caller.clone().with_token("S3cret")] {
        let refused = wrong.try_status().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert!(refused.message().contains("token_file"));
        assert_eq!(wrong.try_command(&open_session("pod", TTL)).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    }
    caller.with_token("s3cret").open("workstation", TTL).await;
    node.stop().await;
}

#[tokio::test]
async fn a_cloned_session_is_told_that_it_is_one() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let first = caller.renew(&session, 1, 0).await.nonce;
    let second = caller.renew(&session, 2, first).await.nonce;
    assert!(caller.renew(&session, 3, second).await.alive);
    let clone = caller.renew(&session, 4, first).await;
    assert!(!clone.alive && clone.why_not.contains("cloned"));
    let other_run = wire::RenewRequest { session: session.to_string(), incarnation: 2, number: 1, ..Default::default() };
    assert!(!caller.try_renew(other_run).await.unwrap().alive);
    node.stop().await;
}

#[tokio::test]
async fn a_watch_says_what_was_missed_then_what_happens_and_ends_with_the_node() {
    let (_dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    let since = caller.status().await.revision;
    let grant = caller.acquire(&tree, &session).await;
    caller.add_tree("other").await;

    let mut watch = caller.watch(since, &["dev"]).await;
    let mut missed = Vec::new();
    let live_from = loop {
        match watch.next().await.unwrap().unwrap().kind.unwrap() {
            Kind::Event(event) => missed.push(event),
            Kind::Watching(w) => break w.revision,
            Kind::Lagged(_) => panic!("nothing was missed"),
        }
    };
    assert!(missed.iter().any(|e| e.event == "granted") && missed.iter().all(|e| e.name == "dev"), "{missed:?}");
    caller.release(&tree, &session, &grant).await;
    let Kind::Event(live) = watch.next().await.unwrap().unwrap().kind.unwrap() else { panic!("an event") };
    assert_eq!(live.event, "released");
    assert!(live.revision > live_from);

    let mut from_elsewhere = caller.watch(live.revision + 1_000, &[]).await;
    assert!(matches!(from_elsewhere.next().await.unwrap().unwrap().kind.unwrap(), Kind::Lagged(_)));
    let mut fresh = caller.watch(0, &[]).await;
    assert!(matches!(fresh.next().await.unwrap().unwrap().kind.unwrap(), Kind::Watching(_)));

    let stopped = tokio::spawn(node.stop());
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable);
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_watch_from_before_a_restart_goes_on_without_a_gap() {
    let (dir, node, caller) = node().await;
    let session = caller.open("workstation", TTL).await;
    let tree = caller.add_tree("dev").await;
    let since = caller.status().await.revision;
    caller.acquire(&tree, &session).await;
    node.stop().await;
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let mut watch = Caller::new(node.address()).watch(since, &[]).await;
    let Kind::Event(event) = watch.next().await.unwrap().unwrap().kind.unwrap() else { panic!("an event") };
    assert_eq!(event.event, "granted");
    drop(watch);
    node.stop().await;
}

#[tokio::test]
async fn a_second_node_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let (dir, node, caller) = node().await;
    let refused = Node::start(Config::alone(dir.path())).await.err().unwrap();
    assert_eq!(refused.code, Code::CannotCreate);
    assert_eq!(std::fs::read_to_string(dir.path().join("address")).unwrap().trim(), node.address());
    caller.open("workstation", TTL).await;
    node.stop().await;
}

#[tokio::test]
async fn a_history_of_no_tree_is_not_found() {
    let (_dir, node, caller) = node().await;
    let answer = caller.command(Command::Cancel { tree: TreeId::random(), session: SessionId::random() }).await;
    assert!(!matches!(answer, Answer::Granted(_)));
    let mut client = wire::lease_client::LeaseClient::connect(format!("http://{}", node.address())).await.unwrap();
    for (tree, code) in [("nothing", tonic::Code::NotFound), ("../x", tonic::Code::InvalidArgument)] {
        let refused = client.history(wire::HistoryRequest { tree: tree.into(), limit: 1 }).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
    node.stop().await;
}
