//! What this side wants with one tree, and how far it has come: a state machine without IO.
//!
//! Inputs are `handle_…`, outputs are [`Effect`]s from [`TreeSide::poll_effect`], time is the last argument. The daemon's loop
//! feeds it with grants, renewals' answers, requests of local commands and first writes, and carries out what it asks for.
//!
//! # Promises
//!
//! - I4. A grant opens nothing: the gate opens only in [`Phase::Open`] (waiters: [`Phase::CarryingOut`]), which is reached only
//!   after a renewal sent later has listed the pair and the marker was checked and stamped (I8); and each published standing
//!   carries the deadline that the session core computed, so that time alone closes it.
//! - Once a release for an epoch has left the daemon, the gate never opens under that epoch again: [`TreeSide::closed_upto`]
//!   is raised before the release is asked for, and a grant at or below it is ignored. A restarted daemon knows it from its
//!   state file ([`Past`]).
//! - A lease that an earlier run of the daemon left is never taken for a new grant, whichever answer brings it: before the
//!   resumed session's first answer nothing is asked for ([`TreeSide::handle_left_behind`]).
//! - I2, shim-only. Without a mount "clean" and "the gate is shut" are said only once the commands that ran under the lease have
//!   ended ([`TreeSide::handle_hold_gone`]): nothing else keeps them from writing.
//! - An end that this side owes the server is sent until it is answered ([`owed`]): no tree stays with a side that cannot use it.
//! - I6. [`TreeSide::stale_below`] only grows, and is raised when another side is seen to have been granted, at the latest by
//!   the run start of this side's next grant.
//!
//! # Does not know
//!
//! The session's clockwork ([`treelease_client::session`]), what an operation is ([`crate::gate`]), how a lease is wound down
//! step by step ([`crate::handoff`]).

mod end;
mod hold;
mod line;
mod lock;
mod mode;
mod owed;
mod rest;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use end::{EndRequest, EndResult, GateStage};
pub use hold::{Hold, HoldKind, HoldState, NewHold};
pub use line::Line;
pub use lock::{LOCK_LIMIT, LOCK_PATIENCE, LockWord};
pub use owed::Past;
pub use rest::{REST_AFTER, Rest};
use treelease_client::words::command::{Grant, LeaseRef};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{HoldId, MarkerLock, SessionId, SideName, TreeId, TreeName};
use treelease_client::words::policy::{FirstWrite, Mode, OnClose, Policy};
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::{End, Holder, StateName, TreeStatus, Waiter};
pub use witness::Attempt;

use crate::gate::{Right, Standing};
use crate::handoff::{Handoff, Why};

/// How long a first write waits for the lease before it is refused (DESIGN 4).
pub const FIRST_WRITE_WAIT: Duration = Duration::from_secs(2);
/// How long this side keeps from taking the lease for a first write after its gate could not open.
pub const FIRST_WRITE_PAUSE: Duration = Duration::from_secs(10);
/// How long a grant may take from the server's word to an open gate before it is given back.
pub const OPEN_LIMIT: Duration = Duration::from_secs(20);
const _: () = assert!(OPEN_LIMIT.as_secs() > LOCK_LIMIT.as_secs());
/// The same after an unclean end, when left-overs are looked at and the policy's checks run ([`crate::lower::checks::CHECKS_LIMIT`]).
pub const OPEN_WITH_CHECKS_LIMIT: Duration = Duration::from_secs(55);
const _: () = assert!(OPEN_WITH_CHECKS_LIMIT.as_secs() >= crate::lower::checks::CHECKS_LIMIT.as_secs() + OPEN_LIMIT.as_secs());
/// The pause before a command to the servers that failed is sent again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// How far this side is with the lease of one tree.
#[derive(Debug)]
pub enum Phase {
    /// It has none.
    Reader,
    /// The server has granted it; no renewal has listed the pair yet.
    Granted {
        /// The grant.
        grant: Grant,
        /// When the daemon learned of it.
        since: BootTime,
    },
    /// Marker, stamp, left-overs and checks are being seen to on the storage.
    Opening {
        /// The grant.
        grant: Grant,
        /// When the daemon learned of it.
        since: BootTime,
    },
    /// The waiting operations are carried out and the kernel's caches are dropped.
    CarryingOut {
        /// The grant.
        grant: Grant,
    },
    /// This side writes, as long as its renewals say so.
    Open {
        /// The grant.
        grant: Grant,
        /// When the gate opened.
        opened: BootTime,
    },
    /// It hands over.
    Ending {
        /// The grant.
        grant: Grant,
        /// When the gate had opened.
        opened: BootTime,
        /// What still goes through.
        stage: GateStage,
        /// The steps.
        handoff: Box<Handoff>,
    },
}

/// What the daemon is to do. Each is done once, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The standing has changed: compute it anew and publish it.
    Publish,
    /// Send a renewal now: a grant waits to be listed.
    RenewNow,
    /// Take the lease or a place in the queue.
    Acquire {
        /// Ask the holder to hand over.
        ask: bool,
        /// A first write wants it, nobody else.
        first_write: bool,
        /// Do not queue.
        no_wait: bool,
        /// What for.
        note: String,
    },
    /// Leave the queue.
    Cancel,
    /// See to marker, stamp, left-overs and checks; answer with [`TreeSide::handle_opened`].
    Open(Grant),
    /// Another side had a turn since this side last wrote: nodes with writable handles are replaced (I6). Comes before the
    /// standing under which anything is carried out is published.
    ReplaceNodes,
    /// Carry out the waiting operations and drop the caches; answer with [`TreeSide::handle_carried_out`].
    CarryOut(Grant),
    /// Refuse the waiting operations.
    RefuseWaiters,
    /// A lease whose gate never opened ends.
    GiveBack {
        /// Which.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// A lease that an earlier incarnation wrote under, and whose gate cannot open here, ends unclean.
    SurrenderUnopened {
        /// Which.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// A release that an earlier run of the daemon has sent, and whose outcome nobody knows.
    ReleaseAgain {
        /// Which.
        epoch: Epoch,
    },
    /// The kernel is to forget what it knows: this side may write no more, or pages were refused meanwhile.
    DropCaches,
    /// A lease was taken away while the session lives: drain, flush what can be flushed, then say that the gate is shut.
    SayGateClosed {
        /// Which.
        epoch: Epoch,
    },
    /// The try of this number: end the permits in flight and make durable what was written; answer with [`TreeSide::handle_settled`].
    Settle(u64),
    /// Tell the servers that nothing is unconfirmed (`rest`), or that something will be (`active`); answer with
    /// [`TreeSide::handle_rest_answer`].
    TellRest {
        /// `rest`, else `active`.
        at_rest: bool,
        /// Grows within the session.
        number: u64,
    },
    /// The deadline has passed: flush at once what was admitted before it; confirmed, the marker's lock is let go of.
    FlushLapsed,
    /// Ask for the marker's lock, by the descriptor that there is, or by a new one; answer with [`TreeSide::handle_locked`].
    TakeLock {
        /// For which lease.
        epoch: Epoch,
        /// Which try.
        no: u64,
    },
    /// Try for the ended lease's lock; answer with [`TreeSide::handle_witness_try`].
    AskWitness(Attempt),
    /// Tell the servers that it is here; answer with [`TreeSide::handle_witness_answer`].
    TellWitness(Attempt, MarkerLock),
    /// Let go of it.
    DropWitness,
    /// The mode began to refuse, by the change of that number: end what is in flight and have the storage confirm what was written;
    /// answer with [`TreeSide::handle_mode_settled`].
    SettleMode(u64),
    /// Tell the servers that this side's guard obeys the mode; answer with [`TreeSide::handle_obeys_answer`].
    TellObeys(u64),
    /// One step of a handoff; answer with the matching `handle_…` of [`end`].
    Step(crate::handoff::Step),
    /// A hold begins to count.
    HoldGranted(HoldId),
    /// A hold waits; tell how things stand.
    HoldWaits(HoldId),
    /// A hold is refused and gone.
    HoldRefused(HoldId, Refusal),
    /// The lease went while a hold counted; the hold is gone. Its command ends now, and [`TreeSide::handle_hold_gone`] says when it has.
    HoldLost(HoldId, String),
    /// An end that somebody asked for has come to its result.
    EndResult(EndResult),
    /// What a person who waits for the end should read.
    EndProgress(String),
    /// For the history and the log.
    Note(String),
}

/// One tree as this side has it.
#[derive(Debug)]
pub struct TreeSide {
    /// Its id.
    pub id: TreeId,
    /// Its name.
    pub name: TreeName,
    /// Its owner's decisions, as last heard.
    pub policy: Policy,
    /// Whether it is mounted here; without a mount the lease is only a claim (shim-only mode).
    pub mounted: bool,
    /// Who this side is.
    pub me: SideName,
    /// How far it is with the lease.
    pub phase: Phase,
    /// Handles opened under an earlier epoch are stale for ever (I6). Only grows.
    pub stale_below: Epoch,
    /// No other side has the tree, as far as the servers have said: it is free, or this side's own, of which the grant may be on its way.
    within_reach: bool,
    /// The latest grant to anybody that this side has heard of.
    pub latest: Epoch,
    /// Epochs up to here never open the gate again.
    pub closed_upto: Epoch,
    /// Grows whenever the standing changes in kind.
    pub serial: u64,
    /// Local claims, in the order of their ids' arrival.
    pub holds: BTreeMap<HoldId, Hold>,
    /// Where this side stands in the queue.
    pub line: Line,
    /// How the tree stands at the server, as last heard.
    pub table: Option<TreeStatus>,
    right: Option<BootTime>,
    lapsed: bool,
    rest: Rest,
    rest_number: u64,
    /// The epoch for which `rest` was sent and no later `active` was acknowledged.
    rest_said: Option<Epoch>,
    settle_no: u64,
    wake_wanted: bool,
    woke: Option<BootTime>,
    end_when_awake: Option<EndRequest>,
    /// The storage confirms nothing: the gate is shut meanwhile.
    silenced: bool,
    lock: lock::LockSide,
    lock_no: u64,
    /// The epoch for which the servers were, or may have been, told that the lock is had.
    lock_told: Option<Epoch>,
    asking: witness::Asking,
    obeying: mode::Obeying,
    ever_run: Epoch,
    first_write_until: Option<BootTime>,
    first_write_pause: Option<BootTime>,
    retry_at: Option<BootTime>,
    written_before: Epoch,
    declined_until: Option<BootTime>,
    last_mutation: Option<BootTime>,
    /// What this side held when its session ended is asked for again in the next one.
    come_back: bool,
    /// The daemon ends: nothing is taken any more.
    down: bool,
    /// It has ended: nothing goes through any more.
    gone_down: bool,
    owed: Option<owed::Owed>,
    /// Commands that were told that the lease is gone, and have not ended yet.
    leaving: BTreeSet<HoldId>,
    /// The end of that number goes on when they have.
    drain_owed: Option<u64>,
    /// That lease's gate can be called shut when they have.
    shut_owed: Option<Epoch>,
    left_behind: owed::LeftBehind,
    /// The epoch for which marker and stamp were seen to on the mount that there is now (I8).
    checked: Epoch,
    /// Counts the sessions, so that an answer to what an earlier one asked counts for none of the later.
    session_no: u64,
    /// Counts the ends begun, so that an answer to an earlier one counts for none of the later.
    end_no: u64,
    effects: VecDeque<Effect>,
}

impl TreeSide {
    /// A tree that this side reads.
    pub fn new(id: TreeId, name: TreeName, me: SideName) -> Self {
        Self {
            id,
            name,
            policy: Policy::default(),
            mounted: false,
            me,
            phase: Phase::Reader,
            stale_below: Epoch::ZERO,
            within_reach: true,
            latest: Epoch::ZERO,
            closed_upto: Epoch::ZERO,
            serial: 1,
            holds: BTreeMap::new(),
            line: Line::Out,
            table: None,
            right: None,
            lapsed: false,
            rest: Rest::Awake,
            rest_number: 0,
            rest_said: None,
            settle_no: 0,
            wake_wanted: false,
            woke: None,
            end_when_awake: None,
            silenced: false,
            lock: lock::LockSide::default(),
            lock_no: 0,
            lock_told: None,
            asking: witness::Asking::default(),
            obeying: mode::Obeying::default(),
            ever_run: Epoch::ZERO,
            first_write_until: None,
            first_write_pause: None,
            retry_at: None,
            written_before: Epoch::ZERO,
            declined_until: None,
            last_mutation: None,
            come_back: false,
            down: false,
            gone_down: false,
            owed: None,
            leaving: BTreeSet::new(),
            drain_owed: None,
            shut_owed: None,
            left_behind: owed::LeftBehind::default(),
            checked: Epoch::ZERO,
            session_no: 0,
            end_no: 0,
            effects: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The grant that this side has, at whatever stage.
    pub fn grant(&self) -> Option<&Grant> {
        match &self.phase {
            Phase::Reader => None,
            Phase::Granted { grant, .. }
            | Phase::Opening { grant, .. }
            | Phase::CarryingOut { grant }
            | Phase::Open { grant, .. }
            | Phase::Ending { grant, .. } => Some(grant),
        }
    }

    /// Names the lease that this side has.
    pub fn lease(&self, session: &SessionId) -> Option<LeaseRef> {
        self.grant().map(|g| LeaseRef { tree: self.id.clone(), session: session.clone(), epoch: g.epoch })
    }

    /// Whether writes go through now: open, and before the deadline.
    pub fn writes(&self, now: BootTime) -> bool {
        matches!(self.phase, Phase::Open { .. }) && self.right_lives(now)
    }

    /// Until when, if so.
    pub fn writes_until(&self, now: BootTime) -> Option<BootTime> {
        if self.writes(now) { self.right } else { None }
    }

    /// The run start of the last grant under which the gate opened here.
    pub fn ever_run(&self) -> Epoch {
        self.ever_run
    }

    /// Until when the server's word is good, whatever the phase.
    pub fn right(&self) -> Option<BootTime> {
        self.right
    }

    fn right_lives(&self, now: BootTime) -> bool {
        self.right.is_some_and(|until| now < until && !now.suspended_since(until))
    }

    /// The daemon ends now, with whatever is held still: its gate opens no more, also while the mount is being taken away.
    pub fn handle_gone_down(&mut self) {
        self.down = true;
        self.gone_down = true;
        self.change_kind();
    }

    /// What the guard is to obey from now on.
    pub fn standing(&self, session_lives: bool) -> Standing {
        // I8: a mount that came while the lease was held already is not written through before its marker is stamped.
        let unchecked = self.mounted && self.grant().is_some_and(|g| g.epoch != self.checked);
        let until = self.right.filter(|_| !unchecked);
        let right = match (&self.phase, until) {
            _ if self.gone_down => Right::Read,
            (Phase::Open { .. }, Some(until)) if self.rest != Rest::Awake || self.lock_is_loose() || self.silenced => {
                Right::Resting { until }
            }
            // Past a deadline the lock was let go of: a lease that ends meanwhile opens no more.
            (Phase::Ending { .. }, _) if self.lock_is_loose() => Right::Read,
            (Phase::Open { .. }, Some(until)) => Right::Write { until },
            (Phase::CarryingOut { .. }, Some(until)) => Right::Opening { until },
            (Phase::Ending { stage: GateStage::Open, .. }, Some(until)) if !self.silenced => Right::Write { until },
            (Phase::Ending { stage: GateStage::Open | GateStage::Closing, .. }, Some(until)) => Right::Closing { until },
            _ => Right::Read,
        };
        // While the gate closes under `on_close=wait`, or opens, a call waits for the outcome; without the lease it waits if a first
        // write may take it.
        let may_wait = match &self.phase {
            Phase::Ending { .. } => self.policy.on_close == OnClose::Wait,
            Phase::Open { .. } => false,
            _ => session_lives && !self.down && self.policy.first_write == FirstWrite::Acquire,
        };
        Standing {
            serial: self.serial,
            mode: self.policy.mode,
            stale_below: self.stale_below,
            epoch: self.latest,
            right,
            may_wait,
            on_close: self.policy.on_close,
            free: self.within_reach,
        }
    }

    fn change_kind(&mut self) {
        self.serial += 1;
        self.effects.push_back(Effect::Publish);
    }

    fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.change_kind();
    }

    // ---- what the servers say ----

    /// The tree as a node knows it now.
    pub fn handle_table(&mut self, status: TreeStatus, my_session: Option<&SessionId>, now: BootTime) {
        let policy_changed = self.policy != status.policy;
        if self.policy.mode != status.policy.mode && self.table.is_some() {
            // What the kernel kept where nobody was refused is no licence's.
            self.change_kind();
            self.effects.push_back(Effect::DropCaches);
        }
        self.policy = status.policy.clone();
        self.name = status.name.clone();
        let moved = self.table.as_ref().map(|t| (t.state, t.epoch)) != Some((status.state, status.epoch));
        // What this side gave back itself because its gate could not open is no news: it would be taken and given back again, with
        // each first write.
        let own = self.first_write_pause.is_some_and(|until| now < until) && status.epoch == self.closed_upto;
        if moved && own {
            self.effects.push_back(Effect::Publish);
        } else if moved {
            // Whoever was refused may try again: the gate takes a new serial for that.
            self.first_write_pause = None;
            self.change_kind();
        }
        let mine = status.holder.as_ref().is_some_and(|h| Some(&h.session) == my_session);
        self.within_reach = mine || status.state == StateName::Free;
        if status.epoch > self.latest {
            self.latest = status.epoch;
            self.effects.push_back(Effect::Publish);
        }
        // Another side has had a turn: what was opened before it is stale (I6).
        if !mine && status.run_side.as_ref().is_some_and(|s| *s != self.me) && status.run_start.0 > self.stale_below {
            self.raise_stale_below(status.run_start.0);
        }
        // A cancel that nobody answered in time may be carried out after the request that followed it: its place is asked for anew.
        // To ask once too often (that node is behind) changes nothing: the server keeps the place that there is.
        let queued = my_session.is_some_and(|me| status.waiters.iter().any(|w| w.session == *me));
        if matches!(self.line, Line::In { .. }) && !mine && !queued {
            self.line = Line::Out;
        }
        let declined = status.declined.clone();
        let was_declined = self.table.as_ref().map(|t| t.declined.clone()).unwrap_or_default();
        self.table = Some(status);
        if !declined.is_empty() && declined != was_declined {
            self.handle_declined(&declined);
        }
        if policy_changed {
            self.effects.push_back(Effect::Publish);
        }
        // The lease is over at the server (an operator's break): the renewals will say so too, but later.
        let over = self
            .table
            .as_ref()
            .is_some_and(|t| !mine && matches!(&self.phase, Phase::Open { grant, .. } if grant.epoch <= t.epoch));
        if over {
            self.taken_away(now);
        }
        if moved {
            self.effects
                .extend(self.holds.values().filter(|h| h.pending()).map(|h| Effect::HoldWaits(h.id.clone())).collect::<Vec<_>>());
        }
        self.consider_mode();
        self.consider_witness(now);
        self.pump(now);
    }

    fn raise_stale_below(&mut self, epoch: Epoch) {
        if epoch > self.stale_below {
            self.stale_below = epoch;
            self.change_kind();
        }
    }

    /// The server has granted: by an answer, an event, or a renewal that lists the pair. Opens nothing (I4).
    pub fn handle_grant(&mut self, grant: Grant, now: BootTime) {
        match self.past_of(grant.epoch) {
            Some(past) => self.handle_resumed(grant, past, now),
            None => self.take_grant(grant, now),
        }
    }

    fn take_grant(&mut self, grant: Grant, now: BootTime) {
        if grant.epoch <= self.closed_upto || self.grant().is_some_and(|g| g.epoch >= grant.epoch) {
            return;
        }
        // Its end was missed (a later grant cannot come before it): what stood on it is over.
        if let Some(old) = self.grant().map(|g| g.epoch) {
            self.fail_ending("the lease was taken away");
            self.closed_upto = self.closed_upto.max(old);
            self.lose_holds("the lease was ended by force", true);
        }
        self.latest = self.latest.max(grant.epoch);
        self.raise_stale_below(grant.run_start.0);
        let left = matches!(self.line, Line::Left | Line::Asking { .. });
        let unwanted = self.written_before != grant.epoch && (self.down || (left && !self.wants_lease(now)));
        self.line = Line::Out;
        self.retry_at = None;
        if unwanted {
            // The hold that it was for has gone: released at once, whatever `min_hold` says.
            self.give_back(grant.epoch, "nobody here wants it any more".into());
            return;
        }
        self.right = None;
        self.lapsed = false;
        self.lock_gone();
        self.set_phase(Phase::Granted { grant, since: now });
        self.effects.push_back(Effect::RenewNow);
    }

    /// A renewal was acknowledged, or time has passed: until when this side may write its (tree, epoch), and whether the last
    /// answer listed it. `listed` is `None` while no answer of this session has come at all.
    pub fn handle_right(&mut self, right: Option<BootTime>, listed: Option<bool>, now: BootTime) {
        if self.right != right {
            self.right = right;
            self.effects.push_back(Effect::Publish);
        }
        // A renewal's answer may overtake that of the release which it already knows of.
        let let_go = self.is_ending() && self.grant().is_some_and(|g| g.epoch <= self.closed_upto);
        if listed == Some(false) && !let_go && !matches!(self.phase, Phase::Reader | Phase::Granted { .. }) {
            self.taken_away(now);
            return;
        }
        match &self.phase {
            Phase::Granted { grant, since } if self.right_lives(now) => {
                let (grant, since) = (grant.clone(), *since);
                self.set_phase(Phase::Opening { grant: grant.clone(), since });
                self.effects.push_back(Effect::Open(grant));
            }
            _ if self.exposed() && self.right_lives(now) && self.lapsed => {
                self.lapsed = false;
                self.change_kind();
                // Pages of mappings that were refused meanwhile are not on the storage: nobody here is to read them.
                self.effects.push_back(Effect::DropCaches);
                if self.is_open() {
                    self.grant_pending_holds();
                    if self.wake_wanted {
                        self.want_awake(now);
                    }
                }
            }
            _ if self.exposed() && !self.right_lives(now) && !self.lapsed => self.lapse(),
            _ => {}
        }
    }

    /// Whether only the deadline keeps writes out.
    fn exposed(&self) -> bool {
        match &self.phase {
            Phase::Open { .. } => true,
            Phase::Ending { stage, .. } => *stage != GateStage::Closed,
            _ => false,
        }
    }

    /// The deadline has passed with no renewal: the gate is shut already; commands under the lease end (DESIGN 6).
    fn lapse(&mut self) {
        self.lapsed = true;
        self.loosen_lock();
        self.change_kind();
        self.effects.push_back(Effect::RefuseWaiters);
        self.effects.push_back(Effect::FlushLapsed);
        self.lose_holds("the lease server could not be reached in time", false);
    }

    /// The session lives, but does not hold this lease any more: broken, expired, or moved by an operator.
    fn taken_away(&mut self, now: BootTime) {
        let Some(epoch) = self.grant().map(|g| g.epoch) else { return };
        self.fail_ending("the lease was taken away");
        self.closed_upto = self.closed_upto.max(epoch);
        self.right = None;
        self.lock_gone();
        self.set_phase(Phase::Reader);
        self.effects.push_back(Effect::RefuseWaiters);
        self.lose_holds("the lease was ended by force", true);
        match self.may_still_write() {
            // If they never end, nobody says so, and the server waits its full time.
            true => self.shut_owed = Some(epoch),
            false => self.effects.push_back(Effect::SayGateClosed { epoch }),
        }
        self.pump(now);
    }

    /// The session has ended at the server. Leases that were held are asked for again: nobody else may have had a turn.
    pub fn handle_session_lost(&mut self, why: &str, now: BootTime) {
        let had = match &self.phase {
            Phase::Open { .. } | Phase::CarryingOut { .. } => self.end_when_awake.is_none(),
            // Somebody else would be glad of it, and it is used here still. What a person gives up is not asked for again.
            Phase::Ending { stage: GateStage::Open, handoff, .. } => {
                matches!(handoff.why(), Why::Asked { .. } | Why::Idle)
            }
            _ => false,
        };
        self.fail_ending(why);
        if let Some(epoch) = self.grant().map(|g| g.epoch) {
            self.closed_upto = self.closed_upto.max(epoch);
        }
        self.right = None;
        self.line = Line::Out;
        self.session_no += 1;
        self.owed = None;
        self.shut_owed = None;
        self.left_behind = owed::LeftBehind::Nothing;
        let locked = self.lock_may_be_here();
        self.lock_gone();
        let held = self.grant().is_some();
        self.set_phase(Phase::Reader);
        self.effects.push_back(Effect::RefuseWaiters);
        if held {
            // Pages of files with writers were left at the deadline, in case that the lease went on (DESIGN 5.3).
            self.effects.push_back(Effect::DropCaches);
        }
        if locked {
            // The deadline has passed with the session: once all is confirmed, the free lock is this side's word for it.
            self.effects.push_back(Effect::FlushLapsed);
        }
        self.lose_holds(why, false);
        self.wait_again(now);
        self.come_back |= had && self.mounted && !self.down;
    }

    /// This side has a session again.
    pub fn handle_session_opened(&mut self, now: BootTime) {
        self.retry_at = None;
        // A first write may wait for the lease from now on.
        self.change_kind();
        if std::mem::take(&mut self.come_back) {
            // As a first write would: it comes back if it is free, and gives way to whoever is busy with it.
            self.first_write_until = Some(now.after(FIRST_WRITE_WAIT + self.policy.idle));
        }
        self.pump(now);
    }

    /// A mount was made of this tree. Had it the lease without one, marker and stamp are seen to first (I8); an end that is
    /// under way goes on, and nothing is written through the mount.
    pub fn handle_mounted(&mut self, now: BootTime) {
        self.mounted = true;
        self.begin_strict();
        self.checked = Epoch::ZERO;
        if let Phase::Opening { grant, .. } | Phase::CarryingOut { grant } | Phase::Open { grant, .. } = &self.phase {
            let grant = grant.clone();
            if !matches!(self.phase, Phase::Opening { .. }) {
                // It was open: a run may have written. So if it does not open again, that is no give-back (I2).
                self.written_before = grant.epoch;
            }
            self.right = None;
            self.lapsed = false;
            self.lock_gone();
            self.set_phase(Phase::Granted { grant, since: now });
            self.effects.push_back(Effect::RenewNow);
        }
    }

    // ---- what the storage says ----

    /// Marker, stamp, left-overs and checks are done, or the gate cannot open.
    pub fn handle_opened(&mut self, epoch: Epoch, result: Result<(), Refusal>, now: BootTime) {
        let Phase::Opening { grant, .. } = &self.phase else { return };
        if grant.epoch != epoch {
            return;
        }
        let grant = grant.clone();
        match result {
            Ok(()) => {
                self.checked = grant.epoch;
                let new_run = grant.run_start.0 > self.ever_run;
                self.ever_run = grant.run_start.0;
                // Where nothing is refused, nothing becomes stale.
                if new_run && self.policy.mode == Mode::Enforce {
                    self.effects.push_back(Effect::ReplaceNodes);
                }
                self.set_phase(Phase::CarryingOut { grant: grant.clone() });
                self.effects.push_back(Effect::CarryOut(grant));
            }
            Err(refusal) => {
                self.refuse_pending(&refusal);
                self.give_back(epoch, refusal.message);
                self.pause_first_writes(now);
            }
        }
    }

    /// The waiting operations are carried out and the caches dropped; `false`: not within the limit.
    pub fn handle_carried_out(&mut self, epoch: Epoch, dropped: Result<(), String>, now: BootTime) {
        let Phase::CarryingOut { grant } = &self.phase else { return };
        if grant.epoch != epoch {
            return;
        }
        let grant = grant.clone();
        match dropped {
            Ok(()) => {
                self.first_write_until = None;
                self.lapsed = false;
                self.last_mutation = None;
                // A grant begins active; of a resumed one nobody here knows what the server was told last.
                self.begin_awake(self.written_before != epoch);
                self.set_phase(Phase::Open { grant, opened: now });
                if self.right_lives(now) {
                    self.grant_pending_holds();
                }
                self.consider_lock(now);
            }
            // Waiting operations may have been carried out already: so this end is no give-back, it flushes like any other.
            Err(why) => {
                self.effects.push_back(Effect::Note(why));
                // What an earlier epoch was waiting to hear (an answer to its `rest`) says nothing about this one, and never comes.
                self.begin_awake(self.written_before != epoch);
                self.set_phase(Phase::Open { grant, opened: now });
                self.begin_end(EndRequest::Release { now: true }, now);
            }
        }
    }

    fn give_back(&mut self, epoch: Epoch, reason: String) {
        self.closed_upto = self.closed_upto.max(epoch);
        self.right = None;
        self.lock_gone();
        self.set_phase(Phase::Reader);
        self.effects.push_back(Effect::RefuseWaiters);
        self.lose_holds(&reason, true);
        let effect = match self.written_before == epoch {
            true => Effect::SurrenderUnopened { epoch, reason },
            false => Effect::GiveBack { epoch, reason },
        };
        self.owe(epoch, effect);
    }

    // ---- first writes ----

    /// The gate could not open: the next first write would find the same.
    fn pause_first_writes(&mut self, now: BootTime) {
        self.first_write_until = None;
        self.first_write_pause = Some(now.after(FIRST_WRITE_PAUSE));
    }

    /// A mutation waits at the gate.
    pub fn handle_first_write(&mut self, now: BootTime) {
        // In `observe` too, where nothing waits: so the record shows who would have been in whose way.
        let takes = self.policy.mode != Mode::Off && self.policy.first_write == FirstWrite::Acquire;
        let paused = self.first_write_pause.is_some_and(|until| now < until);
        match self.phase {
            Phase::Reader if takes && !paused && !self.down => {
                self.first_write_until = Some(now.after(FIRST_WRITE_WAIT + self.policy.idle));
                self.pump(now);
            }
            Phase::Reader => self.effects.push_back(Effect::RefuseWaiters),
            Phase::Open { .. } => self.want_awake(now),
            _ => {}
        }
    }

    // ---- time ----

    /// Something is due.
    pub fn handle_timeout(&mut self, now: BootTime) {
        if self.exposed() && !self.right_lives(now) && !self.lapsed {
            self.lapse();
        }
        if let Phase::Granted { grant, since } | Phase::Opening { grant, since } = &self.phase
            && now.since(*since) > open_limit(grant)
        {
            let (epoch, limit) = (grant.epoch, open_limit(grant).as_secs());
            let refusal = Refusal::new(Code::Storage, format!("\"{}\": the gate could not open within {limit} s", self.name));
            self.refuse_pending(&refusal);
            self.give_back(epoch, refusal.message);
            self.pause_first_writes(now);
        }
        if self.first_write_until.is_some_and(|until| now >= until) {
            self.first_write_until = None;
        }
        self.expire_holds(now);
        self.timeout_ending(now);
        self.timeout_owed(now);
        self.retry_wake(now);
        self.give_way(now);
        self.consider_lock(now);
        self.consider_rest(now);
        self.consider_witness(now);
        self.pump(now);
    }

    /// When [`TreeSide::handle_timeout`] has something to do next, apart from looking whether it is time to give way.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let open_limit = match &self.phase {
            Phase::Granted { grant, since } | Phase::Opening { grant, since } => Some(since.after(open_limit(grant))),
            _ => None,
        };
        let right = if self.exposed() && !self.lapsed { self.right } else { None };
        let ending = match &self.phase {
            Phase::Ending { handoff, .. } => handoff.next_deadline(),
            _ => None,
        };
        // Only a reader asks again; in other phases a pause that has passed wakes nobody.
        let retry =
            if (matches!(self.phase, Phase::Reader) && self.owed.is_none()) || self.wakes_again() { self.retry_at } else { None };
        self.holds
            .values()
            .filter_map(Hold::deadline)
            .chain(
                [
                    open_limit,
                    right,
                    ending,
                    self.first_write_until,
                    retry,
                    self.owed_at(),
                    self.rest_deadline(),
                    self.lock_due().filter(|_| !self.lapsed),
                    self.witness_due(),
                ]
                .into_iter()
                .flatten(),
            )
            .min()
    }

    // ---- reports ----

    /// Who holds the tree, as last heard.
    pub fn holder(&self) -> Option<&Holder> {
        self.table.as_ref().and_then(|t| t.holder.as_ref())
    }

    fn others(&self) -> impl Iterator<Item = &Waiter> {
        self.table.iter().flat_map(|t| t.waiters.iter()).filter(|w| w.side != self.me)
    }

    /// Whether the last lease ended so that a check is due.
    pub fn last_end(&self) -> End {
        self.table.as_ref().map_or(End::None, |t| t.last_end)
    }
}

fn open_limit(grant: &Grant) -> Duration {
    if grant.last_end == End::Unclean { OPEN_WITH_CHECKS_LIMIT } else { OPEN_LIMIT }
}
