//! A second, bigger simulated world: three real nodes (openraft, tonic, all of `treelease-server`) over turmoil's network, sides that
//! call them with the client's real calls, and a nemesis; in one thread, from one seed, on a time of its own.
//!
//! | part | is |
//! |---|---|
//! | [`nodes`] | the real `Node`, killed and started again; on a [`disk`] that loses what was not synced, and a [`clock`] |
//! | [`callers`] | the hosts of the sides: the real `Servers` |
//! | `world::side` | the sides: session, tree, handoff and gate are real; mount and storage are modelled there |
//! | [`nemesis`] | what goes wrong, drawn beforehand ([`plan`]) |
//! | [`past`] | what has happened, from what the nodes have applied |
//! | [`apart`], [`sockets`] | what else would have a say: the machine's clocks and chance, and the order in which things are dropped |
//! | [`properties`] | what must be true after every step |
//!
//! # Promises
//!
//! After every step of true time the properties are looked at; the first one that does not hold ends the run. When everything has
//! healed, somebody gets each tree, and all nodes have the same state. A seed replays a run, whatever else the process does: chance has
//! one source, ids are drawn from it where their order matters, no clock of the machine has a say, a thread is a failure, a node's
//! connections end in one order when it is killed, and its election time-out is drawn by the plan. (What is left is tokio's choice
//! among branches of a `select!` that are ready at the same moment, where the outcome must not depend on it.)
//!
//! # Does not know
//!
//! A process that is stopped: turmoil's hosts always run, so a node's machine that sleeps is modelled by messages that are held and a
//! clock that stands still. Real disks and TLS. What the kernel does.

pub mod apart;
pub mod callers;
pub mod clock;
pub mod disk;
mod events;
pub mod nemesis;
pub mod nodes;
pub mod past;
pub mod plan;
pub mod properties;
pub mod sockets;
pub mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::panic::resume_unwind;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use treelease_proto::command::{Command, Proposal};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{RequestKey, SessionId, SideName, TreeId};
use treelease_proto::time::WallTime;

use crate::world::clock::{Kind, Machine};
use crate::world::rng::Rng;
pub use crate::world::schedule::Report;
use crate::world::schedule::Scheduled;
use crate::world::side::{Local, Side, policy_as_text};
use crate::world::storage::Flight;
use crate::world::users::{self, Wish};
use apart::Apart;
use callers::{Call, Post};
use clock::{NodeClock, TrueTime};
use disk::NodeDisk;
use nemesis::{Links, Over, Trouble};
use nodes::SimNode;
use past::Past;
use plan::{Fault, NODES, Options, Plan};
use properties::expiry_is_not_early::Acknowledged;
use properties::waits_are_kept::Waits;
use properties::{Broken, Granted};

/// One step of true time. Messages are delivered, and the sides act, between two steps.
const STEP: Duration = Duration::from_millis(8);
/// Trace lines are cut to this length.
const LINE_MAX: usize = 260;
/// How often a side reads the table.
const TABLE_EVERY: Duration = Duration::from_millis(600);
/// How often, at the end, somebody asks for the tree again, and tries to write.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often a tree is registered until that has an answer, and how long the cluster may take to form.
const ADD_EVERY: Duration = Duration::from_millis(400);
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// Beside four TTLs, how long it may take at the end until somebody has each tree and the nodes have the same state.
const CALM_LIMIT: Duration = Duration::from_secs(90);
/// An operator's word that was lost is given again after this time.
const VOUCH_AGAIN: Duration = Duration::from_secs(3);
/// The host of the operator.
const OPERATOR: usize = 0;

/// Something that happens.
#[derive(Debug, Clone)]
enum What {
    Side(usize, Local),
    ReadTable(usize),
    AddTrees,
    Begin(Trouble, Option<usize>, Duration),
    Over(Over),
    Vouch(usize, Epoch),
    Calm,
    Ask,
}

/// A daemon on its machine.
struct Daemon {
    side: Side,
    rng: Rng,
    tree: usize,
    host: usize,
    /// It hears of changes by answers and renewals alone.
    deaf: bool,
    /// Its machine is lost for good.
    lost: bool,
    halted: Duration,
    frozen: Option<Duration>,
    admitted: bool,
    flights: BTreeMap<u64, Flight>,
}

/// A tree, as the world follows it.
#[derive(Default)]
struct Followed {
    waits: Waits,
    granted: Option<Granted>,
    added: bool,
    broken_last: bool,
    asks: Option<usize>,
}

/// A question on its way: which command, and when it was asked first.
struct Asked {
    at: Duration,
    session: Option<SessionId>,
    released: Option<Epoch>,
    tree: Option<TreeId>,
}

/// See the module.
pub struct World {
    plan: Plan,
    fault: Fault,
    rng: Rng,
    now: Duration,
    time: TrueTime,
    seq: u64,
    queue: BinaryHeap<Reverse<Scheduled<What>>>,
    sim: turmoil::Sim<'static>,
    nodes: Vec<SimNode>,
    up: [bool; NODES],
    links: Links,
    daemons: Vec<Daemon>,
    trees: Vec<TreeId>,
    followed: Vec<Followed>,
    calls: Vec<UnboundedSender<Call>>,
    post: Post,
    past: Past,
    sessions: BTreeMap<SessionId, usize>,
    renewals: BTreeMap<(SessionId, u64), Duration>,
    asked: BTreeMap<RequestKey, Asked>,
    acknowledged: Acknowledged,
    centre: i64,
    started: bool,
    besieged_until: Duration,
    calm_at: Option<Duration>,
    tracing: bool,
    report: Report,
    /// The nodes' plain files; removed with the world.
    _dir: tempfile::TempDir,
}

/// One run, on a thread of its own: what libraries keep for a thread begins anew.
pub fn run(options: Options) -> Report {
    std::thread::scope(|scope| scope.spawn(|| play(options)).join()).unwrap_or_else(|panicked| resume_unwind(panicked))
}

fn play(options: Options) -> Report {
    let apart = apart::begin(&options);
    let mut world = World::new(options);
    if let Err(broken) = world.go(&apart) {
        world.report.broken = Some((world.now, broken));
    }
    let mut report = std::mem::take(&mut world.report);
    report.counts.insert("runs", 1);
    if report.broken.is_none() && apart.threads() > 0 {
        report.broken = Some((world.now, format!("{} threads were begun: what they do takes real time", apart.threads())));
    }
    report
}

impl World {
    fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let plan = Plan::draw(&options, &mut rng);
        let (centre, time) = (Machine::within(&mut rng), TrueTime::default());
        let ms = Duration::from_millis;
        let mut sim = turmoil::Builder::new()
            .rng_seed(rng.draw())
            .epoch(std::time::UNIX_EPOCH)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(STEP)
            .tcp_capacity(4096)
            .min_message_latency(ms(plan.latency.0))
            .max_message_latency(ms(plan.latency.1))
            .build();
        let dir = in_memory();
        let mut nodes = Vec::new();
        for (n, pace) in plan.paces.iter().enumerate() {
            let clock = NodeClock::new(Machine::new(Kind::Server, centre, &mut rng), time.clone());
            let disk = NodeDisk::new(time.clone(), options.fault != Fault::NotSynced, Rng::new(rng.draw()));
            let node = SimNode::new(n as u64 + 1, dir.path(), pace.clone(), options.fault.of_servers(), clock, disk);
            let host = node.clone();
            sim.host(node.name(), move || host.clone().run());
            nodes.push(node);
        }
        let trees: Vec<TreeId> = (0..plan.trees).map(|_| rng.id()).collect();
        let (post, mut calls) = (Post::default(), Vec::new());
        // The operator, each side for each tree, and a machine in reserve.
        for host in 0..2 + plan.sides * plan.trees {
            let (tx, rx) = unbounded_channel();
            calls.push(tx);
            sim.client(callers::name(host), callers::serve(host, rx, post.clone()));
        }
        let mut world = Self {
            fault: options.fault,
            now: Duration::ZERO,
            time,
            seq: 0,
            queue: BinaryHeap::new(),
            sim,
            nodes,
            up: [true; NODES],
            links: Links::default(),
            daemons: Vec::new(),
            followed: trees.iter().map(|_| Followed::default()).collect(),
            trees,
            calls,
            post,
            past: Past::default(),
            sessions: BTreeMap::new(),
            renewals: BTreeMap::new(),
            asked: BTreeMap::new(),
            acknowledged: Acknowledged::default(),
            centre,
            started: false,
            besieged_until: Duration::ZERO,
            calm_at: None,
            tracing: options.trace,
            report: Report::default(),
            _dir: dir,
            rng,
            plan,
        };
        world.say(|w| format!("{:?}", w.plan));
        for tree in 0..world.trees.len() {
            for n in 0..world.plan.sides {
                let host = 1 + tree * world.plan.sides + n;
                let name = format!("{}-{tree}", ["workstation", "pod", "laptop"][n]);
                world.add_daemon(name.parse().expect("a name"), format!("boot-{host}"), tree, host);
            }
        }
        world.after(Duration::ZERO, What::AddTrees);
        world
    }

    fn add_daemon(&mut self, name: SideName, boot: String, tree: usize, host: usize) -> usize {
        let mut rng = Rng::new(self.rng.draw());
        let (id, faults) = (&self.trees[tree], self.fault.of_sides());
        let side = Side::named(name, boot, &self.plan.side, faults, id, self.centre, &mut rng);
        self.daemons.push(Daemon {
            side,
            rng,
            tree,
            host,
            deaf: self.plan.side.deaf,
            lost: false,
            halted: Duration::ZERO,
            frozen: None,
            admitted: false,
            flights: BTreeMap::new(),
        });
        self.daemons.len() - 1
    }

    /// The cluster has formed and the trees are there: from now on people and the nemesis do what was drawn.
    fn start(&mut self) {
        self.started = true;
        self.say(|_| "the trees are there".into());
        for n in 0..self.daemons.len() {
            self.start_daemon(n);
            let others: Vec<SideName> = self.others_of(n).map(|o| self.daemons[o].side.name.clone()).collect();
            for (at, wish) in users::wishes(&self.plan.side, &others, &mut self.rng) {
                self.after(at, What::Side(n, Local::Wish(wish)));
            }
        }
        for (at, trouble, length) in nemesis::draw(&self.plan, &mut self.rng) {
            self.after(at, What::Begin(trouble, None, length));
        }
        self.after(self.plan.side.stormy, What::Calm);
    }

    fn start_daemon(&mut self, n: usize) {
        let wake = self.daemons[n].side.wake();
        self.after(Duration::ZERO, What::Side(n, wake));
        self.after(TABLE_EVERY, What::ReadTable(n));
    }

    /// The other sides that want the same tree.
    fn others_of(&self, n: usize) -> impl Iterator<Item = usize> + '_ {
        let tree = self.daemons[n].tree;
        (0..self.daemons.len()).filter(move |o| *o != n && self.daemons[*o].tree == tree)
    }

    fn after(&mut self, after: Duration, what: What) {
        self.seq += 1;
        self.queue.push(Reverse(Scheduled(self.now + after, self.seq, Box::new(what))));
    }

    fn count(&mut self, what: &'static str) {
        *self.report.counts.entry(what).or_default() += 1;
    }

    fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.tracing {
            let line: String = line(self).chars().take(LINE_MAX).collect();
            self.report.trace.push(format!("{:>9.3}  {line}", self.now.as_secs_f64()));
        }
    }

    // ---- the loop ----

    fn go(&mut self, apart: &Apart) -> Result<(), Broken> {
        loop {
            while self.queue.peek().is_some_and(|Reverse(next)| next.0 <= self.now) {
                let Some(Reverse(Scheduled(_, _, what))) = self.queue.pop() else { break };
                self.happen(*what)?;
            }
            self.sim.step().map_err(|e| format!("a host of the simulation failed: {e}"))?;
            self.now = self.sim.elapsed();
            self.time.set(self.now);
            apart.set(self.now);
            self.look_at_nodes()?;
            self.hear()?;
            self.check_gates()?;
            if self.is_over()? {
                return Ok(());
            }
        }
    }

    fn happen(&mut self, what: What) -> Result<(), Broken> {
        match what {
            What::Side(n, local) if self.daemons[n].side.machine.runs() => self.act(n, local)?,
            What::Side(_, Local::Wake(_)) => {}
            What::Side(n, local) => self.daemons[n].side.inbox.push(local),
            What::ReadTable(n) => {
                let daemon = &self.daemons[n];
                if !daemon.deaf && daemon.side.machine.runs() {
                    self.call(daemon.host, Call::Status);
                }
                self.after(TABLE_EVERY, What::ReadTable(n));
            }
            What::AddTrees if self.followed.iter().all(|followed| followed.added) => self.start(),
            What::AddTrees => {
                if self.now > FORM_LIMIT {
                    return Err("the cluster did not form".into());
                }
                for tree in 0..self.trees.len() {
                    let name = format!("dev-{tree}").parse().expect("a name");
                    let policy = policy_as_text(&self.plan.side.policy);
                    self.operate(Command::AddTree { name, tree: self.trees[tree].clone(), policy, root: None });
                }
                self.after(ADD_EVERY, What::AddTrees);
            }
            What::Begin(trouble, target, length) => {
                if self.comes(trouble, target) {
                    self.begin(trouble, target, length);
                }
            }
            What::Over(over) => self.end(over),
            What::Vouch(tree, epoch) => {
                let id = self.trees[tree].clone();
                // While somebody else's lease or none is waited out, the word names what is not current and does nothing.
                if self.followed[tree].granted.is_some_and(|granted| granted.epoch == epoch) {
                    self.operate(Command::FenceConfirm { tree: id, epoch, reason: "it is shut, I looked".into() });
                    self.after(VOUCH_AGAIN, What::Vouch(tree, epoch));
                }
            }
            What::Calm => {
                self.calm_at = Some(self.now);
                self.calm();
                self.after(Duration::from_secs(3), What::Ask);
            }
            What::Ask => {
                for tree in 0..self.trees.len() {
                    let who = self.who_asks(tree);
                    let daemon = &self.daemons[who];
                    if daemon.side.tree.holds.is_empty() {
                        let day = Duration::from_secs(24 * 3600);
                        let wish = Wish::Hold { run: false, ask: true, wait: day, keep: day };
                        self.after(Duration::ZERO, What::Side(who, Local::Wish(wish)));
                    }
                    // It may be at rest: then a write wakes it.
                    self.after(Duration::ZERO, What::Side(who, Local::Wish(Wish::Write { page: false, kept: false })));
                }
                self.after(ASK_EVERY, What::Ask);
            }
        }
        Ok(())
    }

    fn who_asks(&mut self, tree: usize) -> usize {
        let all: Vec<usize> =
            (0..self.daemons.len()).filter(|n| self.daemons[*n].tree == tree && !self.daemons[*n].lost).collect();
        let drawn = self.rng.below(all.len());
        *self.followed[tree].asks.get_or_insert(all[drawn])
    }

    /// Whether everybody who asks at the end has the tree, and the nodes have one state.
    fn is_over(&mut self) -> Result<bool, Broken> {
        let Some(calm) = self.calm_at else { return Ok(false) };
        let asks: Option<Vec<usize>> = self.followed.iter().map(|followed| followed.asks).collect();
        let have = asks.is_some_and(|asks| {
            asks.iter().all(|n| {
                let daemon = &mut self.daemons[*n];
                let now = daemon.side.machine.now(self.now);
                daemon.side.tree.writes(now) && daemon.side.admits(self.now)
            })
        });
        let agree = have && self.nodes_agree();
        if !agree && self.now > calm + self.plan.side.ttl.get() * 4 + CALM_LIMIT {
            properties::one_history::check_end(&self.past, &self.revisions())?;
            let phases: Vec<_> = self.daemons.iter().map(|daemon| &daemon.side.tree.phase).collect();
            return Err(format!(
                "everything has healed; somebody has each tree: {have}; revisions {:?}; {phases:?}",
                self.revisions()
            ));
        }
        if agree {
            properties::one_history::check_end(&self.past, &self.revisions())?;
        }
        Ok(agree)
    }

    fn revisions(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.consensus().map_or(0, |consensus| consensus.state().revision())).collect()
    }

    fn nodes_agree(&self) -> bool {
        let all: Option<Vec<_>> = self.nodes.iter().map(SimNode::consensus).collect();
        let Some(all) = all else { return false };
        let first = all[0].state();
        all[1..].iter().all(|other| *other.state() == *first)
    }

    // ---- calls ----

    fn call(&self, host: usize, call: Call) {
        // A host that has ended is a failed step, which says so.
        let _ = self.calls[host].send(call);
    }

    /// An operator's command.
    fn operate(&mut self, command: Command) {
        let proposal = Proposal { request_key: self.rng.id(), actor: "operator".into(), at: WallTime::UNKNOWN, command };
        self.call(OPERATOR, Call::Do(0, Box::new(proposal)));
    }
}

/// A directory for the nodes' plain files: in memory, where there is one, since every one of them is synced.
fn in_memory() -> tempfile::TempDir {
    let in_memory = tempfile::Builder::new().prefix("treelease-sim-").tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// How a person runs this one again.
pub fn command(options: &Options) -> String {
    let mut command = format!("cargo run -p treelease-tests --bin world -- --nodes --seed {}", options.seed);
    if options.fault != Fault::None {
        command += &format!(" --fault {}", options.fault);
    }
    command
}
