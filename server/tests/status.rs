//! A status in pieces: all of one state, and together what one message says; or of the trees alone that were named.

mod common;

use std::time::Duration;

use common::Caller;
use prost::Message;
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::TreeId;
use treelease_proto::wire;
use treelease_server::config::Config;
use treelease_server::node::Node;

/// Each with a long policy: in all more than waits on the way to a reader that reads nothing (two mebibytes, by HTTP/2's window).
const TREES: usize = 400;
const WAITING: usize = 2 << 20;
const PIECE: u32 = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_status_in_pieces_is_of_one_state_and_together_what_one_message_says() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let caller = Caller::new(node.address());
    let session = caller.open("workstation", Duration::from_secs(3600)).await;
    caller.open("pod", Duration::from_secs(3600)).await;
    for n in 0..TREES {
        let tree = add_long_tree(&caller, &format!("tree-{n}")).await;
        if n % 7 == 0 {
            caller.acquire(&tree, &session).await;
        }
    }
    let whole = caller.status().await;
    assert!(whole.encoded_len() > WAITING + WAITING / 4, "the control: it is more than waits on the way");

    let mut pieces = caller.status_in_pieces(PIECE).await;
    let first = pieces.message().await.unwrap().unwrap();
    let mut joined = first.part.unwrap();
    assert!(first.more && joined.trees.len() < TREES);
    // By name it comes last, and the last one changes.
    caller.add_tree("zzz").await;
    let last: Vec<_> = whole.trees.iter().filter(|tree| tree.holder.is_none()).map(|tree| tree.id.parse().unwrap()).collect();
    caller.acquire(last.last().unwrap(), &session).await;
    let mut count = 1;
    loop {
        let piece = pieces.message().await.unwrap().expect("it ends with a piece that says so");
        assert!(piece.encoded_len() <= 2 * PIECE as usize, "about as long as was asked for");
        let part = piece.part.unwrap();
        joined.trees.extend(part.trees);
        joined.sessions.extend(part.sessions);
        count += 1;
        if !piece.more {
            break;
        }
    }
    assert!(pieces.message().await.unwrap().is_none());
    assert!(count > 50, "{count} pieces");
    let timeless = |mut status: wire::StatusAnswer| {
        status.trees.iter_mut().for_each(|tree| tree.remaining_ms = None);
        status.age_ms = None;
        status
    };
    assert_eq!(timeless(joined), timeless(whole), "as it was when the first piece was made");
    let now = caller.status().await;
    assert_eq!((now.trees.len(), now.trees.last().unwrap().name.as_str()), (TREES + 1, "zzz"), "the control: it has changed");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_trees_is_sent_these_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(dir.path())).await.unwrap();
    let caller = Caller::new(node.address());
    let session = caller.open("workstation", Duration::from_secs(3600)).await;
    for n in 0..TREES {
        let tree = add_long_tree(&caller, &format!("tree-{n}")).await;
        if n == 7 {
            caller.acquire(&tree, &session).await;
        }
    }
    let bytes = |told: &[wire::StatusPiece]| told.iter().map(Message::encoded_len).sum::<usize>();
    let told = caller.status_of(&["tree-9", "tree-7", "tree-7", "nobody-made-this-one"]).await.unwrap();
    let [wire::StatusPiece { part: Some(part), more: false }] = &told[..] else { panic!("one piece: {}", told.len()) };
    assert_eq!(part.trees.iter().map(|tree| tree.name.as_str()).collect::<Vec<_>>(), ["tree-7", "tree-9"], "each once, by name");
    assert!(part.trees[0].remaining_ms.is_some() && part.trees[0].holder.is_some(), "all that is known of it: {part:?}");
    assert!(part.quorum && part.sessions.is_empty() && !part.cluster.is_empty());
    let whole = caller.status().await;
    assert_eq!(part.trees[1], *whole.trees.iter().find(|tree| tree.name == "tree-9").unwrap());

    let all = caller.status_of(&[]).await.unwrap();
    assert!(bytes(&told) < 32 << 10 && bytes(&all) > WAITING, "{} bytes of {}", bytes(&told), bytes(&all));
    assert_eq!(caller.status_of(&["nobody-made-this-one"]).await.unwrap()[0].part.as_ref().unwrap().trees.len(), 0);
    for bad in [&["no/name"][..], &["x"; 1_025]] {
        assert_eq!(caller.status_of(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    node.stop().await;
}

async fn add_long_tree(caller: &Caller, name: &str) -> TreeId {
    let sides: Vec<String> = (0..64).map(|n| format!("{n:063}")).collect();
    let policy = vec![("sealed_read".to_owned(), "x".repeat(4_096)), ("takeover".to_owned(), sides.join(","))];
    let tree = TreeId::random();
    let command = Command::AddTree { name: name.parse().unwrap(), tree: tree.clone(), policy, root: None };
    assert!(matches!(caller.command(command).await, Answer::TreeAdded { .. }));
    tree
}
