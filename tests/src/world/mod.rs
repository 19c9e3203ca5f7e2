//! A whole world in one thread, from one seed: sides, nodes, a network, a storage, and true time, which none of them knows.
//!
//! What decides is the product: `lease::State`, `expiry::Timers` and `nonce::Nonces` of the server, `SessionCore` of the client,
//! `TreeSide`, `Handoff` and the gate of the guard. What they stand on is modelled: the log as one order of entries with leaders
//! that come and go ([`server`]), the daemon's shell ([`side`]), clocks ([`clock`]), the network ([`net`]).
//!
//! # Promises
//!
//! After every event the properties of [`invariants`] are looked at, at true time; the first one that does not hold ends the run. A
//! seed makes the same run each time: one stream of chance, no map without an order, no clock but the world's. At the end, when
//! everything has healed, somebody must be able to get the tree.
//!
//! # Does not know
//!
//! Processes, sockets, disks, consensus, the kernel: that is for the stories (`tests/tests`) and `server/tests`. A daemon's
//! restart is not in it, nor a second tree.

pub mod clock;
pub mod faults;
pub mod invariants;
pub mod net;
pub mod plan;
pub mod rng;
pub mod schedule;
pub mod server;
pub mod side;
pub mod storage;
pub mod users;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use treelease_proto::command::{Command, Event, EventKind};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::SideName;
use treelease_proto::tree::{End, StateName};

use clock::Machine;
use faults::{Over, Trouble};
use invariants::expiry_is_not_early::Acknowledged;
use invariants::grace_is_kept::Waits;
use invariants::{Broken, Gate, Granted};
use net::{Net, Way};
use plan::{Fault, Freezes, Options, Plan};
use rng::Rng;
pub use schedule::Report;
use schedule::Scheduled;
use server::{AtNode, Between, Servers, Word};
use side::{Local, Side};
use storage::{Flight, Storage};
use users::Wish;

/// Trace lines are cut to this length: long enough for every word that matters.
const LINE_MAX: usize = 260;
/// How often a side reads the table by itself.
const TABLE_EVERY: Duration = Duration::from_secs(5);
/// How often, at the end, somebody asks for the tree again, and tries to write.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// An operator's word that was lost is given again after this time.
const VOUCH_AGAIN: Duration = Duration::from_secs(3);
/// Beside four TTLs, how long it may take at the end until somebody has the tree.
const GET_LIMIT: Duration = Duration::from_secs(200);

/// Something that happens.
#[derive(Debug, Clone)]
enum What {
    Side(usize, Local),
    Node(usize, AtNode),
    Between(Between),
    Begin(Trouble, Option<usize>, Duration),
    Isolate { listener: Option<usize>, length: Duration },
    Over(Over),
    Elect,
    ReadTable(usize),
    Vouch(Epoch),
    Calm,
    Ask,
}

/// See the module.
pub struct World {
    plan: Plan,
    rng: Rng,
    now: Duration,
    seq: u64,
    queue: BinaryHeap<Reverse<Scheduled<What>>>,
    servers: Servers,
    sides: Vec<Side>,
    net: Net,
    storage: Storage,
    acknowledged: Acknowledged,
    waits: Waits,
    granted: Option<Granted>,
    grants: Vec<(Epoch, SideName)>,
    /// Which sides hear of changes by answers and renewals alone.
    deaf: Vec<bool>,
    /// Until when few other faults come.
    besieged_until: Duration,
    /// When each side's process last stopped or went on.
    halted: Vec<Duration>,
    /// When each side's machine was last paused invisibly.
    frozen: Vec<Option<Duration>>,
    admitted_before: Vec<bool>,
    /// Who is to get the tree at the end, once everything has healed.
    asks: Option<usize>,
    calm_at: Option<Duration>,
    fault: Fault,
    tracing: bool,
    gates_only: bool,
    report: Report,
}

/// One run.
pub fn run(options: Options) -> Report {
    let mut world = World::new(options);
    let outcome = world.go();
    if let Err(broken) = outcome {
        world.report.broken = Some((world.now, broken));
    }
    world.report
}

impl World {
    fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let plan = Plan::draw(&options, &mut rng);
        let centre = Machine::within(&mut rng);
        let servers = Servers::new(&plan, options.fault, centre, &mut rng);
        let sides = (0..plan.sides).map(|n| Side::new(n, &plan, options.fault, &servers.tree, centre, &mut rng)).collect();
        let mut world = Self {
            net: Net::new(&plan),
            deaf: vec![plan.deaf; plan.sides],
            besieged_until: Duration::ZERO,
            halted: vec![Duration::ZERO; plan.sides],
            frozen: vec![None; plan.sides],
            admitted_before: vec![false; plan.sides],
            plan,
            rng,
            now: Duration::ZERO,
            seq: 0,
            queue: BinaryHeap::new(),
            servers,
            sides,
            storage: Storage::default(),
            acknowledged: Acknowledged::default(),
            waits: Waits::default(),
            granted: None,
            grants: Vec::new(),
            asks: None,
            calm_at: None,
            fault: options.fault,
            tracing: options.trace,
            gates_only: options.gates_only,
            report: Report::default(),
        };
        world.say(|w| format!("{:?}", w.plan));
        world.fill();
        world
    }

    /// Everything that is decided beforehand.
    fn fill(&mut self) {
        for n in 0..self.sides.len() {
            self.after(Duration::ZERO, What::Side(n, self.sides[n].wake()));
            self.after(TABLE_EVERY, What::ReadTable(n));
            let others: Vec<SideName> =
                self.sides.iter().enumerate().filter(|(i, _)| *i != n).map(|(_, s)| s.name.clone()).collect();
            for (at, wish) in users::wishes(&self.plan, &others, &mut self.rng) {
                self.after(at, What::Side(n, Local::Wish(wish)));
            }
        }
        for (at, trouble, length) in faults::draw(&self.plan, &mut self.rng) {
            self.after(at, What::Begin(trouble, None, length));
        }
        self.after(self.plan.stormy, What::Calm);
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
            self.report.trace.push(format!("{:>12.6}  {line}", self.now.as_secs_f64()));
        }
    }

    // ---- the loop ----

    fn go(&mut self) -> Result<(), Broken> {
        self.follow()?;
        while let Some(Reverse(Scheduled(at, _, what))) = self.queue.pop() {
            self.now = at;
            if matches!(&*what, What::Side(n, Local::Wake(wish)) if !self.sides[*n].is_latest(*wish)) {
                continue;
            }
            self.say(|_| format!("{what:?}"));
            self.happen(*what);
            self.follow()?;
            self.check_gates()?;
            if self.is_over()? {
                return Ok(());
            }
        }
        Err("nothing happens any more".into())
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Side(n, local) if self.sides[n].machine.runs() => self.sides[n].at(local, self.now, &mut self.rng),
            What::Side(_, Local::Wake(_)) => {}
            What::Side(n, local) => self.sides[n].inbox.push(local),
            What::Node(n, what) if self.servers.nodes[n].machine.runs() => {
                self.servers.at_node(n, what, self.now, &mut self.rng);
            }
            What::Node(n, what) => self.servers.nodes[n].inbox.push(what),
            What::Between(between) => self.servers.between(between, self.now, &mut self.rng),
            What::Begin(trouble, target, length) => {
                if self.comes(trouble, target) {
                    self.begin(trouble, target, length);
                }
            }
            What::Isolate { listener, length } if self.calm_at.is_none() => self.isolate(listener, length),
            What::Isolate { .. } => {}
            What::Over(over) => self.end(over),
            What::Elect => self.elect(),
            What::ReadTable(n) => {
                let node = self.rng.below(self.servers.nodes.len());
                if !self.deaf[n] && self.sides[n].machine.runs() {
                    for after in self.net.there(n, node, &mut self.rng) {
                        self.after(after, What::Node(node, AtNode::Read { side: n }));
                    }
                }
                self.after(TABLE_EVERY, What::ReadTable(n));
            }
            What::Vouch(epoch) => {
                let tree = self.servers.tree.clone();
                if self.servers.truth.tree_status(&tree).is_some_and(|t| t.state == StateName::Fencing && t.epoch == epoch) {
                    let command = Command::FenceConfirm { tree, epoch, reason: "it is shut, I looked".into() };
                    self.servers.operate(command, &mut self.rng);
                    self.after(VOUCH_AGAIN, What::Vouch(epoch));
                }
            }
            What::Calm => {
                self.calm_at = Some(self.now);
                self.calm();
                self.after(Duration::from_secs(3), What::Ask);
            }
            What::Ask => {
                let who = *self.asks.get_or_insert(self.rng.below(self.sides.len()));
                if self.sides[who].tree.holds.is_empty() {
                    let day = Duration::from_secs(24 * 3600);
                    let wish = Wish::Hold { run: false, ask: true, wait: day, keep: day };
                    self.after(Duration::ZERO, What::Side(who, Local::Wish(wish)));
                }
                // It may be at rest: then a write wakes it.
                self.after(Duration::ZERO, What::Side(who, Local::Wish(Wish::Write { page: false, kept: false })));
                self.after(ASK_EVERY, What::Ask);
            }
        }
    }

    /// Whether the one who asks at the end has the tree.
    fn is_over(&mut self) -> Result<bool, Broken> {
        let (Some(calm), Some(who)) = (self.calm_at, self.asks) else { return Ok(false) };
        let limit = calm + self.plan.ttl.get() * 4 + GET_LIMIT;
        if self.now > limit && self.gates_only {
            return Ok(true);
        }
        if self.now > limit {
            let side = &self.sides[who];
            return Err(format!("everything has healed, and {} did not get the tree: {:?}", side.name, side.tree.phase));
        }
        let now = self.sides[who].machine.now(self.now);
        Ok(self.sides[who].tree.writes(now) && self.sides[who].admits(self.now))
    }

    // ---- what the parts ask for ----

    fn follow(&mut self) -> Result<(), Broken> {
        for n in 0..self.sides.len() {
            for out in self.sides[n].outs() {
                self.follow_side(n, out)?;
            }
        }
        for out in self.servers.outs() {
            match out {
                server::Out::At(node, after, what) => self.after(after, What::Node(node, what)),
                server::Out::Between(after, what) => self.after(after, What::Between(what)),
                server::Out::Say(node, side, word) => self.deliver(node, side, word),
                server::Out::Committed(events) => self.committed(events)?,
                server::Out::Acknowledged(session, at) => self.acknowledged.note(session, at),
                server::Out::Accused(session) => return Err(format!("{session} was taken for a copied machine's")),
                server::Out::Leads(_) => self.count("leaderships"),
                server::Out::Voided => self.count("decisions of an earlier leadership voided"),
            }
        }
        Ok(())
    }

    fn deliver(&mut self, node: usize, side: usize, word: Word) {
        for after in self.net.back(side, node, &mut self.rng) {
            self.after(after, What::Side(side, Local::Heard(word.clone())));
        }
    }

    fn follow_side(&mut self, n: usize, out: side::Out) -> Result<(), Broken> {
        match out {
            side::Out::After(after, local) => self.after(after, What::Side(n, local)),
            side::Out::Renew(renewal) => {
                let first = self.nearest(n);
                let second =
                    (self.rng.chance(20) && self.servers.nodes.len() > 1).then(|| (first + 1) % self.servers.nodes.len());
                for node in [Some(first), second].into_iter().flatten() {
                    for after in self.net.there(n, node, &mut self.rng) {
                        let what = AtNode::Renew { side: n, renewal: renewal.clone(), alone: second.is_none() };
                        self.after(after, What::Node(node, what));
                    }
                }
            }
            side::Out::Do(job, proposal) => {
                let node = self.nearest(n);
                for after in self.net.there(n, node, &mut self.rng) {
                    self.after(after, What::Node(node, AtNode::Do { side: n, job, proposal: proposal.clone() }));
                }
            }
            side::Out::Admitted { epoch, write, opened } => {
                self.count("writes");
                let deluded = self.sides[n].deluded.is_some();
                self.storage.begin(n, write, Flight { epoch, begun: self.now, deluded });
                if let Some(opened) = opened.filter(|_| !deluded) {
                    self.count("writes through a file kept open");
                    invariants::stale_stays_stale::check(&self.sides[n].name, opened, &self.grants)?;
                }
            }
            side::Out::Ended { write, late } => {
                let flight = self.storage.end(n, write).ok_or("a write ended twice")?;
                let interrupted = self.halted[n] >= flight.begun;
                if late {
                    self.count(if interrupted { "late writes of a stopped guard" } else { "writes that crossed the deadline" });
                }
                // A pause in the middle of it shows as little as one before it.
                let paused = self.plan.freezes == Freezes::Long && self.frozen[n].is_some_and(|thawed| thawed >= flight.begun);
                if !flight.deluded && !paused {
                    let (name, granted) = (&self.sides[n].name, self.granted.as_ref());
                    invariants::no_write_after_another_was_granted::check_end(name, late, interrupted, granted)?;
                }
            }
            side::Out::Uncovered => self.count("clocks found wrong"),
            side::Out::End(_) => self.count("ends asked for"),
        }
        Ok(())
    }

    /// The node that a side asks first: its leader, as far as it knows.
    fn nearest(&mut self, side: usize) -> usize {
        match self.net.ways[side] {
            Way::Only(node) => node,
            _ if self.rng.chance(85) => self.servers.leader,
            _ => self.rng.below(self.servers.nodes.len()),
        }
    }

    // ---- what is true now ----

    fn committed(&mut self, events: Vec<Event>) -> Result<(), Broken> {
        let (ttl, grace) = (self.plan.ttl.get(), self.plan.policy.grace);
        for event in &events {
            self.count(event.kind.as_str());
            self.say(|_| format!("==> {} {:?} epoch {} {}", event.kind.as_str(), event.side, event.epoch, event.reason));
            let kept = self.waits.check(event, ttl, grace, self.now);
            self.unless_gates_only(kept)?;
            match event.kind {
                EventKind::Granted => {
                    invariants::epochs_grow::check(self.granted.as_ref(), event.epoch)?;
                    let side = event.side.clone().ok_or("a grant to nobody")?;
                    if self.granted.as_ref().is_some_and(|last| last.side != side) {
                        self.count("turns");
                    }
                    self.grants.push((event.epoch, side.clone()));
                    self.granted = Some(Granted { epoch: event.epoch, side, at: self.now });
                }
                EventKind::Expired => {
                    let session = event.session.as_ref().ok_or("an expiry of no session")?;
                    let kept = self.acknowledged.check(session, ttl, self.now);
                    self.unless_gates_only(kept)?;
                }
                EventKind::Released if event.end == End::Clean => self.ended_clean(event)?,
                EventKind::Cooling if self.fault == Fault::GraceSkipped => {
                    if let Some((decided_under, _)) = self.servers.truth.leadership() {
                        let (tree, epoch) = (self.servers.tree.clone(), event.epoch);
                        self.servers.operate(Command::EndGrace { tree, epoch, decided_under }, &mut self.rng);
                    }
                }
                EventKind::Fencing => {
                    let after = self.rng.ms(100, 5_000);
                    self.after(after, What::Vouch(event.epoch));
                }
                _ => {}
            }
        }
        if !events.is_empty() {
            let (tree, leader) = (self.servers.tree.clone(), self.servers.leader);
            if let Some(status) = self.servers.truth.tree_status(&tree) {
                for n in (0..self.sides.len()).filter(|n| !self.deaf[*n]).collect::<Vec<_>>() {
                    self.deliver(leader, n, Word::Table(Box::new(status.clone())));
                }
            }
        }
        Ok(())
    }

    /// A control is to show that gates really open twice, not only that a rule on the way there is broken.
    fn unless_gates_only(&self, kept: Result<(), Broken>) -> Result<(), Broken> {
        if self.gates_only { Ok(()) } else { kept }
    }

    fn ended_clean(&mut self, event: &Event) -> Result<(), Broken> {
        let Some(n) = self.sides.iter().position(|s| Some(&s.name) == event.side.as_ref()) else { return Ok(()) };
        let side = &mut self.sides[n];
        let admits = side.machine.runs() && side.admits(self.now);
        invariants::clean_means_shut::check(&side.name, event.epoch, side.epoch(), admits, side.gate.in_flight())
    }

    fn check_gates(&mut self) -> Result<(), Broken> {
        let mut gates = Vec::with_capacity(self.sides.len());
        for (n, side) in self.sides.iter_mut().enumerate() {
            let admits = side.machine.runs() && side.admits(self.now);
            gates.push(Gate { side: n, admits, deluded: side.deluded.map(|(_, thawed)| thawed) });
        }
        for gate in &gates {
            let was = std::mem::replace(&mut self.admitted_before[gate.side], gate.admits);
            if was != gate.admits {
                self.say(|w| {
                    format!("--> the gate of {} {}", w.sides[gate.side].name, if gate.admits { "admits" } else { "is shut" })
                });
            }
            invariants::uncovered_means_shut::check(gate, self.plan.ttl.get(), self.now)?;
            if gate.admits && gate.deluded.is_none() {
                let side = &self.sides[gate.side];
                let granted = self.granted.as_ref();
                invariants::no_write_after_another_was_granted::check_gate(&side.name, side.epoch(), granted)?;
            }
        }
        if invariants::one_gate::is_excused(&gates) {
            self.count("moments with two gates after a pause");
        }
        invariants::one_gate::check(&gates)
    }
}

/// How a person runs this one again.
pub fn command(options: &Options) -> String {
    let mut command = format!("cargo run -p treelease-tests --bin world -- --seed {}", options.seed);
    if options.fault != Fault::None {
        command += &format!(" --fault {}", options.fault);
    }
    if options.gates_only {
        command += " --gates-only";
    }
    if let Some(freezes) = options.freezes {
        command += &format!(" --freezes {}", format!("{freezes:?}").to_lowercase());
    }
    command
}
