//! What one caller can take of a node has limits, each with a refusal that says so; the node and its other callers go on.

mod common;

use std::time::Duration;

use common::{Caller, until};
use tonic::Code;
use treelease_proto::command::Command;
use treelease_proto::id::TreeId;
use treelease_server::config::Config;
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
