//! etcd, spoken to by its gRPC: a lease for the session, its lock service for a tree.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::SinkExt;
use futures::channel::mpsc;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::super::Ground;
use super::nodes::Nodes;
use super::service::{Caller, Service};
use super::{CALL_LIMIT, ETCD_ELECTION, HEARTBEAT};

/// How long a question to one node may take.
const ASK: Duration = Duration::from_secs(2);

#[allow(missing_docs, clippy::all)] // generated from `tests/proto`
mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
#[allow(missing_docs, clippy::all)] // as above
mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

use etcdserverpb::lease_client::LeaseClient;
use etcdserverpb::maintenance_client::MaintenanceClient;
use etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, StatusRequest};
use v3lockpb::lock_client::LockClient;
use v3lockpb::{LockRequest, UnlockRequest};

/// Its nodes.
pub struct Etcd {
    nodes: Nodes,
}

impl Etcd {
    /// Starts them; they serve soon.
    pub fn start(ground: &Ground, name: &str, nodes: usize) -> anyhow::Result<Etcd> {
        Ok(Etcd { nodes: Nodes::start(ground, name, nodes, 2, command, &[])? })
    }

    /// Where a node listens for clients.
    pub fn url(&self, node: usize) -> String {
        format!("http://{}", self.nodes.address(node, 0))
    }

    fn channel(&self, node: usize) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(self.url(node))?.connect_timeout(ASK).timeout(CALL_LIMIT).tcp_nodelay(true).connect_lazy())
    }
}

fn command(nodes: &Nodes, node: usize) -> Command {
    let (client, peer) = (|n| format!("http://{}", nodes.address(n, 0)), |n| format!("http://{}", nodes.address(n, 1)));
    let cluster: Vec<String> = (0..nodes.count()).map(|n| format!("n{n}={}", peer(n))).collect();
    let mut command = Command::new("etcd");
    command.arg("--name").arg(format!("n{node}")).arg("--data-dir").arg(nodes.data(node));
    command.args(["--listen-client-urls", &client(node), "--advertise-client-urls", &client(node)]);
    command.args(["--listen-peer-urls", &peer(node), "--initial-advertise-peer-urls", &peer(node)]);
    command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
    command.args(["--heartbeat-interval", &HEARTBEAT.as_millis().to_string()]);
    command.args(["--election-timeout", &ETCD_ELECTION.as_millis().to_string()]);
    command.args(["--logger", "zap", "--log-level", "error"]);
    command
}

impl Service for Etcd {
    type Caller = Client;

    fn name(&self) -> &'static str {
        "etcd"
    }

    fn nodes(&self) -> usize {
        self.nodes.count()
    }

    async fn caller(&self, node: usize, ttl: Duration) -> anyhow::Result<Client> {
        let channels = (0..self.nodes()).map(|node| self.channel(node)).collect::<anyhow::Result<Vec<_>>>()?;
        let grant = LeaseGrantRequest { ttl: ttl.as_secs() as i64, id: 0 };
        let lease = LeaseClient::new(channels[node].clone()).lease_grant(grant).await?.into_inner();
        Ok(Client { channels, node, lease: lease.id, keys: BTreeMap::new(), renewals: None })
    }

    async fn trees(&self, _names: &[String], _grace: Duration) -> anyhow::Result<()> {
        Ok(())
    }

    async fn leader(&self) -> Option<usize> {
        let mut members = BTreeMap::new();
        let mut named = Vec::new();
        for node in self.nodes.running() {
            let mut maintenance = MaintenanceClient::new(self.channel(node).ok()?);
            let asked = tokio::time::timeout(ASK, maintenance.status(StatusRequest {})).await;
            let status = asked.ok()?.ok()?.into_inner();
            members.insert(status.header?.member_id, node);
            named.push(status.leader);
        }
        let first = *named.first()?;
        if named.iter().all(|leader| *leader == first) { members.get(&first).copied() } else { None }
    }

    fn kill(&mut self, node: usize) {
        self.nodes.kill(node);
    }

    fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes.start_one(node)
    }

    fn processes(&self) -> Vec<u32> {
        self.nodes.processes()
    }
}

/// A client with a lease.
pub struct Client {
    channels: Vec<Channel>,
    node: usize,
    lease: i64,
    /// Of the locks that it holds.
    keys: BTreeMap<String, Vec<u8>>,
    renewals: Option<(mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>)>,
}

impl Caller for Client {
    fn at(&mut self, node: usize) {
        self.node = node;
        self.renewals = None;
    }

    async fn follow(&mut self, _tree: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn acquire(&mut self, tree: &str) -> anyhow::Result<()> {
        let request = LockRequest { name: tree.into(), lease: self.lease };
        let locked = LockClient::new(self.channels[self.node].clone()).lock(request).await?.into_inner();
        self.keys.insert(tree.to_owned(), locked.key);
        Ok(())
    }

    async fn rest(&mut self, _tree: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn release(&mut self, tree: &str) -> anyhow::Result<()> {
        let key = self.keys.remove(tree).context("it was acquired")?;
        LockClient::new(self.channels[self.node].clone()).unlock(UnlockRequest { key }).await?;
        Ok(())
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let request = LeaseKeepAliveRequest { id: self.lease };
        let (sender, stream) = match &mut self.renewals {
            Some(open) => open,
            None => {
                // Etcd's clients keep one stream open for all their renewals.
                let (mut sender, receiver) = mpsc::channel(1);
                sender.send(request).await?;
                let stream = LeaseClient::new(self.channels[self.node].clone()).lease_keep_alive(receiver).await?.into_inner();
                let (_, stream) = self.renewals.insert((sender, stream));
                return alive(stream.message().await?);
            }
        };
        sender.send(request).await?;
        alive(stream.message().await?)
    }
}

fn alive(answer: Option<LeaseKeepAliveResponse>) -> anyhow::Result<()> {
    match answer {
        Some(answer) if answer.ttl > 0 => Ok(()),
        other => Err(anyhow!("the lease is not alive: {other:?}")),
    }
}
