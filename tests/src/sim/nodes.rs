//! The three nodes: the real `Node` (openraft, tonic, all of the server) as turmoil's hosts, which are killed and started again.
//!
//! A node's disk, its plain files and its machine's clock outlive it. What it has applied is read from outside between two steps.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use treelease_proto::command::{Command, Event};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{NodeId, TreeId};
use treelease_proto::time::WallTime;
use treelease_server::config::Config;
use treelease_server::consensus::events::Notice;
use treelease_server::consensus::{Consensus, Pace};
use treelease_server::fault::Faults;
use treelease_server::node::Node;
use treelease_server::store::disk::Disk;
use treelease_server::surroundings::Surroundings;

use super::clock::NodeClock;
use super::disk::NodeDisk;
use super::sockets::Sockets;
use super::wires;

/// How long the control's command may take.
const CONTROL_LIMIT: Duration = Duration::from_secs(2);

/// What a control tells a node.
pub enum Order {
    /// End the cooling after that epoch now, if this node leads.
    EndGrace(TreeId, Epoch),
}

/// What is known of a running node from outside.
#[derive(Default)]
struct Seen {
    live: Option<Receiver<Notice>>,
    backlog: VecDeque<Arc<Event>>,
    consensus: Weak<Consensus>,
    orders: Option<UnboundedSender<Order>>,
    failed: Option<String>,
    /// The revision of the last event that was read.
    upto: u64,
}

/// One node, running or not.
#[derive(Clone)]
pub struct SimNode {
    id: NodeId,
    dir: PathBuf,
    pace: Pace,
    faults: Faults,
    /// Its machine's clock.
    pub clock: NodeClock,
    /// Its disk.
    pub disk: NodeDisk,
    /// Its host's connections.
    pub sockets: Sockets,
    seen: Arc<Mutex<Seen>>,
}

impl SimNode {
    /// With an empty disk. `dir`: for its plain files.
    pub fn new(id: NodeId, dir: &Path, pace: Pace, faults: Faults, clock: NodeClock, disk: NodeDisk) -> Self {
        Self { id, dir: dir.join(name(id)), pace, faults, clock, disk, sockets: Sockets::default(), seen: Arc::default() }
    }

    /// Its host.
    pub fn name(&self) -> String {
        name(self.id)
    }

    /// Runs until it fails or its host is crashed.
    pub async fn run(self) -> turmoil::Result {
        self.sockets.start();
        let on = Surroundings {
            clock: Arc::new(self.clock.clone()),
            callers: Some(wires::callers(self.sockets.clone()).await?),
            dial: wires::between_nodes(self.sockets.clone()),
            disk: Disk::Simulated(Arc::new(self.disk.clone())),
            faults: self.faults,
        };
        let node = match Node::start_on(self.config(), on).await {
            Ok(node) => node,
            Err(failure) => {
                self.seen().failed = Some(failure.to_string());
                return Ok(());
            }
        };
        let mut orders = self.watch(&node);
        loop {
            tokio::select! {
                biased;
                failure = node.failed() => {
                    self.seen().failed = Some(failure.to_string());
                    return Ok(());
                }
                Some(Order::EndGrace(tree, epoch)) = orders.recv() => end_grace(&node, tree, epoch).await,
            }
        }
    }

    fn config(&self) -> Config {
        let address = |id: NodeId| format!("{}:{}", name(id), wires::PORT);
        let peers: BTreeMap<NodeId, String> =
            (1..=super::plan::NODES as NodeId).filter(|id| *id != self.id).map(|id| (id, address(id))).collect();
        let alone = Config::alone(&self.dir);
        Config { node_id: self.id, advertise: Some(address(self.id)), peers, pace: self.pace.clone(), ..alone }
    }

    fn watch(&self, node: &Node) -> UnboundedReceiver<Order> {
        let (tx, rx) = unbounded_channel();
        let mut seen = self.seen();
        let subscription = node.consensus().events().subscribe(seen.upto);
        seen.backlog = subscription.backlog.into();
        seen.live = Some(subscription.live);
        seen.consensus = Arc::downgrade(node.consensus());
        seen.orders = Some(tx);
        rx
    }

    /// It is gone.
    pub fn lost(&self) {
        let mut seen = self.seen();
        let upto = seen.upto;
        *seen = Seen { upto, ..Seen::default() };
    }

    /// Why it ended by itself, if it did.
    pub fn failure(&self) -> Option<String> {
        self.seen().failed.clone()
    }

    /// What it has applied since the last look.
    pub fn applied(&self) -> Result<Vec<Arc<Event>>, String> {
        let seen = &mut *self.seen();
        let mut events: Vec<Arc<Event>> = seen.backlog.drain(..).collect();
        while let Some(live) = &mut seen.live {
            match live.try_recv() {
                Ok(Notice::Event(event)) => events.push(event),
                // A snapshot came: the others have applied what it skips.
                Ok(Notice::Reset { revision }) => seen.upto = revision,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(n)) => return Err(format!("the world has missed {n} events of node {}", self.id)),
            }
        }
        if let Some(last) = events.last() {
            seen.upto = last.revision.max(seen.upto);
        }
        Ok(events)
    }

    /// Whether it leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.consensus().is_some_and(|consensus| consensus.leads())
    }

    /// Its part in the agreement, while it runs. Not to be kept.
    pub fn consensus(&self) -> Option<Arc<Consensus>> {
        self.seen().consensus.upgrade()
    }

    /// A control's word.
    pub fn order(&self, order: Order) {
        if let Some(orders) = &self.seen().orders {
            // A node that has just ended hears nothing.
            let _ = orders.send(order);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it holds what was seen")
    }
}

/// The name of a node's host.
pub fn name(id: NodeId) -> String {
    format!("node-{id}")
}

async fn end_grace(node: &Node, tree: TreeId, epoch: Epoch) {
    let consensus = node.consensus();
    let Some((decided_under, leader)) = consensus.state().leadership() else { return };
    if leader == consensus.node() && consensus.leads() {
        let command = Command::EndGrace { tree, epoch, decided_under };
        // A control that came too late does nothing.
        let _ = consensus.propose_own(command, WallTime::UNKNOWN, CONTROL_LIMIT).await;
    }
}
