//! I7 under power cuts: the real server writes to a disk with a volatile cache (`treelease_tests::disk`), callers note what was
//! acknowledged, the power goes at some moment, and what the disk has kept is opened by the next start.
//!
//! *Promises:* from each seed the same disk dies at the same change with the same remainder (which command was written by then
//! is the scheduler's choice). Nothing acknowledged is missing after any cut, no epoch has gone back, and the node always
//! starts. *Control:* a server that leaves out its `fdatasync` is caught by the same rig, with each store.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use tonic::transport::Channel;
use treelease_proto::command::{Acquire, Answer, Command, Grant, LeaseRef, OpenSession, Release};
use treelease_proto::id::{RequestKey, SessionId, TreeId};
use treelease_proto::time::Ttl;
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_tests::disk::{Disk, Left, Model};
use treelease_tests::hosts::{Server, Timer, World, violated};
use treelease_tests::world::rng::Rng;

/// Seeds of the quick tier, for each store.
const QUICK: u64 = 3;
/// Seeds of the long tier, for each store.
const LONG: u64 = 100;
/// Power cuts of one seed, each on what the one before has left.
const CUTS: usize = 6;
/// Seeds after which a control must have been caught. The first one suffices as a rule.
const CONTROL: u64 = 10;
/// How long a start, or a burst of load, may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Largest answer that is taken.
const ANSWER_MAX: usize = 64 << 20;
/// Callers at once.
const CALLERS: usize = 4;

#[test]
fn i7_no_power_cut_loses_what_was_acknowledged_with_sled() {
    all_seeds("sled");
}

#[test]
fn i7_no_power_cut_loses_what_was_acknowledged_with_redb() {
    all_seeds("redb");
}

#[test]
fn control_sled_without_its_fdatasync_loses_what_was_acknowledged() {
    control("sled");
}

#[test]
fn control_redb_without_its_fdatasync_loses_what_was_acknowledged() {
    control("redb");
}

fn all_seeds(store: &str) {
    for seed in seeds() {
        let mut rig = Rig::new(seed, store, None);
        if let Err(broken) = rig.play() {
            let again =
                format!("TREELEASE_SEEDS={seed}..{} cargo nextest run -p treelease-tests --test story_power_cut", seed + 1);
            violated("power_cut", &format!("{store}, seed {seed}: {broken}\n{}\nagain: {again}", rig.log()));
        }
        eprintln!("{store}, seed {seed}: {} cuts, {} acknowledged, nothing lost", CUTS, rig.acknowledged.len());
    }
}

fn control(store: &str) {
    let caught = (0..CONTROL).find_map(|seed| Rig::new(seed, store, Some("no_sync")).play().err());
    let caught = caught.unwrap_or_else(|| panic!("{store} does not sync, and {CONTROL} seeds of the rig did not notice"));
    eprintln!("{store} without a sync is caught: {caught}");
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("TREELEASE_SEEDS") {
        Ok(range) => {
            let parts = range.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            let (from, to) = parts.unwrap_or_else(|| panic!("TREELEASE_SEEDS={range}: write it as 7..20"));
            from..to
        }
        Err(_) if std::env::var_os("TREELEASE_LONG").is_some() => 0..LONG,
        Err(_) => 0..QUICK,
    }
}

/// One disk through several cuts.
struct Rig {
    world: World,
    runtime: tokio::runtime::Runtime,
    rng: Rng,
    seed: u64,
    store: String,
    fault: Option<&'static str>,
    /// Names of trees whose making was acknowledged.
    acknowledged: BTreeSet<String>,
    /// Who takes and gives back a tree all the time.
    holder: Option<(SessionId, TreeId)>,
    /// The greatest epoch that was acknowledged.
    epoch: u64,
}

/// How a start went.
enum Started {
    Serving(Child, LeaseClient<Channel>),
    /// The power went before it served.
    NoPower,
}

impl Rig {
    fn new(seed: u64, store: &str, fault: Option<&'static str>) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let (world, rng, store) = (World::new(), Rng::new(seed), store.to_owned());
        Rig { world, runtime, rng, seed, store, fault, acknowledged: BTreeSet::new(), holder: None, epoch: 0 }
    }

    /// All cuts, and a last start with the power on. What is broken, if anything is.
    fn play(&mut self) -> Result<(), String> {
        let mut model = Model::new();
        for cut in 0..=CUTS {
            let disk = Disk::mount(model, &self.world.path("disk"));
            if cut < CUTS {
                // Some of them while the node starts.
                let changes = if self.rng.chance(35) { self.rng.below(60) } else { 60 + self.rng.below(900) };
                disk.cut_after(changes as u64);
            }
            let left = self.rng.pick(&Left::ALL);
            let started = self.start(&disk).map_err(|why| format!("after cut {cut}: {why}"))?;
            if let Started::Serving(mut child, client) = started {
                let checked = self.check(&disk, &client).map_err(|why| format!("after cut {cut}: {why}"));
                if cut < CUTS && checked.is_ok() {
                    self.load(cut, &client);
                    assert!(!disk.has_power(), "seed {}: the load ended before the power", self.seed);
                }
                end(&mut child);
                checked?;
            }
            model = disk.cut(left, &mut self.rng);
        }
        Ok(())
    }

    fn start(&self, disk: &Disk) -> Result<Started, String> {
        let address = disk.at().join("data/address");
        // A cut leaves it behind.
        let _ = std::fs::remove_file(&address);
        let log = File::options().create(true).append(true).open(self.world.path("server.log")).expect("a log");
        let mut command = Server::command(disk.at(), "127.0.0.1:0");
        command.args(["--store", &self.store, "--heartbeat", "50ms", "--election-timeout", "150ms..300ms"]);
        command.env("TREELEASE_TEST_WORLD", self.world.dir()).envs(self.fault.map(|fault| ("TREELEASE_TEST_FAULT", fault)));
        if self.seed % 2 == 1 {
            // Often, so that snapshots and purges are cut off too.
            command.env("TREELEASE_TEST_SNAPSHOT_AFTER", "40");
        }
        let said = log.try_clone().expect("a descriptor");
        let child = command.stdin(Stdio::null()).stdout(said).stderr(log).spawn();
        let mut child = child.expect("treelease-server runs");
        let timer = Timer::start();
        loop {
            if let Some(status) = child.try_wait().expect("our child") {
                return if disk.has_power() { Err(format!("it does not open: {status}")) } else { Ok(Started::NoPower) };
            }
            if !disk.has_power() {
                end(&mut child);
                return Ok(Started::NoPower);
            }
            if let Ok(address) = std::fs::read_to_string(&address) {
                let channel = Channel::from_shared(format!("http://{}", address.trim())).expect("an address");
                let client = self
                    .runtime
                    .block_on(async { LeaseClient::new(channel.connect_lazy()).max_decoding_message_size(ANSWER_MAX) });
                return Ok(Started::Serving(child, client));
            }
            if timer.elapsed() > LIMIT {
                end(&mut child);
                return Err(format!("it does not serve within {LIMIT:?}, and does not say why"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether everything that was acknowledged is there.
    fn check(&mut self, disk: &Disk, client: &LeaseClient<Channel>) -> Result<(), String> {
        let mut client = client.clone();
        let asked = self.runtime.block_on(async { tokio::time::timeout(LIMIT, client.status(wire::StatusRequest {})).await });
        let status = match asked {
            Ok(Ok(status)) => status.into_inner(),
            // What cannot be looked at now is looked at after the next cut.
            _ if !disk.has_power() => return Ok(()),
            other => return Err(format!("its status cannot be had: {other:?}")),
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

    /// Callers at work until the server is gone.
    fn load(&mut self, cut: usize, client: &LeaseClient<Channel>) {
        let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let ((holder, epoch), names) = self.runtime.block_on(async {
            let work = async {
                for n in 0..CALLERS {
                    let (client, say) = (client.clone(), say.clone());
                    tokio::spawn(async move {
                        for i in 0.. {
                            let name = format!("cut{cut}-{n}-{i}");
                            // Records of some sectors, and of several pages.
                            let globs = "a".repeat(if i % 16 == 0 { 4000 } else { 100 * n });
                            let policy = vec![("sealed_read".to_owned(), format!("{globs}/x"))];
                            let name_of = name.parse().expect("a name");
                            let add = Command::AddTree { name: name_of, tree: TreeId::random(), policy, root: None };
                            match ask(&client, &add).await {
                                Some(Answer::TreeAdded { .. }) => drop(say.send(name)),
                                Some(other) => panic!("{other:?}"),
                                None => return,
                            }
                        }
                    });
                }
                drop(say);
                tokio::join!(self.take_and_give(client.clone()), async {
                    let mut names = Vec::new();
                    while let Some(name) = heard.recv().await {
                        names.push(name);
                    }
                    names
                })
            };
            tokio::time::timeout(LIMIT, work).await.expect("the power goes within the limit")
        });
        self.acknowledged.extend(names);
        (self.holder, self.epoch) = (holder, epoch);
    }

    /// Takes a tree and gives it back until the server is gone; who it was, and the last epoch that it was told of.
    async fn take_and_give(&self, client: LeaseClient<Channel>) -> (Option<(SessionId, TreeId)>, u64) {
        let (mut holder, mut epoch) = (self.holder.clone(), self.epoch);
        if holder.is_none() {
            let tree = TreeId::random();
            let add = Command::AddTree { name: "held".parse().expect("a name"), tree: tree.clone(), policy: vec![], root: None };
            let Some(Answer::TreeAdded { .. }) = ask(&client, &add).await else { return (None, epoch) };
            let Some(Answer::Opened { session, .. }) = ask(&client, &open()).await else { return (None, epoch) };
            holder = Some((session, tree));
        }
        let Some((session, tree)) = holder.clone() else { return (None, epoch) };
        loop {
            let Some(Answer::Granted(grant)) = ask(&client, &acquire(&tree, &session)).await else { break };
            epoch = epoch.max(grant.epoch.get());
            if ask(&client, &release(&tree, &session, &grant)).await.is_none() {
                break;
            }
        }
        (holder, epoch)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.world.path("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// kill -9.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

async fn ask(client: &LeaseClient<Channel>, command: &Command) -> Option<Answer> {
    let request = wire::DoRequest {
        request_key: RequestKey::random().to_string(),
        actor: "a test".into(),
        cluster: String::new(),
        command: Some(command.into()),
    };
    let done = client.clone().r#do(request).await.ok()?.into_inner();
    done.answer.and_then(|answer| Answer::try_from(answer).ok())
}

fn open() -> Command {
    Command::OpenSession(OpenSession {
        side: "workstation".parse().expect("a name"),
        host: "a test".into(),
        ttl: Ttl::new(Duration::from_secs(3600)),
        new_session: SessionId::random(),
        new_secret_digest: vec![1; 32],
        resume: None,
        boot: "a boot".into(),
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
