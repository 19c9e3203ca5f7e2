//! Three nodes whose whole state, and whose numbers at /metrics, are looked at: what came in must have changed nothing.
#![allow(dead_code)] // each test file uses a part

use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::Status;
use treelease_proto::command::Command;
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;

use crate::nodes::{ALL, Nodes};
use crate::raw::Raw;
use crate::{common, http, nodes};

/// For whatever happens by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// Three nodes with health and metrics, one tree held, and what they hold.
pub struct Cluster {
    pub runtime: Runtime,
    pub nodes: Nodes,
    pub admin: Vec<SocketAddr>,
    pub calls: Vec<Raw>,
    pub session: SessionId,
    pub tree: TreeId,
}

impl Cluster {
    pub fn new(args: &[&str], token: Option<&str>) -> Self {
        let runtime = Runtime::new().unwrap();
        let mut nodes = Nodes::new();
        nodes.args = args.iter().map(ToString::to_string).collect();
        let admin: Vec<_> = nodes::free_ports(3).into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        for id in ALL {
            let mut program = nodes.program(id);
            program.args(["--admin", &admin[id as usize - 1].to_string()]);
            nodes.start_as(id, program);
        }
        let (session, tree, calls) = runtime.block_on(async {
            let caller = match token {
                None => {
                    nodes.all_serve().await;
                    nodes.caller(1)
                }
                Some(token) => {
                    let caller = nodes.caller(1).with_token(token);
                    let asked = &caller;
                    common::until("it serves", || async move { asked.try_status().await.is_ok_and(|s| s.quorum) }).await;
                    caller
                }
            };
            // Nothing in it ends by itself while the test runs.
            let session = caller.open("workstation", Duration::from_secs(3600)).await;
            let tree = caller.add_tree("dev").await;
            caller.acquire(&tree, &session).await;
            (session, tree, ALL.map(|id| Raw::new(&nodes.address(id))).to_vec())
        });
        Self { runtime, nodes, admin, calls, session, tree }
    }

    /// The whole state as the leader has it, but for who leads: a busy machine changes that. What was given to the log and
    /// refused is in it too, since its answer is remembered.
    pub fn state(&self, token: Option<&str>) -> serde_json::Value {
        self.runtime.block_on(async {
            let mut state = None;
            let end = tokio::time::Instant::now() + LIMIT;
            while state.is_none() {
                assert!(tokio::time::Instant::now() < end, "no node gave a backup");
                for id in ALL {
                    state = state.or(backup(&self.nodes.address(id), token).await.ok());
                }
            }
            let mut state = state.unwrap();
            state.as_object_mut().unwrap().remove("leadership");
            state
        })
    }

    /// Calls that failed, and messages of nodes that were turned away, as all nodes have counted them.
    pub fn counted(&self, name: &str) -> f64 {
        let page = |at: &SocketAddr| http::get(*at, "/metrics").1;
        let sum = |page: String| -> f64 {
            let lines =
                page.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next()?.parse().ok());
            lines.collect::<Vec<f64>>().iter().sum()
        };
        self.admin.iter().map(page).map(sum).sum()
    }

    pub fn call(&self, node: usize, path: &str, body: Vec<u8>) -> Status {
        self.runtime.block_on(self.calls[node].call(path, None, body))
    }

    /// Nobody panicked, and every node takes a command.
    pub fn serves_on(&self, token: Option<&str>) {
        for id in ALL {
            let log = self.nodes.log(id);
            assert!(!log.contains("panicked"), "node {id}:\n{log}");
            assert_eq!(http::get(self.admin[id as usize - 1], "/healthz").0, 200, "node {id}");
            self.runtime.block_on(async {
                let mut caller = self.nodes.caller(id);
                if let Some(token) = token {
                    caller = caller.with_token(token);
                }
                let (caller, name) = (&caller, &format!("after-{id}"));
                common::until("it takes a command", || async move { caller.try_command(&add_tree(name)).await.is_ok() }).await;
            });
        }
    }
}

async fn backup(address: &str, token: Option<&str>) -> Result<serde_json::Value, Status> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut request = tonic::Request::new(wire::BackupRequest {});
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut pieces = LeaseClient::new(channel).backup(request).await?.into_inner();
    let mut text = String::new();
    while let Some(piece) = pieces.message().await? {
        text.push_str(&piece.text);
    }
    let state = text.lines().nth(2).ok_or_else(|| Status::data_loss("no state in it"))?;
    Ok(serde_json::from_str(state).unwrap())
}

pub fn add_tree(name: &str) -> Command {
    Command::AddTree { name: name.parse().unwrap(), tree: TreeId::random(), policy: vec![], root: None }
}
