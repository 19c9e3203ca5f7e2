//! More trees than fit into one message: status shows them all the same, who asks for one message is told what to do, and who is about one
//! tree is not sent the others.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use treelease_client::rpc::{Endpoint, Servers};
use treelease_client::words::command::{Answer, Command as Change};
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
/// What one who is about one tree may be sent: less than three of the long policies.
const ONE_TREE: u64 = 24 << 10;
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
            let added = servers.do_command("a test", None, Change::AddTree { name, tree, policy, root: None }).await.unwrap();
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

    let side = Side { dir: dir.path().to_owned(), wire: Wire::to(node.address()).await };
    let shown = side.types(&["status", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((json["schema"].as_u64(), json["trees"].as_array().map(Vec::len)), (Some(1), Some(trees)));
    let all = side.wire.taken();
    assert!(all > MESSAGE as u64, "the control: the wire counts what it carries: {all} bytes");

    // Who is about one tree is not sent the others, whatever it is that is done to it.
    let last = format!("tree-{}", trees - 1);
    let about_one: [&[&str]; 9] = [
        &["status", &last],
        &["status", "--check", &last],
        &["history", &last],
        &["tree", "show", &last],
        &["tree", "set", "--dry-run", &last, "grace=3s"],
        &["tree", "retire", "--dry-run", &last, "--reason", "a test"],
        &["tree", "raise-epoch", "--dry-run", &last, "--above", "9", "--reason", "a test"],
        &["fence", "confirm", "--dry-run", &last, "--epoch", "1", "--reason", "a test"],
        &["fence", "test", "--dry-run", &last],
    ];
    for words in about_one {
        side.types(words).await;
        let taken = side.wire.taken();
        assert!((1..ONE_TREE).contains(&taken), "`treelease {}` was sent {taken} bytes of {all}", words.join(" "));
    }
    let nobodys = side.output(&["history", "nobody-made-this-one"]).await;
    assert_eq!(nobodys.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&nobodys.stderr).contains(&last), "it says which trees there are");
    node.stop().await;
}

/// A side without a daemon, in a directory of its own.
struct Side {
    dir: PathBuf,
    wire: Wire,
}

impl Side {
    /// What comes of `treelease` with these words.
    async fn output(&self, words: &[&str]) -> Output {
        let (state, runtime) = (self.dir.join("state"), self.dir.join("run"));
        let mut command = Command::new(executable("treelease"));
        command.env_remove("TREELEASE_CONFIG").env("XDG_CONFIG_HOME", &state).env("TREELEASE_STATE", &state);
        command.env("TREELEASE_RUNTIME", &runtime).args(["--endpoints", &self.wire.address, "--side", "workstation"]);
        command.args(["--request-timeout", "60s"]).args(words);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// It does what it is told, or says that the tree is not held here (75).
    async fn types(&self, words: &[&str]) -> Output {
        let done = self.output(words).await;
        let as_told = done.status.success() || words.contains(&"--check") && done.status.code() == Some(75);
        assert!(as_told, "{words:?}: {:?} {}", done.status, String::from_utf8_lossy(&done.stderr));
        done
    }
}

/// A wire to a server, which counts what comes from there.
struct Wire {
    address: String,
    taken: Arc<AtomicU64>,
}

impl Wire {
    async fn to(server: &str) -> Self {
        let (server, taken) = (server.to_owned(), Arc::new(AtomicU64::new(0)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let counts = taken.clone();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (there, counts) = (TcpStream::connect(&server).await.unwrap(), counts.clone());
                tokio::spawn(carry(caller, there, counts));
            }
        });
        Self { address, taken }
    }

    /// So much has come since it was asked last.
    fn taken(&self) -> u64 {
        self.taken.swap(0, Ordering::SeqCst)
    }
}

/// Until one of them hangs up. What is given to the caller has been counted before.
async fn carry(mut caller: TcpStream, mut server: TcpStream, counts: Arc<AtomicU64>) {
    let ((mut asks, mut hears), (mut says, mut told)) = (caller.split(), server.split());
    let there = tokio::io::copy(&mut asks, &mut told);
    let back = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(n @ 1..) = says.read(&mut bytes).await {
            counts.fetch_add(n as u64, Ordering::SeqCst);
            if hears.write_all(&bytes[..n]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = back => {}
    }
}
