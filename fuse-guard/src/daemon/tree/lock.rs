//! How this side stands with the marker's lock under its present lease (DESIGN 3, the storage is a witness).
//!
//! # Promises
//!
//! - What the servers were told of the lock stays true: from before the `active` that names it is sent, until the gate is shut and
//!   everything is confirmed, or an `active` that names none is acknowledged. *Why:* it is named only while it is [`Hand::Had`];
//!   what may let go of it (the flush at a deadline, doubts about the storage) makes it [`Hand::Loose`] first, and then the gate
//!   demands a new `active` of every operation ([`super::Rest::AtRest`]), which is not sent before the lock was asked for anew.
//! - The word about it holds up no gate: a grant begins active with no lock known, so until it has come, a person must vouch.
//!
//! # Does not know
//!
//! Descriptors: those are [`crate::lower::witness`]'s, and the daemon's shell has them.

use std::time::Duration;

use treelease_client::words::command::Answer;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::MarkerLock;
use treelease_client::words::refusal::Refusal;
use treelease_client::words::time::BootTime;

use super::{Effect, Phase, RETRY_PAUSE, Rest, TreeSide};

/// After a clean end a new holder opens its gate only with the lock; not within so long: it gives the grant back.
pub const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// After an unclean end it waits only so long: the old holder may be stopped for ever, and was waited out already.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How often a lock is tried again that could not be had when the gate opened.
pub const LOCK_AGAIN: Duration = Duration::from_secs(2);

/// Where the lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// Not here.
    Without,
    /// Here.
    Had,
    /// It may be let go of: the gate demands a new `active`, and before that the lock.
    Loose,
    /// As `Loose`, and it is being asked for.
    Taking,
}

/// Whether the servers know of the lock that is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Unsaid,
    Saying(u64),
    Said,
}

/// What came of asking for the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockWord {
    /// It is here; what it is to the servers, if it can be a witness.
    Held(Option<MarkerLock>),
    /// Somebody has it.
    Taken,
    /// Here there is none to be had.
    Impossible,
}

/// The lock under the present lease.
#[derive(Debug)]
pub(super) struct LockSide {
    hand: Hand,
    marker: Option<MarkerLock>,
    claim: Claim,
    /// When it is tried again, or said again.
    again_at: Option<BootTime>,
}

impl Default for LockSide {
    fn default() -> Self {
        Self { hand: Hand::Without, marker: None, claim: Claim::Unsaid, again_at: None }
    }
}

impl TreeSide {
    /// What is to be said about the lock now.
    pub fn marker_to_say(&self) -> Option<MarkerLock> {
        self.lock.marker.clone().filter(|_| self.lock.hand == Hand::Had)
    }

    /// Whether nothing may go through before the lock was asked for anew.
    pub(super) fn lock_is_loose(&self) -> bool {
        matches!(self.lock.hand, Hand::Loose | Hand::Taking)
    }

    /// No lease, no lock: what is done about the one that was had is the shell's.
    pub(super) fn lock_gone(&mut self) {
        self.lock = LockSide::default();
    }

    /// Whether there is a lock to be let go of.
    pub(super) fn has_lock(&self) -> bool {
        self.lock.hand == Hand::Had
    }

    /// Whether it is here, or may be.
    pub(super) fn lock_may_be_here(&self) -> bool {
        self.lock.hand != Hand::Without
    }

    /// What came of asking for it, before the gate opens (`no` is 0) or in the try of that number. False: that counts no more, and
    /// the shell lets go of a new one that it got.
    pub fn handle_locked(&mut self, epoch: Epoch, no: u64, word: &LockWord, now: BootTime) -> bool {
        let opening = matches!(&self.phase, Phase::Opening { .. }) && no == 0;
        if self.grant().is_none_or(|g| g.epoch != epoch) || !(opening || no == self.lock_no && no > 0) {
            return false;
        }
        let was_taking = self.lock.hand == Hand::Taking;
        self.lock = match word {
            LockWord::Held(marker) => LockSide { hand: Hand::Had, marker: marker.clone(), ..LockSide::default() },
            LockWord::Taken => LockSide { again_at: Some(now.after(LOCK_AGAIN)), ..LockSide::default() },
            LockWord::Impossible => LockSide::default(),
        };
        if was_taking && self.wake_wanted {
            self.want_awake(now);
        }
        self.consider_lock(now);
        true
    }

    /// The storage did not answer through the lock's descriptor: whether the lock still stands is not known.
    pub fn handle_lock_doubted(&mut self, epoch: Epoch, now: BootTime) {
        if self.grant().is_some_and(|g| g.epoch == epoch) && self.has_lock() {
            self.loosen_lock();
            self.change_kind();
            if self.end_when_awake.is_some() {
                self.want_awake(now);
            }
        }
    }

    /// Opened once more under an epoch for which the servers were told of a lock that is not here now.
    pub(super) fn lock_is_missed(&self, epoch: Option<Epoch>) -> bool {
        self.lock_told.is_some() && self.lock_told == epoch && !self.has_lock()
    }

    /// From now on it may be let go of; a try that is under way comes too late.
    pub(super) fn loosen_lock(&mut self) {
        if self.lock_may_be_here() {
            self.lock_no += 1;
            self.lock.hand = Hand::Loose;
            self.demand_active();
        }
    }

    /// The gate opens only for an acknowledged `active` from now on, as at rest.
    pub(super) fn demand_active(&mut self) {
        if let Phase::Open { grant, .. } = &self.phase {
            self.rest_said = Some(grant.epoch);
            self.rest = Rest::AtRest;
            self.retry_at = None;
        }
    }

    /// Before an `active` is sent: a loose lock is asked for first. True: it is, and the `active` follows it.
    pub(super) fn take_loose_lock(&mut self, now: BootTime) -> bool {
        if !self.lock_is_loose() {
            return false;
        }
        self.wake_wanted = true;
        if self.lock.hand == Hand::Loose
            && self.right_lives(now)
            && let Some(epoch) = self.grant().map(|g| g.epoch)
        {
            self.lock.hand = Hand::Taking;
            self.lock_no += 1;
            self.effects.push_back(Effect::TakeLock { epoch, no: self.lock_no });
        }
        true
    }

    /// An `active` of that number says how it stands with the lock.
    pub(super) fn lock_said_with(&mut self, number: u64) {
        if self.has_lock() {
            self.lock.claim = Claim::Saying(number);
            if self.lock.marker.is_some() {
                self.lock_told = self.grant().map(|g| g.epoch);
            }
        }
    }

    /// The servers' answer to an `active`.
    pub(super) fn handle_lock_said(&mut self, number: u64, answer: &Result<Answer, Refusal>, now: BootTime) {
        if self.lock.claim == Claim::Saying(number) {
            match answer {
                // Not current any more: the next renewal says why.
                Ok(_) => self.lock.claim = Claim::Said,
                Err(_) => {
                    self.lock.claim = Claim::Unsaid;
                    self.lock.again_at = Some(now.after(RETRY_PAUSE));
                }
            }
        }
    }

    /// Says that the lock is had, if nobody knows it yet; tries for it again, if it could not be had. Neither holds up the gate.
    /// A tree at rest says it with its next `active`.
    pub(super) fn consider_lock(&mut self, now: BootTime) {
        if self.lock_due().is_none_or(|at| now < at) || !self.right_lives(now) {
            return;
        }
        self.lock.again_at = None;
        match self.lock.hand {
            Hand::Had => self.tell(false),
            Hand::Without => {
                if let Some(epoch) = self.grant().map(|g| g.epoch) {
                    self.lock_no += 1;
                    self.effects.push_back(Effect::TakeLock { epoch, no: self.lock_no });
                }
            }
            Hand::Loose | Hand::Taking => {}
        }
    }

    pub(super) fn lock_due(&self) -> Option<BootTime> {
        let Phase::Open { opened, .. } = &self.phase else { return None };
        match self.lock.hand {
            Hand::Had if self.rest == Rest::Awake && self.lock.claim == Claim::Unsaid && self.lock.marker.is_some() => {
                Some(self.lock.again_at.unwrap_or(*opened))
            }
            Hand::Without => self.lock.again_at,
            _ => None,
        }
    }
}
