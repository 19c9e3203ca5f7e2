//! Who belongs to the cluster, as this node's log has it, and the single steps by which that changes.
//!
//! Promises: each step is a logged change of its own, safe to ask for again; a change of voters goes through openraft's joint
//! configuration, so that there are never two quorums without a common node, and one that was left half done is visible in
//! [`Members::configs`] and finished by [`Consensus::finish_change`]. A step that was begun goes on though its caller has gone.
//! Which step is next is decided by [`crate::membership`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use treelease_proto::id::NodeId;

use super::Consensus;
use super::network::Network;
use super::peers::Peers;
use super::published::Published;
use super::types::{Membership, Raft};
use crate::failure::{Failure, Result};
use crate::fault::Faults;
use crate::store::identity::Member;

/// The members, as some entry of this node's log has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// The voters; two sets, the old one first, while a change is half done: then a majority of each is needed.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// Where each of them, and of those that only learn, is reached.
    pub nodes: BTreeMap<NodeId, Member>,
}

impl Members {
    fn of(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }

    /// A change of them is half done.
    pub fn is_joint(&self) -> bool {
        self.configs.len() > 1
    }

    /// Whether it votes, before or after a change that is half done.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.configs.iter().any(|ids| ids.contains(&node))
    }

    /// Every voter, before or after a change that is half done.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }
}

type Step = std::result::Result<(), String>;

impl Consensus {
    /// The rules that this node leaves out.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Who belongs to the cluster, as this node's log has it.
    pub fn members(&self) -> Members {
        Members::of(self.raft.metrics().borrow().membership_config.membership())
    }

    /// How many entries each other node is behind this leader; nobody, if it does not lead.
    pub fn behind(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let last = metrics.last_log_index.unwrap_or(0);
        let Some(replication) = &metrics.replication else { return BTreeMap::new() };
        let behind = |upto: Option<u64>| upto.map_or(last + 1, |upto| last.saturating_sub(upto));
        replication.iter().map(|(id, upto)| (*id, behind(upto.map(|upto| upto.index)))).collect()
    }

    /// Nodes that have answered this one within an election time-out, and itself.
    pub fn live(&self) -> BTreeSet<NodeId> {
        let mut live = self.peers.answered_within(self.pace.election_max);
        live.insert(self.node);
        live
    }

    /// It gets the log from now on, and does not vote.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Step {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, member)]))).await
    }

    /// It is reached elsewhere. The same directory: a message to another one counts for nothing.
    pub async fn move_member(&self, node: NodeId, member: Member) -> Step {
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(node, member)]))).await
    }

    /// It votes from now on.
    pub async fn promote(&self, node: NodeId) -> Step {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node]))).await
    }

    /// It is no member any more.
    pub async fn drop_member(&self, node: NodeId) -> Step {
        let ids = BTreeSet::from([node]);
        let change =
            if self.members().is_voter(node) { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(change).await
    }

    /// Finishes what was left half done, towards where it went.
    pub async fn finish_change(&self) -> Step {
        match self.members().configs.as_slice() {
            [_, .., goal] => self.change(ChangeMembers::ReplaceAllVoters(goal.clone())).await,
            _ => Ok(()),
        }
    }

    /// On a task of its own: openraft's second half would be lost with a caller who gives up.
    async fn change(&self, change: ChangeMembers<NodeId, Member>) -> Step {
        let raft = self.raft.clone();
        let change = tokio::spawn(async move { raft.change_membership(change, false).await });
        match change.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err("this node stopped leading".into()),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))))) => {
                Err("the change before it is not committed yet".into())
            }
            Ok(Err(e)) => Err(e.to_string()),
            Err(e) => Err(format!("the task of the change ended: {e}")),
        }
    }
}

/// What the log had when this node started, before anybody is told anything by it.
pub(super) async fn recovered(raft: &Raft) -> Result<Members> {
    let members = raft.with_raft_state(|state| Members::of(state.membership_state.effective().membership())).await;
    members.map_err(|e| Failure::storage(format!("the log cannot be read: {e}")))
}

/// Tells the door of every change of the members, until openraft ends.
pub(super) fn follow(raft: &Raft, peers: Arc<Peers>, network: Network, published: Arc<Published>) {
    let mut metrics = raft.server_metrics();
    tokio::spawn(async move {
        let mut known = Members::default();
        loop {
            let members = Members::of(metrics.borrow_and_update().membership_config.membership());
            if members != known {
                tracing::info!(voters = ?members.configs, nodes = ?members.nodes.keys().collect::<Vec<_>>(), "the members");
                let used = published.state().node_ids().clone();
                peers.members_are(members.nodes.clone(), &used);
                network.members_changed();
                known = members;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
}
