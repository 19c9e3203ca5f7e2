//! What goes wrong: ways are cut (both ways or one, with what is under way lost or kept), nodes are killed or lose their power, disks
//! get slow, machines sleep, stop and are paused, an operator breaks leases.
//!
//! Each fault is drawn before the run, with its time and length; whom it meets is decided when it begins: the holder or the leader,
//! more often than not.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_proto::command::Command;

use super::plan::{NODES, Plan, Siege};
use super::{What, World, callers, nodes};
use crate::world::clock::Mode;
use crate::world::plan::Freezes;
use crate::world::rng::Rng;
use crate::world::side::Local;
use crate::world::users::Wish;

/// A siege that found no holder who writes is tried again after this time.
const SIEGE_AGAIN: Duration = Duration::from_millis(300);
/// From a siege's beginning to what goes wrong: the waiter has come, the holder writes.
const LEAD_IN: Duration = Duration::from_millis(1_500);
/// How long a disk that is slow takes for a commit, in milliseconds.
const SLOW: (u64, u64) = (100, 700);

/// How long a message takes at most that comes late: answers must be in time for the call's limit.
const LATE_MOST: Duration = Duration::from_millis(1_500);

/// How a way is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrives, and all of it arrives in the end, as TCP does with what was lost for a while.
    Held,
    /// What is sent is lost: connections break when their keepalive says so.
    Lost,
    /// What the first one sends is lost.
    LostThere,
    /// What the first one is sent is lost.
    LostBack,
}

/// Something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A node hears no other node, and is not heard; sides reach it.
    Node(Cut),
    /// Two nodes do not hear each other.
    Pair(Cut),
    /// A side hears no node.
    Side(Cut),
    /// A side does not hear the leader.
    Leader(Cut),
    /// All messages between a side and the nodes take long.
    Late,
    /// A node is killed, perhaps with its power.
    Kill {
        /// Its page cache is lost.
        power: bool,
    },
    /// All nodes lose their power.
    PowerCut,
    /// A node's disk is slow.
    SlowDisk,
    /// A node's machine sleeps: its clock stands still, what it is sent comes later.
    NodeSleeps,
    /// A side's machine sleeps; its clock counts so many thousandths of that.
    Suspend {
        /// Of the true length.
        counted: u32,
    },
    /// A side's virtual machine is paused, and no clock shows it.
    Freeze,
    /// A side's daemon is stopped.
    Stop,
    /// A side's machine is lost for good, and the side starts on another one.
    OtherKernel,
    /// The side hears of changes by answers and renewals alone.
    Deafen,
    /// An operator breaks the lease.
    Break,
    /// A busy holder, somebody who waits, and something goes wrong.
    Siege(Siege),
}

/// Something is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// These ways are open again.
    Ways(Vec<(String, String)>),
    /// That node is started.
    Node(usize),
    /// That node's disk is as fast as ever.
    Disk(usize),
    /// That node's clock goes on.
    Clock(usize),
    /// Messages of that side's host are as fast as ever.
    Late(usize),
    /// That side runs again.
    Side(usize),
    /// That side hears of changes again.
    Deaf(usize),
}

/// Ways that are cut, and how.
#[derive(Debug, Default)]
pub struct Links(BTreeMap<(String, String), Cut>);

/// The faults of a run: when, what, for how long.
pub fn draw(plan: &Plan, rng: &mut Rng) -> Vec<(Duration, Trouble, Duration)> {
    let (ttl, stormy) = (plan.side.ttl.get(), plan.side.stormy);
    let mut faults = Vec::new();
    if let Some(siege) = plan.siege {
        let at = rng.between(Duration::from_secs(2), Duration::from_secs(2) + stormy / 4);
        faults.push((at, Trouble::Siege(siege), ttl + plan.side.policy.grace + rng.between(ttl / 4, ttl / 2)));
    }
    for _ in 0..plan.faults {
        let at = rng.between(Duration::from_secs(1), stormy);
        faults.push((at, trouble(plan, rng), length(ttl, rng)));
        if rng.chance(50) {
            let soon = at + rng.between(Duration::ZERO, ttl / 4);
            faults.push((soon, trouble(plan, rng), length(ttl, rng)));
        }
    }
    faults
}

fn trouble(plan: &Plan, rng: &mut Rng) -> Trouble {
    let cut = rng.pick(&[Cut::Held, Cut::Held, Cut::Lost, Cut::LostThere, Cut::LostBack]);
    match rng.below(20) {
        0..3 => Trouble::Node(cut),
        3 => Trouble::Pair(cut),
        4 | 5 => Trouble::Side(cut),
        6 => Trouble::Leader(cut),
        7 => Trouble::Late,
        8..11 => Trouble::Kill { power: rng.chance(60) },
        11 => Trouble::PowerCut,
        12 | 13 => Trouble::SlowDisk,
        14 => Trouble::NodeSleeps,
        15 | 16 if plan.side.freezes != Freezes::None => Trouble::Freeze,
        15..18 => Trouble::Suspend { counted: rng.pick(&[20, 500, 1_000, 1_500]) },
        18 => Trouble::Stop,
        _ => Trouble::Break,
    }
}

fn length(ttl: Duration, rng: &mut Rng) -> Duration {
    if rng.chance(50) { rng.between(Duration::from_millis(50), ttl / 2) } else { rng.between(ttl / 2, ttl * 3 / 2) }
}

impl World {
    /// Whether a fault drawn at random goes its own way: during a siege most do not come, so that it can do its work.
    pub(super) fn comes(&mut self, trouble: Trouble, target: Option<usize>) -> bool {
        let drawn = target.is_none() && !matches!(trouble, Trouble::Siege(_));
        self.calm_at.is_none() && !(drawn && self.now < self.besieged_until && self.rng.chance(80))
    }

    /// The holder of some tree, more often than not.
    fn victim(&mut self) -> usize {
        let tree = self.rng.below(self.trees.len());
        match self.followed[tree].granted {
            Some(granted) if self.rng.chance(75) => granted.side,
            _ => self.rng.below(self.daemons.len()),
        }
    }

    /// The leader, more often than not.
    fn node(&mut self) -> usize {
        let leader = (0..NODES).find(|n| self.nodes[*n].leads());
        match leader {
            Some(leader) if self.rng.chance(75) => leader,
            _ => self.rng.below(NODES),
        }
    }

    /// A fault begins; `target`: the side that it meets, if that is decided already.
    pub(super) fn begin(&mut self, trouble: Trouble, target: Option<usize>, length: Duration) {
        if !matches!(trouble, Trouble::Siege(_)) {
            self.say(|_| format!("*** {trouble:?} for {length:?}"));
        }
        let side = target.unwrap_or_else(|| self.victim());
        let host = callers::name(self.daemons[side].host);
        let all_nodes = || (0..NODES).map(|n| nodes::name(n as u64 + 1));
        match trouble {
            Trouble::Node(cut) => {
                let one = self.node();
                let others = (0..NODES).filter(|n| *n != one);
                let ways = others.map(|n| (self.nodes[one].name(), self.nodes[n].name())).collect();
                self.cut(ways, cut, length);
            }
            Trouble::Pair(cut) => {
                let one = self.node();
                let other = (one + 1 + self.rng.below(NODES - 1)) % NODES;
                self.cut(vec![(self.nodes[one].name(), self.nodes[other].name())], cut, length);
            }
            Trouble::Side(cut) => self.cut(all_nodes().map(|node| (host.clone(), node)).collect(), cut, length),
            Trouble::Leader(cut) => {
                let node = self.node();
                self.cut(vec![(host, self.nodes[node].name())], cut, length);
            }
            Trouble::Late => {
                self.count("ways made slow");
                let each = (self.plan.side.ttl.get() * 3 / 10).min(LATE_MOST);
                self.set_latency(self.daemons[side].host, each);
                self.after(length, What::Over(Over::Late(self.daemons[side].host)));
            }
            Trouble::Kill { power } => {
                let node = self.node();
                self.kill(node, power, length);
            }
            Trouble::PowerCut => {
                self.count("power cuts of all nodes");
                for node in 0..NODES {
                    self.kill(node, true, length / 4 + Duration::from_millis(100 * node as u64));
                }
            }
            Trouble::SlowDisk => {
                let node = self.node();
                self.count("slow disks");
                self.nodes[node].disk.set_slow(Some(SLOW));
                self.after(length, What::Over(Over::Disk(node)));
            }
            Trouble::NodeSleeps => {
                let node = self.node();
                self.count("nodes whose machine sleeps");
                self.nodes[node].clock.set(Mode::Suspended { counted: 0 });
                self.after(length, What::Over(Over::Clock(node)));
                let name = self.nodes[node].name();
                let others = (0..NODES).filter(|n| *n != node).map(|n| (name.clone(), self.nodes[n].name()));
                let sides = (0..self.calls.len()).map(|host| (callers::name(host), name.clone()));
                self.cut(others.chain(sides).collect(), Cut::Held, length);
            }
            Trouble::Suspend { counted } => self.halt(side, Mode::Suspended { counted }, length.max(Duration::from_secs(1))),
            Trouble::Stop => self.halt(side, Mode::Stopped, length),
            Trouble::Freeze => {
                let room = (self.plan.side.ttl.margin() + self.plan.side.policy.grace) * 9 / 10;
                self.halt(side, Mode::Frozen, length.min(room));
            }
            Trouble::OtherKernel => self.move_side(side),
            Trouble::Deafen => {
                self.daemons[side].deaf = true;
                self.after(length, What::Over(Over::Deaf(side)));
            }
            Trouble::Break => {
                let tree = self.daemons[side].tree;
                if let Some(granted) = self.followed[tree].granted {
                    let tree = self.trees[tree].clone();
                    self.operate(Command::Break { tree, epoch: granted.epoch, reason: "gone".into() });
                }
            }
            Trouble::Siege(siege) => self.lay_siege(siege, length),
        }
    }

    /// As soon as somebody writes whom somebody else waits for.
    fn lay_siege(&mut self, siege: Siege, length: Duration) {
        let now = self.now;
        let mut writes = self.daemons.iter_mut().enumerate();
        let holder = writes.find_map(|(n, d)| (d.side.machine.runs() && d.side.admits(now)).then_some(n));
        let Some(holder) = holder.filter(|_| self.nodes.iter().any(|node| node.leads())) else {
            return self.after(SIEGE_AGAIN, What::Begin(Trouble::Siege(siege), None, length));
        };
        let others: Vec<usize> = self.others_of(holder).collect();
        let waiter = others[self.rng.below(others.len())];
        let long = LEAD_IN + length * 3;
        let wish = |run| Wish::Hold { run, ask: false, wait: long, keep: long };
        self.after(Duration::ZERO, What::Side(holder, Local::Wish(wish(true))));
        self.after(LEAD_IN / 2, What::Side(waiter, Local::Wish(wish(false))));
        let mut at = Duration::ZERO;
        while at < LEAD_IN + length * 2 {
            at += self.rng.ms(150, 800);
            self.after(at, What::Side(holder, Local::Wish(Wish::Write { page: false, kept: false })));
        }
        self.besieged_until = self.now + LEAD_IN + length;
        self.count("sieges");
        self.say(|_| format!("*** {siege:?}: side {holder} holds, side {waiter} waits"));
        let (ttl, soon) = (self.plan.side.ttl.get(), self.rng.ms(100, 400));
        let then = match siege {
            Siege::Cut => vec![(Duration::ZERO, Trouble::Side(Cut::Lost), length)],
            // What it sends is lost from some moment on; answers are still on their way then.
            Siege::LateAnswers => {
                vec![(Duration::ZERO, Trouble::Late, ttl + length), (ttl, Trouble::Side(Cut::LostThere), length)]
            }
            Siege::Sleep => vec![(Duration::ZERO, Trouble::Suspend { counted: 500 }, length)],
            Siege::NewLeader => {
                let kill = (Duration::from_millis(50), Trouble::Kill { power: true }, length);
                vec![(Duration::ZERO, Trouble::Side(Cut::Lost), length), kill]
            }
            Siege::OldLeader => {
                vec![(Duration::ZERO, Trouble::Node(Cut::Lost), length), (soon, Trouble::Break, length)]
            }
            Siege::LeaderRestarts => vec![(Duration::ZERO, Trouble::Kill { power: true }, Duration::from_millis(40))],
            Siege::LeaderAhead => {
                let kill = (soon, Trouble::Kill { power: true }, Duration::from_millis(40));
                vec![(Duration::ZERO, Trouble::SlowDisk, length), (Duration::from_millis(10), Trouble::Break, length), kill]
            }
            Siege::Break => {
                vec![(Duration::ZERO, Trouble::Deafen, length), (Duration::from_millis(10), Trouble::Break, length)]
            }
            Siege::OtherKernel => vec![(Duration::ZERO, Trouble::OtherKernel, length)],
            Siege::PowerCut => vec![(Duration::ZERO, Trouble::Break, length), (soon, Trouble::PowerCut, length)],
        };
        for (after, trouble, length) in then {
            self.after(LEAD_IN + after, What::Begin(trouble, Some(holder), length));
        }
    }

    /// Cuts what is not cut already.
    fn cut(&mut self, ways: Vec<(String, String)>, cut: Cut, length: Duration) {
        let mut done = Vec::new();
        for way in ways {
            if self.links.0.contains_key(&way) {
                continue;
            }
            let (a, b) = (way.0.as_str(), way.1.as_str());
            match cut {
                Cut::Held => self.sim.hold(a, b),
                Cut::Lost => self.sim.partition(a, b),
                Cut::LostThere => self.sim.partition_oneway(a, b),
                Cut::LostBack => self.sim.partition_oneway(b, a),
            }
            self.links.0.insert(way.clone(), cut);
            done.push(way);
        }
        self.count(match cut {
            Cut::Held => "ways that keep what is sent",
            Cut::Lost => "ways cut",
            Cut::LostThere | Cut::LostBack => "ways cut in one direction",
        });
        self.after(length, What::Over(Over::Ways(done)));
    }

    fn mend(&mut self, way: &(String, String)) {
        let (a, b) = (way.0.as_str(), way.1.as_str());
        match self.links.0.remove(way) {
            Some(Cut::Held) => self.sim.release(a, b),
            Some(Cut::Lost) => self.sim.repair(a, b),
            Some(Cut::LostThere) => self.sim.repair_oneway(a, b),
            Some(Cut::LostBack) => self.sim.repair_oneway(b, a),
            None => {}
        }
    }

    fn set_latency(&mut self, host: usize, each: Duration) {
        for node in &self.nodes {
            self.sim.set_link_latency(callers::name(host), node.name(), each);
        }
    }

    fn kill(&mut self, node: usize, power: bool, length: Duration) {
        if !std::mem::replace(&mut self.up[node], false) {
            return;
        }
        self.count(if power { "nodes that lost their power" } else { "nodes killed" });
        self.say(|_| format!("node {} is gone", node + 1));
        self.nodes[node].sockets.kill();
        self.sim.crash(self.nodes[node].name());
        self.nodes[node].disk.crash(power);
        self.nodes[node].lost();
        self.after(length, What::Over(Over::Node(node)));
    }

    fn halt(&mut self, n: usize, mode: Mode, length: Duration) {
        let ttl = self.plan.side.ttl.get();
        let (now, daemon) = (self.now, &mut self.daemons[n]);
        // Short pauses do not add up within one right to write.
        let pause_soon = mode == Mode::Frozen && daemon.frozen.is_some_and(|last| now < last + length + ttl * 2);
        if !daemon.side.machine.runs() || pause_soon {
            return;
        }
        daemon.side.machine.set(mode, now);
        daemon.halted = now;
        self.count(match mode {
            Mode::Suspended { .. } => "suspends",
            Mode::Frozen => "pauses that no clock shows",
            _ => "daemons stopped",
        });
        self.after(length, What::Over(Over::Side(n)));
    }

    /// The machine is lost for good; the side starts on the one in reserve, which is another kernel.
    fn move_side(&mut self, n: usize) {
        let (now, host, daemon) = (self.now, self.calls.len() - 1, &mut self.daemons[n]);
        if daemon.lost || !daemon.side.machine.runs() {
            return;
        }
        daemon.side.machine.set(Mode::Stopped, now);
        (daemon.lost, daemon.halted) = (true, now);
        let (name, tree) = (daemon.side.name.clone(), daemon.tree);
        // The control: a server that does not compare kernels believes that it is the same one.
        let same = self.fault == super::plan::Fault::KernelsNotCompared;
        let boot = format!("boot-{}", if same { self.daemons[n].host } else { host });
        self.count("sides that moved to another machine");
        let moved = self.add_daemon(name, boot, tree, host);
        self.start_daemon(moved);
        let long = self.plan.side.ttl.get() * 4;
        let wish = Wish::Hold { run: true, ask: false, wait: long, keep: long };
        self.after(Duration::ZERO, What::Side(moved, Local::Wish(wish)));
    }

    /// A fault is over.
    pub(super) fn end(&mut self, over: Over) {
        match over {
            Over::Ways(ways) => ways.iter().for_each(|way| self.mend(way)),
            Over::Node(node) => {
                if !std::mem::replace(&mut self.up[node], true) {
                    self.say(|_| format!("node {} starts again", node + 1));
                    self.sim.bounce(self.nodes[node].name());
                }
            }
            Over::Disk(node) => self.nodes[node].disk.set_slow(None),
            Over::Clock(node) => self.nodes[node].clock.set(Mode::Running),
            Over::Late(host) => self.set_latency(host, Duration::from_millis(self.plan.latency.1)),
            Over::Deaf(n) => self.daemons[n].deaf = self.plan.side.deaf && self.calm_at.is_none(),
            Over::Side(n) => {
                let (now, daemon) = (self.now, &mut self.daemons[n]);
                if daemon.lost || daemon.side.machine.runs() {
                    return;
                }
                if daemon.side.machine.mode() == Mode::Frozen {
                    daemon.frozen = Some(now);
                }
                daemon.side.machine.set(Mode::Running, now);
                daemon.halted = now;
                let mut inbox = std::mem::take(&mut daemon.side.inbox);
                inbox.push(daemon.side.wake());
                for local in inbox {
                    let after = self.rng.ms(0, 200);
                    self.after(after, What::Side(n, local));
                }
            }
        }
    }

    /// Everything heals: from now on somebody must be able to get each tree.
    pub(super) fn calm(&mut self) {
        self.say(|_| "everything heals".into());
        let cut: Vec<_> = self.links.0.keys().cloned().collect();
        self.end(Over::Ways(cut));
        (0..self.calls.len()).for_each(|host| self.end(Over::Late(host)));
        for node in 0..NODES {
            self.end(Over::Node(node));
            self.end(Over::Disk(node));
            self.end(Over::Clock(node));
        }
        for n in 0..self.daemons.len() {
            self.end(Over::Side(n));
            self.end(Over::Deaf(n));
            self.after(Duration::from_millis(300), What::Side(n, Local::Wish(Wish::Rest)));
        }
    }
}
