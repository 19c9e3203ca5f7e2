//! Programs and people on a side: they hold, release, hand over and write, whenever chance says so.

use std::time::Duration;

use treelease_guard::daemon::tree::{EndRequest, Hold, HoldKind, HoldState};
use treelease_guard::gate::{Admission, Op, Opened, Right, Verdict, admit};
use treelease_proto::id::{HoldId, SideName};
use treelease_proto::time::{BootTime, WallTime};

use super::plan::Plan;
use super::rng::Rng;
use super::side::{Local, Side};

/// What somebody wants.
#[derive(Debug, Clone)]
pub enum Wish {
    /// A claim: of a command, or of a person.
    Hold {
        /// `treelease run`, else `treelease acquire`.
        run: bool,
        /// Ask the holder to hand over.
        ask: bool,
        /// How long it waits.
        wait: Duration,
        /// How long it counts.
        keep: Duration,
    },
    /// A claim is taken back.
    Drop(HoldId),
    /// `treelease release`.
    Release {
        /// Without waiting for a good moment.
        now: bool,
    },
    /// `treelease handoff`.
    HandOver {
        /// To whom.
        to: SideName,
        /// Past what is busy.
        force: bool,
    },
    /// A program opens a file for writing and keeps it open.
    OpenFile,
    /// A program writes.
    Write {
        /// From the page cache.
        page: bool,
        /// Through the file that was kept open.
        kept: bool,
    },
    /// Everybody goes home.
    Rest,
}

/// What happens on this side while faults do, each with its true time.
pub fn wishes(plan: &Plan, others: &[SideName], rng: &mut Rng) -> Vec<(Duration, Wish)> {
    let mut wishes = Vec::new();
    let ttl = plan.ttl.get();
    for _ in 0..10 + rng.below(12) {
        let at = rng.between(Duration::ZERO, plan.stormy);
        let wish = match rng.below(10) {
            0..5 => Wish::Hold {
                run: rng.chance(40),
                ask: rng.chance(50),
                wait: rng.between(Duration::ZERO, ttl * 4),
                keep: rng.between(Duration::from_millis(200), ttl * 3),
            },
            5 | 6 => Wish::Release { now: rng.chance(50) },
            7 => Wish::HandOver { to: others[rng.below(others.len())].clone(), force: rng.chance(50) },
            _ => Wish::OpenFile,
        };
        wishes.push((at, wish));
    }
    for _ in 0..3 + rng.below(6) {
        let mut at = rng.between(Duration::ZERO, plan.stormy);
        let pause = rng.pick(&[30, 300, 1_500]);
        for _ in 0..3 + rng.below(12) {
            wishes.push((at, Wish::Write { page: rng.chance(20), kept: rng.chance(40) }));
            at += rng.ms(1, pause);
        }
    }
    wishes
}

impl Side {
    pub(super) fn wish(&mut self, wish: Wish, now: BootTime, rng: &mut Rng) {
        match wish {
            Wish::Hold { run, ask, wait, keep } => {
                let id: HoldId = rng.id();
                let hold = Hold {
                    id: id.clone(),
                    kind: if run { HoldKind::Run } else { HoldKind::Acquire },
                    command: "make".into(),
                    pid: 1,
                    tty: String::new(),
                    note: String::new(),
                    since: WallTime::UNKNOWN,
                    state: HoldState::Pending { until: now.after(wait) },
                    ask,
                    no_wait: wait.is_zero(),
                    until: None,
                };
                self.tree.handle_hold(hold, now);
                self.later(keep, Local::Wish(Wish::Drop(id)));
            }
            Wish::Drop(id) => self.tree.handle_hold_gone(&id, now),
            Wish::Release { now: at_once } => {
                self.tree.drop_acquired();
                if self.tree.is_open() && !self.tree.is_ending() {
                    self.tree.begin_end(EndRequest::Release { now: at_once }, now);
                }
            }
            Wish::HandOver { to, force } if self.tree.writes(now) && !self.tree.is_ending() => {
                self.tree.drop_acquired();
                self.tree.begin_end(EndRequest::To { side: to, force }, now);
            }
            Wish::HandOver { .. } => {}
            Wish::OpenFile => {
                if let Admission::Permit(permit) = self.gate.admit(Op::OpenWrite, None) {
                    self.handle = Some(Opened { epoch: permit.standing().epoch });
                }
            }
            Wish::Write { page, kept } => self.attempt(if page { Op::PageWrite } else { Op::Write }, kept, now, rng),
            Wish::Rest => {
                let holds: Vec<HoldId> = self.tree.holds.keys().cloned().collect();
                for hold in holds {
                    self.tree.handle_hold_gone(&hold, now);
                }
                self.waiting = false;
            }
        }
    }

    /// A program tries to write.
    pub(super) fn attempt(&mut self, op: Op, kept: bool, now: BootTime, rng: &mut Rng) {
        // A page-cache write is judged by its inode, never by a handle.
        let handle = self.handle.filter(|_| kept && op != Op::PageWrite);
        match self.gate.admit(op, handle) {
            Admission::Permit(permit) => {
                self.waiting = false;
                self.fly(permit, handle.map(|h| h.epoch), rng);
            }
            Admission::Wait => {
                self.waiting = true;
                self.tree.handle_first_write(now);
            }
            Admission::Refuse(_) if handle.is_some() => self.handle = None,
            Admission::Refuse(_) => {}
        }
    }

    /// The lease is here: what waited is carried out before the gate opens for all (as `Gate::admit_waiter`).
    pub(super) fn write_waiting(&mut self, now: BootTime, rng: &mut Rng) {
        let mut standing = self.gate.standing();
        if let Right::Opening { until } = standing.right {
            standing.right = Right::Write { until };
        }
        if std::mem::take(&mut self.waiting)
            && admit(&standing, Op::Write, None, now) == Verdict::Admit
            && let Admission::Permit(permit) = self.gate.admit(Op::PageWrite, None)
        {
            self.fly(permit, None, rng);
        }
    }
}
