//! The lease server, spoken to by the client's own library.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use treelease_client::rpc::{CallError, Endpoint, Servers, WatchItem};
use treelease_client::session::Renewal;
use treelease_client::words::command::{Acquire, Answer, Command as Change, EventKind, LeaseRef, OpenSession, Release};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{SessionId, SideName, TreeId};
use treelease_client::words::time::Ttl;

use super::super::Ground;
use super::nodes::Nodes;
use super::service::{Caller, Service};
use super::{CALL_LIMIT, HEARTBEAT, LEAST_ELECTION, MOST_ELECTION};
use crate::hosts::executable;

/// Trees that are made at once.
const AT_ONCE: usize = 64;
/// What the history says about who asked.
const ACTOR: &str = "bench";

/// The ids of the trees that were made, by name.
type Ids = Arc<Mutex<BTreeMap<String, TreeId>>>;

/// Its nodes.
pub struct Treelease {
    nodes: Nodes,
    ids: Ids,
}

impl Treelease {
    /// Starts them; they serve soon.
    pub fn start(ground: &Ground, name: &str, nodes: usize) -> anyhow::Result<Treelease> {
        Self::start_with(ground, name, nodes, &[])
    }

    /// The same with more arguments.
    pub fn start_with(ground: &Ground, name: &str, nodes: usize, extra: &'static [&'static str]) -> anyhow::Result<Treelease> {
        Ok(Treelease { nodes: Nodes::start(ground, name, nodes, 1, command, extra)?, ids: Ids::default() })
    }

    /// The name of a node's newest snapshot; none: it has not made one yet.
    pub fn snapshot(&self, node: usize) -> Option<OsString> {
        let files = std::fs::read_dir(self.nodes.data(node).join("snapshots")).ok()?;
        let names = files.filter_map(|file| Some(file.ok()?.file_name()));
        // One that is being made has another ending.
        names.filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "snap")).max()
    }

    fn servers(&self, nodes: impl IntoIterator<Item = usize>) -> anyhow::Result<Servers> {
        let endpoint = |node| Endpoint::from_address(&self.nodes.address(node, 0)).map_err(|why| anyhow!(why));
        Ok(Servers::new(nodes.into_iter().map(endpoint).collect::<anyhow::Result<_>>()?, None, CALL_LIMIT))
    }
}

fn command(nodes: &Nodes, node: usize) -> Command {
    let mut command = Command::new(executable("treelease-server"));
    command.args(["--insecure", "--node-id", &(node + 1).to_string(), "--listen", &nodes.address(node, 0), "--data-dir"]);
    command.arg(nodes.data(node)).args(["--heartbeat", &format!("{}ms", HEARTBEAT.as_millis())]);
    command.args(["--election-timeout", &format!("{}ms..{}ms", LEAST_ELECTION.as_millis(), MOST_ELECTION.as_millis())]);
    for peer in (0..nodes.count()).filter(|peer| *peer != node) {
        command.args(["--peer", &format!("{}={}", peer + 1, nodes.address(peer, 0))]);
    }
    command
}

impl Service for Treelease {
    type Caller = Client;

    fn name(&self) -> &'static str {
        "treelease"
    }

    fn nodes(&self) -> usize {
        self.nodes.count()
    }

    async fn caller(&self, node: usize, ttl: Duration) -> anyhow::Result<Client> {
        let count = self.nodes();
        let servers = (0..count).map(|node| self.servers([node])).collect::<anyhow::Result<Vec<_>>>()?;
        let from = |first| (first..first + count).map(move |node| node % count);
        let changes = (0..count).map(|node| self.servers(from(node))).collect::<anyhow::Result<Vec<_>>>()?;
        let session = SessionId::random();
        let side: SideName = format!("side-{}", &session.as_str()[..12]).parse().map_err(|why| anyhow!("{why}"))?;
        let change = Change::OpenSession(OpenSession {
            side,
            host: "bench".into(),
            ttl: Ttl::new(ttl),
            new_session: session,
            new_secret_digest: vec![1; 32],
            resume: None,
            boot: "bench".into(),
            machine: String::new(),
        });
        match accepted(&changes[node], change).await? {
            Answer::Opened { session, incarnation, .. } => Ok(Client {
                // As a daemon's that goes out because it is time.
                renewal: Renewal { session, incarnation, number: 0, nonce: 0, can_wait: true },
                servers,
                changes,
                node,
                ids: self.ids.clone(),
                epochs: BTreeMap::new(),
                events: None,
            }),
            other => bail!("a session was not opened: {other:?}"),
        }
    }

    async fn trees(&self, names: &[String], grace: Duration) -> anyhow::Result<()> {
        let servers = self.servers(0..self.nodes())?;
        let grace = format!("{}ms", grace.as_millis());
        let add = |name: &String| {
            let (servers, name, tree) = (servers.clone(), name.clone(), TreeId::random());
            let policy = [("min_hold", "0s"), ("fence", "none"), ("grace", &grace)].map(|(k, v)| (k.to_owned(), v.to_owned()));
            async move {
                let called = name.parse().map_err(|why| anyhow!("{why}"))?;
                let change = Change::AddTree { name: called, tree: tree.clone(), policy: policy.into(), root: None };
                accepted(&servers, change).await?;
                anyhow::Ok((name, tree))
            }
        };
        let added: Vec<_> = futures::stream::iter(names.iter().map(add)).buffer_unordered(AT_ONCE).try_collect().await?;
        self.ids.lock().expect("nobody panics with it").extend(added);
        Ok(())
    }

    async fn leader(&self) -> Option<usize> {
        let running = self.nodes.running();
        let said = self.servers(running.iter().copied()).ok()?.each_status().await.ok()?;
        let mut leaders = said.into_iter().map(|(_, status)| status.ok().filter(|s| s.quorum).and_then(|s| s.leader));
        let first = leaders.next()??;
        let one = leaders.all(|leader| leader == Some(first));
        let node = first as usize - 1;
        (one && running.contains(&node)).then_some(node)
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

/// A side, as its daemon speaks to the server.
pub struct Client {
    /// Each of the nodes alone: for renewals and events.
    servers: Vec<Servers>,
    /// All of them, that one first: changes go to the leader's node by themselves, as a daemon's do.
    changes: Vec<Servers>,
    node: usize,
    renewal: Renewal,
    ids: Ids,
    /// Of the last grant of each tree.
    epochs: BTreeMap<TreeId, Epoch>,
    events: Option<BoxStream<'static, Result<WatchItem, CallError>>>,
}

impl Client {
    fn tree(&self, name: &str) -> anyhow::Result<TreeId> {
        self.ids.lock().expect("nobody panics with it").get(name).cloned().with_context(|| format!("no tree {name}"))
    }

    fn lease(&self, tree: &str) -> anyhow::Result<LeaseRef> {
        let tree = self.tree(tree)?;
        let epoch = self.epochs.get(&tree).copied().context("it was acquired")?;
        Ok(LeaseRef { tree, session: self.renewal.session.clone(), epoch })
    }

    /// A waiter learns of its grant from the events.
    async fn granted(&mut self, tree: &TreeId) -> anyhow::Result<Epoch> {
        let seen = self.epochs.get(tree).copied();
        let events = self.events.as_mut().context("a waiter follows the tree's events")?;
        while let Some(item) = events.next().await {
            match item {
                Ok(WatchItem::Event(event))
                    if event.kind == EventKind::Granted
                        && event.tree == *tree
                        && event.session.as_ref() == Some(&self.renewal.session)
                        && seen.is_none_or(|seen| event.epoch > seen) =>
                {
                    return Ok(event.epoch);
                }
                Ok(WatchItem::Event(_) | WatchItem::Watching(_)) => {}
                Ok(WatchItem::Lagged(_)) => bail!("events were missed"),
                Err(CallError::Refused(no)) => bail!("{no}"),
                // Interrupted: it connects again and goes on where it was.
                Err(_) => {}
            }
        }
        bail!("the events ended")
    }
}

impl Caller for Client {
    fn at(&mut self, node: usize) {
        self.node = node;
    }

    async fn follow(&mut self, tree: &str) -> anyhow::Result<()> {
        let mut events = self.servers[self.node].watch(0, vec![self.tree(tree)?]);
        while !matches!(events.next().await.context("events")??, WatchItem::Watching(_)) {}
        self.events = Some(events);
        Ok(())
    }

    async fn acquire(&mut self, tree: &str) -> anyhow::Result<()> {
        let tree = self.tree(tree)?;
        let acquire = Acquire {
            tree: tree.clone(),
            session: self.renewal.session.clone(),
            ask: false,
            first_write: false,
            no_wait: false,
            note: String::new(),
            place: None,
        };
        let epoch = match accepted(&self.changes[self.node], Change::Acquire(acquire)).await? {
            Answer::Granted(grant) => grant.epoch,
            Answer::Queued { .. } => self.granted(&tree).await?,
            other => bail!("not granted: {other:?}"),
        };
        self.epochs.insert(tree, epoch);
        Ok(())
    }

    async fn rest(&mut self, tree: &str) -> anyhow::Result<()> {
        let lease = self.lease(tree)?;
        match accepted(&self.changes[self.node], Change::Rest { lease, number: 1 }).await? {
            Answer::Done => Ok(()),
            other => bail!("not at rest: {other:?}"),
        }
    }

    async fn release(&mut self, tree: &str) -> anyhow::Result<()> {
        let release = Release { lease: self.lease(tree)?, files: 0, bytes: 0, late_refused: 0, to: None, note: String::new() };
        match accepted(&self.changes[self.node], Change::Release(release)).await? {
            Answer::Done => Ok(()),
            other => bail!("not released: {other:?}"),
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        self.renewal.number += 1;
        let answered = self.servers[self.node].renew(&self.renewal, None).await?;
        self.renewal.nonce = answered.nonce;
        if answered.alive { Ok(()) } else { bail!("the session has ended: {}", answered.why_not) }
    }
}

async fn accepted(servers: &Servers, change: Change) -> anyhow::Result<Answer> {
    servers.do_command(ACTOR, None, change).await?.accepted().map_err(|no| anyhow!("{no}"))
}
