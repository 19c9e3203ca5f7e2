//! How empty nodes become one cluster or join one, and why a wiped one never makes a second (I7).
//!
//! Every node asks every listed peer who it is, until all have answered, are empty, and name the same set. Then the lowest id
//! writes down a formation (its cluster id, each member with its address and the random id of its data directory), promises
//! itself to it on disk, asks every other member to do the same, and only when all have promised begins the log.
//!
//! Promises, and the argument for each.
//! *One cluster.* A directory promises itself once, durably, before any vote in it counts. A formation names all listed
//! disks, and its log begins only when all of them have promised: two formations would need one disk to promise twice.
//! *A wiped node is refused.* Its directory has another id than any formation names. Whichever peer that belongs to a
//! formation it meets tells it so, and as long as one listed peer is silent it does not form anything; nor does a running
//! cluster take its votes or answers ([`crate::consensus::peers`]).
//! *Any order, any crash.* Everything is asked again until it is answered; a promise is repeated, not taken back.
//! *Joining.* An empty node that meets a cluster which has begun waits until its members have its number and the id of its
//! directory (`cluster add`); then it promises itself to that cluster, and never begins a log of its own. A number that was
//! used before is never waited for: it is refused.
//!
//! It does not know what the log holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::join_all;
use treelease_proto::id::{ClusterId, NodeId};
use treelease_proto::wire;

use crate::consensus::Consensus;
use crate::failure::{FailStop, Failure, Result};
use crate::membership::{Newcomer, Said};
use crate::store::identity::{Formation, Identity, Member};

/// Pause between two rounds of asking everybody.
const ROUND: Duration = Duration::from_millis(200);
/// Numbers of earlier nodes that an answer may name: replacing one a day lasts for a human life.
const USED_MAX: usize = 30_000;
/// Members that a formation may name.
pub const MEMBERS_MAX: usize = 9;

/// What a node has said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    node: NodeId,
    disk: String,
    set: BTreeMap<NodeId, String>,
    formation: Option<Formation>,
    /// That cluster's log has begun; these are the numbers that its members ever had.
    begun: bool,
    used: BTreeSet<NodeId>,
    complete: bool,
}

/// What follows from what was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Not yet, and why.
    Wait(String),
    /// This node can never be part of what it met.
    Refused(String),
    /// All are empty and agree, and this node is the lowest.
    Form(BTreeMap<NodeId, Member>),
    /// A cluster has taken this very directory in.
    Join(Formation),
}

/// A node's way into its cluster.
pub struct Former {
    dir: PathBuf,
    identity: Mutex<Identity>,
    /// Every node that this one lists, itself included; of a single node only itself.
    set: BTreeMap<NodeId, String>,
    consensus: Arc<Consensus>,
    fail: FailStop,
}

impl Former {
    /// For this node and the set that it was started with.
    pub fn new(
        dir: PathBuf,
        identity: Identity,
        set: BTreeMap<NodeId, String>,
        consensus: Arc<Consensus>,
        fail: FailStop,
    ) -> Self {
        Self { dir, identity: Mutex::new(identity), set, consensus, fail }
    }

    /// Who this directory belongs to, as it is now.
    pub fn identity(&self) -> Identity {
        self.lock().clone()
    }

    /// Log and vote are complete, and stay so.
    pub fn initialize(&self) -> Result<()> {
        self.lock().initialize(&self.dir)
    }

    /// Makes this node a cluster of its own.
    pub async fn alone(&self) -> Result<()> {
        let identity = self.identity();
        let members = BTreeMap::from([(identity.node, self.own_member())]);
        self.consensus.peers().formed(&Formation { cluster: identity.cluster, members: members.clone() });
        self.consensus.form(members).await
    }

    /// This node, where it is reached now.
    fn own_member(&self) -> Member {
        let identity = self.identity();
        Member { addr: self.set.get(&identity.node).cloned().unwrap_or_default(), disk: identity.data_dir }
    }

    /// A single node may be started at another address: the membership has it, and nobody else needs to agree.
    pub async fn at_this_address(&self) -> std::result::Result<(), String> {
        let (node, member) = (self.consensus.node(), self.own_member());
        let members = self.consensus.members();
        match members.nodes.get(&node) {
            Some(known) if members.nodes.len() == 1 && *known != member => self.consensus.move_member(node, member).await,
            _ => Ok(()),
        }
    }

    /// Until this node belongs to a formation, and, if it is the lowest, the log has begun.
    pub async fn together(&self) -> Result<()> {
        let mut said = String::new();
        let mut say = |why: String| {
            if why != said {
                tracing::info!("no cluster yet: {why}");
                said = why;
            }
        };
        let formation = loop {
            if let Some(formation) = self.lock().formation.clone() {
                break formation;
            }
            let heard = self.ask_all().await;
            let identity = self.identity();
            match decide(&identity, &self.set, &heard) {
                Step::Wait(why) => say(why),
                Step::Refused(why) => return Err(Failure::config(why)),
                Step::Form(members) => {
                    let formation = Formation { cluster: identity.cluster, members };
                    self.accept(identity.node, formation).map_err(Failure::internal)?;
                    continue;
                }
                Step::Join(formation) => {
                    tracing::info!(cluster = %formation.cluster, "this node is taken in");
                    self.join(formation).map_err(Failure::internal)?;
                    continue;
                }
            }
            tokio::time::sleep(ROUND).await;
        };
        let own = self.consensus.node();
        let lowest = formation.members.first_key_value().is_some_and(|(lowest, _)| *lowest == own);
        if !lowest || self.identity().joined || self.consensus.has_log() {
            return Ok(());
        }
        while let Some(why) = self.missing_promise(&formation).await {
            say(why);
            tokio::time::sleep(ROUND).await;
        }
        tracing::info!(cluster = %formation.cluster, nodes = formation.members.len(), "all nodes have promised; the cluster begins");
        self.consensus.form(formation.members).await
    }

    /// What this node says about itself.
    pub fn hello(&self) -> wire::HelloAnswer {
        let identity = self.identity();
        let alone = || Formation {
            cluster: identity.cluster.clone(),
            members: BTreeMap::from([(identity.node, Member { addr: String::new(), disk: identity.data_dir.clone() })]),
        };
        // A single node is a cluster too, from its first log entry on.
        let is_cluster = identity.initialized || self.consensus.has_log() || self.set.len() == 1;
        let mut formation = identity.formation.clone().or_else(|| is_cluster.then(alone));
        let now = self.consensus.members().nodes;
        let begun = !now.is_empty();
        if let Some(formation) = formation.as_mut().filter(|_| begun) {
            formation.members = now;
        }
        wire::HelloAnswer {
            node: identity.node,
            disk: identity.data_dir.clone(),
            set: self.set.iter().map(|(id, addr)| wire::Member { id: *id, addr: addr.clone(), disk: String::new() }).collect(),
            formation: formation.as_ref().map(to_wire),
            used: self.consensus.state().node_ids().iter().copied().collect(),
            begun,
            complete: identity.initialized,
            state_version: self.consensus.peers().state_version(),
        }
    }

    /// What a node says about itself, if its build makes the same of a log: another one forms nothing with this one, and is not taken in.
    fn understand(&self, answer: wire::HelloAnswer) -> std::result::Result<Heard, String> {
        self.consensus.peers().same_build(answer.node, answer.state_version)?;
        understand(answer)
    }

    /// Who is at an address, for the leader that shall take it in.
    pub async fn newcomer(&self, addr: &str) -> Said {
        let heard = self.consensus.network().hello(addr, self.consensus.node()).await;
        let heard = heard.and_then(|answer| self.understand(answer))?;
        let Heard { node, disk, set, formation, complete, .. } = heard;
        Ok(Newcomer { node, disk, cluster: formation.map(|formation| formation.cluster), set, complete })
    }

    /// The lowest node asks for this one's promise.
    pub fn promise(&self, request: wire::PromiseRequest) -> std::result::Result<(), String> {
        let formation = from_wire(request.formation.ok_or("it names no formation")?)?;
        self.accept(request.node, formation)
    }

    /// Promises this directory, if it may; durable when it returns `Ok`.
    fn accept(&self, from: NodeId, formation: Formation) -> std::result::Result<(), String> {
        let mut identity = self.lock();
        may_promise(&identity, &self.set, from, &formation)?;
        if identity.formation.is_some() {
            return Ok(());
        }
        if self.consensus.has_log() {
            return Err(format!("node {} has a log already", identity.node));
        }
        self.is_durable(identity.promise(&self.dir, formation.clone()), &formation)
    }

    /// Promises this directory, which is empty, to a cluster that has taken it in.
    fn join(&self, formation: Formation) -> std::result::Result<(), String> {
        let mut identity = self.lock();
        // Its promise was asked for while it asked around, and the cluster has begun since.
        if identity.formation.as_ref().is_some_and(|own| own.cluster == formation.cluster) {
            return Ok(());
        }
        if identity.formation.is_some() || identity.initialized || self.consensus.has_log() {
            return Err(format!("node {} is not empty", identity.node));
        }
        self.is_durable(identity.join(&self.dir, formation.clone()), &formation)
    }

    /// After the disk: from now on votes in this formation count.
    fn is_durable(&self, written: Result<()>, formation: &Formation) -> std::result::Result<(), String> {
        written.map_err(|failure| {
            let why = failure.to_string();
            self.fail.report(failure);
            why
        })?;
        self.consensus.peers().formed(formation);
        Ok(())
    }

    async fn ask_all(&self) -> BTreeMap<NodeId, std::result::Result<Heard, String>> {
        let own = self.consensus.node();
        let asks = self.set.iter().filter(|(id, _)| **id != own).map(|(id, addr)| async move {
            let answer = self.consensus.network().hello(addr, own).await;
            (*id, answer.and_then(|answer| self.understand(answer)))
        });
        join_all(asks).await.into_iter().collect()
    }

    /// Asks everybody; says who has not promised, and why.
    async fn missing_promise(&self, formation: &Formation) -> Option<String> {
        let own = self.consensus.node();
        let asks = formation.members.iter().filter(|(id, _)| **id != own).map(|(id, member)| async move {
            let request = wire::PromiseRequest { node: own, formation: Some(to_wire(formation)) };
            let answer = self.consensus.network().promise(&member.addr, request).await;
            answer.err().map(|why| format!("node {id} at {} has not promised itself: {why}", member.addr))
        });
        join_all(asks).await.into_iter().flatten().next()
    }

    fn lock(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().expect("nothing panics while it holds the identity")
    }
}

/// Whether this directory may promise itself to that formation (again).
fn may_promise(
    identity: &Identity,
    set: &BTreeMap<NodeId, String>,
    from: NodeId,
    formation: &Formation,
) -> std::result::Result<(), String> {
    let node = identity.node;
    if let Some(promised) = &identity.formation {
        let same = promised == formation;
        return if same {
            Ok(())
        } else {
            Err(format!("node {node} has promised itself to cluster {} already", promised.cluster))
        };
    }
    if identity.initialized {
        return Err(format!("node {node} belongs to cluster {} already", identity.cluster));
    }
    if formation.members.keys().next() != Some(&from) {
        return Err(format!("node {from} asks, but only the lowest of the nodes begins a cluster"));
    }
    let named: BTreeMap<NodeId, String> = formation.members.iter().map(|(id, m)| (*id, m.addr.clone())).collect();
    if named != *set {
        return Err(format!("node {node} lists {}, the formation {}", listed(set), listed(&named)));
    }
    match formation.members.get(&node) {
        Some(member) if member.disk == identity.data_dir => Ok(()),
        _ => Err(format!("the formation names another data directory for node {node} than the one that it has")),
    }
}

/// What follows from what was heard. Pure.
fn decide(
    identity: &Identity,
    set: &BTreeMap<NodeId, String>,
    heard: &BTreeMap<NodeId, std::result::Result<Heard, String>>,
) -> Step {
    let (me, disk) = (identity.node, &identity.data_dir);
    // First of all, whatever else is missing: a cluster that does not know this directory, or has taken it in.
    let mut to_be_added = None;
    for (id, answer) in heard {
        let Ok(Heard { formation: Some(formation), begun, used, .. }) = answer else { continue };
        match formation.members.get(&me) {
            Some(member) if member.disk == *disk && *begun => return Step::Join(formation.clone()),
            Some(member) if member.disk == *disk => {}
            None if *begun && !used.contains(&me) => {
                let addr = set.get(&me).cloned().unwrap_or_default();
                to_be_added = Some(format!(
                    "node {id} belongs to cluster {}, and this node is no member yet: `treelease cluster add {me}={addr}` takes it in",
                    formation.cluster
                ));
            }
            _ => {
                return Step::Refused(format!(
                    "node {id} belongs to cluster {}, and that cluster does not know this data directory, which is empty: a node \
                     that has lost its data directory never comes back under the same id. Remove node {me} from the cluster \
                     (`treelease cluster remove {me}`) and add it under a new node id; to begin a new cluster instead, empty the \
                     data directories of all its nodes",
                    formation.cluster
                ));
            }
        }
    }
    if let Some(why) = to_be_added {
        return Step::Wait(why);
    }
    let mut members = BTreeMap::from([(me, Member { addr: set.get(&me).cloned().unwrap_or_default(), disk: disk.clone() })]);
    for (id, addr) in set.iter().filter(|(id, _)| **id != me) {
        let answer = match heard.get(id) {
            Some(Ok(answer)) => answer,
            Some(Err(why)) => return Step::Wait(format!("node {id} at {addr} does not answer: {why}")),
            None => return Step::Wait(format!("node {id} at {addr} was not asked yet")),
        };
        if answer.node != *id {
            return Step::Wait(format!("at {addr} is node {}, not node {id}; check --peer and --node-id", answer.node));
        }
        if answer.set != *set {
            return Step::Wait(format!(
                "node {id} lists {}, this node {}; start all nodes with the same addresses (--peer, and --advertise for a node's own)",
                listed(&answer.set),
                listed(set)
            ));
        }
        if answer.formation.is_some() {
            return Step::Wait(format!("node {id} has promised itself; this node will be asked next"));
        }
        members.insert(*id, Member { addr: addr.clone(), disk: answer.disk.clone() });
    }
    let disks: BTreeSet<&String> = members.values().map(|m| &m.disk).collect();
    if disks.len() != members.len() {
        return Step::Wait("two nodes have the same data directory: one is a copy of the other; empty one of them".into());
    }
    match members.first_key_value() {
        Some((lowest, _)) if *lowest == me => Step::Form(members),
        Some((lowest, _)) => Step::Wait(format!("all nodes are here; node {lowest} begins")),
        None => Step::Wait("no node is listed".into()),
    }
}

fn listed(set: &BTreeMap<NodeId, String>) -> String {
    let each: Vec<_> = set.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
    each.join(" ")
}

fn to_wire(formation: &Formation) -> wire::Formation {
    let member = |(id, m): (&NodeId, &Member)| wire::Member { id: *id, addr: m.addr.clone(), disk: m.disk.clone() };
    wire::Formation { cluster: formation.cluster.to_string(), members: formation.members.iter().map(member).collect() }
}

fn from_wire(formation: wire::Formation) -> std::result::Result<Formation, String> {
    let cluster: ClusterId = formation.cluster.parse().map_err(|e| format!("the formation's cluster: {e}"))?;
    if formation.members.len() > MEMBERS_MAX {
        return Err(format!("the formation names {} members, {MEMBERS_MAX} is the most", formation.members.len()));
    }
    let members = formation.members.into_iter().map(|m| (m.id, Member { addr: m.addr, disk: m.disk })).collect();
    Ok(Formation { cluster, members })
}

fn understand(answer: wire::HelloAnswer) -> std::result::Result<Heard, String> {
    let formation = answer.formation.map(from_wire).transpose()?;
    if answer.set.len() > MEMBERS_MAX || answer.used.len() > USED_MAX {
        return Err(format!("it names {} nodes and {} used numbers", answer.set.len(), answer.used.len()));
    }
    let set = answer.set.into_iter().map(|m| (m.id, m.addr)).collect();
    let (begun, used, complete) = (answer.begun, answer.used.into_iter().collect(), answer.complete);
    Ok(Heard { node: answer.node, disk: answer.disk, set, formation, begun, used, complete })
}

#[cfg(test)]
#[path = "formation_tests.rs"]
mod tests;
