//! What an operator relies on: gRPC's own health service, reflection behind a flag, and a configuration that is read again.

mod common;
#[path = "common/nodes.rs"]
mod nodes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use common::{Caller, until};
use futures::StreamExt;
use nodes::{ALL, Nodes};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::TreeId;
use treelease_proto::refusal;

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for anything.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// As `server/src/api/health.rs` has it.
const HEALTH_WATCHES: usize = 64;

/// Connects when it is first used.
fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect_timeout(CONNECT_LIMIT).connect_lazy()
}

/// What the health service says of a service; none: nothing answers.
async fn health(address: &str, service: &str) -> Option<ServingStatus> {
    let mut client = HealthClient::new(channel(address));
    let answer = client.check(HealthCheckRequest { service: service.into() }).await.ok()?;
    Some(answer.into_inner().status())
}

#[tokio::test]
async fn a_node_without_a_quorum_is_alive_and_does_not_serve() {
    let mut nodes = Nodes::running().await;
    let leader = nodes.all_serve().await;
    let (alive, serves) = ("", "treelease.v1.Lease");
    let all = &nodes;
    for id in ALL {
        until("it serves", || async { health(&all.address(id), serves).await == Some(ServingStatus::Serving) }).await;
    }
    assert_eq!(health(&nodes.address(leader), "nonsense").await, None, "a name that is not known is not alive");
    // Who watches is told of each change.
    let mut client = HealthClient::new(channel(&nodes.address(leader)));
    let mut watch = client.watch(HealthCheckRequest { service: serves.into() }).await.unwrap().into_inner();
    told(&mut watch, ServingStatus::Serving).await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    rest.iter().for_each(|id| nodes.signal(*id, Signal::STOP));
    told(&mut watch, ServingStatus::NotServing).await;
    assert_eq!(health(&nodes.address(leader), alive).await, Some(ServingStatus::Serving), "restarting it would help nobody");
    assert_eq!(health(&nodes.address(leader), serves).await, Some(ServingStatus::NotServing));
    rest.iter().for_each(|id| nodes.signal(*id, Signal::CONT));
    told(&mut watch, ServingStatus::Serving).await;
    // The node's end is the watch's end, too, and does not wait for who watches.
    nodes.all_serve().await;
    nodes.stop(leader).await;
    let end = async { while watch.next().await.is_some_and(|answer| answer.is_ok()) {} };
    timeout(WAIT_MAX, end).await.expect("the watch ends");
}

/// Until the watch says so; what it said before may be of a busy machine.
async fn told(watch: &mut tonic::Streaming<HealthCheckResponse>, wanted: ServingStatus) {
    let said = async { while watch.next().await.expect("it goes on").expect("a word").status() != wanted {} };
    timeout(WAIT_MAX, said).await.unwrap_or_else(|_| panic!("never told: {wanted:?}"));
}

#[tokio::test]
async fn health_asks_for_no_token_and_watches_of_it_have_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "secret\n").unwrap();
    let server = Server::start(dir.path(), "token_file = \"token\"\nreflection = true\n").await;
    assert_eq!(Caller::new(&server.address).try_status().await.unwrap_err().code(), Code::Unauthenticated, "the control");
    assert_eq!(services(&server.address).await.unwrap_err().code(), Code::Unauthenticated, "which calls there are is no probe's");
    assert_eq!(health(&server.address, "treelease.v1.Lease").await, Some(ServingStatus::Serving));
    let mut client = HealthClient::new(channel(&server.address));
    let mut watches = Vec::new();
    for _ in 0..HEALTH_WATCHES {
        watches.push(client.watch(HealthCheckRequest::default()).await.unwrap());
    }
    let refused = client.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    watches.pop();
    let client = &client;
    until("there is room again", || async { client.clone().watch(HealthCheckRequest::default()).await.is_ok() }).await;
}

/// The services that reflection names, or the refusal.
async fn services(address: &str) -> Result<Vec<String>, tonic::Status> {
    let mut client = ServerReflectionClient::new(channel(address));
    let asked =
        ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let answer = client.server_reflection_info(Request::new(futures::stream::iter([asked]))).await?.into_inner().next().await;
    let MessageResponse::ListServicesResponse(list) = answer.unwrap()?.message_response.unwrap() else {
        panic!("it lists services")
    };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn reflection_is_there_when_it_is_asked_for_and_else_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "reflection = true\n").await;
    let named = services(&server.address).await.unwrap();
    let all = ["grpc.health.v1.Health", "treelease.v1.Lease", "treelease.v1.Raft"];
    assert_eq!(BTreeSet::from_iter(named.iter().map(String::as_str)), BTreeSet::from(all), "what is not served is not named");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "").await;
    assert_eq!(services(&server.address).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn on_sighup_tokens_log_agents_and_limits_change_and_what_cannot_is_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let token = |text: &str| std::fs::write(dir.path().join("token"), text).unwrap();
    token("old\n");
    let mut server = Server::start(dir.path(), "token_file = \"token\"\n").await;
    let (old, new) = (Caller::new(&server.address).with_token("old"), Caller::new(&server.address).with_token("new"));
    let dev = old.add_tree("dev").await;
    assert_eq!(new.try_status().await.unwrap_err().code(), Code::Unauthenticated);

    // While it is replaced, both count, on connections that are there, too.
    token("old\nnew\n");
    server.hangup();
    until("the new token counts", || async { new.try_status().await.is_ok() }).await;
    old.status().await;
    token("new\n");
    server.hangup();
    until("the old one counts no more", || async { old.try_status().await.is_err() }).await;
    assert_eq!(new.status().await.trees.len(), 1);

    assert!(!server.log().contains(" DEBUG "), "{}", server.log());
    server.configure("token_file = \"token\"\nlog = \"debug,openraft=off,sled=off\"\n");
    server.hangup();
    let running = &server;
    until("the log says more", || async {
        let _ = new.try_status().await;
        running.log().contains(" DEBUG ")
    })
    .await;

    // All or nothing: the third token comes with something that cannot change.
    token("third\n");
    server.configure("token_file = \"token\"\nheartbeat = \"50ms\"\n");
    server.hangup();
    let running = &server;
    until("it is refused", || async { running.log().contains("`heartbeat, election_timeout` cannot change") }).await;
    assert!(Caller::new(&server.address).with_token("third").try_status().await.is_err());
    new.status().await;
    server.configure("nonsense\n");
    server.hangup();
    let running = &server;
    until("a file that cannot be read is refused, too", || async { running.log().matches("is not taken").count() == 2 }).await;
    new.status().await;
    server.configure("token_file = \"token\"\n");
    server.hangup();
    let third = Caller::new(&server.address).with_token("third");
    until("at last it is taken", || async { third.try_status().await.is_ok() }).await;

    // Limits, and fence agents.
    let code = async |command: Command| match third.command(command).await {
        Answer::Refused(refusal) => Some(refusal.code),
        _ => None,
    };
    let docs = Command::AddTree { name: "docs".parse().unwrap(), tree: TreeId::random(), policy: vec![], root: None };
    let policy = vec![("fence".to_owned(), "exec:nas".to_owned())];
    let fenced = Command::SetPolicy { tree: dev, policy };
    assert_eq!(code(fenced.clone()).await, Some(refusal::Code::Config), "the control: there is no such agent");
    server.configure("token_file = \"token\"\n[fence.nas]\ncommand = \"/bin/sh\"\n[limits]\ntrees = 1\n");
    server.hangup();
    until("the agent is known", || async { code(fenced.clone()).await.is_none() }).await;
    assert_eq!(code(docs.clone()).await, Some(refusal::Code::Limit));
    server.configure("token_file = \"token\"\n[limits]\ntrees = 2\nmessage_size = 5\n");
    server.hangup();
    let running = &server;
    until("a limit that is fixed is named", || async {
        running.log().contains("message_size: it is 65536 and cannot be changed")
    })
    .await;
    assert_eq!(code(docs.clone()).await, Some(refusal::Code::Limit), "nothing of that file was taken");
    server.configure("token_file = \"token\"\n[limits]\ntrees = 2\n");
    server.hangup();
    until("there is room", || async { code(docs.clone()).await.is_none() }).await;
    assert!(server.child.try_wait().unwrap().is_none(), "it runs on");
}

/// A node started with a file; killed when dropped.
struct Server {
    child: Child,
    address: String,
    dir: PathBuf,
}

impl Server {
    async fn start(dir: &Path, more: &str) -> Self {
        let log = std::fs::File::create(dir.join("log.txt")).unwrap();
        write_config(dir, more);
        let mut program = Program::new(env!("CARGO_BIN_EXE_treelease-server"));
        program.arg("--config").arg(dir.join("server.toml")).env_remove("TREELEASE_LOG");
        let child = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let at = dir.join("data/address");
        let mut server = Self { child, address: String::new(), dir: dir.to_owned() };
        until("it serves", || async { std::fs::read_to_string(&at).is_ok_and(|text| text.ends_with('\n')) }).await;
        server.address = std::fs::read_to_string(&at).unwrap().trim().to_owned();
        server
    }

    fn configure(&self, more: &str) {
        write_config(&self.dir, more);
    }

    fn hangup(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log.txt")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the node\n{}", self.log());
        }
    }
}

fn write_config(dir: &Path, more: &str) {
    let text = format!("node_id = 1\ndata_dir = \"data\"\nlisten = \"127.0.0.1:0\"\ninsecure = true\n{more}");
    std::fs::write(dir.join("server.toml"), text).unwrap();
}
