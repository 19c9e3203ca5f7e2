//! Whatever comes to a port of a running node: an error and a number at /metrics, never a panic, never a change of the state, and
//! the node serves on. Three real processes; the bytes are made by a generator, which shrinks what it finds.

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

use common::{acquire, do_request, open_session};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use prost::Message;
use raw::{damaged, damages, failed, frame, framed, say};
use tonic::Code;
use treelease_proto::command::{Command, LeaseRef};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{ClusterId, RequestKey, SessionId, TreeId, TreeName};
use treelease_proto::wire;
use watched::{Cluster, add_tree};

const LEASE: [&str; 10] =
    ["Do", "Commands", "Renew", "Renewals", "Status", "History", "Watch", "Backup", "ChangeMembers", "StatusInPieces"];
const RAFT: [&str; 8] = ["Hello", "Promise", "Append", "Vote", "Snapshot", "Forward", "ForwardRenewals", "TakeOver"];
/// As `server/src/api` has it.
const MESSAGE_MAX: usize = 64 * 1024;
/// Renewals, and commands, in one message, as `server/src/consensus/relay.rs` has it.
const IN_MESSAGE_MAX: usize = 256;

fn path_of(method: usize) -> String {
    match method {
        n if n < LEASE.len() => format!("/treelease.v1.Lease/{}", LEASE[n]),
        n => format!("/treelease.v1.Raft/{}", RAFT[n - LEASE.len()]),
    }
}

/// What a message means to the service that gets it.
#[derive(Debug, PartialEq)]
enum Meaning {
    /// It is none, or of nobody: it must fail.
    None,
    /// A question, or an answer that says no.
    Harmless,
    /// A proper word, whatever came of it: not what is looked for here.
    Word,
}

fn are_names(trees: &[String]) -> bool {
    trees.iter().all(|name| name.parse::<TreeName>().is_ok())
}

fn meaning(method: usize, message: &[u8]) -> Meaning {
    fn read<T: Message + Default>(message: &[u8]) -> Option<T> {
        T::decode(message).ok()
    }
    let harmless = |read: bool| if read { Meaning::Harmless } else { Meaning::None };
    match path_of(method).rsplit('/').next().unwrap() {
        "Do" => read::<wire::DoRequest>(message).map_or(Meaning::None, of_command),
        // One that fails, fails by itself.
        "Commands" => match read::<wire::CommandsAsked>(message) {
            Some(message) if message.asked.len() <= IN_MESSAGE_MAX => {
                let is_word = |one: wire::CommandAsked| matches!(one.command.map(of_command), Some(Meaning::Word));
                if message.asked.into_iter().any(is_word) { Meaning::Word } else { Meaning::Harmless }
            }
            _ => Meaning::None,
        },
        "ChangeMembers" => match read::<wire::MembersRequest>(message) {
            Some(request) if request.change.is_some() => Meaning::Word,
            _ => Meaning::None,
        },
        "Watch" if read::<wire::WatchRequest>(message).is_some() => Meaning::Word,
        "Backup" if read::<wire::BackupRequest>(message).is_some() => Meaning::Word,
        "StatusInPieces" if read::<wire::StatusPiecesRequest>(message).is_some_and(|r| are_names(&r.trees)) => Meaning::Word,
        "Watch" | "Backup" | "StatusInPieces" => Meaning::None,
        "Renew" => harmless(read::<wire::RenewRequest>(message).is_some_and(|r| r.cluster.is_empty())),
        // One that fails, fails by itself.
        "Renewals" => harmless(read::<wire::RenewalsAsked>(message).is_some_and(|m| m.asked.len() <= IN_MESSAGE_MAX)),
        "Status" => harmless(read::<wire::StatusRequest>(message).is_some()),
        "History" if read::<wire::HistoryRequest>(message).is_some() => Meaning::Harmless,
        "History" => Meaning::None,
        "Hello" => harmless(read::<wire::HelloRequest>(message).is_some()),
        "Promise" => harmless(read::<wire::PromiseRequest>(message).is_some()),
        // No stamp that is made here is a member's.
        _ => Meaning::None,
    }
}

fn of_command(request: wire::DoRequest) -> Meaning {
    let command = request.command.and_then(|command| Command::try_from(command).ok());
    match (request.request_key.parse::<RequestKey>(), command) {
        (Ok(_), Some(command)) if command.servers_own().is_none() => Meaning::Word,
        (Ok(_), Some(_)) => Meaning::Harmless,
        _ => Meaning::None,
    }
}

/// Proper messages of each method, of strangers where they must be a node's.
fn proper(method: usize, cluster: &Cluster) -> Vec<u8> {
    let (session, tree) = (cluster.session.clone(), cluster.tree.clone());
    let stamp = Some(wire::Stamp {
        cluster: ClusterId::random().to_string(),
        node: 2,
        disk: "somebody".into(),
        to: 1,
        to_disk: "nobody".into(),
        state_version: treelease_server::lease::VERSION,
    });
    let vote = Some(wire::Vote { term: 1 << 20, node: 2, committed: true });
    let log_id = Some(wire::LogId { term: 1 << 20, node: 2, index: 1 << 20 });
    let entry = wire::LogEntry { id: log_id, payload: Some(wire::log_entry::Payload::Blank(wire::Blank {})) };
    let member = wire::Member { id: 1, addr: "host:1".into(), disk: "x".into() };
    let formation = Some(wire::Formation { cluster: ClusterId::random().to_string(), members: vec![member; 3] });
    match path_of(method).rsplit('/').next().unwrap() {
        "Do" => do_request(&acquire(&tree, &session)).encode_to_vec(),
        "Commands" => {
            let one = |tag| wire::CommandAsked { tag, limit_ms: 9, command: Some(do_request(&acquire(&tree, &session))) };
            wire::CommandsAsked { asked: vec![one(1), one(2), one(3)] }.encode_to_vec()
        }
        // Of nobody: a session's own may show that there is a copy of it.
        "Renew" => {
            let session = SessionId::random().to_string();
            wire::RenewRequest { session, number: 1, ..Default::default() }.encode_to_vec()
        }
        "Renewals" => wire::RenewalsAsked { asked: vec![renewal_of_nobody(); 3] }.encode_to_vec(),
        "History" => wire::HistoryRequest { tree: "dev".into(), limit: 3 }.encode_to_vec(),
        "Watch" => wire::WatchRequest { since: 1, trees: vec!["dev".into()] }.encode_to_vec(),
        "ChangeMembers" => {
            let change = Some(wire::members_request::Change::Add(wire::AddNode { node: 9, addr: "127.0.0.1:1".into() }));
            wire::MembersRequest { change, ..Default::default() }.encode_to_vec()
        }
        "Hello" => wire::HelloRequest { node: 2 }.encode_to_vec(),
        "Promise" => wire::PromiseRequest { node: 1, formation }.encode_to_vec(),
        "Append" => {
            wire::AppendRequest { stamp, vote, prev: None, entries: vec![entry; 3], ..Default::default() }.encode_to_vec()
        }
        "Vote" => wire::VoteRequest { stamp, vote, last: log_id }.encode_to_vec(),
        "Snapshot" => wire::SnapshotRequest { stamp, vote, data: vec![7; 99], done: true, ..Default::default() }.encode_to_vec(),
        "Forward" => {
            let call = Some(wire::forward_request::Call::Do(do_request(&open_session("pod", Duration::from_secs(9)))));
            wire::ForwardRequest { stamp, limit_ms: u64::MAX, call }.encode_to_vec()
        }
        "ForwardRenewals" => wire::RenewalsForwarded { stamp, asked: vec![renewal_of_nobody(); 3] }.encode_to_vec(),
        "TakeOver" => wire::TakeOverRequest { stamp }.encode_to_vec(),
        _ => Vec::new(),
    }
}

fn renewal_of_nobody() -> wire::RenewalAsked {
    let renewal = wire::RenewRequest { session: SessionId::random().to_string(), number: 1, ..Default::default() };
    wire::RenewalAsked { tag: 7, limit_ms: 9, renewal: Some(renewal) }
}

/// How a message is put on its way.
#[derive(Debug, Clone)]
enum Way {
    Framed,
    /// Its head says another length, or that it is compressed.
    Head(u8, u32),
    /// With no head at all.
    Bare,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        6 => Just(Way::Framed),
        2 => (0..4u8, prop_oneof![0..200u32, any::<u32>()]).prop_map(|(flag, length)| Way::Head(flag, length)),
        1 => Just(Way::Bare),
    ]
}

/// Sends each case to a node and looks at what came of it; with the state compared after every one, so that it can be shrunk.
fn send(
    cluster: &Cluster,
    before: &serde_json::Value,
    node: usize,
    method: usize,
    message: &[u8],
    way: &Way,
) -> Result<bool, TestCaseError> {
    let (body, meaning) = match way {
        Way::Framed => (framed(message), meaning(method, message)),
        Way::Bare => (message.to_vec(), of_body(method, message)),
        Way::Head(flag, length) => {
            let body = frame(*flag, *length, message);
            let meaning = of_body(method, &body);
            (body, meaning)
        }
    };
    if meaning == Meaning::Word {
        return Ok(false);
    }
    let status = cluster.call(node, &path_of(method), body);
    prop_assert!(meaning == Meaning::Harmless || failed(&status), "{} was answered", path_of(method));
    prop_assert!(status.message() != "no status at all", "{}: the call broke off", path_of(method));
    prop_assert_eq!(&cluster.state(None), before);
    Ok(failed(&status))
}

/// What a whole body means: its first message counts.
fn of_body(method: usize, body: &[u8]) -> Meaning {
    if body.is_empty() && ["Renewals", "Commands"].iter().any(|many| path_of(method).ends_with(many)) {
        // A call that could have brought many, and brings none.
        return Meaning::Harmless;
    }
    let Some((head, rest)) = body.split_at_checked(5) else { return Meaning::None };
    let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
    match rest.get(..length) {
        Some(message) if head[0] == 0 => meaning(method, message),
        _ => Meaning::None,
    }
}

fn cases(n: u32) -> TestRunner {
    TestRunner::new(Cases { cases: n, failure_persistence: None, max_shrink_iters: 200, ..Cases::default() })
}

#[test]
fn bytes_of_anything_are_an_error_and_counted_and_change_nothing() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let (counted, failures) = (cluster.counted("treelease_failed_calls_total"), std::cell::Cell::new(0.0));
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let case = (0..3usize, 0..LEASE.len() + RAFT.len(), bytes, way());
    let ran = cases(256).run(&case, |(node, method, message, way)| {
        failures.set(failures.get() + f64::from(send(&cluster, &before, node, method, &message, &way)?));
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    assert!(failures.get() > 100.0, "most of it is no message");
    assert!(cluster.counted("treelease_failed_calls_total") >= counted + failures.get(), "each is counted");
    cluster.serves_on(None);
}

#[test]
fn messages_damaged_on_their_way_are_an_error_and_change_nothing() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let failures = std::cell::Cell::new(0);
    let case = (0..3usize, 0..LEASE.len() + RAFT.len(), damages(), way());
    let ran = cases(256).run(&case, |(node, method, damages, way)| {
        let message = damaged(proper(method, &cluster), &damages);
        failures.set(failures.get() + u32::from(send(&cluster, &before, node, method, &message, &way)?));
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    assert!(failures.get() > 50, "most of it is no message any more");
    cluster.serves_on(None);
}

/// The control to both: what is proper does change the state, and is seen.
#[test]
fn control_a_proper_message_over_the_same_way_changes_the_state() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let status = cluster.call(1, "/treelease.v1.Lease/Do", framed(&do_request(&add_tree("another")).encode_to_vec()));
    assert_eq!(status.code(), Code::Ok, "{status}");
    assert_ne!(cluster.state(None), before);
    let refused = Command::Break { tree: TreeId::random(), epoch: Epoch::from_raw(1), reason: String::new() };
    let before = cluster.state(None);
    cluster.call(1, "/treelease.v1.Lease/Do", framed(&do_request(&refused).encode_to_vec()));
    assert_ne!(cluster.state(None), before, "also what is logged and refused");
}

#[test]
fn fields_that_are_too_large_too_many_or_too_deep_are_refused() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let lease = LeaseRef { tree: cluster.tree.clone(), session: cluster.session.clone(), epoch: Epoch::from_raw(1) };
    let doing = |command: wire::command::Kind| {
        let command = Some(wire::Command { kind: Some(command) });
        wire::DoRequest { request_key: RequestKey::random().to_string(), command, ..Default::default() }.encode_to_vec()
    };
    let (tree, session) = (lease.tree.to_string(), lease.session.to_string());
    let text = |len: usize| "x".repeat(len);
    let surrender = |reason: usize, files: usize| {
        let files = vec![String::new(); files];
        doing(wire::command::Kind::Surrender(wire::Surrender {
            tree: tree.clone(),
            session: session.clone(),
            epoch: 1,
            reason: text(reason),
            files,
        }))
    };
    let policy = |pairs: usize| {
        let policy = vec![wire::KeyValue { key: "idle".into(), value: "1s".into() }; pairs];
        doing(wire::command::Kind::SetPolicy(wire::SetPolicy { tree: tree.clone(), policy }))
    };
    let piece = |len: usize| {
        let id = RequestKey::random().to_string();
        doing(wire::command::Kind::RestorePiece(wire::RestorePiece { id, index: 0, count: 2, text: text(len) }))
    };
    let members = vec![wire::Member::default(); 100_000];
    let formation = Some(wire::Formation { cluster: ClusterId::random().to_string(), members });
    let promise = wire::PromiseRequest { node: 1, formation }.encode_to_vec();
    let entries = vec![wire::LogEntry::default(); 1_000_000];
    let append = wire::AppendRequest { entries, ..Default::default() }.encode_to_vec();
    // A group in a group in a group.
    let deep = vec![0x0b; 60_000];
    let (lease, raft) = ("/treelease.v1.Lease/", "/treelease.v1.Raft/");
    let bad: Vec<(&str, &str, Vec<u8>)> = vec![
        (lease, "Do", surrender(501, 0)),
        (lease, "Do", surrender(60_000, 0)),
        (lease, "Do", surrender(MESSAGE_MAX, 0)),
        (lease, "Do", surrender(16 << 20, 0)),
        (lease, "Do", surrender(1, 65)),
        (lease, "Do", surrender(1, 30_000)),
        (lease, "Do", policy(65)),
        (lease, "Do", policy(5_000)),
        (lease, "Do", piece(32 * 1024 + 1)),
        (lease, "Do", deep.clone()),
        (lease, "Commands", deep.clone()),
        (
            lease,
            "Commands",
            wire::CommandsAsked { asked: vec![wire::CommandAsked::default(); IN_MESSAGE_MAX + 1] }.encode_to_vec(),
        ),
        (lease, "Commands", vec![0; MESSAGE_MAX + 1]),
        (lease, "Renew", deep.clone()),
        (lease, "Renewals", deep.clone()),
        (lease, "Renewals", wire::RenewalsAsked { asked: vec![renewal_of_nobody(); IN_MESSAGE_MAX + 1] }.encode_to_vec()),
        (lease, "Renewals", vec![0; MESSAGE_MAX + 1]),
        (lease, "Watch", wire::WatchRequest { since: 0, trees: vec![String::new(); 1_001] }.encode_to_vec()),
        (lease, "Watch", wire::WatchRequest { since: 0, trees: vec![String::new(); 30_000] }.encode_to_vec()),
        (lease, "ChangeMembers", {
            let change = Some(wire::members_request::Change::Add(wire::AddNode { node: 9, addr: format!("{}:1", text(1_000)) }));
            wire::MembersRequest { change, ..Default::default() }.encode_to_vec()
        }),
        (raft, "Append", append),
        (raft, "Append", vec![0; 9 << 20]),
        (raft, "Vote", deep.clone()),
        (raft, "ForwardRenewals", deep.clone()),
        (raft, "ForwardRenewals", vec![0; 9 << 20]),
        (raft, "Hello", deep),
    ];
    for node in 0..3 {
        for (service, method, message) in &bad {
            let status = cluster.call(node, &format!("{service}{method}"), framed(message));
            assert!(
                failed(&status) && status.message() != "no status at all",
                "{method} with {} bytes: {status:?}",
                message.len()
            );
        }
        // An answer, which says no.
        assert_eq!(cluster.call(node, "/treelease.v1.Raft/Promise", framed(&promise)).code(), Code::Ok);
        assert_eq!(cluster.state(None), before);
    }
    cluster.serves_on(None);
}

#[test]
fn whatever_is_said_to_the_ports_themselves_they_answer_the_next_caller() {
    let cluster = Cluster::new(&[], None);
    let before = cluster.state(None);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let begin = prop_oneof![
        Just(Vec::new()),
        Just(preface),
        Just(b"GET /metrics HTTP/1.1\r\n".to_vec()),
        Just(b"POST /treelease.v1.Lease/Do HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n".to_vec()),
        Just(b"\x16\x03\x01\x02\x00\x01\x00".to_vec()),
    ];
    let case = (0..3usize, any::<bool>(), begin, prop::collection::vec(any::<u8>(), 0..2_000));
    let ran = cases(128).run(&case, |(node, admin, begin, rest)| {
        let address = if admin { cluster.admin[node].to_string() } else { cluster.nodes.address(node as u64 + 1) };
        say(&address, &[begin, rest].concat());
        prop_assert_eq!(http::get(cluster.admin[node], "/healthz").0, 200);
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cluster.state(None), before);
    cluster.serves_on(None);
}

#[test]
fn without_the_right_token_nothing_reaches_a_service_and_every_try_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret-s3cret").unwrap();
    let token = Some("s3cret-s3cret");
    let cluster = Cluster::new(&["--token-file", file.to_str().unwrap()], token);
    let before = cluster.state(token);
    let name = "treelease_failed_calls_total{code=\"unauthenticated\"}";
    let (counted, sent) = (cluster.counted(name), std::cell::Cell::new(0.0));
    // Anything that a header can hold.
    let value = prop::collection::vec(prop_oneof![32..127u8, 128..=255u8], 0..60);
    let shown = prop_oneof![
        Just(None),
        value.clone().prop_map(Some),
        value.prop_map(|value| Some([&b"Bearer "[..], &value].concat())),
        Just(Some(b"Bearer s3cret-s3cre".to_vec())),
        Just(Some(b"bearer s3cret-s3cret".to_vec())),
        Just(Some(b"Bearer  s3cret-s3cret".to_vec())),
    ];
    let case = (0..3usize, 0..LEASE.len() + RAFT.len(), shown);
    let ran = cases(192).run(&case, |(node, method, shown)| {
        prop_assume!(shown.as_deref() != Some(b"Bearer s3cret-s3cret"));
        let body = framed(&proper(method, &cluster));
        let status = cluster.runtime.block_on(cluster.calls[node].call(&path_of(method), shown.as_deref(), body));
        prop_assert_eq!(status.code(), Code::Unauthenticated);
        sent.set(sent.get() + 1.0);
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    assert!(cluster.counted(name) >= counted + sent.get());
    assert_eq!(cluster.state(token), before);
    cluster.serves_on(token);
}
