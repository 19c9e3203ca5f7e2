//! Everything that can be asked of the replicated state. What it answers: [`crate::answer`]. What can have happened then:
//! [`crate::event`].

use serde::{Deserialize, Serialize};

pub use crate::answer::{Answer, Grant, HeldPair};
use crate::epoch::Epoch;
pub use crate::event::{Event, EventKind};
pub use crate::fence::{AttemptRef, Outcome, Verb};
use crate::id::{ClusterId, MarkerLock, NodeId, Place, RequestKey, RootId, SessionId, SideName, TreeId, TreeName};
use crate::time::{Ttl, WallTime};
use crate::tree::{Root, RootState};

/// The number of a leadership: the log index of its `Lead` entry. Not the term: one term can have several leaders, and a
/// restarted node leads on in its own (DESIGN 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leadership(pub u64);

/// A command with what the server adds before it is logged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// Makes a retry do nothing twice.
    pub request_key: RequestKey,
    /// Who asks, for the history.
    pub actor: String,
    /// The proposer's wall clock, for people to read.
    pub at: WallTime,
    /// What is asked.
    pub command: Command,
}

/// One change of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Command {
    /// A node begins to lead; the entry's log index is the leadership's number. Only the server proposes it.
    Lead {
        /// Which node.
        node: NodeId,
    },
    /// A session's time is up. Only the leader that decided it proposes it; ignored under another leadership.
    ExpireSession {
        /// Which.
        session: SessionId,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// A session's lower time to live has been answered for a full old one: the server waits no longer than that from now on. As
    /// `ExpireSession`.
    SettleTtl {
        /// Which.
        session: SessionId,
        /// In which run of the daemon it was lowered; ignored in another one.
        incarnation: u64,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// Two machines renewed one session: one is a copy of the other. Only the leader that saw it proposes it.
    EndCopied {
        /// Which.
        session: SessionId,
        /// In which run of the daemon; ignored in another one.
        incarnation: u64,
    },
    /// A tree's cooling is over. As `ExpireSession`.
    EndGrace {
        /// Which tree.
        tree: TreeId,
        /// Whose unclean end was waited out.
        epoch: Epoch,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// Gives an empty cluster its id and its limits.
    Found {
        /// The id.
        cluster: ClusterId,
        /// Shortest time to live taken.
        ttl_min: Ttl,
        /// Longest time to live taken.
        ttl_max: Ttl,
    },
    /// Raises the shortest time to live, of living sessions too: a failover takes longer than it did. Only the leader proposes it.
    RaiseTtl {
        /// Shortest time to live taken from now on; a lower one than now is ignored.
        ttl_min: Ttl,
    },
    /// A daemon starts, or proves to be the same daemon restarted.
    OpenSession(OpenSession),
    /// A daemon ends in order. Refused (`busy`) while the session holds a tree.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Take the lease, or queue for it. Repeated, it changes the queue entry.
    Acquire(Acquire),
    /// Leave the queue. Does nothing to a lease that was granted meanwhile.
    Cancel {
        /// Which tree.
        tree: TreeId,
        /// Whose entry.
        session: SessionId,
    },
    /// A clean end: the holder stopped writing, flushed to storage and says so.
    Release(Release),
    /// A clean end of a grant whose gate never opened; the side is passed over until it asks again.
    GiveBack {
        /// What ends.
        lease: LeaseRef,
        /// Why the gate could not open.
        reason: String,
    },
    /// An unclean end by the holder's own word: a flush failed or took too long.
    Surrender {
        /// What ends.
        lease: LeaseRef,
        /// Why.
        reason: String,
        /// Files whose writes may be lost.
        files: Vec<String>,
    },
    /// After a break: the daemon's word that its gate is shut.
    GateClosed(LeaseRef),
    /// The holder has nothing that storage has not confirmed. `number` grows within the session.
    Rest {
        /// What rests.
        lease: LeaseRef,
        /// A lower one than the last applied is ignored.
        number: u64,
    },
    /// The holder is about to write.
    Active {
        /// What wakes.
        lease: LeaseRef,
        /// A lower one than the last applied is ignored.
        number: u64,
        /// The marker's lock, if the guard has it, taken in this epoch on a descriptor of this epoch, and it is one that can be a
        /// witness. The holder lets go of it only with nothing unconfirmed, or by its end.
        marker: Option<MarkerLock>,
    },
    /// A waiter's guard has got the lock that the ended lease's guard had: the storage's word that it is gone. The fence's success.
    Witnessed {
        /// Which tree.
        tree: TreeId,
        /// Whose unclean end.
        epoch: Epoch,
        /// Of the fence.
        attempt: u32,
        /// The waiter.
        session: SessionId,
        /// What it has got.
        marker: MarkerLock,
    },
    /// The holder answers "not now" to those who asked.
    Decline {
        /// Of which lease.
        lease: LeaseRef,
        /// For how long, in milliseconds.
        for_ms: u64,
        /// What is busy.
        note: String,
    },
    /// An operator ends a lease by force.
    Break {
        /// Which tree.
        tree: TreeId,
        /// The epoch that the operator looked at.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// An operator vouches that the old holder cannot write any more. Ends cooling and fencing.
    FenceConfirm {
        /// Which tree.
        tree: TreeId,
        /// Whose unclean end.
        epoch: Epoch,
        /// Why that is sure.
        reason: String,
    },
    /// An agent is about to be run. Only the leader that runs it proposes it; ignored under another leadership, and when it is not
    /// wanted (any more).
    FenceAttempt {
        /// Which.
        attempt: AttemptRef,
        /// What the agent is to do.
        verb: Verb,
        /// Its name in the servers' configuration.
        agent: String,
        /// How long it may take, in milliseconds; then it is killed.
        deadline_ms: u64,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// How an attempt ended. Only the leader that ran it proposes it; ignored under another leadership or number.
    FenceResult {
        /// Which.
        attempt: AttemptRef,
        /// How.
        outcome: Outcome,
        /// The agent's last words, for the history.
        detail: String,
        /// Under which leadership it was run.
        decided_under: Leadership,
    },
    /// The deadline of an attempt of an earlier leadership has passed in full: nothing of it acts any more. As `ExpireSession`.
    FenceLapsed {
        /// Which.
        attempt: AttemptRef,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// Does this attempt still stand? An agent asks right before it acts. Changes nothing; logged, so that a quorum answers.
    FenceStands {
        /// Which.
        attempt: AttemptRef,
    },
    /// An operator vouches that nothing of what a fenced side had written can come any more: it may have its access back.
    Unfence {
        /// Which tree.
        tree: TreeId,
        /// Who.
        side: SideName,
        /// Of the lease after which it was fenced.
        epoch: Epoch,
        /// Why that is sure.
        reason: String,
        /// It has its access back already; no agent is run.
        by_hand: bool,
    },
    /// Registers a tree.
    AddTree {
        /// Its name; taken: refused (`config`).
        name: TreeName,
        /// Its id, made by the caller.
        tree: TreeId,
        /// Policy keys that differ from the defaults.
        policy: Vec<(String, String)>,
        /// Its live root, where one is known.
        root: Option<Root>,
    },
    /// Changes policy keys; all or none.
    SetPolicy {
        /// Which tree.
        tree: TreeId,
        /// Keys and values.
        policy: Vec<(String, String)>,
    },
    /// Registers a root. The first one is live; a second one is refused (moving house comes later).
    AddRoot {
        /// Of which tree.
        tree: TreeId,
        /// The root.
        root: Root,
    },
    /// Tries the tree's fence agent, without a fence: changes nothing but the history.
    FenceTest {
        /// Which tree.
        tree: TreeId,
        /// Whom the agent is told.
        side: SideName,
    },
    /// How a trial ended. Only the leader that ran it proposes it.
    FenceTested {
        /// Which tree.
        tree: TreeId,
        /// Of the trial.
        number: u64,
        /// How.
        outcome: Outcome,
        /// The agent's last words.
        detail: String,
        /// Under which leadership it was run.
        decided_under: Leadership,
    },
    /// Seals a root of a free tree, or makes a sealed one live.
    SetRoot {
        /// Of which tree.
        tree: TreeId,
        /// Which.
        root: RootId,
        /// The tree's epoch that the operator looked at.
        epoch: Epoch,
        /// What it is to be.
        state: RootState,
        /// Why.
        reason: String,
    },
    /// Forgets a sealed root.
    RemoveRoot {
        /// Of which tree.
        tree: TreeId,
        /// Which.
        root: RootId,
        /// Why.
        reason: String,
    },
    /// Ends a free tree's life, for ever: it is granted to nobody any more, and its roots are sealed.
    Retire {
        /// Which tree.
        tree: TreeId,
        /// The epoch that the operator looked at.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// Removes a retired tree that has no roots. Its id is never used again.
    RemoveTree {
        /// Which.
        tree: TreeId,
        /// Why.
        reason: String,
    },
    /// Makes a root with another cluster's marker ours: a new tree that starts cooling for the largest TTL plus grace,
    /// with epochs above those on the storage.
    Takeover {
        /// The new tree's name.
        name: TreeName,
        /// Its id.
        tree: TreeId,
        /// Its root.
        root: Root,
        /// Why.
        reason: String,
        /// Whose it was.
        from_cluster: String,
        /// The greatest epoch found on the storage.
        above: Epoch,
    },
    /// One piece of another cluster's backup; the last one restores it. Only a cluster without a tree takes it.
    RestorePiece(RestorePiece),
    /// The next piece of a restore did not come in time: what came of it is forgotten. As `ExpireSession`.
    EndRestore {
        /// Of the restore.
        id: RequestKey,
        /// The piece that did not come; ignored if it has come since.
        next: u32,
        /// Under which leadership this was decided.
        decided_under: Leadership,
    },
    /// A side is gone for good: no tree waits for its guard's word any more. Refused (`busy`) while it has a session.
    ForgetSide {
        /// Which.
        side: SideName,
        /// Why, for the history.
        reason: String,
    },
    /// The storage has seen greater epochs than this server knows: it is an older copy of what it was. The tree goes on above
    /// them, and waits as after a restore.
    RaiseEpoch {
        /// Which tree.
        tree: TreeId,
        /// The greatest epoch found on the storage.
        above: Epoch,
        /// Why.
        reason: String,
    },
    /// A side's guard of a tree obeys the policy's mode of that number, and nothing that an earlier one let through is in flight.
    Obeys {
        /// Which tree.
        tree: TreeId,
        /// Whose guard.
        session: SessionId,
        /// [`TreeStatus::mode_no`](crate::tree::TreeStatus::mode_no) of the mode.
        mode_no: u64,
    },
    /// A side tells what happened there, for the history.
    Report {
        /// Under which lease.
        lease: LeaseRef,
        /// What.
        event: EventKind,
        /// The details.
        reason: String,
        /// How many.
        count: u64,
    },
}

/// Names a lease: every command that ends, moves or vouches for one is ignored when this is not current.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseRef {
    /// Which tree.
    pub tree: TreeId,
    /// Whose.
    pub session: SessionId,
    /// Which grant.
    pub epoch: Epoch,
}

/// See [`Command::OpenSession`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenSession {
    /// Whose.
    pub side: SideName,
    /// The daemon's host, for people.
    pub host: String,
    /// The wished time to live; the answer says which it is.
    pub ttl: Ttl,
    /// The id of a new session, made by the caller.
    pub new_session: SessionId,
    /// SHA-256 of the secret by which the next restart proves itself.
    pub new_secret_digest: Vec<u8>,
    /// The proof that this is the same daemon restarted.
    pub resume: Option<Resume>,
    /// The kernel's boot id.
    pub boot: String,
    /// The machine's id, the same after each of its boots; empty if it is not known, or another machine may have the same.
    pub machine: String,
}

/// The proof that this is the same daemon restarted. The digest is made in the server's shell: the core compares digests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resume {
    /// Which session goes on.
    pub session: SessionId,
    /// What the daemon kept in its state directory.
    pub secret: Vec<u8>,
}

/// See [`Command::Acquire`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acquire {
    /// Which tree.
    pub tree: TreeId,
    /// For whom.
    pub session: SessionId,
    /// Ask the holder to hand over.
    pub ask: bool,
    /// A first write queues, not a person.
    pub first_write: bool,
    /// Refuse instead of queueing.
    pub no_wait: bool,
    /// What for.
    pub note: String,
    /// Kernel and superblock of the lower root, if both are known (I2: the way back after an expiry).
    pub place: Option<Place>,
}

/// See [`Command::Release`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Release {
    /// What ends.
    pub lease: LeaseRef,
    /// Files made durable at the end.
    pub files: u64,
    /// Bytes written under this lease.
    pub bytes: u64,
    /// Mapped pages refused after the gate had closed.
    pub late_refused: u64,
    /// Who is granted next, if the holder says so; it must have a session.
    pub to: Option<SideName>,
    /// For the history.
    pub note: String,
}

/// See [`Command::RestorePiece`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RestorePiece {
    /// Of the restore: its pieces have the same one.
    pub id: RequestKey,
    /// Which piece, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// What stands in it ([`crate::backup::pieces`]).
    pub text: String,
}

impl Command {
    /// Its name, if only the server itself proposes it: such a command carries its own proof of being current.
    pub const fn servers_own(&self) -> Option<&'static str> {
        match self {
            Command::Lead { .. } => Some("lead"),
            Command::ExpireSession { .. } => Some("expire_session"),
            Command::EndCopied { .. } => Some("end_copied"),
            Command::EndGrace { .. } => Some("end_grace"),
            Command::SettleTtl { .. } => Some("settle_ttl"),
            Command::FenceAttempt { .. } => Some("fence_attempt"),
            Command::FenceResult { .. } => Some("fence_result"),
            Command::FenceLapsed { .. } => Some("fence_lapsed"),
            Command::FenceTested { .. } => Some("fence_tested"),
            Command::Found { .. } => Some("found"),
            Command::RaiseTtl { .. } => Some("raise_ttl"),
            Command::EndRestore { .. } => Some("end_restore"),
            _ => None,
        }
    }
}
