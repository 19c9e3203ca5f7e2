//! A side: the real session core, the real tree and the real gate, and what the daemon does between them, without a process.
//!
//! What is written here anew is the daemon's shell (`daemon/mod.rs`, `effects.rs`, `servers.rs` of the guard): it feeds the
//! cores and carries out their effects. Storage takes time and sometimes fails; commands go out one after the other, each asked
//! again with the same key until it is answered or its limit has passed.

use std::collections::VecDeque;
use std::time::Duration;

use treelease_client::session::deadline::write_until;
use treelease_client::session::{Action, Answered, Renewal, SessionCore};
use treelease_guard::daemon::tree::{EndResult, LockWord, TreeSide};
use treelease_guard::gate::{Gate, Hooks, LateWrite, Op, Opened, Permit, Refused, Right, Standing, Verdict, admit, in_time};
use treelease_proto::command::{Command, OpenSession, Proposal};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{Place, RequestKey, SessionId, SideName, TreeId};
use treelease_proto::policy::{Fence, Mode, Policy};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::{BootTime, Ttl, format_duration};

use super::clock::{Kind, Machine};
use super::plan::{Fault, Plan};
use super::rng::Rng;
use super::server::Word;
use super::users::Wish;

mod commands;
mod effects;

/// How often a holder looks whether to give way.
const GIVE_WAY_LOOK: Duration = Duration::from_millis(250);
/// How often a wait for permits looks again, and how often before it says no.
const DRAIN_LOOK: (Duration, u32) = (Duration::from_millis(15), 30);

/// What a command is for (as `servers::Purpose`).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Purpose {
    Open,
    Acquire(u64),
    End(u64),
    Owed(Epoch),
    Cancel,
    Rest(u64),
    Tell,
}

#[derive(Debug, Clone)]
struct Job {
    no: u64,
    proposal: Proposal,
    purpose: Purpose,
    asked: u32,
}

/// What happens on a side's machine.
#[derive(Debug, Clone)]
pub enum Local {
    /// It is time for something; only the latest such wish counts.
    Wake(u64),
    /// Marker and stamp are seen to, or not.
    Opened(Epoch, bool),
    /// Caches are dropped, or not.
    CarriedOut(Epoch, bool),
    /// A look at what goes on is done.
    Moment(u64),
    /// Mapped pages are pushed.
    Pushed(u64),
    /// Are the permits gone?
    Drain(u64, u32),
    /// The flush is done, or failed.
    Flushed(u64, bool),
    /// Are the permits gone before rest?
    Settle(u64, u32),
    /// The storage has confirmed before rest, or failed.
    Settled(u64, bool),
    /// A broken lease's gate: are the permits gone?
    Shut(Epoch),
    /// There is no lock to be had.
    Unlockable(Epoch, u64),
    /// A command has no answer yet.
    AskAgain(u64),
    /// A write has reached the storage.
    Landed(u64),
    /// A program or a person wants something.
    Wish(Wish),
    /// A node has said something.
    Heard(Word),
}

/// What the world is to do for a side.
#[derive(Debug)]
#[allow(missing_docs)] // said in each variant's sentence
pub enum Out {
    /// This happens here after that true time.
    After(Duration, Local),
    /// Send it.
    Renew(Renewal),
    /// Send it.
    Do(u64, Box<Proposal>),
    /// Write number so much was admitted under this epoch, through a file opened under that one, if any.
    Admitted { epoch: Epoch, write: u64, opened: Option<Epoch> },
    /// A write has ended; `late`: the gate says that it ended after the deadline.
    Ended { write: u64, late: bool },
    /// The server's clock and this one disagree.
    Uncovered,
    /// An end was asked for, and came to that.
    End(EndResult),
}

struct NoEars;

impl Hooks for NoEars {
    fn wants_lease(&self) {}
    fn late_write(&self, _what: LateWrite) {}
    fn refused(&self, _what: Refused) {}
}

/// A side.
pub struct Side {
    /// Its name.
    pub name: SideName,
    /// Where it runs.
    pub machine: Machine,
    /// What came while it did not run.
    pub inbox: Vec<Local>,
    /// What it wants with the one tree.
    pub tree: TreeSide,
    /// The gate of its mount.
    pub gate: Gate,
    /// Its session.
    pub session: Option<SessionCore>,
    /// Since a pause that no clock showed: no renewal sent after it was answered yet. The number of the first one that counts,
    /// and the true time of the thaw.
    pub deluded: Option<(u64, Duration)>,
    /// An operation waits at the gate.
    pub waiting: bool,
    /// A file that a program opened for writing.
    pub handle: Option<Opened>,
    session_id: Option<SessionId>,
    open_at: Option<BootTime>,
    opening: bool,
    ttl: Ttl,
    place: Place,
    wire: VecDeque<Job>,
    busy: bool,
    session_job: Option<Job>,
    end_key: Option<(Epoch, u32, RequestKey)>,
    permits: Vec<(u64, Permit)>,
    next: u64,
    wake: u64,
    /// When the last counting answer came (control).
    arrived: Option<(u64, BootTime)>,
    fault: Fault,
    outs: Vec<Out>,
}

impl Side {
    /// Side number `n`, without a session.
    pub fn new(n: usize, plan: &Plan, fault: Fault, tree: &TreeId, centre: i64, rng: &mut Rng) -> Self {
        let name = ["workstation", "pod", "laptop"][n].parse().expect("a name");
        Self::named(name, format!("boot-{n}"), plan, fault, tree, centre, rng)
    }

    /// The side of that name, on a machine with that boot id.
    pub fn named(name: SideName, boot: String, plan: &Plan, fault: Fault, tree: &TreeId, centre: i64, rng: &mut Rng) -> Self {
        let kind = match fault {
            Fault::MonotonicClock => Kind::Monotonic,
            Fault::SlewedClock => Kind::Slewed,
            _ => Kind::Side,
        };
        let mut machine = Machine::new(kind, centre, rng);
        let now = machine.now(Duration::ZERO);
        let mut side = TreeSide::new(tree.clone(), "dev".parse().expect("a name"), name.clone());
        side.policy = plan.policy.clone();
        side.handle_mounted(now);
        let gate = Gate::new(Standing::unknown(Mode::Enforce), machine.clock(), std::sync::Arc::new(NoEars));
        Self {
            place: Place { boot, superblock: 7 },
            name,
            machine,
            inbox: Vec::new(),
            tree: side,
            gate,
            session: None,
            deluded: None,
            waiting: false,
            handle: None,
            session_id: None,
            open_at: Some(now),
            opening: false,
            ttl: plan.ttl,
            wire: VecDeque::new(),
            busy: false,
            session_job: None,
            end_key: None,
            permits: Vec::new(),
            next: 1,
            wake: 0,
            arrived: None,
            fault,
            outs: Vec::new(),
        }
    }

    /// The next things to do for it.
    pub fn outs(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.outs)
    }

    /// Whether its gate would let a change of the storage through at this moment, if anything ran here.
    pub fn admits(&mut self, at: Duration) -> bool {
        let standing = self.gate.standing();
        if standing.right == Right::Read {
            return false;
        }
        let now = self.machine.now(at);
        match standing.right {
            // Operations that waited are carried out.
            Right::Opening { until } => in_time(until, now),
            _ => [Op::Write, Op::PageWrite].into_iter().any(|op| admit(&standing, op, None, now) == Verdict::Admit),
        }
    }

    /// The latest wish to be woken.
    pub fn wake(&self) -> Local {
        Local::Wake(self.wake)
    }

    /// Whether that wish to be woken is the latest one.
    pub fn is_latest(&self, wish: u64) -> bool {
        wish == self.wake
    }

    /// Under which epoch, if any.
    pub fn epoch(&self) -> Option<Epoch> {
        self.tree.grant().map(|g| g.epoch)
    }

    /// Something happens here, and our process runs.
    pub fn at(&mut self, local: Local, at: Duration, rng: &mut Rng) {
        let now = self.machine.now(at);
        match local {
            Local::Wake(_) => {}
            Local::Heard(word) => self.hear(word, now),
            Local::Opened(epoch, fine) => {
                let result = if fine { Ok(()) } else { Err(Refusal::new(Code::Storage, "the marker cannot be read")) };
                self.tree.handle_opened(epoch, result, now);
            }
            Local::CarriedOut(epoch, fine) => {
                let dropped = if fine { Ok(()) } else { Err("the caches were not dropped in time".to_owned()) };
                self.tree.handle_carried_out(epoch, dropped, now);
            }
            Local::Moment(no) => {
                self.tree.note_mutation(self.gate.last_mutation());
                let moment = self.tree.moment(Vec::new());
                self.tree.feed_ending(no, |handoff, now| handoff.handle_moment(moment, now), now);
            }
            Local::Pushed(no) => self.tree.feed_ending(no, |handoff, now| handoff.handle_pushed(now), now),
            Local::Drain(no, looks) => match self.gate.in_flight() {
                n if n == 0 || self.fault == Fault::DrainSkipped => {
                    self.tree.feed_ending(no, |handoff, now| handoff.handle_drained(true, now), now)
                }
                _ if looks >= DRAIN_LOOK.1 => self.tree.feed_ending(no, |handoff, now| handoff.handle_drained(false, now), now),
                _ => self.after(DRAIN_LOOK.0, Local::Drain(no, looks + 1)),
            },
            Local::Flushed(no, fine) => {
                let flushed = if fine { Ok((1, 1)) } else { Err("EIO".to_owned()) };
                self.tree.feed_ending(no, |handoff, now| handoff.handle_flushed(flushed, now), now);
            }
            Local::Settle(no, looks) => match self.gate.in_flight() {
                0 => {
                    let fine = !rng.chance(2);
                    self.after(rng.ms(1, 40), Local::Settled(no, fine));
                }
                _ if looks >= DRAIN_LOOK.1 => self.tree.handle_settled(no, Err(false), now),
                _ => self.after(DRAIN_LOOK.0, Local::Settle(no, looks + 1)),
            },
            Local::Settled(no, fine) => self.tree.handle_settled(no, if fine { Ok(()) } else { Err(true) }, now),
            Local::Shut(epoch) if self.gate.in_flight() > 0 => self.after(DRAIN_LOOK.0, Local::Shut(epoch)),
            Local::Shut(epoch) => {
                if let Some(session) = &self.session_id {
                    let lease = self.tree.lease_ref(session, epoch);
                    self.send(Command::GateClosed(lease), Purpose::Tell, rng);
                }
            }
            Local::Unlockable(epoch, no) => {
                self.tree.handle_locked(epoch, no, &LockWord::Impossible, now);
            }
            Local::AskAgain(no) => self.ask_again(no, now),
            Local::Landed(write) => {
                if let Some(i) = self.permits.iter().position(|(no, _)| *no == write) {
                    let late = self.permits.remove(i).1.finish(now).is_err();
                    self.outs.push(Out::Ended { write, late });
                }
            }
            Local::Wish(wish) => self.wish(wish, now, rng),
        }
        self.carry_out(now, rng);
        self.turn(now, rng);
    }

    /// Sees to everything that is due (as `Daemon::turn`), and says when to look again.
    fn turn(&mut self, now: BootTime, rng: &mut Rng) {
        self.drive_session(now, rng);
        self.refresh_rights(now);
        self.tree.note_mutation(self.gate.last_mutation());
        if self.tree.is_open() && self.waiting {
            self.attempt(Op::Write, false, now, rng);
        }
        self.tree.handle_timeout(now);
        self.carry_out(now, rng);
        let look = self.tree.somebody_waits().then(|| now.after(GIVE_WAY_LOOK));
        let open = self.open_at.filter(|_| self.session.is_none() && !self.opening);
        let session = self.session.as_ref().and_then(SessionCore::next_deadline);
        let next = [self.tree.next_deadline(), look, open, session].into_iter().flatten().min();
        self.wake += 1;
        if let Some(next) = next {
            let after = self.machine.true_length(next.since(now)).max(Duration::from_millis(1));
            self.after(after, Local::Wake(self.wake));
        }
    }

    fn after(&mut self, after: Duration, local: Local) {
        self.later(after, local);
    }

    pub(super) fn later(&mut self, after: Duration, local: Local) {
        self.outs.push(Out::After(after, local));
    }

    // ---- session (as `daemon/servers.rs`) ----

    fn drive_session(&mut self, now: BootTime, rng: &mut Rng) {
        if self.session.is_none() && !self.opening && self.open_at.is_none_or(|at| now >= at) {
            self.opening = true;
            let open = OpenSession {
                side: self.name.clone(),
                host: "host".into(),
                ttl: self.ttl,
                new_session: rng.id(),
                new_secret_digest: vec![1; 32],
                resume: None,
                boot: self.place.boot.clone(),
                machine: String::new(),
            };
            let job = self.job(Command::OpenSession(open), Purpose::Open, rng.id());
            self.session_job = Some(job.clone());
            self.ask(job);
        }
        let Some(session) = &mut self.session else { return };
        while let Some(action) = session.poll_action(now) {
            match action {
                Action::Renew(renewal) => self.outs.push(Out::Renew(renewal)),
                Action::ClockDisagrees { .. } => self.outs.push(Out::Uncovered),
                Action::Warn(_) => {}
            }
        }
    }

    fn hear(&mut self, word: Word, now: BootTime) {
        match word {
            Word::Renewed(of, answered) => self.renewed(&of, answered, now),
            Word::Failed(of, number) => {
                if let Some(session) = self.session.as_mut().filter(|s| *s.session() == of) {
                    session.handle_failure(number, now);
                }
            }
            Word::Did { job, answer } => self.did(job, Ok(answer), now),
            Word::Table(status) => self.tree.handle_table(*status, self.session_id.as_ref(), now),
        }
    }

    fn renewed(&mut self, of: &SessionId, answered: Answered, now: BootTime) {
        let Some(session) = self.session.as_mut().filter(|s| s.session() == of) else { return };
        let number = answered.number;
        let before = session.listed_by();
        session.handle_answer(answered, now);
        if let Some(why) = session.ended().map(str::to_owned) {
            (self.session, self.session_id, self.deluded, self.arrived) = (None, None, None, None);
            self.open_at = Some(now);
            self.tree.handle_session_lost(&why, now);
            return;
        }
        if session.listed_by() != before {
            self.arrived = Some((number, now));
        }
        if self.deluded.is_some_and(|(first, _)| session.listed_by() >= first) {
            self.deluded = None;
        }
        let listed: Vec<_> = session.listed().values().cloned().collect();
        self.refresh_rights(now);
        for grant in listed {
            let (epoch, before) = (grant.epoch, self.epoch());
            self.tree.handle_grant(grant.clone(), now);
            if before != Some(epoch)
                && self.epoch() == Some(epoch)
                && let Some(session) = &mut self.session
            {
                session.note_grant(&grant.tree, epoch, now);
            }
        }
    }

    /// Until when may be written (as `Daemon::refresh_rights`).
    fn refresh_rights(&mut self, now: BootTime) {
        let (Some(session), Some(grant)) = (&self.session, self.tree.grant()) else {
            return self.tree.handle_right(None, None, now);
        };
        let lists = session.listed().get(&grant.tree).is_some_and(|p| p.epoch == grant.epoch);
        let mut listed = (session.listed_by() > 0).then_some(lists);
        let mut right = session.right(&grant.tree, grant.epoch, now);
        let control = match self.fault {
            Fault::DeadlineFromArrival if lists => self.arrived.map(|(_, at)| at),
            Fault::ExtendsUnlisted if listed.is_some() => {
                listed = Some(true);
                session.last_ack()
            }
            _ => None,
        };
        if let Some(from) = control {
            let until = write_until(from, session.ttl());
            right = right.max(Some(until).filter(|until| in_time(*until, now)));
        }
        self.tree.handle_right(right, listed, now);
    }
}

/// The policy, as a command names it.
pub fn policy_as_text(policy: &Policy) -> Vec<(String, String)> {
    let fence = if policy.fence == Fence::None { "none" } else { "manual" };
    let lengths = [
        ("idle", policy.idle),
        ("quiet", policy.quiet),
        ("handoff_wait", policy.handoff_wait),
        ("grace", policy.grace),
        ("flush_limit", policy.flush_limit),
        ("min_hold", policy.min_hold),
    ];
    let mut text: Vec<_> = lengths.into_iter().map(|(k, d)| (k.to_owned(), format_duration(d))).collect();
    text.push(("fence".into(), fence.into()));
    text
}
