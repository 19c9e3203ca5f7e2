//! At rest and active (DESIGN 3): a holder that has nothing unconfirmed and has not written for a while says so, and before its
//! next write it says otherwise. A lease that ends without a word while at rest leaves nothing behind: no fence is needed.
//!
//! # Promises
//!
//! - `rest` is sent only after the gate demanded a new `active` of every operation, all permits had ended and the storage had
//!   confirmed what was written.
//! - From the moment `rest` is sent, only an acknowledged `active` with a higher number opens the gate, whatever became of the
//!   `rest`. *Why:* the server may have applied it although its answer was lost; and it ignores a number that is not higher
//!   than the last one, so a delayed `rest` never follows the `active` that was sent after it.
//! - What comes back is for the try that it names: a flush of an earlier try says nothing about what was written since, and an
//!   answer to an earlier word opens nothing.
//! - A write-back error found on the way ends the lease: it is reported once, so it counts for the epoch.
//!
//! In `observe` no operation waits, so the first two are a rehearsal there like all else (server/SAFETY.md).

use std::time::Duration;

use treelease_client::words::command::Answer;
use treelease_client::words::policy::Mode;
use treelease_client::words::refusal::Refusal;
use treelease_client::words::time::BootTime;

use super::{Effect, EndRequest, Phase, RETRY_PAUSE, TreeSide};

/// Rest begins so long after the last mutation.
pub const REST_AFTER: Duration = Duration::from_secs(1);
/// Numbers of one incarnation of the session; the next one begins above them.
const NUMBERS: u32 = 32;

/// How far a holder is between writing and rest. Anything but `Awake` makes mutations wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Writes go through.
    Awake,
    /// The gate is shut; permits end, the storage confirms. Nothing was sent yet.
    Settling,
    /// `rest` is on its way.
    Telling,
    /// `rest` was sent, and may be known to the server.
    AtRest,
    /// `active` is on its way.
    Waking,
}

impl TreeSide {
    /// This run of the daemon is that incarnation of its session: its numbers are above those of every earlier one, and below
    /// those of every later one, whatever an earlier session in this run had come to. *Why:* what this run says last is what the
    /// next one has to exceed. The lower half goes on: no answer to an earlier session's word is taken for one of this.
    pub fn set_incarnation(&mut self, incarnation: u64) {
        let counted = self.rest_number & ((1 << NUMBERS) - 1);
        self.rest_number = incarnation << NUMBERS | counted;
    }

    /// Whether the server has been told that nothing is unconfirmed.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.phase, Phase::Open { .. }) && self.rest == Rest::AtRest
    }

    pub(super) fn begin_awake(&mut self, awake: bool) {
        // Opened once more under an epoch for which `rest` was said: the server may still believe it.
        let epoch = self.grant().map(|g| g.epoch);
        let awake = awake && self.rest_said != epoch && !self.lock_is_missed(epoch);
        self.rest = if awake { Rest::Awake } else { Rest::AtRest };
        self.wake_wanted = false;
        self.woke = None;
        self.end_when_awake = None;
    }

    /// Begins to rest if nothing has been written for a while.
    pub(super) fn consider_rest(&mut self, now: BootTime) {
        if self.rest_due().is_none_or(|at| now < at) || !self.right_lives(now) {
            return;
        }
        self.rest = Rest::Settling;
        self.effects.push_back(Effect::Publish);
        self.settle_no += 1;
        self.effects.push_back(Effect::Settle(self.settle_no));
    }

    fn rest_due(&self) -> Option<BootTime> {
        let Phase::Open { opened, .. } = &self.phase else { return None };
        let rests = self.mounted && self.policy.mode != Mode::Off;
        if self.rest != Rest::Awake || !rests || self.lapsed || self.silenced {
            return None;
        }
        let latest = self.last_mutation.max(self.woke).max(Some(*opened))?;
        Some(latest.after(REST_AFTER))
    }

    pub(super) fn rest_deadline(&self) -> Option<BootTime> {
        self.rest_due()
    }

    /// The permits have ended and the storage has confirmed, or not. `Err(true)`: a write-back error.
    pub fn handle_settled(&mut self, no: u64, settled: Result<(), bool>, now: BootTime) {
        if no != self.settle_no || self.rest != Rest::Settling || !matches!(self.phase, Phase::Open { .. }) {
            return;
        }
        match settled {
            Ok(()) => {
                self.rest = Rest::Telling;
                self.rest_said = self.grant().map(|g| g.epoch);
                self.tell(true);
            }
            Err(broken) => {
                self.awake(now);
                if broken {
                    self.begin_end(EndRequest::Release { now: true }, now);
                }
            }
        }
    }

    /// A mutation waits, or the lease is to end: the server must know that something may be unconfirmed again.
    pub(super) fn want_awake(&mut self, now: BootTime) {
        match self.rest {
            // The gate waits for the storage, not for a word.
            Rest::Awake if self.silenced => {}
            Rest::Awake => self.effects.push_back(Effect::Publish),
            // Nothing was sent yet.
            Rest::Settling => self.awake(now),
            Rest::AtRest => {
                // What is told of the lock must be true.
                if self.take_loose_lock(now) {
                    return;
                }
                self.wake_wanted = true;
                if self.retry_at.is_none_or(|at| now >= at) {
                    self.retry_at = None;
                    self.rest = Rest::Waking;
                    self.tell(false);
                }
            }
            Rest::Telling | Rest::Waking => self.wake_wanted = true,
        }
    }

    pub(super) fn tell(&mut self, at_rest: bool) {
        self.rest_number += 1;
        if !at_rest {
            self.lock_said_with(self.rest_number);
        }
        self.effects.push_back(Effect::TellRest { at_rest, number: self.rest_number });
    }

    fn awake(&mut self, now: BootTime) {
        self.rest = Rest::Awake;
        self.wake_wanted = false;
        self.woke = Some(now);
        self.effects.push_back(Effect::Publish);
        if let Some(request) = self.end_when_awake.take() {
            self.begin_end(request, now);
        }
    }

    /// The servers' answer to [`Effect::TellRest`].
    pub fn handle_rest_answer(&mut self, number: u64, answer: &Result<Answer, Refusal>, now: BootTime) {
        self.handle_lock_said(number, answer, now);
        if number != self.rest_number || !matches!(self.phase, Phase::Open { .. }) {
            return;
        }
        match (self.rest, answer) {
            // Whatever became of it: from now on only an `active` opens the gate.
            (Rest::Telling, _) => {
                self.rest = Rest::AtRest;
                if self.wake_wanted {
                    self.want_awake(now);
                }
            }
            (Rest::Waking, Ok(Answer::Done)) => {
                self.rest_said = None;
                self.awake(now);
            }
            // Not current any more (the next renewal says why), or nobody knows: asked again while somebody waits.
            (Rest::Waking, _) => {
                self.rest = Rest::AtRest;
                self.retry_at = Some(now.after(RETRY_PAUSE));
            }
            _ => {}
        }
    }

    /// The storage has confirmed nothing for too long, or does again (DESIGN 3, *Little is ever unconfirmed*). Mutations wait until
    /// it does, page-cache writes too, and no longer than to the deadline: nothing that this machine may have to keep for itself is
    /// acknowledged. True: that is news.
    pub fn handle_silence(&mut self, silent: bool) -> bool {
        let silenced = silent && self.heeds_silence();
        let news = self.silenced != silenced;
        if news {
            self.silenced = silenced;
            self.change_kind();
        }
        news
    }

    /// Whether the storage's silence matters: while the lease ends, too, else the gate would open again until it begins to close.
    pub fn heeds_silence(&self) -> bool {
        matches!(self.phase, Phase::Open { .. } | Phase::Ending { .. })
    }

    /// Whether the gate is shut because the storage is silent.
    pub fn is_silenced(&self) -> bool {
        self.silenced
    }

    /// Writing back has met an error: reported once, so it counts for the epoch, and the lease ends.
    pub fn handle_write_back_error(&mut self, now: BootTime) {
        if matches!(self.phase, Phase::Open { .. }) {
            self.begin_end(EndRequest::Release { now: true }, now);
        }
    }

    /// Whether an `active` that got no answer is to be sent again when its pause has passed.
    pub(super) fn wakes_again(&self) -> bool {
        self.rest == Rest::AtRest && self.wake_wanted && !self.lapsed && matches!(self.phase, Phase::Open { .. })
    }

    /// An `active` that got no answer is sent again while somebody waits for it.
    pub(super) fn retry_wake(&mut self, now: BootTime) {
        if self.wakes_again() && self.right_lives(now) && self.retry_at.is_some_and(|at| now >= at) {
            self.want_awake(now);
        }
    }

    /// Before a lease is handed over, the gate is open for what mapped pages have to say (DESIGN 5, step 2): a tree at rest is
    /// woken first. False: the end begins when it is.
    pub(super) fn awake_for_end(&mut self, request: &EndRequest, now: BootTime) -> bool {
        if self.rest == Rest::Settling {
            self.awake(now);
        }
        if self.rest == Rest::Awake {
            return true;
        }
        if self.end_when_awake.is_none() {
            self.end_when_awake = Some(request.clone());
            self.effects.push_back(Effect::EndProgress("telling the server that writes may follow".into()));
        }
        self.want_awake(now);
        false
    }
}
