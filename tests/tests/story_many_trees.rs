//! More trees than fit into one message: status shows them all the same, and who asks for one message is told what to do.

use std::time::Duration;

use futures::StreamExt;
use treelease_client::rpc::{Endpoint, Servers};
use treelease_client::words::command::{Answer, Command};
use treelease_client::words::id::TreeId;
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_server::config::Config;
use treelease_server::node::Node;
use treelease_tests::hosts::executable;

/// What clients of the first version take.
const MESSAGE: usize = 16 << 20;
/// Each of so many has a policy of some eight kilobytes: in all they are more than a message.
const LONG_POLICIES: usize = 2_300;
/// The long tier's, with short ones.
const MOST: usize = 100_000;
/// Commands at the same time.
const AT_ONCE: usize = 64;
/// One call, on a busy machine.
const CALL: Duration = Duration::from_secs(60);

fn long_tier() -> bool {
    std::env::var_os("TREELEASE_LONG").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_of_more_trees_than_fit_into_a_message_is_shown_and_in_one_message_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::alone(&dir.path().join("node"))).await.unwrap();
    let servers = Servers::new(vec![Endpoint::from_address(node.address()).unwrap()], None, CALL);
    let (trees, policy) = if long_tier() {
        (MOST, Vec::new())
    } else {
        let sides: Vec<String> = (0..64).map(|n| format!("{n:063}")).collect();
        (LONG_POLICIES, vec![("sealed_read".to_owned(), "x".repeat(4_096)), ("takeover".to_owned(), sides.join(","))])
    };
    let add = |n: usize| {
        let (name, tree) = (format!("tree-{n}").parse().unwrap(), TreeId::random());
        let (servers, policy) = (servers.clone(), policy.clone());
        async move {
            let added = servers.do_command("a test", None, Command::AddTree { name, tree, policy, root: None }).await.unwrap();
            assert!(matches!(added.answer, Answer::TreeAdded { .. }), "{:?}", added.answer);
        }
    };
    futures::stream::iter((0..trees).map(add)).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;

    let status = servers.status().await.unwrap();
    assert_eq!(status.trees.len(), trees);
    assert!(status.trees.windows(2).all(|two| two[0].name < two[1].name), "each once, by name");
    assert_eq!(servers.each_status().await.unwrap()[0].1.as_ref().unwrap().trees.len(), trees);

    let mut earlier =
        LeaseClient::connect(format!("http://{}", node.address())).await.unwrap().max_decoding_message_size(MESSAGE);
    let refused = earlier.status(wire::StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("in pieces"), "{refused:?}");

    let endpoints = format!("http://{}", node.address());
    let (state, runtime) = (dir.path().join("state"), dir.path().join("run"));
    let shown = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(executable("treelease"));
        command.env_remove("TREELEASE_CONFIG").env("XDG_CONFIG_HOME", &state).env("TREELEASE_STATE", &state);
        command.env("TREELEASE_RUNTIME", &runtime).args(["--endpoints", &endpoints, "--side", "workstation"]);
        command.args(["--request-timeout", "60s", "status", "-o", "json"]).output().unwrap()
    });
    let shown = shown.await.unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((json["schema"].as_u64(), json["trees"].as_array().map(Vec::len)), (Some(1), Some(trees)));
    node.stop().await;
}
