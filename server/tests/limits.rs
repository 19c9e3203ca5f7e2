//! What one caller can take of a node has limits, each with a refusal that says so; the node and its other callers go on.

mod common;
#[path = "common/http.rs"]
mod http;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Caller, acquire, do_request, open_session, until};
use http::{get, number};
use tonic::Code;
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::TreeId;
use treelease_proto::refusal;
use treelease_server::config::Config;
use treelease_server::limits::Limits;
use treelease_server::node::Node;

/// As `server/src/api` has it.
const WATCHES: usize = 1024;
/// Above the largest message that is taken from a caller.
const TOO_LARGE: usize = 80 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let caller = Caller::new(node.address());
    let policy = vec![("x".to_owned(), "y".repeat(TOO_LARGE))];
    let large = Command::AddTree { name: "large".parse().unwrap(), tree: TreeId::random(), policy, root: None };
    let refused = caller.try_command(&large).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::InvalidArgument | Code::ResourceExhausted), "{refused}");
    caller.add_tree("small").await;
    assert_eq!(caller.status().await.trees.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_beyond_the_limit_are_refused_and_there_is_room_again_when_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    // A connection takes 1024 calls at the same time; so several.
    let callers: Vec<Caller> = (0..8).map(|_| Caller::new(node.address())).collect();
    let mut watches = Vec::new();
    for n in 0..WATCHES {
        watches.push(callers[n % callers.len()].watch(0, &[]).await);
    }
    let one_more = Caller::new(node.address());
    assert_eq!(one_more.try_watch().await.err().map(|status| status.code()), Some(Code::ResourceExhausted));
    // Everything else is answered as before.
    one_more.add_tree("dev").await;
    watches.pop();
    let asked = &one_more;
    until("there is room again", || async { asked.try_watch().await.is_ok() }).await;
    drop(watches);
    tokio::time::timeout(Duration::from_secs(60), node.stop()).await.unwrap();
}

const TTL: Duration = Duration::from_secs(600);

/// A node with these limits, and its configuration.
async fn limited(dir: &std::path::Path, limits: Limits) -> (Config, Node) {
    let admin = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let config = Config { limits, admin, ..Config::alone(dir) };
    let node = Node::start(config.clone()).await.unwrap();
    (config, node)
}

/// Refused as too many, by that key.
fn too_many(answer: Answer, key: &str) {
    match answer {
        Answer::Refused(refusal) if refusal.code == refusal::Code::Limit => {
            assert!(refusal.message.contains(&format!("`{key}`")), "{refusal}");
        }
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_sessions_and_waiters_beyond_the_configured_number_are_refused_and_what_is_there_is_answered_again() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { trees: 2, sessions: 3, waiters: 1, ..Limits::default() };
    let (config, mut node) = limited(dir.path(), limits).await;
    let caller = Caller::new(node.address());
    let add = |name: &str| Command::AddTree { name: name.parse().unwrap(), tree: TreeId::random(), policy: vec![], root: None };
    let (first, third) = (add("first"), add("third"));
    for command in [&first, &add("second"), &first] {
        assert!(matches!(caller.command(command.clone()).await, Answer::TreeAdded { .. }), "asked again, it is there");
    }
    too_many(caller.command(third.clone()).await, "trees");

    let mut sessions = Vec::new();
    for side in ["one", "two", "three"] {
        sessions.push(caller.open(side, TTL).await);
    }
    too_many(caller.command(open_session("four", TTL)).await, "sessions");
    let held = caller.command(open_session("one", TTL)).await;
    assert!(matches!(&held, Answer::Refused(refusal) if refusal.code == refusal::Code::Held), "its own reason: {held:?}");

    let Command::AddTree { tree, .. } = &first else { unreachable!() };
    caller.acquire(tree, &sessions[0]).await;
    for _ in 0..2 {
        let waits = caller.command(acquire(tree, &sessions[1])).await;
        assert!(matches!(waits, Answer::Queued { place: 1, .. }), "{waits:?}");
    }
    too_many(caller.command(acquire(tree, &sessions[2])).await, "waiters");
    caller.acquire(tree, &sessions[0]).await;

    node.reload(Config { limits: Limits { trees: 3, sessions: 4, waiters: 2, ..limits }, ..config.clone() }).unwrap();
    assert!(matches!(caller.command(third).await, Answer::TreeAdded { .. }));
    assert!(matches!(caller.command(open_session("four", TTL)).await, Answer::Opened { .. }));
    let waits = caller.command(acquire(tree, &sessions[2])).await;
    assert!(matches!(waits, Answer::Queued { place: 2, .. }), "{waits:?}");
    // Lower than what is there: nothing is taken away.
    node.reload(Config { limits: Limits { trees: 1, sessions: 1, waiters: 1, ..limits }, ..config }).unwrap();
    too_many(caller.command(add("fourth")).await, "trees");
    let waits = caller.command(acquire(tree, &sessions[2])).await;
    assert!(matches!(waits, Answer::Queued { place: 2, .. }), "{waits:?}");
    assert_eq!(caller.status().await.trees.len(), 3);
    node.stop().await;
}

/// Two waiters come at the same moment, and one of them asks again before its first try is applied.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_while_its_first_try_is_under_way_is_answered_like_that() {
    /// Rounds in which both came in, so that whoever asks again is beyond the limit.
    const BOTH_IN: usize = 40;
    const LONGEST: Duration = Duration::from_secs(120);
    let dir = tempfile::tempdir().unwrap();
    let (_, node) = limited(dir.path(), Limits { waiters: 1, ..Limits::default() }).await;
    let caller = Caller::new(node.address());
    let tree = caller.add_tree("dev").await;
    let [holder, one, two] = ["holder", "one", "two"].map(|side| caller.open(side, TTL));
    let (holder, one, two) = (holder.await, one.await, two.await);
    caller.acquire(&tree, &holder).await;
    let (mut both_in, mut round) = (0, 0);
    let begun = tokio::time::Instant::now();
    while both_in < BOTH_IN {
        assert!(begun.elapsed() < LONGEST, "in {round} rounds both came in {both_in} times");
        round += 1;
        let request = do_request(&acquire(&tree, &two));
        let ask = |after: u64| {
            let (caller, request) = (caller.clone(), request.clone());
            async move {
                tokio::time::sleep(Duration::from_micros(after)).await;
                caller.ask(request).await.unwrap()
            }
        };
        // At different moments of the first one's way, and the first try of `two` not always in one entry with it.
        let later = (round % 16) * 100;
        let (first, tried, again, last) = tokio::join!(
            caller.command(acquire(&tree, &one)),
            ask(later),
            ask(later + 500 + (round % 7) * 300),
            ask(later + 1_500 + (round % 5) * 700),
        );
        let is_in = |answer: &Answer| matches!(answer, Answer::Queued { .. });
        if is_in(&first) && is_in(&tried) {
            both_in += 1;
            assert!(is_in(&again) && is_in(&last), "round {round}: {tried:?}, and asked again {again:?}, {last:?}");
        }
        for session in [&one, &two] {
            caller.command(Command::Cancel { tree: tree.clone(), session: session.clone() }).await;
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_configured_number_are_closed_at_once_and_there_is_room_again_when_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { connections: 3, ..Limits::default() };
    let (config, mut node) = limited(dir.path(), limits).await;
    let at = node.admin_address().unwrap();
    let metric = |name: &'static str| async move {
        tokio::task::spawn_blocking(move || number(&get(at, "/metrics").1, name)).await.unwrap()
    };
    let mut there = Vec::new();
    for _ in 0..3 {
        let caller = Caller::new(node.address());
        there.push((caller.watch(0, &[]).await, caller));
    }
    assert_eq!((metric("treelease_connections").await, metric("treelease_connections_refused_total").await), (3.0, 0.0));
    let address = node.address().to_owned();
    let answered = async |address: &str| Caller::new(address).try_status().await.is_ok();
    assert!(!answered(&address).await, "one too many");
    assert!(metric("treelease_connections_refused_total").await >= 1.0);
    assert!(there[0].1.try_status().await.is_ok(), "those that are there are answered");
    there.pop();
    until("there is room again", || answered(&address)).await;
    until("and it is counted", || async { metric("treelease_connections").await == 2.0 }).await;
    there.push((Caller::new(&address).watch(0, &[]).await, Caller::new(&address)));
    until("it is full again", || async { !answered(&address).await }).await;
    node.reload(Config { limits: Limits { connections: 4, ..limits }, ..config }).unwrap();
    until("the limit was raised", || answered(&address)).await;
    drop(there);
    node.stop().await;
}

/// Whoever connects and says nothing takes no place for ever: other nodes come through the same port.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_first_words_is_closed() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let (_, node) = limited(dir.path(), Limits { connections: 3, ..Limits::default() }).await;
    let address = node.address().trim_start_matches("http://").to_owned();
    let caller = Caller::new(node.address());
    let _talks = caller.watch(0, &[]).await;
    let ended = [&b""[..], b"PRI * HT"].map(|words| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || {
            let mut silent = std::net::TcpStream::connect(&address).unwrap();
            silent.write_all(words).unwrap();
            silent.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
            let mut answer = Vec::new();
            // Closed, with or without a word, or reset; not: nothing for a minute.
            silent.read_to_end(&mut answer).err().map(|e| e.kind())
        })
    });
    for why in ended {
        let why = why.await.unwrap();
        assert!(!matches!(why, Some(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)), "{why:?}");
    }
    assert!(caller.try_status().await.is_ok(), "who talks is not meant");
    node.stop().await;
}
