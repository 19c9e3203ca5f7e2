//! How a tree stands, as everybody outside the replicated state sees it: the read model.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::epoch::{Epoch, RunStart};
use crate::id::{ClusterId, MarkerLock, RootId, SessionId, SideName, TreeId, TreeName};
use crate::policy::{Mode, Policy};
use crate::time::{Ttl, WallTime};

/// Who has the lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The side.
    pub side: SideName,
    /// The host that its daemon runs on; for people.
    pub host: String,
    /// Its session.
    pub session: SessionId,
    /// Of the grant.
    pub epoch: Epoch,
    /// When it was granted.
    pub since: WallTime,
    /// What for, in the holder's words.
    pub note: String,
}

/// Who queues for the lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Waiter {
    /// The side.
    pub side: SideName,
    /// Its host.
    pub host: String,
    /// Its session.
    pub session: SessionId,
    /// Since when it queues.
    pub since: WallTime,
    /// Whether it asks the holder to hand over, instead of waiting for it to finish.
    pub asked: bool,
    /// Whether a first write queues, not a person: an idle holder gives way, a busy one is left alone.
    pub first_write: bool,
    /// What for.
    pub note: String,
}

/// How the last lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// There was none.
    None,
    /// The holder stopped writing, flushed to storage and said so.
    Clean,
    /// It did not.
    Unclean,
}

impl End {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            End::None => "none",
            End::Clean => "clean",
            End::Unclean => "unclean",
        }
    }
    /// The end of that name.
    pub fn parse(s: &str) -> Option<End> {
        [End::None, End::Clean, End::Unclean].into_iter().find(|e| e.as_str() == s)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a root takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootState {
    /// The tree's one root that may be written.
    Live,
    /// A former or a future one.
    Sealed,
}

impl RootState {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            RootState::Live => "live",
            RootState::Sealed => "sealed",
        }
    }
    /// The state of that name.
    pub fn parse(s: &str) -> Option<RootState> {
        [RootState::Live, RootState::Sealed].into_iter().find(|state| state.as_str() == s)
    }
}

/// A place where a tree's files lie.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Root {
    /// As its marker says.
    pub id: RootId,
    /// Where the side that registered it sees it; for people.
    pub path: String,
    /// Whether it takes writes.
    pub state: RootState,
}

/// The state of a tree, without what belongs to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // DESIGN 3
pub enum StateName {
    Free,
    Held,
    Cooling,
    Fencing,
    Retired,
}

impl StateName {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            StateName::Free => "free",
            StateName::Held => "held",
            StateName::Cooling => "cooling",
            StateName::Fencing => "fencing",
            StateName::Retired => "retired",
        }
    }
    /// The state of that name.
    pub fn parse(s: &str) -> Option<StateName> {
        use StateName::*;
        [Free, Held, Cooling, Fencing, Retired].into_iter().find(|n| n.as_str() == s)
    }
}

/// One tree as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeStatus {
    /// Its id.
    pub id: TreeId,
    /// Its name.
    pub name: TreeName,
    /// Its owner's decisions.
    pub policy: Policy,
    /// Where its files lie.
    pub roots: Vec<Root>,
    /// How it stands.
    pub state: StateName,
    /// Who has it, when held.
    pub holder: Option<Holder>,
    /// Whether the holder has said that storage has confirmed everything.
    pub at_rest: bool,
    /// Of the last grant.
    pub epoch: Epoch,
    /// Of the last grant.
    pub run_start: RunStart,
    /// The side of the last grant.
    pub run_side: Option<SideName>,
    /// How the last lease ended.
    pub last_end: End,
    /// Who queues, in order.
    pub waiters: Vec<Waiter>,
    /// Of the fence, when fencing.
    pub attempt: u32,
    /// Why it cools or fences.
    pub why: String,
    /// Of the holder's session.
    pub ttl: Option<Ttl>,
    /// Until the session expires or the grace ends, by the leader's timers; only the leader knows.
    pub remaining: Option<std::time::Duration>,
    /// The epoch whose unclean end is being waited out.
    pub ended_epoch: Option<Epoch>,
    /// The side whose unclean end is being waited out.
    pub ended_side: Option<SideName>,
    /// Why the holder declined to hand over; empty if it did not.
    pub declined: String,
    /// The marker's lock that the holder's guard has by its last word, or had when its lease ended unclean. While fencing, who gets
    /// it is the storage's witness.
    pub witness: Option<MarkerLock>,
    /// Sides that a fence agent was run against, and that get nothing here until their access was given back.
    pub fenced: Vec<FencedSide>,
    /// Counts the changes of the policy's mode.
    pub mode_no: u64,
    /// The sides that ever mounted it, and whether each has confirmed the present mode.
    pub guards: Vec<GuardOf>,
}

impl TreeStatus {
    /// The sides that have not confirmed yet that their guard enforces; empty where nothing is to be enforced.
    pub fn not_enforced_by(&self) -> impl Iterator<Item = &SideName> {
        let enforces = self.policy.mode == Mode::Enforce;
        self.guards.iter().filter(move |guard| enforces && !guard.obeys).map(|guard| &guard.side)
    }
}

/// A side that ever mounted a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardOf {
    /// Who.
    pub side: SideName,
    /// Its guard has confirmed the policy's present mode.
    pub obeys: bool,
}

/// A side that a fence agent was run against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencedSide {
    /// Who.
    pub side: SideName,
    /// Of the lease whose unclean end it was.
    pub epoch: Epoch,
    /// Which agent.
    pub agent: String,
    /// An attempt may still act.
    pub acting: bool,
    /// An operator has said that it may have its access back.
    pub unfencing: bool,
}

/// A session as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Its id.
    pub session: SessionId,
    /// Whose.
    pub side: SideName,
    /// The daemon's host.
    pub host: String,
    /// Its time to live.
    pub ttl: Ttl,
    /// When it was opened.
    pub since: WallTime,
}

/// Everything that a node says about itself and its trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Of the state that this is.
    pub revision: u64,
    /// The leader's node, if one is known.
    pub leader: Option<u64>,
    /// How many nodes there are.
    pub nodes: u32,
    /// Whether a quorum answered lately.
    pub quorum: bool,
    /// Whether callers are authenticated.
    pub secure: bool,
    /// All trees, by name.
    pub trees: Vec<TreeStatus>,
    /// All sessions.
    pub sessions: Vec<SessionStatus>,
    /// The shortest time to live that this cluster takes.
    pub ttl_min: Ttl,
    /// The longest.
    pub ttl_max: Ttl,
    /// The clusters whose backups this one has grown from, oldest first (I8).
    pub predecessors: Vec<ClusterId>,
    /// The nodes, as this one's log has them.
    pub members: Vec<NodeStatus>,
    /// A change of the members was left half done.
    pub joint: bool,
    /// How long ago a quorum stood behind what this shows; none: never since the node started.
    pub age: Option<std::time::Duration>,
}

/// What a node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// Votes.
    Voter,
    /// Catches up, and does not vote yet.
    Learner,
    /// Votes already in a change that is half done, and will when it is done.
    Joining,
    /// Votes still in a change that is half done.
    Leaving,
}

impl NodeRole {
    /// Every role.
    pub const ALL: [NodeRole; 4] = [NodeRole::Voter, NodeRole::Learner, NodeRole::Joining, NodeRole::Leaving];

    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeRole::Voter => "voter",
            NodeRole::Learner => "learner",
            NodeRole::Joining => "joining",
            NodeRole::Leaving => "leaving",
        }
    }
    /// The role of that name.
    pub fn parse(s: &str) -> Option<NodeRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == s)
    }
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its number.
    pub id: u64,
    /// Where it is reached.
    pub addr: String,
    /// What it is.
    pub role: NodeRole,
    /// The leader's word: whether it answered lately.
    pub reached: Option<bool>,
    /// The leader's word: how many entries of the log it has not got yet.
    pub behind: Option<u64>,
}
