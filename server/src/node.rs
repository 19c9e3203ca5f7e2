//! One node: its parts wired together, and taken down in order.
//!
//! Promises: whatever keeps the node from starting leaves the data directory as it was (a taken port or a held lock are
//! found before anything is written); `DIR/address` is there exactly while the node serves; nobody is answered before the
//! node belongs to a cluster: a single node leads first; a node of several answers other nodes from the beginning, and callers
//! once its cluster is founded, also while nobody leads (reads are marked then, the rest is refused). Order of the end: another
//! node leads, no new callers, streams end, the leader's task ends, openraft ends, the thread that writes is joined, the lock
//! goes. It decides nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use treelease_proto::clock::Clock;
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::{ClusterId, NodeId};
use treelease_proto::time::Ttl;

use crate::admin::{self, Admin};
use crate::api::auth::Keys;
use crate::api::callers::Callers;
use crate::api::{self, Api, Door};
use crate::config::Config;
use crate::consensus::handover::HAND_OVER_LIMIT;
use crate::consensus::{Consensus, DIRECTORIES, Pace};
use crate::failure::{FailStop, Failure, Result};
use crate::fault::Fault;
use crate::fencing::runner::Runner;
use crate::formation::Former;
use crate::leader::{Leader, Seat};
use crate::limits;
use crate::readiness::Readiness;
use crate::reload;
use crate::store::files;
use crate::store::identity::Identity;
use crate::store::lock::DirLock;
use crate::surroundings::Surroundings;
use crate::telemetry::Telemetry;

/// How long the whole end may take: giving the leadership away, the callers, the disk.
pub const STOP_LIMIT: Duration = Duration::from_secs(8);
const _: () = assert!(HAND_OVER_LIMIT.as_millis() + DRAIN_LIMIT.as_millis() < STOP_LIMIT.as_millis());
/// How much of that is for callers whose answers are on their way.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long the first command of a cluster may take.
const FOUND_LIMIT: Duration = Duration::from_secs(10);
/// How often a new cluster of several nodes is looked at until its first command is there.
const FOUND_RETRY: Duration = Duration::from_millis(100);
/// How long a node may take until its first leadership has begun.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A running node.
pub struct Node {
    address: String,
    cluster: ClusterId,
    address_file: PathBuf,
    consensus: Arc<Consensus>,
    fail: FailStop,
    /// Ends new callers and streams.
    closing: CancellationToken,
    /// Ends the leader's task.
    stop_leading: CancellationToken,
    admin_address: Option<SocketAddr>,
    config: Config,
    keys: Keys,
    limits: limits::Live,
    runner: Arc<Runner>,
    api: JoinHandle<()>,
    leader: JoinHandle<()>,
    _lock: DirLock,
}

impl Node {
    /// Starts a node on this machine and returns when it serves.
    pub async fn start(config: Config) -> Result<Self> {
        Self::start_on(config, Surroundings::of_this_machine()).await
    }

    /// The same on other ground.
    pub async fn start_on(config: Config, mut on: Surroundings) -> Result<Self> {
        let dir = config.data_dir.clone();
        make_dir(&dir)?;
        let lock = DirLock::take(&dir)?;
        let (callers, bound) = match on.callers.take() {
            Some(callers) => (Callers::Given(callers), String::new()),
            None => {
                let listener = bind(&config).await?;
                let bound = listener.local_addr().map_err(|e| Failure::internal(format!("no local address: {e}")))?;
                (Callers::Sockets(listener), bound.to_string())
            }
        };
        let address = config.advertise.clone().unwrap_or_else(|| bound.clone());
        let admin = if config.admin.is_empty() { None } else { Some(admin::bind(&config.admin)?) };
        let address_file = dir.join("address");
        remove_address(&address_file)?;

        let fail = FailStop::new();
        let mut identity = Identity::open_as(&dir, config.node_id, &DIRECTORIES, config.store)?;
        identity.upgrade(&dir)?;
        let opened = Consensus::open(&dir, &identity, config.pace.clone(), config.token.clone(), fail.clone(), &on).await?;
        let consensus = Arc::new(opened);
        // A cluster of one that other nodes have joined is one of several, whatever the flags say.
        let grown = consensus.members().nodes.len() > 1;
        let several = grown || identity.formation.is_some() || !config.peers.is_empty();
        let alone = !grown && identity.formation.is_none();
        if alone && several && (identity.initialized || consensus.is_formed().await?) {
            consensus.stop().await;
            return Err(a_cluster_of_its_own(&dir, &identity));
        }
        let mut set = config.peers.clone();
        set.insert(config.node_id, address.clone());
        warn_of_another_set(&consensus, &set);
        let former = Arc::new(Former::new(dir.clone(), identity, set, consensus.clone(), fail.clone()));
        let clock = on.clock.clone();
        let seat = Arc::new(Seat::new());
        let (closing, stop_leading) = (CancellationToken::new(), CancellationToken::new());
        let counts = Arc::new(Telemetry::default());
        let runner = Runner::new(config.agents.clone(), config.node_id, reached_here(&bound), config.token_file.clone());
        let runner = Arc::new(runner);
        let leader = Leader {
            consensus: consensus.clone(),
            seat: seat.clone(),
            clock: clock.clone(),
            counts: counts.clone(),
            runner: runner.clone(),
            faults: on.faults,
        };
        let leader = tokio::spawn(leader.run(stop_leading.clone()));
        let known = Arc::new(OnceLock::new());
        let readiness =
            Readiness { consensus: consensus.clone(), seat: seat.clone(), cluster: known.clone(), fail: fail.clone() };
        let admin_address = match admin {
            Some(listener) => {
                let at = listener.local_addr().map_err(|e| Failure::internal(format!("no local address: {e}")))?;
                let (consensus, readiness, counts) = (consensus.clone(), readiness.clone(), counts.clone());
                Admin { consensus, readiness, counts, fail: fail.clone() }.start(listener, closing.clone())?;
                tracing::info!(address = %at, "health and metrics");
                Some(at)
            }
            None => None,
        };
        let limits = limits::Live::new(config.limits);
        let api = Api {
            consensus: consensus.clone(),
            seat: seat.clone(),
            clock: clock.clone(),
            former: former.clone(),
            counts,
            runner: runner.clone(),
            limits: limits.clone(),
            cluster: known.clone(),
            closing: closing.clone(),
        };
        let keys = Keys::new(&config.tokens());
        let door = Door { keys: keys.clone(), readiness, reflection: config.reflection };
        let serve = api::serve(callers, api, door, fail.clone());
        let start = Start { consensus: &consensus, seat: &seat, former: &former, clock: clock.as_ref(), pace: &config.pace };
        // Several nodes find each other through this service; a single one has nothing to say before it leads.
        let (gate, opened) = oneshot::channel();
        let api = tokio::spawn(async move {
            if several || opened.await.is_ok() {
                serve.await;
            }
        });
        let joined = async { if several { start.together().await } else { start.alone().await } };
        let joined = tokio::select! {
            joined = joined => joined,
            failure = fail.wait() => Err(failure),
        };
        let cluster = match joined {
            Ok(cluster) => known.get_or_init(|| cluster).clone(),
            Err(failure) => {
                closing.cancel();
                stop_leading.cancel();
                consensus.stop().await;
                return Err(fail.failed().unwrap_or(failure));
            }
        };
        // With several nodes it serves already, and nobody waits for this word.
        let _ = gate.send(());
        let node = Self {
            address,
            cluster,
            address_file,
            consensus,
            fail,
            closing,
            stop_leading,
            admin_address,
            config: config.clone(),
            keys,
            limits,
            runner,
            api,
            leader,
            _lock: lock,
        };
        if let Err(e) = files::replace(&node.address_file, format!("{}\n", node.address).as_bytes()) {
            let failure = Failure::storage(format!("cannot write {}: {e}; is the disk full?", node.address_file.display()));
            node.stop().await;
            return Err(failure);
        }
        tracing::info!(node = config.node_id, address = %node.address, cluster = %node.cluster, "serving");
        Ok(node)
    }

    /// Where it is reached: `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where health and metrics are told, if they are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Its part in the agreement, for those who look at what is applied.
    pub fn consensus(&self) -> &Arc<Consensus> {
        &self.consensus
    }

    /// The cluster that it belongs to.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The index of the last log entry: renewals must not move it.
    pub fn last_log(&self) -> u64 {
        self.consensus.standing().last_log
    }

    /// Commits of the store, and how many of them were synced.
    pub fn commits_and_syncs(&self) -> (u64, u64) {
        self.consensus.counts().read()
    }

    /// Takes what of a configuration may change while the node runs; all or nothing.
    pub fn reload(&mut self, config: Config) -> Result<()> {
        reload::may_become(&self.config, &config)?;
        self.keys.change(&config.tokens());
        self.limits.change(config.limits);
        self.runner.change(config.agents.clone(), config.token_file.clone());
        self.consensus.network().show(config.token.clone());
        self.config = config;
        Ok(())
    }

    /// Resolves when the node can not go on.
    pub async fn failed(&self) -> Failure {
        self.fail.wait().await
    }

    /// Ends it, in order and within [`STOP_LIMIT`].
    pub async fn stop(self) {
        if let Err(e) = files::remove(&self.address_file) {
            tracing::warn!("cannot remove {}: {e}", self.address_file.display());
        }
        let ended = timeout(STOP_LIMIT, async {
            // While it still answers the others: they need its vote. It proposes nothing new from here on.
            if self.consensus.leads()
                && self.consensus.members().voters().len() > 1
                && !self.consensus.faults().has(Fault::NoHandOver)
            {
                match self.consensus.hand_over().await {
                    Ok(heir) => tracing::info!("node {heir} leads now"),
                    Err(why) => tracing::warn!("nobody took the leadership, the others wait for an election: {why}"),
                }
            }
            self.closing.cancel();
            let mut api = self.api;
            if timeout(DRAIN_LIMIT, &mut api).await.is_err() {
                tracing::warn!("some callers did not end in time; they are cut off");
                api.abort();
            }
            self.stop_leading.cancel();
            if self.leader.await.is_err() {
                tracing::warn!("the leader's task ended with a panic");
            }
            self.consensus.stop().await;
        });
        if ended.await.is_err() {
            tracing::warn!("the node did not end in order within {} s", STOP_LIMIT.as_secs());
        }
    }
}

/// Makes it, durably: what is synced inside a directory is of no use if a power cut takes the directory's own name.
fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| {
        Failure::cannot_create(format!("cannot make the data directory {}: {e}; check the path and who owns it", dir.display()))
    })?;
    if missing.is_empty() {
        // It may be there since a start that was cut off just here. Who may not read the parent has not made it.
        let _ = files::sync_dir(dir.parent().unwrap_or(Path::new(".")));
    }
    for made in missing {
        files::sync_dir(made.parent().unwrap_or(Path::new("."))).map_err(|e| {
            Failure::storage(format!("cannot make the new data directory {} durable: {e}; check the disk", dir.display()))
        })?;
    }
    Ok(())
}

/// Where a program on this machine reaches the node that is bound there.
fn reached_here(bound: &str) -> String {
    match bound.parse::<SocketAddr>() {
        Ok(at) if at.ip().is_unspecified() && at.is_ipv4() => format!("127.0.0.1:{}", at.port()),
        Ok(at) if at.ip().is_unspecified() => format!("[::1]:{}", at.port()),
        _ => bound.to_owned(),
    }
}

fn remove_address(path: &Path) -> Result<()> {
    files::remove(path).map_err(|e| Failure::storage(format!("cannot remove {}: {e}", path.display())))
}

async fn bind(config: &Config) -> Result<TcpListener> {
    TcpListener::bind(&config.listen[..]).await.map_err(|e| {
        let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
        let hint = match e.kind() {
            std::io::ErrorKind::AddrInUse => "another program has that port; choose another --listen, or :0 for any free one",
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another --listen",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose another --listen",
            _ => "choose another --listen",
        };
        Failure::cannot_create(format!("cannot listen on {}: {e}; {hint}", listen.join(", ")))
    })
}

/// A single node's directory, and a list of several.
fn a_cluster_of_its_own(dir: &Path, identity: &Identity) -> Failure {
    Failure::config(format!(
        "the data directory {} is a cluster of its own ({}), formed by one node: it cannot form another one with --peer. Leave \
         --peer out to go on as one node, and add nodes to it while it serves (`treelease cluster add`); to begin a new cluster, \
         start with empty data directories",
        dir.display(),
        identity.cluster
    ))
}

/// Addresses are part of the membership: what the cluster has counts, not what a flag says later.
fn warn_of_another_set(consensus: &Consensus, set: &BTreeMap<NodeId, String>) {
    let members = consensus.members().nodes;
    for (id, member) in members.iter().filter(|_| members.len() > 1) {
        match set.get(id) {
            Some(addr) if *addr != member.addr => tracing::warn!(
                "the cluster has node {id} at {}, and it is listed at {addr} here; the first one counts, until `treelease cluster add \
                 {id}={addr}` changes it",
                member.addr
            ),
            _ => {}
        }
    }
}

/// The way of a node into its cluster.
struct Start<'a> {
    consensus: &'a Consensus,
    seat: &'a Seat,
    former: &'a Former,
    clock: &'a dyn Clock,
    pace: &'a Pace,
}

impl Start<'_> {
    /// A single node: it leads, or something is wrong.
    async fn alone(&self) -> Result<ClusterId> {
        self.former.alone().await?;
        self.consensus.leader_known().await?;
        until_leading(self.consensus, self.seat).await?;
        let cluster = found(self.consensus, &self.former.identity(), self.clock).await?;
        self.former.initialize()?;
        if let Err(why) = self.former.at_this_address().await {
            tracing::warn!("the cluster has this node at another address still: {why}");
        }
        Ok(cluster)
    }

    /// One of several: waits for the others as long as it takes, once. Later it serves at once, whoever else runs.
    async fn together(&self) -> Result<ClusterId> {
        let identity = self.former.identity();
        if identity.initialized {
            return Ok(identity.cluster);
        }
        self.former.together().await?;
        let identity = self.former.identity();
        let nodes = identity.formation.as_ref().map_or(1, |formation| formation.members.len());
        let (mut applied, mut turned) = (self.consensus.applied(), self.seat.turned());
        loop {
            applied.mark_unchanged();
            turned.mark_unchanged();
            let known = self.consensus.state().cluster().cloned();
            match known {
                Some(cluster) if cluster == identity.cluster => break,
                Some(cluster) => return Err(mixed(&cluster, &identity.cluster)),
                None => {}
            }
            let leads = self.seat.timers().leading().is_some();
            if leads {
                let ttl_min = self.pace.least_ttl(nodes);
                let command = Command::Found { cluster: identity.cluster.clone(), ttl_min, ttl_max: Ttl::MAX };
                if let Err(e) = self.consensus.propose_own(command, self.clock.wall(), FOUND_LIMIT).await {
                    tracing::warn!("founding the cluster is tried again: {e}");
                }
            }
            tokio::select! {
                _ = applied.changed() => {}
                _ = turned.changed() => {}
                () = sleep(FOUND_RETRY) => {}
            }
        }
        // Log and vote are there, for the cluster's id came through them.
        self.consensus.settle().await?;
        self.former.initialize()?;
        Ok(identity.cluster)
    }
}

fn mixed(log: &ClusterId, identity: &ClusterId) -> Failure {
    Failure::storage(format!(
        "the log belongs to cluster {log}, the file `identity` to cluster {identity}: parts of two data directories were mixed; \
         restore a backup of one of them as a whole"
    ))
}

/// The cluster's id is the first command of a new cluster; after a restart it is in the state already. Called when a
/// leadership of this node has begun: its `Lead` comes after everything that was in the log, so all of that is applied.
async fn found(consensus: &Consensus, identity: &Identity, clock: &dyn Clock) -> Result<ClusterId> {
    let known = consensus.state().cluster().cloned();
    match known {
        Some(cluster) if cluster == identity.cluster => Ok(cluster),
        Some(cluster) => Err(mixed(&cluster, &identity.cluster)),
        None if identity.initialized => Err(Failure::storage(
            "the log has lost the cluster's id, though this node was complete once; restore a backup of the whole data directory",
        )),
        None => {
            let command = Command::Found { cluster: identity.cluster.clone(), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX };
            match consensus.propose_own(command, clock.wall(), FOUND_LIMIT).await {
                Ok(Answer::Done) => Ok(identity.cluster.clone()),
                Ok(other) => Err(Failure::internal(format!("founding the cluster was answered with {other:?}"))),
                Err(e) => Err(Failure::internal(format!("founding the cluster failed: {e}; start the node again"))),
            }
        }
    }
}

async fn until_leading(consensus: &Consensus, seat: &Seat) -> Result<()> {
    let mut turned = seat.turned();
    let leading = turned.wait_for(|_| seat.timers().leading().is_some());
    match timeout(READY_LIMIT, leading).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::internal(format!(
            "node {} did not begin to lead within {} s; is the disk very slow?",
            consensus.node(),
            READY_LIMIT.as_secs()
        ))),
    }
}
