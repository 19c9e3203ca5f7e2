//! Which step comes next when a node is added, moved or removed. Pure.
//!
//! Nothing is remembered between two steps but what the log says: so whoever is killed half-way, leader or caller, leaves
//! something that the same question finishes. The caller (`api::members`) looks, asks here, does the one step, and looks again.
//!
//! Promises (I7). A number is given once: [`View::used`] has every one that a member ever had. A node is taken in only as the
//! data directory that it showed when it was added, only empty or promised to this cluster, and it votes only when it has the
//! log and says that its directory would notice the loss of it. No step leaves a set of voters of which no majority answers.
//! A change that was left half done is finished before anything else. It does not know how a step is done.

use std::collections::{BTreeMap, BTreeSet};

use treelease_proto::id::{ClusterId, NodeId};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::Ttl;

use crate::consensus::members::Members;
use crate::formation::MEMBERS_MAX;
use crate::store::identity::Member;

/// Entries that a new node may still be behind when it begins to vote: what a busy leader has on its way.
pub const BEHIND_MAX: u64 = 100;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new node at this address, or a member that is reached there from now on.
    Add {
        /// Which.
        node: NodeId,
        /// `HOST:PORT`.
        addr: String,
    },
    /// It is no member any more.
    Remove {
        /// Which.
        node: NodeId,
    },
}

/// How things stand, as the leader sees them.
#[derive(Debug, Clone)]
pub struct View {
    /// The leader.
    pub own: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who belongs to it.
    pub members: Members,
    /// Every number that a member ever had.
    pub used: BTreeSet<NodeId>,
    /// Who answers, the leader included.
    pub live: BTreeSet<NodeId>,
    /// How many entries each of the others is behind.
    pub behind: BTreeMap<NodeId, u64>,
    /// The shortest time to live that is taken.
    pub ttl_min: Ttl,
    /// The shortest one that several nodes allow.
    pub ttl_of_several: Ttl,
}

/// What the one at the address says about itself; why not, if it does not answer.
pub type Said = Result<Newcomer, String>;

/// Who is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// Its number.
    pub node: NodeId,
    /// The random id of its data directory.
    pub disk: String,
    /// Where it belongs; none: it is empty.
    pub cluster: Option<ClusterId>,
    /// Whom it was started with, itself included.
    pub set: BTreeMap<NodeId, String>,
    /// The loss of its log would be noticed.
    pub complete: bool,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It can never be so.
    Refuse(Refusal),
    /// Not yet, and for what it waits.
    Wait(String),
    /// Finish the change that was left half done.
    Finish,
    /// More nodes need longer times to live: log that first.
    RaiseTtl(Ttl),
    /// It gets the log and does not vote.
    AddLearner(Member),
    /// Its address changes.
    Move(Member),
    /// It votes.
    Promote,
    /// The leader itself goes: another one leads first.
    HandOver,
    /// It is no member any more.
    Drop,
    /// It is so.
    Done(String),
}

/// What comes next. `said` is the word of who is at the address of [`Change::Add`].
pub fn next(view: &View, change: &Change, said: &Said) -> Step {
    if view.members.is_joint() {
        return Step::Finish;
    }
    match change {
        Change::Add { node, addr } => add(view, *node, addr, said),
        Change::Remove { node } => remove(view, *node),
    }
}

fn add(view: &View, node: NodeId, addr: &str, said: &Said) -> Step {
    let known = view.members.nodes.get(&node);
    if let Some(member) = known
        && member.addr == addr
        && !member.disk.is_empty()
        && view.members.is_voter(node)
    {
        return Step::Done(format!("node {node} at {addr} is a member and votes"));
    }
    if known.is_none() && view.used.contains(&node) {
        let free = view.used.last().map_or(1, |last| last.saturating_add(1));
        return refuse(
            Code::Config,
            format!("node number {node} was used before and is never given again; take {free}, with an empty data directory"),
        );
    }
    if known.is_none() && view.members.nodes.len() >= MEMBERS_MAX {
        return refuse(Code::Limit, format!("the cluster has {MEMBERS_MAX} nodes, that is the most; remove one first"));
    }
    if let Some((other, _)) = view.members.nodes.iter().find(|(id, member)| **id != node && member.addr == addr) {
        return refuse(Code::Config, format!("node {other} is at {addr}; each node has an address of its own"));
    }
    let newcomer = match said {
        Ok(newcomer) => newcomer,
        Err(why) => {
            return Step::Wait(format!("node {node} at {addr} does not answer: {why}{}", how_to_start(view, node, known)));
        }
    };
    if newcomer.node != node {
        return refuse(Code::Config, format!("at {addr} is node {}, not node {node}; check the address", newcomer.node));
    }
    if let Some(other) = newcomer.cluster.as_ref().filter(|cluster| **cluster != view.cluster) {
        return refuse(
            Code::Config,
            format!(
                "node {node} at {addr} belongs to cluster {other}, this is cluster {}: it can join only with an empty data \
                 directory, started with --peer for the nodes of this cluster",
                view.cluster
            ),
        );
    }
    if known.is_none_or(|known| known.addr != addr)
        && let Some(why) = lists_others(view, newcomer, node, addr)
    {
        return refuse(Code::Config, why);
    }
    let member = Member { addr: addr.to_owned(), disk: newcomer.disk.clone() };
    match known {
        None => Step::AddLearner(member),
        Some(known) if known.disk != newcomer.disk && !known.disk.is_empty() => refuse(
            Code::Config,
            format!(
                "node {node} at {addr} has another data directory than the member: it has lost what it acknowledged and must not \
                 vote under this number. Remove node {node} (`treelease cluster remove {node}`) and add it under a new one, with an \
                 empty data directory"
            ),
        ),
        Some(known) if known.addr != addr || known.disk.is_empty() => Step::Move(member),
        Some(_) => promote(view, node, newcomer),
    }
}

/// A learner, at its address.
fn promote(view: &View, node: NodeId, newcomer: &Newcomer) -> Step {
    let behind = view.behind.get(&node).copied();
    if !newcomer.complete || behind.is_none_or(|behind| behind > BEHIND_MAX) {
        let entries = behind.map_or_else(String::new, |behind| format!(", {behind} entries behind"));
        return Step::Wait(format!("node {node} catches up{entries}"));
    }
    if view.ttl_min < view.ttl_of_several {
        return Step::RaiseTtl(view.ttl_of_several);
    }
    let mut voters = view.members.voters();
    voters.insert(node);
    let mut live = view.live.clone();
    // It has answered just now.
    live.insert(node);
    match majority_of(&voters, &live) {
        Ok(()) => Step::Promote,
        Err(why) => refuse(Code::Unreachable, format!("node {node} cannot be added now: {why}")),
    }
}

fn remove(view: &View, node: NodeId) -> Step {
    if !view.members.nodes.contains_key(&node) {
        return match view.used.contains(&node) {
            true => Step::Done(format!("node {node} is no member")),
            false => refuse(Code::NotFound, format!("there is no node {node}; `treelease cluster status` shows those there are")),
        };
    }
    if !view.members.is_voter(node) {
        return Step::Drop;
    }
    let mut rest = view.members.voters();
    rest.remove(&node);
    if rest.is_empty() {
        return refuse(Code::Config, format!("node {node} is the only one that votes: without it there is no cluster"));
    }
    if let Err(why) = majority_of(&rest, &view.live) {
        return refuse(Code::Unreachable, format!("node {node} cannot be removed now: {why}"));
    }
    if node == view.own { Step::HandOver } else { Step::Drop }
}

/// Whether these voters would go on with those that answer.
fn majority_of(voters: &BTreeSet<NodeId>, live: &BTreeSet<NodeId>) -> Result<(), String> {
    let answering = voters.intersection(live).count();
    if answering * 2 > voters.len() {
        return Ok(());
    }
    let silent: Vec<String> = voters.difference(live).map(NodeId::to_string).collect();
    Err(format!(
        "of the {} nodes that would vote then only {answering} answer (not {}), and nothing could be agreed upon; start those first, or \
         remove one of them instead",
        voters.len(),
        silent.join(", ")
    ))
}

/// A newcomer that was started with other addresses than the members have would never find them, or find others.
fn lists_others(view: &View, newcomer: &Newcomer, node: NodeId, addr: &str) -> Option<String> {
    let differs = newcomer.set.iter().find_map(|(id, theirs)| {
        let ours: &str = if *id == node { addr } else { &view.members.nodes.get(id)?.addr };
        (ours != theirs).then(|| (*id, theirs.clone(), ours.to_owned()))
    });
    differs.map(|(id, theirs, ours)| {
        if id == node {
            return format!("node {node} says that it is reached at {theirs}, not at {addr}; use the same in both (--advertise)");
        }
        format!(
            "node {node} lists node {id} at {theirs}, the cluster has it at {ours}: start node {node} with that, or, if node {id} is \
             reached at {theirs} too, say so first: `treelease cluster add {id}={theirs}`"
        )
    })
}

fn how_to_start(view: &View, node: NodeId, known: Option<&Member>) -> String {
    if known.is_some() {
        return String::new();
    }
    let peers: Vec<String> = view.members.nodes.iter().map(|(id, member)| format!("--peer {id}={}", member.addr)).collect();
    format!("; start it: treelease-server --node-id {node} with an empty --data-dir and {}", peers.join(" "))
}

fn refuse(code: Code, message: String) -> Step {
    Step::Refuse(Refusal::new(code, message))
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
