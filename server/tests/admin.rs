//! Health and metrics: a node lives without a quorum and is not ready then, and a stuck caller holds up nobody.

mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/nodes.rs"]
mod nodes;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{Caller, until};
use http::{get, number, raw, say};
use nodes::{ALL, Nodes};
use rustix::process::Signal;
use treelease_server::config::Config;
use treelease_server::node::Node;

const TTL: Duration = Duration::from_secs(15);

async fn one_node() -> (tempfile::TempDir, Node, SocketAddr) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::alone(dir.path());
    config.admin = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let node = Node::start(config).await.unwrap();
    let at = node.admin_address().unwrap();
    (dir, node, at)
}

/// Off this runtime's threads: the test calls as another process would.
async fn asked<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_is_alive_and_ready_and_counts_what_it_does() {
    let (_dir, node, at) = one_node().await;
    assert_eq!(asked(move || get(at, "/healthz")).await, (200, "alive\n".into()));
    assert_eq!(asked(move || get(at, "/readyz")).await, (200, "ready\n".into()));
    let (code, before) = asked(move || get(at, "/metrics")).await;
    assert_eq!((code, number(&before, "treelease_node_is_leader"), number(&before, "treelease_sessions")), (200, 1.0, 0.0));

    let caller = Caller::new(node.address());
    let session = caller.open("secret-side", TTL).await;
    let tree = caller.add_tree("secret-tree").await;
    caller.add_tree("another-secret").await;
    caller.acquire(&tree, &session).await;
    caller.renew(&session, 1, 0).await;
    let (_, page) = asked(move || get(at, "/metrics")).await;
    assert_eq!(number(&page, "treelease_sessions"), 1.0);
    assert_eq!(number(&page, "treelease_trees{state=\"held\"}"), 1.0);
    assert_eq!(number(&page, "treelease_trees{state=\"free\"}"), 1.0);
    let grown = |name| number(&page, name) - number(&before, name);
    assert_eq!((grown("treelease_commands_total"), grown("treelease_renewals_acknowledged_total")), (4.0, 1.0));
    assert!(grown("treelease_raft_applied_index") >= 1.0 && grown("treelease_store_syncs_total") >= 1.0);
    assert!(!page.contains("secret"), "no names:\n{page}");
    node.stop().await;
    // On a thread of its own, so not at the very same moment.
    let closed = move || TcpStream::connect_timeout(&at, Duration::from_secs(5)).is_err();
    until("it ends with the node", || async move { asked(closed).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_and_a_grace_are_counted() {
    let (_dir, node, at) = one_node().await;
    let caller = Caller::new(node.address());
    let session = caller.open("pod", Duration::from_secs(2)).await;
    let tree = caller.add_tree("dev").await;
    caller.acquire(&tree, &session).await;
    let page = || async move { asked(move || get(at, "/metrics")).await.1 };
    until("the session expires", || async { number(&page().await, "treelease_sessions_expired_total") == 1.0 }).await;
    until("the grace ends", || async { number(&page().await, "treelease_graces_ended_total") == 1.0 }).await;
    assert_eq!(number(&page().await, "treelease_trees{state=\"fencing\"}"), 1.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_such_request_is_refused_and_a_caller_that_says_nothing_holds_up_nobody() {
    let (_dir, node, at) = one_node().await;
    asked(move || {
        assert_eq!(get(at, "/").0, 404);
        assert!(get(at, "/nothing").1.contains("/metrics"), "it says what there is");
        assert_eq!(say(at, "POST /healthz HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n").0, 405);
        let (code, body) = say(at, "HEAD /healthz HTTP/1.1\r\nHost: node\r\n\r\n");
        assert_eq!((code, body.as_str()), (200, ""));
        let long = format!("GET /healthz HTTP/1.1\r\nHost: node\r\nX: {}\r\n\r\n", "x".repeat(200_000));
        assert!(!raw(at, &long).contains("200 OK"));
        assert!(!raw(at, "no http at all\r\n\r\n").contains("200 OK"));
        // More than there is room for, and all of them silent: their places come free by themselves.
        let silent: Vec<_> = (0..80).map(|_| TcpStream::connect(at).unwrap()).collect();
        assert_eq!(get(at, "/healthz").0, 200);
        drop(silent);
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_taken_admin_port_is_73_before_anything_is_written() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::alone(dir.path());
    config.admin = vec![taken.local_addr().unwrap()];
    let failure = Node::start(config).await.err().unwrap();
    assert_eq!(failure.code.exit(), 73);
    assert!(failure.to_string().contains("--admin"), "{failure}");
    assert!(!dir.path().join("identity").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_quorum_is_alive_and_not_ready() {
    let mut nodes = Nodes::new();
    let admin = nodes::free_ports(3).into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect::<Vec<_>>();
    let at = |id: u64| admin[id as usize - 1];
    let start = |nodes: &mut Nodes, id: u64| {
        let mut program = nodes.program(id);
        program.args(["--admin", &at(id).to_string()]);
        nodes.start_as(id, program);
    };
    let says = |id: u64, path: &'static str, code: u16, word: &'static str| {
        let at = at(id);
        let right = move || TcpStream::connect(at).is_ok() && { get(at, path) }.0 == code && get(at, path).1.contains(word);
        async move { until(&format!("node {id} says {code}, {word}"), || async move { asked(right).await }).await }
    };
    // Alone it belongs to no cluster yet, and says so.
    start(&mut nodes, 1);
    says(1, "/healthz", 200, "alive").await;
    says(1, "/readyz", 503, "no cluster yet").await;
    start(&mut nodes, 2);
    start(&mut nodes, 3);
    let leader = nodes.all_serve().await;
    for id in ALL {
        says(id, "/readyz", 200, "ready").await;
        let page = asked({
            let at = at(id);
            move || get(at, "/metrics").1
        })
        .await;
        assert_eq!(number(&page, "treelease_raft_members"), 3.0);
    }
    // A follower sends on what only the leader can do.
    let follower = ALL.into_iter().find(|id| *id != leader).unwrap();
    nodes.caller(follower).open("workstation", TTL).await;
    let forwarded = at(follower);
    let page = asked(move || get(forwarded, "/metrics").1).await;
    assert!(number(&page, "treelease_forwarded_requests_total") >= 1.0);

    // The other two stand still: neither a leader nor a follower is of any use then, and each of them lives.
    for last in [leader, follower] {
        let others: Vec<u64> = ALL.into_iter().filter(|id| *id != last).collect();
        others.iter().for_each(|id| nodes.signal(*id, Signal::STOP));
        says(last, "/readyz", 503, "no quorum").await;
        says(last, "/healthz", 200, "alive").await;
        says(last, "/metrics", 200, "treelease_node_ready 0").await;
        others.iter().for_each(|id| nodes.signal(*id, Signal::CONT));
        says(last, "/readyz", 200, "ready").await;
        nodes.all_serve().await;
    }
}
