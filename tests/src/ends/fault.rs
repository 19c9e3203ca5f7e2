//! Doing to the hosts what a plan says, and healing it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use super::plan::{Fault, HOSTS, Node, Plan};
use super::scene::{SIDES, SOON, Scene};
use crate::hosts::{Signal, Timer};

/// How often the operator looks whether to vouch, in a plan that has one.
const LOOK: Duration = Duration::from_millis(700);
/// What fills a disk.
const FILLER: &str = "filler";

/// A fault that has not been healed.
#[derive(Debug, Default)]
pub struct Befallen {
    nodes: Vec<usize>,
    daemon: Option<usize>,
    cuts: Vec<(usize, usize)>,
}

impl Befallen {
    /// The nodes that it befell.
    pub fn nodes(&self) -> Vec<usize> {
        self.nodes.clone()
    }
}

impl Scene {
    /// The faults of the plan, each in its time; all are healed when it returns.
    pub fn play(&mut self, plan: &Plan) {
        let mut steps: Vec<(u64, usize, bool)> = Vec::new();
        for (n, timed) in plan.faults.iter().enumerate() {
            steps.extend([(timed.at, n, true), (timed.at + timed.lasts, n, false)]);
        }
        steps.sort_unstable();
        let (timer, mut befallen) = (Timer::start(), BTreeMap::new());
        for (at, n, begins) in steps {
            let due = Duration::from_millis(at);
            while timer.elapsed() < due {
                if plan.manual_fence && due - timer.elapsed() > LOOK {
                    self.vouch();
                }
                std::thread::sleep((due.saturating_sub(timer.elapsed())).min(LOOK));
            }
            if begins {
                befallen.insert(n, self.inflict(plan.faults[n].fault));
            } else if let Some(befallen) = befallen.remove(&n) {
                self.heal(&befallen);
            }
        }
        self.heal_all();
    }

    /// Does it.
    pub fn inflict(&mut self, fault: Fault) -> Befallen {
        self.tell(&format!("{fault:?}"));
        let mut befallen = Befallen::default();
        match fault {
            Fault::KillDaemon(side) => {
                self.signal_daemon(side, Signal::KILL);
                self.may_have_ended.1.insert(side);
                befallen.daemon = Some(side);
            }
            Fault::StopDaemon(side) => {
                self.signal_daemon(side, Signal::STOP);
                befallen.daemon = Some(side);
            }
            Fault::KillCommand(side) => {
                let host = self.side_host(side).clone();
                let the_tool = self.setting.seed.is_multiple_of(2);
                let killed = self.work.get(&side).is_some_and(|work| work.kill_command(&host, the_tool));
                self.tell(&format!("a command was there to kill: {killed}"));
            }
            Fault::KillNode(node) => {
                befallen.nodes = vec![self.node(node)];
                self.kill_nodes(&befallen.nodes);
            }
            Fault::KillTwoNodes => {
                befallen.nodes = vec![self.node(Node::Leader), self.node(Node::Follower)];
                self.kill_nodes(&befallen.nodes);
            }
            Fault::StopNode(node) => {
                befallen.nodes = vec![self.node(node)];
                self.cluster.signal(befallen.nodes[0], Signal::STOP);
            }
            Fault::FullDisk(node) => {
                befallen.nodes = vec![self.node(node)];
                self.fill_disk(befallen.nodes[0]);
            }
            Fault::OneWay(from, to) => befallen.cuts = vec![(from, to)],
            Fault::Apart(a, b) => befallen.cuts = vec![(a, b), (b, a)],
            Fault::Alone(host) => befallen.cuts = alone(host),
            Fault::Deaf(host) => befallen.cuts = others(host).map(|other| (other, host)).collect(),
            Fault::Mute(host) => befallen.cuts = others(host).map(|other| (host, other)).collect(),
            Fault::LeaderAlone => befallen.cuts = alone(self.node(Node::Leader) - 1),
        }
        befallen.cuts.iter().for_each(|(from, to)| self.network.cut(*from, *to));
        self.tell(&format!("  befell {befallen:?}"));
        befallen
    }

    /// Undoes it.
    pub fn heal(&mut self, befallen: &Befallen) {
        befallen.cuts.iter().for_each(|(from, to)| self.network.mend(*from, *to));
        for node in &befallen.nodes {
            self.heal_node(*node);
        }
        if let Some(side) = befallen.daemon {
            self.signal_daemon(side, Signal::CONT);
            if self.sides[side].daemon().is_none() {
                // While the servers are away `up` fails: the end sees to it again.
                let done = self.sides[side].run(&["up"]);
                self.tell(&format!("up of {}: {}", self.sides[side].name(), done.code));
            }
        }
        self.tell(&format!("  healed {befallen:?}"));
    }

    /// Undoes everything, and waits until all processes run.
    pub fn heal_all(&mut self) {
        self.network.mend_all();
        (0..2).for_each(|side| self.look_at_daemon(side));
        (1..=3).for_each(|node| self.heal_node(node));
        (0..2).for_each(|side| self.signal_daemon(side, Signal::CONT));
        (1..=3).for_each(|node| self.serving(node));
        (0..2).for_each(|side| self.up(side));
        self.tell("all is healed");
    }

    /// Until each node that this befell has ended by itself. Meanwhile it is given something to write: there is room in the log's file
    /// that was reserved before.
    pub fn wait_ended(&mut self, befallen: &Befallen) {
        let mut changes = 0_u64;
        for node in &befallen.nodes {
            crate::hosts::wait_for(SOON, "the node ends by itself", || {
                changes += 1;
                // Of no consequence here. It may fail: a leader may be about to end.
                let _one = self.sides[0].run(&["tree", "set", super::work::TREE, &format!("dirty_max={}ms", 1000 + changes % 2)]);
                !self.cluster.runs(*node)
            });
        }
        self.tell(&format!("{befallen:?} ended by itself"));
    }

    /// Stops a node in order and starts it again.
    pub fn restart(&mut self, node: usize) {
        self.cluster.stop(node);
        self.cluster.start_node(node);
        self.serving(node);
        self.tell(&format!("node {node} was restarted"));
    }

    fn serving(&mut self, node: usize) {
        // One whose disk was full may still have been about to end.
        crate::hosts::wait_for(SOON, "the node serves", || {
            self.start_if_ended(node);
            self.cluster.data(node).join("address").exists()
        });
    }

    fn heal_node(&mut self, node: usize) {
        let _none = std::fs::remove_file(self.cluster.data(node).join(FILLER));
        self.cluster.signal(node, Signal::CONT);
        self.start_if_ended(node);
    }

    fn start_if_ended(&mut self, node: usize) {
        if !self.cluster.runs(node) {
            if !self.may_have_ended.0.contains(&node) {
                self.ended.push(format!("node {node} ended by itself"));
            }
            self.cluster.start_node(node);
        }
    }

    /// A daemon that is not there was killed, or ended by itself.
    pub(super) fn look_at_daemon(&mut self, side: usize) {
        if self.sides[side].daemon().is_none() && !self.may_have_ended.1.contains(&side) {
            self.ended.push(format!("the daemon of {} ended by itself", self.sides[side].name()));
        }
    }

    fn kill_nodes(&mut self, nodes: &[usize]) {
        self.may_have_ended.0.extend(nodes);
        nodes.iter().for_each(|node| self.cluster.kill(*node));
    }

    fn signal_daemon(&self, side: usize, what: Signal) {
        if let Some(pid) = self.sides[side].daemon() {
            crate::hosts::signal(pid, what);
        }
    }

    /// Which one that is now; any, if nobody knows.
    fn node(&mut self, node: Node) -> usize {
        let leader = self.leader().unwrap_or(1);
        match node {
            Node::Leader => leader,
            Node::Follower => leader % 3 + 1,
        }
    }

    fn fill_disk(&mut self, node: usize) {
        self.may_have_ended.0.insert(node);
        let file = std::fs::File::create(self.cluster.data(node).join(FILLER));
        let mut file = file.unwrap_or_else(|e| panic!("node {node}'s disk: {e}"));
        for block in [&[7; 1 << 20][..], &[7; 4096], &[7; 1]] {
            while file.write_all(block).is_ok() {}
        }
    }
}

/// All hosts but one; never the operator's.
fn others(host: usize) -> impl Iterator<Item = usize> {
    (0..HOSTS as usize).filter(move |other| *other != host)
}

fn alone(host: usize) -> Vec<(usize, usize)> {
    others(host).flat_map(|other| [(host, other), (other, host)]).collect()
}

/// The host of a side, for a cut.
pub fn host_of_side(side: usize) -> usize {
    SIDES + side
}
