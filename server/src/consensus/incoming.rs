//! What other nodes ask of this one's openraft, and calls on their way to the leader.
//!
//! Promises (I7): nothing reaches openraft but from a member, of this cluster, meant for this data directory; every answer
//! carries this node's own stamp, by which the asker checks the same. It decides nothing else.

use std::time::Duration;

use openraft::error::{InstallSnapshotError, RaftError};
use treelease_proto::id::NodeId;
use treelease_proto::wire;

use super::network::{Lost, fatal};
use super::types::AppendAnswer;
use super::{Consensus, messages};

/// Why a node's message is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnedAway {
    /// It is not for us, or not from a member.
    Stranger(String),
    /// It cannot be read.
    Unreadable(String),
    /// This node ends.
    Ending(String),
}

/// The largest snapshot that is taken: over two hundred thousand trees at 2 KiB.
const SNAPSHOT_MAX: u64 = 512 << 20;

/// What a node's message brings.
pub type Answered<T> = Result<T, TurnedAway>;

impl Consensus {
    /// Entries, or a heartbeat.
    pub async fn receive_append(&self, request: wire::AppendRequest) -> Answered<wire::AppendAnswer> {
        let stamp = self.let_in(request.stamp.as_ref())?;
        let quorum_age = messages::quorum_age_from_wire(request.tells_age, request.quorum_age_ms, self.faults);
        let request = messages::append_from_wire(request).map_err(|e| self.unreadable(&e.to_string()))?;
        let answer = self.raft.append_entries(request).await.map_err(|e| ending(&e))?;
        if !matches!(answer, AppendAnswer::HigherVote(_)) {
            self.peers.heard(quorum_age);
        }
        Ok(messages::append_answer_to_wire(&answer, stamp))
    }

    /// A vote.
    pub async fn receive_vote(&self, request: wire::VoteRequest) -> Answered<wire::VoteAnswer> {
        let stamp = self.let_in(request.stamp.as_ref())?;
        let request = messages::vote_request_from_wire(request).map_err(|e| self.unreadable(&e.to_string()))?;
        let answer = self.raft.vote(request).await.map_err(|e| ending(&e))?;
        Ok(messages::vote_answer_to_wire(&answer, stamp))
    }

    /// A piece of a snapshot.
    pub async fn receive_snapshot(&self, request: wire::SnapshotRequest) -> Answered<wire::SnapshotAnswer> {
        let stamp = self.let_in(request.stamp.as_ref())?;
        let quorum_age = messages::quorum_age_from_wire(request.tells_age, request.quorum_age_ms, self.faults);
        let request = messages::snapshot_from_wire(request).map_err(|e| self.unreadable(&e.to_string()))?;
        // openraft makes room up to the piece's end, whatever it says.
        if request.offset.saturating_add(request.data.len() as u64) > SNAPSHOT_MAX {
            let why = format!("a snapshot's piece at {} is beyond the limit of {SNAPSHOT_MAX} bytes", request.offset);
            return Err(self.unreadable(&why));
        }
        match self.raft.install_snapshot(request).await {
            Ok(answer) => {
                self.peers.heard(quorum_age);
                Ok(messages::snapshot_answer_to_wire(Ok(&answer), stamp))
            }
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                Ok(messages::snapshot_answer_to_wire(Err(&mismatch), stamp))
            }
            Err(RaftError::Fatal(e)) => Err(TurnedAway::Ending(fatal(&e))),
        }
    }

    /// Checks a member's message; returns the stamp of the answer.
    pub fn let_in(&self, stamp: Option<&wire::Stamp>) -> Answered<wire::Stamp> {
        let stranger = |why: String| {
            self.peers.turned_away(&why);
            TurnedAway::Stranger(why)
        };
        let from = self.peers.check(stamp).map_err(stranger)?;
        let disk = stamp.map(|s| s.disk.as_str()).unwrap_or_default();
        // A leader hears no leader either, and is not the one who was away: what a quorum tells it, no stranger knows better.
        if !self.peers.is_member(from, disk) && self.leads() {
            return Err(stranger(format!("node {from} is no member of the cluster that this node leads")));
        }
        self.peers.stamp(from, disk).ok_or_else(|| TurnedAway::Stranger("this node belongs to no cluster yet".into()))
    }

    fn unreadable(&self, why: &str) -> TurnedAway {
        self.peers.turned_away(why);
        TurnedAway::Unreadable(why.to_owned())
    }

    /// Which other node leads, as far as this one knows; none if this one may lead.
    pub fn leader_elsewhere(&self) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.current_leader.filter(|id| *id != self.node)
    }

    /// Sends a caller's renewal to the leader, with those of others.
    pub async fn relay(
        &self,
        leader: NodeId,
        renewal: wire::RenewRequest,
        limit: Duration,
    ) -> Result<wire::renewal_answered::Word, Lost> {
        self.relay.renew(leader, renewal, limit).await
    }

    /// Sends a caller's call to the leader.
    pub async fn forward(
        &self,
        leader: NodeId,
        call: wire::forward_request::Call,
        limit: Duration,
    ) -> Result<wire::forward_answer::Kind, Lost> {
        self.network.forward(leader, call, limit).await
    }
}

fn ending(e: &RaftError<NodeId>) -> TurnedAway {
    TurnedAway::Ending(format!("this node is ending: {e}"))
}
