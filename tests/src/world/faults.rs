//! What goes wrong: machines sleep, stop and are paused, ways are cut, leaders change, operators break leases.
//!
//! Each fault is drawn before the run, with its time and length; whom it meets is decided when it begins (the holder, more often
//! than not). Two often come together, since a lease is lost by two things going wrong at once.

use std::time::Duration;

use treelease_proto::command::Command;

use super::clock::Mode;
use super::net::Way;
use super::plan::{Freezes, Plan};
use super::rng::Rng;
use super::side::Local;
use super::users::Wish;
use super::{What, World};

/// A siege that found no holder who writes is tried again after this time.
const SIEGE_AGAIN: Duration = Duration::from_millis(300);

/// Something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A side's machine sleeps; its clock counts so many thousandths of that.
    Suspend {
        /// Of the true length.
        counted: u32,
    },
    /// A side's virtual machine is paused, and no clock shows it.
    Freeze,
    /// A side's daemon is stopped (SIGSTOP).
    Stop,
    /// A side's way to the nodes.
    Way(Way),
    /// The leader is stopped; its clock goes on.
    StopLeader,
    /// The leader's machine sleeps; its clock stands still.
    PauseLeader,
    /// No other node hears the leader; some sides may hear nobody else.
    CutLeader,
    /// Another node is elected.
    MoveLeader,
    /// The leader begins a new leadership in its term.
    LeadAnew,
    /// An operator breaks the lease.
    Break,
    /// A busy holder, somebody who waits, and one thing after the other goes wrong.
    Siege(Siege),
}

/// What goes wrong when it matters most: with a holder that writes all the time (it never comes to rest) and another side that
/// waits for the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Siege {
    /// The holder hears nobody.
    Cut,
    /// The last answers that the holder hears come late.
    LateAnswers,
    /// The holder's machine sleeps.
    Sleep,
    /// The holder hears nobody just when another leader begins.
    NewLeader,
    /// The holder hears only a leader that was replaced.
    OldLeader,
    /// A leader that was replaced hears nobody, and decides that the holder's time is up.
    LateExpiry,
    /// The lease is broken, and the holder hears of nothing but its renewals' answers.
    Break,
    /// The holder's virtual machine is paused.
    Pause,
}

/// Something is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// That side runs again.
    Side(usize),
    /// That side's way is open again.
    Way(usize),
    /// That node runs again.
    Node(usize),
    /// That node is heard again.
    Cut(usize),
}

/// The faults of a run: when, what, for how long.
pub fn draw(plan: &Plan, rng: &mut Rng) -> Vec<(Duration, Trouble, Duration)> {
    use Siege::{Break, Cut, LateAnswers, LateExpiry, NewLeader, OldLeader, Pause, Sleep};
    let mut faults = Vec::new();
    if rng.chance(60) {
        let siege = match rng.pick(&[Cut, LateAnswers, Sleep, NewLeader, OldLeader, LateExpiry, Break, Pause]) {
            Pause if plan.freezes == Freezes::None => Sleep,
            siege => siege,
        };
        let at = rng.between(Duration::from_secs(2), plan.stormy / 2);
        let ttl = plan.ttl.get();
        faults.push((at, Trouble::Siege(siege), ttl + plan.policy.grace + rng.between(ttl / 4, ttl)));
    }
    for _ in 0..plan.faults {
        let at = rng.between(Duration::from_secs(1), plan.stormy);
        faults.push((at, trouble(plan, rng), length(plan, rng)));
        if rng.chance(50) {
            let soon = at + rng.between(Duration::ZERO, plan.ttl.get() / 4);
            faults.push((soon, trouble(plan, rng), length(plan, rng)));
        }
    }
    faults
}

fn trouble(plan: &Plan, rng: &mut Rng) -> Trouble {
    match rng.below(14) {
        0 | 1 if plan.freezes != Freezes::None => Trouble::Freeze,
        0..3 => Trouble::Suspend { counted: rng.pick(&[20, 500, 1_000, 1_000, 1_500]) },
        3 => Trouble::Stop,
        4 | 5 => Trouble::Way(rng.pick(&[Way::Cut, Way::NoAnswers, Way::NoRequests])),
        6 => Trouble::Way(Way::LateAnswers),
        7 => Trouble::StopLeader,
        8 => Trouble::PauseLeader,
        9 | 10 => Trouble::CutLeader,
        11 => Trouble::MoveLeader,
        12 => Trouble::LeadAnew,
        _ => Trouble::Break,
    }
}

fn length(plan: &Plan, rng: &mut Rng) -> Duration {
    let ttl = plan.ttl.get();
    if rng.chance(40) { rng.between(Duration::from_millis(50), ttl) } else { rng.between(ttl, ttl * 5 / 2) }
}

impl World {
    /// The holder, more often than not.
    fn victim(&mut self) -> usize {
        let holder = self.granted.as_ref().map(|g| g.side.clone());
        let held = self.sides.iter().position(|s| Some(&s.name) == holder.as_ref());
        match held {
            Some(side) if self.rng.chance(75) => side,
            _ => self.rng.below(self.sides.len()),
        }
    }

    /// Whether a fault drawn at random goes its own way: during a siege most do not come, so that it can do its work.
    pub(super) fn comes(&mut self, trouble: Trouble, target: Option<usize>) -> bool {
        let drawn = target.is_none() && !matches!(trouble, Trouble::Siege(_));
        self.calm_at.is_none() && !(drawn && self.now < self.besieged_until && self.rng.chance(70))
    }

    /// A fault begins; `target`: the side that it meets, if that is decided already.
    pub(super) fn begin(&mut self, trouble: Trouble, target: Option<usize>, length: Duration) {
        match trouble {
            Trouble::Suspend { counted } => {
                self.halt_side(target, Mode::Suspended { counted }, length.max(Duration::from_secs(1)));
            }
            Trouble::Stop => self.halt_side(target, Mode::Stopped, length),
            Trouble::Freeze => {
                let room = (self.plan.ttl.margin() + self.plan.policy.grace) * 9 / 10;
                let length = if self.plan.freezes == Freezes::Short { length.min(room) } else { length };
                self.halt_side(target, Mode::Frozen, length);
            }
            Trouble::Way(way) => {
                let side = target.unwrap_or_else(|| self.victim());
                self.cut_side(side, way, length);
            }
            Trouble::StopLeader => self.halt_leader(Mode::Stopped, length),
            Trouble::PauseLeader => self.halt_leader(Mode::Suspended { counted: 0 }, length),
            Trouble::CutLeader => {
                let sides = (0..self.sides.len()).filter(|_| self.rng.chance(40)).collect();
                self.cut_leader(sides, length);
                self.elect_later(length);
            }
            Trouble::MoveLeader => self.elect(),
            Trouble::LeadAnew => {
                if self.servers.nodes[self.servers.leader].machine.runs() {
                    self.count("leaderships begun anew");
                    self.servers.lead_anew(&mut self.rng);
                }
            }
            Trouble::Break => {
                if let Some(granted) = &self.granted {
                    let (tree, epoch) = (self.servers.tree.clone(), granted.epoch);
                    let command = Command::Break { tree, epoch, reason: "gone".into() };
                    self.servers.operate(command, &mut self.rng);
                }
            }
            Trouble::Siege(siege) => self.lay_siege(siege, length),
        }
    }

    /// As soon as somebody writes.
    fn lay_siege(&mut self, siege: Siege, length: Duration) {
        let (now, mut writes) = (self.now, self.sides.iter_mut().enumerate());
        let Some(holder) = writes.find_map(|(n, s)| (s.machine.runs() && s.admits(now)).then_some(n)) else {
            return self.after(SIEGE_AGAIN, What::Begin(Trouble::Siege(siege), None, length));
        };
        let waiter = (holder + 1 + self.rng.below(self.sides.len() - 1)) % self.sides.len();
        let lead_in = Duration::from_millis(1_500);
        let long = lead_in + length * 2;
        let wish = |run| Wish::Hold { run, ask: false, wait: long, keep: long };
        self.after(Duration::ZERO, What::Side(holder, Local::Wish(wish(true))));
        self.after(lead_in / 2, What::Side(waiter, Local::Wish(wish(false))));
        let mut at = Duration::ZERO;
        while at < lead_in + length {
            at += self.rng.ms(150, 800);
            self.after(at, What::Side(holder, Local::Wish(Wish::Write { page: false, kept: false })));
        }
        self.besieged_until = self.now + lead_in + length;
        self.count("sieges");
        let ttl = self.plan.ttl.get();
        let then = match siege {
            Siege::Cut => vec![(Duration::ZERO, Trouble::Way(Way::Cut), length)],
            Siege::LateAnswers => {
                let late = (Duration::ZERO, Trouble::Way(Way::LateAnswers), ttl / 2);
                vec![late, (ttl / 2 + Duration::from_millis(1), Trouble::Way(Way::Cut), length)]
            }
            Siege::Sleep => vec![(Duration::ZERO, Trouble::Suspend { counted: 500 }, length)],
            Siege::Pause => vec![(Duration::ZERO, Trouble::Freeze, length)],
            Siege::NewLeader => {
                let cut = (Duration::ZERO, Trouble::Way(Way::Cut), length);
                vec![cut, (ttl / 20, Trouble::MoveLeader, length)]
            }
            Siege::Break => vec![(Duration::ZERO, Trouble::Break, length)],
            Siege::OldLeader | Siege::LateExpiry => {
                let listener = Some(holder).filter(|_| siege == Siege::OldLeader);
                self.after(lead_in, What::Isolate { listener, length });
                Vec::new()
            }
        };
        self.deaf[holder] |= siege == Siege::Break;
        for (after, trouble, length) in then {
            self.after(lead_in + after, What::Begin(trouble, Some(holder), length));
        }
    }

    /// The leader is cut off and another one elected; `listener` hears the old one alone.
    pub(super) fn isolate(&mut self, listener: Option<usize>, length: Duration) {
        self.cut_leader(listener.into_iter().collect(), length);
        self.after(Duration::from_millis(200), What::Elect);
    }

    fn cut_leader(&mut self, listeners: Vec<usize>, length: Duration) {
        let leader = self.servers.leader;
        if self.servers.nodes.len() > 1 && !self.servers.nodes[leader].cut {
            self.servers.nodes[leader].cut = true;
            self.count("leaders cut off");
            self.after(length, What::Over(Over::Cut(leader)));
            for side in listeners {
                self.cut_side(side, Way::Only(leader), length);
            }
        }
    }

    fn halt_leader(&mut self, mode: Mode, length: Duration) {
        let leader = self.servers.leader;
        if self.servers.nodes[leader].machine.runs() {
            self.servers.nodes[leader].machine.set(mode, self.now);
            self.count(if mode == Mode::Stopped { "leaders stopped" } else { "leaders paused" });
            self.after(length, What::Over(Over::Node(leader)));
            self.elect_later(length);
        }
    }

    fn halt_side(&mut self, target: Option<usize>, mode: Mode, length: Duration) {
        let n = target.unwrap_or_else(|| self.victim());
        let ttl = self.plan.ttl.get();
        let side = &mut self.sides[n];
        // Short pauses do not add up within one right to write.
        let pause_soon = mode == Mode::Frozen && self.frozen[n].is_some_and(|last| self.now < last + length + ttl * 2);
        if !side.machine.runs() || pause_soon {
            return;
        }
        side.machine.set(mode, self.now);
        self.halted[n] = self.now;
        self.count(match mode {
            Mode::Suspended { .. } => "suspends",
            Mode::Frozen => "pauses that no clock shows",
            _ => "daemons stopped",
        });
        self.after(length, What::Over(Over::Side(n)));
    }

    fn cut_side(&mut self, side: usize, way: Way, length: Duration) {
        if self.net.ways[side] == Way::Open {
            self.net.ways[side] = way;
            self.count("ways cut");
            self.after(length, What::Over(Over::Way(side)));
        }
    }

    fn elect_later(&mut self, length: Duration) {
        if self.rng.chance(85) {
            let after = self.rng.between(Duration::from_millis(50), length.min(Duration::from_secs(4)));
            self.after(after, What::Elect);
        }
    }

    /// Another node leads from now on, if there is one that can.
    pub(super) fn elect(&mut self) {
        let old = self.servers.leader;
        let can = |n: &usize| self.servers.nodes[*n].machine.runs() && !self.servers.nodes[*n].cut;
        let others: Vec<usize> = (0..self.servers.nodes.len()).filter(|n| *n != old).filter(can).collect();
        let to = match others.is_empty() {
            false => others[self.rng.below(others.len())],
            true if can(&old) => old,
            true => return,
        };
        self.count("elections");
        self.servers.elect(to, &mut self.rng);
    }

    /// A fault is over.
    pub(super) fn end(&mut self, over: Over) {
        match over {
            Over::Way(side) => self.net.ways[side] = Way::Open,
            Over::Cut(node) => self.servers.nodes[node].cut = false,
            Over::Node(node) => {
                let n = &mut self.servers.nodes[node];
                if n.machine.runs() {
                    return;
                }
                n.machine.set(Mode::Running, self.now);
                for what in std::mem::take(&mut n.inbox) {
                    let after = self.rng.ms(0, 60);
                    self.after(after, What::Node(node, what));
                }
            }
            Over::Side(n) => {
                let side = &mut self.sides[n];
                let was = side.machine.mode();
                if was == Mode::Running {
                    return;
                }
                side.machine.set(Mode::Running, self.now);
                self.halted[n] = self.now;
                if was == Mode::Frozen {
                    self.frozen[n] = Some(self.now);
                    if self.plan.freezes == Freezes::Long {
                        side.deluded = side.session.as_ref().map(|session| (session.next_number(), self.now));
                    }
                }
                let mut inbox = std::mem::take(&mut side.inbox);
                inbox.push(side.wake());
                for local in inbox {
                    let after = self.rng.ms(0, 200);
                    self.after(after, What::Side(n, local));
                }
            }
        }
    }

    /// Everything heals: from now on somebody must be able to get the tree.
    pub(super) fn calm(&mut self) {
        self.net.heal();
        self.deaf.fill(false);
        for node in 0..self.servers.nodes.len() {
            self.end(Over::Cut(node));
            self.end(Over::Node(node));
        }
        for side in 0..self.sides.len() {
            self.end(Over::Side(side));
            self.after(Duration::from_millis(300), What::Side(side, Local::Wish(Wish::Rest)));
        }
        self.elect();
    }
}
