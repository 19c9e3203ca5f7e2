//! I7 under power cuts: real servers write to disks with volatile caches (`treelease_tests::disk`), callers note what was
//! acknowledged, the power goes at some moment, and what the disks have kept is opened by the next start.
//!
//! *Promises:* from each seed come the moments of the cuts, in changes of a disk, and the coins that decide what it keeps (which
//! command was written by then is the scheduler's choice). Nothing acknowledged is missing after any cut, no epoch has gone back, and every node always
//! starts. With three nodes the power goes for all of them, each at a moment of its own. *Control:* a server that leaves out its
//! `fdatasync` is caught by the same rig, with each store; and so is one that leaves out the store's, though its journal has one.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tonic::transport::Channel;
use treelease_proto::command::{Acquire, Answer, Command, Grant, LeaseRef, OpenSession, Release};
use treelease_proto::id::{RequestKey, SessionId, TreeId};
use treelease_proto::time::Ttl;
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_tests::disk::{Disk, Left, Model};
use treelease_tests::hosts::{Timer, World, executable, free_ports, violated};
use treelease_tests::world::rng::Rng;

/// Seeds of the quick tier, for each store.
const QUICK: u64 = 2;
/// Seeds of the long tier, for each store.
const LONG: u64 = 150;
/// Seeds of three nodes in the quick tier, and in the long one.
const QUICK_THREE: u64 = 1;
const LONG_THREE: u64 = 60;
/// Power cuts of one seed, each on what the one before has left.
const CUTS: usize = 4;
/// Seeds after which a control must have been caught. The first one suffices as a rule.
const CONTROL: u64 = 10;
/// Changes of a disk under load until its power goes, about: some two hundred commits.
const CHANGES: usize = 500;
/// Changes of a disk while a node starts, before that is known.
const OPENING: u64 = 200;
/// Least commands that a seed must have seen acknowledged: else it has tried nothing.
const LEAST: usize = 10;
/// How long a start, or a burst of load, may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a caller waits for one answer.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is taken.
const ANSWER_MAX: usize = 64 << 20;
/// Callers at once.
const CALLERS: usize = 4;

type Client = LeaseClient<Channel>;

#[test]
fn i7_no_power_cut_loses_what_was_acknowledged_with_sled() {
    all_seeds(&["sled"], QUICK, LONG);
}

#[test]
fn i7_no_power_cut_loses_what_was_acknowledged_with_redb() {
    all_seeds(&["redb"], QUICK, LONG);
}

#[test]
fn i7_no_power_cut_of_three_nodes_loses_what_was_acknowledged() {
    all_seeds(&["sled", "redb", "sled"], QUICK_THREE, LONG_THREE);
}

#[test]
fn control_sled_without_its_fdatasync_loses_what_was_acknowledged() {
    control(&["sled"]);
}

#[test]
fn control_redb_without_its_fdatasync_loses_what_was_acknowledged() {
    control(&["redb"]);
}

#[test]
fn control_three_nodes_without_their_fdatasync_lose_what_was_acknowledged() {
    control(&["redb", "sled", "redb"]);
}

fn all_seeds(stores: &'static [&'static str], quick: u64, long: u64) {
    for seed in seeds(quick, long) {
        let mut rig = Rig::new(seed, stores, None);
        if let Err(broken) = rig.play() {
            let again =
                format!("TREELEASE_SEEDS={seed}..{} cargo nextest run -p treelease-tests --test story_power_cut", seed + 1);
            violated("power_cut", &format!("{stores:?}, seed {seed}: {broken}\n{}\nagain: {again}", rig.logs()));
        }
        assert!(rig.acknowledged.len() >= LEAST, "seed {seed}: only {} commands were acknowledged", rig.acknowledged.len());
        eprintln!("{stores:?}, seed {seed}: {CUTS} cuts, {} acknowledged, nothing lost", rig.acknowledged.len());
    }
}

#[test]
fn control_sled_whose_journal_alone_is_synced_loses_what_was_acknowledged() {
    control_of(&["sled"], "no_store_sync");
}

#[test]
fn control_redb_whose_journal_alone_is_synced_loses_what_was_acknowledged() {
    control_of(&["redb"], "no_store_sync");
}

fn control(stores: &'static [&'static str]) {
    control_of(stores, "no_sync");
}

fn control_of(stores: &'static [&'static str], fault: &'static str) {
    let caught = (0..CONTROL).find_map(|seed| Rig::new(seed, stores, Some(fault)).play().err());
    let caught = caught.unwrap_or_else(|| panic!("{stores:?} with {fault}, and {CONTROL} seeds of the rig did not notice"));
    eprintln!("{stores:?} with {fault}: caught: {caught}");
}

fn seeds(quick: u64, long: u64) -> std::ops::Range<u64> {
    match std::env::var("TREELEASE_SEEDS") {
        Ok(range) => {
            let parts = range.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            let (from, to) = parts.unwrap_or_else(|| panic!("TREELEASE_SEEDS={range}: write it as 7..20"));
            from..to
        }
        Err(_) if std::env::var_os("TREELEASE_LONG").is_some() => 0..long,
        Err(_) => 0..quick,
    }
}

/// Disks through several cuts, one for each node.
struct Rig {
    world: World,
    runtime: tokio::runtime::Runtime,
    rng: Rng,
    seed: u64,
    /// Of each node.
    stores: &'static [&'static str],
    ports: Vec<u16>,
    fault: Option<&'static str>,
    /// Names of trees whose making was acknowledged.
    acknowledged: BTreeSet<String>,
    /// Who takes and gives back a tree all the time.
    holder: Option<(SessionId, TreeId)>,
    /// The greatest epoch that was acknowledged.
    epoch: u64,
    /// Changes that a disk saw until its node served, the last time.
    opening: u64,
}

/// The processes of one start. Killed when they are dropped.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Rig {
    fn new(seed: u64, stores: &'static [&'static str], fault: Option<&'static str>) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let (world, rng, ports) = (World::new(), Rng::new(seed), free_ports(stores.len()));
        let acknowledged = BTreeSet::new();
        Rig { world, runtime, rng, seed, stores, ports, fault, acknowledged, holder: None, epoch: 0, opening: OPENING }
    }

    /// All cuts, and a last start with the power on. What is broken, if anything is.
    fn play(&mut self) -> Result<(), String> {
        let mut models: Vec<Model> = self.stores.iter().map(|_| Model::new()).collect();
        for cut in 0..=CUTS {
            let mount = |(n, model): (usize, Model)| Disk::mount(model, &self.world.path(&format!("disk-{n}")));
            let disks: Vec<Disk> = models.into_iter().enumerate().map(mount).collect();
            // Some of them while the nodes start.
            if cut + 1 < CUTS && self.rng.chance(30) {
                for disk in &disks {
                    disk.cut_after(self.rng.below(self.opening as usize) as u64);
                }
            }
            let at = |why| format!("after cut {cut}: {why}");
            let (running, serve) = self.start(&disks).map_err(at)?;
            if serve {
                self.opening = disks.iter().map(Disk::changes).max().unwrap_or(0) + 1;
                self.check(cut, &disks).map_err(at)?;
                if cut < CUTS {
                    self.load(cut, &disks);
                }
            }
            drop(running);
            // What each keeps is drawn from a number of its own, however much there is to keep.
            let mut keep = |disk: Disk| disk.cut(self.rng.pick(&Left::ALL), &mut Rng::new(self.rng.draw()));
            models = disks.into_iter().map(&mut keep).collect();
        }
        Ok(())
    }

    /// Whether all of them serve; else the power went before. An error: one that had power did not start.
    fn start(&self, disks: &[Disk]) -> Result<(Running, bool), String> {
        let addresses: Vec<_> = disks.iter().map(|disk| disk.at().join("data/address")).collect();
        for address in &addresses {
            // A cut leaves it behind.
            let _ = std::fs::remove_file(address);
        }
        let mut running = Running(Vec::new());
        for (n, disk) in disks.iter().enumerate() {
            running.0.push(self.command(n, disk).spawn().expect("treelease-server runs"));
        }
        let timer = Timer::start();
        loop {
            if disks.iter().any(|disk| !disk.has_power()) {
                return Ok((running, false));
            }
            for (n, child) in running.0.iter_mut().enumerate() {
                if let Some(status) = child.try_wait().expect("our child")
                    && disks[n].has_power()
                {
                    return Err(format!("node {} does not open: {status}", n + 1));
                }
            }
            if addresses.iter().all(|address| address.exists()) {
                return Ok((running, true));
            }
            if timer.elapsed() > LIMIT {
                return Err(format!("not all nodes serve within {LIMIT:?}, and none says why"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn command(&self, n: usize, disk: &Disk) -> std::process::Command {
        let log = File::options().create(true).append(true).open(self.world.path(&format!("node-{}.log", n + 1)));
        let log = log.expect("a log");
        let mut command = std::process::Command::new(executable("treelease-server"));
        command.args(["--insecure", "--node-id", &(n + 1).to_string(), "--listen", &self.address(n), "--data-dir"]);
        command.arg(disk.at().join("data")).args(["--store", self.stores[n]]);
        // One that is alone elects itself: the sooner, the better. Three need time to answer each other on a busy machine.
        let pace = if self.stores.len() == 1 { ["50ms", "150ms..300ms"] } else { ["100ms", "500ms..900ms"] };
        command.args(["--heartbeat", pace[0], "--election-timeout", pace[1]]);
        for peer in (0..self.stores.len()).filter(|peer| *peer != n) {
            command.args(["--peer", &format!("{}={}", peer + 1, self.address(peer))]);
        }
        // What a load writes fills the journal some times.
        let faults = self.fault.into_iter().chain(["small_journal"]).collect::<Vec<_>>().join(",");
        command.env("TREELEASE_TEST_WORLD", self.world.dir()).env("TREELEASE_TEST_FAULT", faults);
        if self.seed % 2 == 1 {
            // Often, so that snapshots and purges are cut off too.
            command.env("TREELEASE_TEST_SNAPSHOT_AFTER", "40");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        command
    }

    fn address(&self, n: usize) -> String {
        format!("127.0.0.1:{}", self.ports[n])
    }

    fn clients(&self) -> Vec<Client> {
        let _inside = self.runtime.enter();
        let connect = |n| {
            let channel = Channel::from_shared(format!("http://{}", self.address(n))).expect("an address");
            LeaseClient::new(channel.connect_lazy()).max_decoding_message_size(ANSWER_MAX)
        };
        (0..self.stores.len()).map(connect).collect()
    }

    /// Whether so many are left that something can be acknowledged.
    fn quorum_has_power(disks: &[Disk]) -> bool {
        disks.iter().filter(|disk| disk.has_power()).count() > disks.len() / 2
    }

    /// Whether everything that was acknowledged is there. What cannot be looked at now is looked at after the next cut.
    fn check(&self, cut: usize, disks: &[Disk]) -> Result<(), String> {
        let clients = self.clients();
        let timer = Timer::start();
        let mut tries = 0;
        let status = loop {
            if !Self::quorum_has_power(disks) {
                return Ok(());
            }
            // A node that has carried something out knows all that was acknowledged before.
            tries += 1;
            let probe = add(&format!("probe{cut}-{tries}"), "x");
            let client = &clients[tries % clients.len()];
            let asked = self.runtime.block_on(async {
                ask(client, &probe).await?;
                let mut client = client.clone();
                tokio::time::timeout(CALL_LIMIT, client.status(wire::StatusRequest {})).await.ok()?.ok()
            });
            if let Some(status) = asked {
                break status.into_inner();
            }
            if timer.elapsed() > LIMIT {
                return Err(format!("no node answers within {LIMIT:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let there: BTreeSet<String> = status.trees.iter().map(|tree| tree.name.clone()).collect();
        let lost: Vec<&String> = self.acknowledged.difference(&there).collect();
        if let Some(first) = lost.first() {
            return Err(format!("{} of {} acknowledged trees are lost, {first} first", lost.len(), self.acknowledged.len()));
        }
        let epoch = status.trees.iter().map(|tree| tree.epoch).max().unwrap_or(0);
        if epoch < self.epoch {
            return Err(format!("epoch {} was granted, and the server is at {epoch}", self.epoch));
        }
        if let Some((session, _)) = &self.holder
            && !status.sessions.iter().any(|known| known.session == session.as_str())
        {
            return Err("an acknowledged session is lost".into());
        }
        Ok(())
    }

    /// Callers at work until too few nodes have power.
    fn load(&mut self, cut: usize, disks: &[Disk]) {
        for disk in disks {
            // The last one sees a good many, so that each seed has.
            let least = if cut + 1 == CUTS { CHANGES / 2 } else { 20 };
            disk.cut_after((least + self.rng.below(CHANGES)) as u64);
        }
        let clients = self.clients();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let ((holder, epoch), names) = self.runtime.block_on(async {
            let work = async {
                for n in 0..CALLERS {
                    let (clients, say, stop) = (clients.clone(), say.clone(), stop.clone());
                    tokio::spawn(async move {
                        for i in 0.. {
                            let name = format!("cut{cut}-{n}-{i}");
                            // Records of some sectors, and of several pages.
                            let glob = "a".repeat(if i % 16 == 0 { 4000 } else { 1 + 100 * n });
                            match ask_any(&clients, &stop, &add(&name, &glob)).await {
                                Some(Answer::TreeAdded { .. }) => drop(say.send(name)),
                                Some(other) => panic!("{other:?}"),
                                None => return,
                            }
                        }
                    });
                }
                drop(say);
                let watch = async {
                    while Self::quorum_has_power(disks) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    stop.store(true, Ordering::SeqCst);
                };
                let hear = async {
                    let mut names = Vec::new();
                    while let Some(name) = heard.recv().await {
                        names.push(name);
                    }
                    names
                };
                let (held, names, ()) = tokio::join!(self.take_and_give(cut, &clients, &stop), hear, watch);
                (held, names)
            };
            tokio::time::timeout(LIMIT, work).await.expect("the power goes within the limit, and then all callers end")
        });
        self.acknowledged.extend(names);
        (self.holder, self.epoch) = (holder, epoch);
    }

    /// Takes a tree and gives it back; who it was, and the greatest epoch that it was told of.
    async fn take_and_give(&self, cut: usize, clients: &[Client], stop: &AtomicBool) -> (Option<(SessionId, TreeId)>, u64) {
        let (mut holder, mut epoch) = (self.holder.clone(), self.epoch);
        if holder.is_none() {
            let tree = TreeId::random();
            let name = format!("held{cut}").parse().expect("a name");
            let add = Command::AddTree { name, tree: tree.clone(), policy: vec![], root: None };
            let Some(Answer::TreeAdded { .. }) = ask_any(clients, stop, &add).await else { return (None, epoch) };
            let Some(Answer::Opened { session, .. }) = ask_any(clients, stop, &open(cut)).await else { return (None, epoch) };
            holder = Some((session, tree));
        }
        let Some((session, tree)) = holder.clone() else { return (None, epoch) };
        loop {
            let Some(Answer::Granted(grant)) = ask_any(clients, stop, &acquire(&tree, &session)).await else { break };
            epoch = epoch.max(grant.epoch.get());
            if ask_any(clients, stop, &release(&tree, &session, &grant)).await.is_none() {
                break;
            }
        }
        (holder, epoch)
    }

    fn logs(&self) -> String {
        let log = |n: usize| {
            let log = std::fs::read_to_string(self.world.path(&format!("node-{n}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- node {n}\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        (1..=self.stores.len()).map(log).collect()
    }
}

/// One answer, by whichever node gives one. `None`: too few of them have power. Asked again under the same key, so that an
/// answer that was lost on its way is that of the first time.
async fn ask_any(clients: &[Client], stop: &AtomicBool, command: &Command) -> Option<Answer> {
    let key = RequestKey::random();
    loop {
        for client in clients {
            if stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(answer) = ask_keyed(client, &key, command).await {
                return Some(answer);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ask(client: &Client, command: &Command) -> Option<Answer> {
    ask_keyed(client, &RequestKey::random(), command).await
}

async fn ask_keyed(client: &Client, key: &RequestKey, command: &Command) -> Option<Answer> {
    let request = wire::DoRequest {
        request_key: key.to_string(),
        actor: "a test".into(),
        cluster: String::new(),
        command: Some(command.into()),
    };
    let mut client = client.clone();
    let done = tokio::time::timeout(CALL_LIMIT, client.r#do(request)).await.ok()?.ok()?.into_inner();
    done.answer.and_then(|answer| Answer::try_from(answer).ok())
}

/// A tree with so long a policy.
fn add(name: &str, glob: &str) -> Command {
    let policy = vec![("sealed_read".to_owned(), format!("{glob}/x"))];
    Command::AddTree { name: name.parse().expect("a name"), tree: TreeId::random(), policy, root: None }
}

fn open(cut: usize) -> Command {
    Command::OpenSession(OpenSession {
        side: format!("workstation{cut}").parse().expect("a name"),
        host: "a test".into(),
        ttl: Ttl::new(Duration::from_secs(3600)),
        new_session: SessionId::random(),
        new_secret_digest: vec![1; 32],
        resume: None,
        boot: "a boot".into(),
        machine: String::new(),
    })
}

fn acquire(tree: &TreeId, session: &SessionId) -> Command {
    Command::Acquire(Acquire {
        tree: tree.clone(),
        session: session.clone(),
        ask: false,
        first_write: false,
        no_wait: true,
        note: String::new(),
        place: None,
    })
}

fn release(tree: &TreeId, session: &SessionId, grant: &Grant) -> Command {
    let lease = LeaseRef { tree: tree.clone(), session: session.clone(), epoch: grant.epoch };
    Command::Release(Release { lease, files: 0, bytes: 0, late_refused: 0, to: None, note: String::new() })
}
