//! Local claims on the side's lease: a command under `treelease run`, or a person with `treelease acquire`.

use treelease_client::words::command::LeaseRef;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::HoldId;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::{BootTime, WallTime};

use super::{Effect, Phase, TreeSide};

/// The most claims on one tree: each has a waiting command behind it.
pub const MAX_HOLDS: usize = 1024;

/// Whose claim it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldKind {
    /// Of a command: ends with it, and keeps the lease from being handed over while it runs.
    Run,
    /// Of a person: ends by `release`, `--for` or `down`. Gives way to who asks.
    Acquire,
}

impl HoldKind {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            HoldKind::Run => "run",
            HoldKind::Acquire => "acquire",
        }
    }
}

/// Whether the claim counts yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    /// It waits for the lease.
    Pending {
        /// Refused then.
        until: BootTime,
    },
    /// It counts, under this grant.
    Active {
        /// Which.
        epoch: Epoch,
    },
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Hold {
    /// Its id.
    pub id: HoldId,
    /// Whose.
    pub kind: HoldKind,
    /// The command, or empty.
    pub command: String,
    /// Of the command that asked.
    pub pid: u32,
    /// Its terminal, or empty.
    pub tty: String,
    /// What for.
    pub note: String,
    /// Since when; for people.
    pub since: WallTime,
    /// Whether it counts.
    pub state: HoldState,
    /// Whether it asks the holder to hand over.
    pub ask: bool,
    /// Whether it does not wait at all.
    pub no_wait: bool,
    /// Dropped by itself then (`--for`).
    pub until: Option<BootTime>,
}

/// What a new claim says of itself; see [`Hold`].
pub type NewHold = Hold;

impl Hold {
    /// Whether it still waits.
    pub fn pending(&self) -> bool {
        matches!(self.state, HoldState::Pending { .. })
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        match self.state {
            HoldState::Pending { until } => Some(until),
            HoldState::Active { .. } => self.until,
        }
    }

    /// For who must wait for it.
    pub fn describe(&self) -> String {
        match self.kind {
            HoldKind::Run => format!("`{}` (pid {})", self.command, self.pid),
            HoldKind::Acquire if self.note.is_empty() => "`treelease acquire`".to_string(),
            HoldKind::Acquire => format!("`treelease acquire` ({})", self.note),
        }
    }
}

impl TreeSide {
    /// A command or a person wants the lease.
    pub fn handle_hold(&mut self, hold: NewHold, now: BootTime) {
        let id = hold.id.clone();
        if self.holds.len() + self.leaving.len() >= MAX_HOLDS {
            let refusal = Refusal::new(Code::Limit, format!("\"{}\" has {MAX_HOLDS} holds here already", self.name));
            self.effects.push_back(Effect::HoldRefused(id, refusal));
            return;
        }
        self.holds.insert(id.clone(), hold);
        if self.writes(now) {
            self.grant_pending_holds();
            return;
        }
        self.effects.push_back(Effect::HoldWaits(id));
        self.pump(now);
    }

    /// The command has ended or was killed, or the person has taken the claim back.
    pub fn handle_hold_gone(&mut self, id: &HoldId, now: BootTime) {
        self.holds.remove(id);
        if self.leaving.remove(id) && self.leaving.is_empty() {
            self.commands_have_ended(now);
        }
        self.give_way(now);
        self.pump(now);
    }

    /// Whether that command was told that the lease is gone, and has not ended yet.
    pub fn is_leaving(&self, id: &HoldId) -> bool {
        self.leaving.contains(id)
    }

    /// Without a mount no gate keeps a command from writing: only its end does (it is sent SIGTERM, then SIGKILL).
    pub(super) fn may_still_write(&self) -> bool {
        !self.mounted && !self.leaving.is_empty()
    }

    fn commands_have_ended(&mut self, now: BootTime) {
        if let Some(end) = self.drain_owed.take() {
            self.feed_ending(end, |handoff, now| handoff.handle_drained(true, now), now);
        }
        if let Some(epoch) = self.shut_owed.take() {
            self.effects.push_back(Effect::SayGateClosed { epoch });
        }
    }

    /// Takes back what `acquire` holds here. Says how many there were.
    pub fn drop_acquired(&mut self) -> usize {
        let before = self.holds.len();
        self.holds.retain(|_, h| h.kind != HoldKind::Acquire || h.pending());
        before - self.holds.len()
    }

    /// Commands that run under the lease, for who waits for it.
    pub fn run_holds(&self) -> Vec<String> {
        self.holds.values().filter(|h| h.kind == HoldKind::Run && !h.pending()).map(Hold::describe).collect()
    }

    pub(super) fn grant_pending_holds(&mut self) {
        let Some(epoch) = self.grant().map(|g| g.epoch) else { return };
        for hold in self.holds.values_mut().filter(|h| h.pending()) {
            hold.state = HoldState::Active { epoch };
            self.effects.push_back(Effect::HoldGranted(hold.id.clone()));
        }
    }

    pub(super) fn refuse_pending(&mut self, refusal: &Refusal) {
        self.refuse_pending_if(refusal, |_| true);
    }

    pub(super) fn refuse_pending_if(&mut self, refusal: &Refusal, which: impl Fn(&Hold) -> bool) {
        let ids: Vec<HoldId> = self.holds.values().filter(|h| h.pending() && which(h)).map(|h| h.id.clone()).collect();
        for id in ids {
            self.holds.remove(&id);
            self.effects.push_back(Effect::HoldRefused(id, refusal.clone()));
        }
    }

    /// Claims that count lose the lease. A person's claim goes on waiting unless `all`, since nothing runs under it.
    pub(super) fn lose_holds(&mut self, why: &str, all: bool) {
        let ids: Vec<HoldId> =
            self.holds.values().filter(|h| !h.pending() && (all || h.kind == HoldKind::Run)).map(|h| h.id.clone()).collect();
        for id in ids {
            if self.holds.remove(&id).is_some_and(|h| h.kind == HoldKind::Run) {
                self.leaving.insert(id.clone());
            }
            self.effects.push_back(Effect::HoldLost(id, why.to_owned()));
        }
    }

    pub(super) fn expire_holds(&mut self, now: BootTime) {
        let due: Vec<HoldId> =
            self.holds.values().filter(|h| h.deadline().is_some_and(|d| now >= d)).map(|h| h.id.clone()).collect();
        for id in due {
            let Some(hold) = self.holds.remove(&id) else { continue };
            if hold.pending() {
                let refusal = self.why_not();
                self.effects.push_back(Effect::HoldRefused(id, refusal));
            } else {
                self.effects.push_back(Effect::Note(format!("the hold of {} has ended by its own limit", hold.describe())));
            }
        }
    }

    /// Why this side does not have the lease, for who waited.
    pub fn why_not(&self) -> Refusal {
        match self.table.as_ref() {
            Some(table) => crate::daemon::tree::line::why_not(table),
            None => Refusal::new(Code::Unreachable, format!("no lease server has answered about \"{}\"", self.name)),
        }
    }

    /// A grant whose lease is named for the servers.
    pub fn lease_ref(&self, session: &treelease_client::words::id::SessionId, epoch: Epoch) -> LeaseRef {
        LeaseRef { tree: self.id.clone(), session: session.clone(), epoch }
    }

    /// Whether anybody here wants the lease, or has it and uses it.
    pub(super) fn wants_lease(&self, now: BootTime) -> bool {
        self.holds.values().any(Hold::pending) || self.first_write_until.is_some_and(|until| now < until)
    }

    /// Whether the gate is open for good, for tests and reports.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }
}
