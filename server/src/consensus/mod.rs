//! One node's part in the agreement about the lease state. The only module that names openraft.
//!
//! ```text
//! propose ─▶ proposer ─▶ openraft ─▶ log ─▶ store          confirm ─▶ confirm ─▶ openraft
//!                           │  └───▶ machine ─▶ published state, events
//!                           └──────▶ network ─▶ peers        incoming (from peers) ─▶ openraft
//!                           relay ────┘ renewals to the leader
//! ```
//!
//! Promises: an answer from [`Consensus::propose`] is that of an entry which is durable and applied here (I7); a word from
//! [`Consensus::confirm`] was earned after the call (I5); what [`Consensus::state`] shows is the state after some whole
//! entry. It decides nothing about leases and reads no clock but for time-outs.

mod ahead;
pub mod codec;
mod compaction;
pub mod confirm;
pub mod events;
pub mod gauges;
pub mod handover;
pub mod incoming;
mod kept;
mod log;
mod machine;
pub mod members;
mod messages;
pub mod network;
mod pace;
pub mod peers;
pub mod proposer;
pub mod published;
pub mod relay;
mod types;

#[cfg(test)]
mod bad_bytes_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, RwLockReadGuard};
use std::time::Duration;

use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{Config as RaftConfig, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use treelease_proto::command::{Answer, Command, Proposal};
use treelease_proto::id::{NodeId, RequestKey};
use treelease_proto::time::{Ttl, WallTime};

use self::ahead::Ahead;
use self::confirm::{Asks, Confirmer, Unconfirmed};
use self::events::Hub;
use self::handover::Leaving;
use self::log::{LogStore, Recovered};
use self::machine::Machine;
use self::network::Network;
use self::peers::{Peers, QuorumAge};
use self::proposer::{ProposeError, Proposer};
use self::published::Published;
use self::relay::Relay;
use self::types::{Batch, Metrics, Raft};
use crate::config::Token;
use crate::failure::{FailStop, Failure, Result};
use crate::fault::{Fault, Faults};
use crate::lease::State;
use crate::store::identity::{Identity, Member, damaged_dir};
use crate::store::snapshot::SnapshotDir;
use crate::store::writer::Writer;
use crate::store::{Backend, Counts};
use crate::surroundings::Surroundings;

pub use pace::Pace;

/// Directories of ours in the data directory, which must not be there without an identity.
pub const DIRECTORIES: [&str; 2] = ["log", "snapshots"];
/// Bytes in one piece of a snapshot on its way to a peer.
const SNAPSHOT_CHUNK: u64 = 1024 * 1024;
/// How long a snapshot may be on its way to a peer.
const SNAPSHOT_LIMIT_MS: u64 = 10_000;
/// Entries in one message to a peer.
const ENTRIES_IN_MESSAGE: u64 = 100;
/// How long a new or restarted node waits for a leader before it says that something is wrong.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

/// How a node stands among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The leader, if one is known and was heard lately.
    pub leader: Option<NodeId>,
    /// Members.
    pub nodes: u32,
    /// Whether a quorum has answered this node lately, if it leads; else whether it heard a leader lately.
    pub quorum: bool,
    /// Of the last entry in the log.
    pub last_log: u64,
    /// How long ago a quorum stood behind this node, or behind the leader that it heard last; none: never since it started.
    pub age: Option<Duration>,
}

/// One node's part in the agreement.
pub struct Consensus {
    node: NodeId,
    raft: Raft,
    peers: Arc<Peers>,
    network: Network,
    relay: Relay,
    published: Arc<Published>,
    proposer: Proposer,
    confirmer: Confirmer,
    writer: Arc<Writer>,
    counts: Arc<Counts>,
    log: LogStore,
    pace: Pace,
    /// It gives the leadership of this term away: nothing new is proposed ([`handover`]).
    leaving: Leaving,
    fail: FailStop,
    faults: Faults,
}

impl Consensus {
    /// Opens the data directory and starts the node. Blocks while it reads the disk.
    pub async fn open(
        dir: &Path,
        identity: &Identity,
        pace: Pace,
        token: Option<Token>,
        fail: FailStop,
        on: &Surroundings,
    ) -> Result<Self> {
        if identity.formation.is_some() && !dir.join("log").exists() {
            return Err(damaged_dir(dir, "it has promised itself to a cluster and its log is missing"));
        }
        let faults = on.faults;
        let peers = Arc::new(Peers::new(identity, pace.election_max, faults));
        let network = Network::new(peers.clone(), token, pace.heartbeat, on.dial.clone());
        let broken = |e: std::io::Error| storage_failure(dir, &e);
        let (log_dir, kind) = (dir.join("log"), identity.store);
        let opened = match on.disk.simulated(&log_dir) {
            Some(simulated) => simulated,
            None if identity.is_unfinished() => kind.open_unfinished(&log_dir, pace.store_cache, faults),
            None => kind.open_with(&log_dir, pace.store_cache, faults),
        };
        let mut backend = opened.map_err(broken)?;
        let counts = backend.counts();
        let recovered = Recovered::read(backend.load().map_err(broken)?).map_err(broken)?;
        let snapshots = SnapshotDir::open(&dir.join("snapshots")).map_err(broken)?;
        let machine = Machine::open(snapshots, fail.clone()).map_err(broken)?.on(on.disk.clone(), faults).telling(peers.clone());
        if identity.initialized && !recovered.is_complete() {
            return Err(damaged_dir(dir, "log or vote are missing, though this node was complete once"));
        }
        if recovered.purged() > machine.last_applied() {
            return Err(damaged_dir(dir, "entries were purged from the log, and the snapshot that covers them is missing"));
        }
        let published = machine.published();
        let voters = recovered.members().map_or_else(|| published.voters(), |members| members.get_joint_config().clone());
        // A control's numbers of leaderships are wrong only where a leader goes on in its term, which one of several never does.
        let goes_on = faults.has(Fault::TermsForLeaderships) || faults.has(Fault::CountsUnwritten);
        let recovered = if goes_on { recovered } else { recovered.stepped_back(identity.node, &voters) };
        let writer = on.disk.writer(backend, fail.clone()).map_err(|e| Failure::internal(format!("no thread: {e}")))?;
        let writer = Arc::new(writer);
        let ahead = if faults.has(Fault::CountsUnwritten) { Ahead::new(pace.heartbeat) } else { network.ahead() };
        let log = match LogStore::new(recovered, writer.clone()).telling(peers.clone()) {
            log if faults.has(Fault::TermsForLeaderships) => log,
            log => log.running_ahead(identity.node, published.clone(), ahead),
        };
        let config = Arc::new(raft_config(&pace)?);
        let raft = Raft::new(identity.node, config, network.clone(), log.clone(), machine)
            .await
            .map_err(|e| Failure::storage(format!("the log in {} cannot be used: {e}", dir.display())))?;
        network.tell_quorum(quorum_age(&raft));
        let used = published.state().node_ids().clone();
        peers.members_are(members::recovered(&raft).await?.nodes, &used);
        members::follow(&raft, peers.clone(), network.clone(), published.clone());
        compaction::follow(raft.clone(), published.clone(), log.clone(), pace.snapshot_after);
        let proposer = Proposer::start(writes(raft.clone()));
        let confirmer = Confirmer::start(confirm::rounds(raft.clone()), alone(published.clone()));
        let (node, leaving, relay) = (identity.node, Leaving::default(), Relay::new(network.clone()));
        let own = Self {
            node,
            raft,
            peers,
            network,
            relay,
            published,
            proposer,
            confirmer,
            writer,
            counts,
            log,
            pace,
            leaving,
            fail,
            faults,
        };
        own.watch_for_the_end();
        Ok(own)
    }

    /// Makes these members a cluster, of which this node is one. Does nothing if this node is a member of one.
    pub async fn form(&self, members: BTreeMap<NodeId, Member>) -> Result<()> {
        let stopped = |e: &dyn std::fmt::Display| Failure::storage(format!("forming the cluster failed: {e}"));
        if self.raft.is_initialized().await.map_err(|e| stopped(&e))? {
            return Ok(());
        }
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another member has been elected meanwhile, out of the same formation: the cluster is there.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(e) => Err(stopped(&e)),
        }
    }

    /// What this node knows of the others.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Where this node is reached, as the cluster has it; empty: it is a single node.
    pub fn own_address(&self) -> String {
        self.peers.own_address()
    }

    /// The way to them.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Whether this node is, or is about to be, a member of some cluster: its log or its vote hold something.
    pub async fn is_formed(&self) -> Result<bool> {
        self.raft.is_initialized().await.map_err(|e| Failure::storage(format!("the log cannot be read: {e}")))
    }

    /// Whether the log holds something, as far as this node has said.
    pub fn has_log(&self) -> bool {
        self.raft.metrics().borrow().last_log_index.is_some()
    }

    /// The shortest time to live that so many nodes allow, at this pace.
    pub fn least_ttl(&self, nodes: usize) -> Ttl {
        self.pace.least_ttl(nodes)
    }

    /// Has on disk what the log owes it, as far as a saved snapshot covers it: from then on this directory's log is complete.
    pub async fn settle(&self) -> Result<()> {
        let applied = *self.published.applied().borrow();
        self.log.settle(applied).await.map_err(|e| Failure::storage(format!("the log cannot be written: {e}")))
    }

    /// Waits until some node leads.
    pub async fn leader_known(&self) -> Result<()> {
        let known = self.raft.wait(Some(LEADER_LIMIT)).metrics(|m| m.current_leader.is_some(), "a leader is known").await;
        known.map(drop).map_err(|e| Failure::internal(format!("no leader after {} s: {e}", LEADER_LIMIT.as_secs())))
    }

    /// Has a caller's command logged, and waits until it is applied.
    pub async fn propose(&self, proposal: Proposal, limit: Duration) -> std::result::Result<Answer, ProposeError> {
        self.gate()?;
        self.proposer.propose(proposal, limit).await
    }

    /// The same for what this server itself decides. Never forwarded.
    pub async fn propose_own(
        &self,
        command: Command,
        at: WallTime,
        limit: Duration,
    ) -> std::result::Result<Answer, ProposeError> {
        self.gate()?;
        let actor = format!("server node {}", self.node);
        let proposal = Proposal { request_key: RequestKey::random(), actor, at, command };
        self.proposer.propose_own(proposal, limit).await
    }

    /// Confirms, with a quorum and after this call, that this node leads, and waits until its state goes that far (I5).
    pub async fn confirm(&self, asks: Asks) -> std::result::Result<(), Unconfirmed> {
        if self.faults.has(Fault::LocalReads) {
            return Ok(());
        }
        self.confirmer.confirm(asks).await
    }

    /// The state as it is applied here. Take it before any lock on timers, and hold it briefly.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.published.state()
    }

    /// Changes whenever an entry was applied.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.published.applied()
    }

    /// Events as they are applied.
    pub fn events(&self) -> &Hub {
        &self.published.hub
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How often the store did what.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// Whether this node leads and a quorum has answered it lately: a leader that is cut off never steps down by itself
    /// (STACK 1.6, trap 1).
    pub fn leads(&self) -> bool {
        self.gate().is_ok()
    }

    /// Resolves when the standing among the nodes may have changed.
    pub async fn standing_changed(&self) {
        let mut metrics = self.raft.server_metrics();
        metrics.mark_unchanged();
        if metrics.changed().await.is_err() {
            // openraft has ended; whoever waits for it sees that elsewhere.
            std::future::pending().await
        }
    }

    /// How this node stands among the others.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        // A follower cannot know by itself: the leader that it hears may be cut off together with it.
        let age = match metrics.state {
            ServerState::Leader => self.quorum_ack(&metrics),
            _ => self.peers.quorum_age(),
        };
        let quorum = metrics.current_leader.is_some() && age.is_some_and(|age| age < self.pace.election_max);
        Standing {
            leader: metrics.current_leader.filter(|_| quorum),
            nodes: metrics.membership_config.nodes().count() as u32,
            quorum,
            last_log: metrics.last_log_index.unwrap_or(0),
            age,
        }
    }

    /// Ends openraft, then the thread that writes: everything that was given to it is on disk then.
    pub async fn stop(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!("openraft did not end in order: {e}");
        }
        let writer = self.writer.clone();
        if tokio::task::spawn_blocking(move || writer.stop()).await.is_err() {
            tracing::warn!("the thread raft-log did not end in order");
        }
    }

    fn gate(&self) -> std::result::Result<(), ProposeError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.running_state.is_err() {
            return Err(ProposeError::Stopping);
        }
        if metrics.state == ServerState::Leader && self.leaving.is(metrics.current_term) {
            return Err(ProposeError::NotLeading { leader: None });
        }
        if metrics.state != ServerState::Leader {
            return Err(ProposeError::NotLeading { leader: metrics.current_leader.filter(|id| *id != self.node) });
        }
        match self.quorum_ack(&metrics) {
            Some(age) if age < self.pace.election_max => Ok(()),
            // A leader that is cut off never steps down by itself (STACK 1.6, trap 1), and knows no better leader to name.
            _ => Err(ProposeError::NoQuorum),
        }
    }

    /// How long ago a quorum has answered this leader. openraft says so each time that its core turns, and that waits for the disk:
    /// so while a disk hangs its last word stands still, and would be young for ever. The others have elected another one then.
    fn quorum_ack(&self, metrics: &Metrics) -> Option<Duration> {
        let alone = metrics.membership_config.voter_ids().count() < 2;
        let hangs = if alone { Duration::ZERO } else { self.writer.busy_for() };
        metrics.millis_since_quorum_ack.map(|ms| Duration::from_millis(ms).max(hangs))
    }

    /// An error in openraft's core is final: it says so only in its metrics.
    fn watch_for_the_end(&self) {
        let (mut metrics, fail) = (self.raft.metrics(), self.fail.clone());
        tokio::spawn(async move {
            use openraft::error::Fatal;
            let ended = metrics.wait_for(|m| m.running_state.is_err()).await;
            match ended.ok().and_then(|m| m.running_state.as_ref().err().cloned()) {
                Some(Fatal::Stopped) | None => {}
                Some(Fatal::Panicked) => fail.report(Failure::internal("openraft panicked; please report this")),
                Some(e) => fail.report(Failure::storage(format!("the node cannot go on: {e}"))),
            }
        });
    }
}

/// What this node says of its quorum while it leads.
fn quorum_age(raft: &Raft) -> impl Fn() -> QuorumAge + Send + Sync + 'static {
    let metrics = raft.metrics();
    move || match metrics.borrow().millis_since_quorum_ack {
        Some(ms) => QuorumAge::Ago(Duration::from_millis(ms)),
        None => QuorumAge::Never,
    }
}

/// Whether this node is a quorum by itself.
fn alone(published: Arc<Published>) -> impl Fn() -> bool + Send + 'static {
    move || published.voters().iter().all(|voters| voters.len() < 2)
}

fn raft_config(pace: &Pace) -> Result<RaftConfig> {
    let ms = |d: Duration| d.as_millis() as u64;
    let config = RaftConfig {
        cluster_name: "treelease".into(),
        heartbeat_interval: ms(pace.heartbeat),
        election_timeout_min: ms(pace.election_min),
        election_timeout_max: ms(pace.election_max),
        install_snapshot_timeout: SNAPSHOT_LIMIT_MS,
        // `compaction` asks for them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: pace.log_kept,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK,
        max_payload_entries: ENTRIES_IN_MESSAGE,
        ..RaftConfig::default()
    };
    config.validate().map_err(|e| Failure::config(format!("heartbeat and election time-out do not fit together: {e}")))
}

/// One entry: written, committed, applied here. Whatever openraft says but for an answer is no proof that it did not happen.
fn writes(
    raft: Raft,
) -> impl Fn(Batch) -> futures::future::BoxFuture<'static, std::result::Result<Vec<Answer>, ProposeError>> + Send + 'static {
    move |batch| {
        let raft = raft.clone();
        Box::pin(async move {
            match raft.client_write(batch).await {
                Ok(done) => Ok(done.data.0),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                    Err(ProposeError::OutcomeUnknown("this node stopped leading".into()))
                }
                Err(e) => Err(ProposeError::OutcomeUnknown(e.to_string())),
            }
        })
    }
}

fn storage_failure(dir: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::storage(format!("the data directory {} cannot be used: {error}; check its owner and mode", dir.display()))
        }
        std::io::ErrorKind::StorageFull => {
            Failure::storage(format!("the data directory {} cannot be used: {error}; make room and start again", dir.display()))
        }
        _ => damaged_dir(dir, &error.to_string()),
    }
}
