//! openraft's types for this cluster, and what one log entry carries.
//!
//! An entry is a batch of proposals, because openraft 0.9 makes one durable append per write, serially (STACK 1.5): one sync
//! for all commands of a batch. The serde forms are demanded by openraft and used for nothing: what goes to disk or to a
//! peer is made by [`super::codec`].

use openraft::TokioRuntime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use treelease_proto::command::{Answer, Proposal};
use treelease_proto::id::NodeId;

use super::codec;
use crate::store::identity::Member;
use crate::store::passing::Passing;

openraft::declare_raft_types!(
    /// openraft's types for this cluster.
    pub TypeConfig:
        D = Batch,
        R = Outcome,
        NodeId = NodeId,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Passing,
        AsyncRuntime = TokioRuntime,
);

/// Commands that one sync makes durable together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Proposal>);

/// Their answers, in the same order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome(pub Vec<Answer>);

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::batch_to_bytes(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::batch_from_bytes(&Vec::<u8>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A log entry.
pub type Entry = openraft::Entry<TypeConfig>;
/// An entry's name.
pub type LogId = openraft::LogId<NodeId>;
/// Whom a node votes for.
pub type Vote = openraft::Vote<NodeId>;
/// Members, and the entry that made them so.
pub type StoredMembership = openraft::StoredMembership<NodeId, Member>;
/// Members.
pub type Membership = openraft::Membership<NodeId, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, Member>;
/// openraft's word for a storage error.
pub type StorageError = openraft::StorageError<NodeId>;
/// openraft's node.
pub type Raft = openraft::Raft<TypeConfig>;
/// What openraft says of itself.
pub type Metrics = openraft::RaftMetrics<NodeId, Member>;
/// Entries on their way to a peer.
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// What the peer says.
pub type AppendAnswer = openraft::raft::AppendEntriesResponse<NodeId>;
/// A vote asked of a peer.
pub type VoteRequest = openraft::raft::VoteRequest<NodeId>;
/// What the peer says.
pub type VoteAnswer = openraft::raft::VoteResponse<NodeId>;
/// A piece of a snapshot on its way to a peer.
pub type SnapshotRequest = openraft::raft::InstallSnapshotRequest<TypeConfig>;
/// What the peer says.
pub type SnapshotAnswer = openraft::raft::InstallSnapshotResponse<NodeId>;
