//! Asking the storage whether the old holder is gone (DESIGN 3, the storage is a witness): while a tree is `Fencing`, a waiter whose
//! guard has the root mounted asks for the marker's lock that the ended lease had, and with it in hand tells the servers.
//!
//! # Promises
//!
//! - It asks only for a lock that the ended lease said to have, while that very attempt stands, and is told the same lock by the
//!   opened descriptor; and it lets go as soon as that is over. *Why:* a lock kept longer would keep the next holder out.
//! - The first waiter asks first; who stands behind it asks later, since the first may have no mount to ask through.

use std::time::Duration;

use treelease_client::words::command::Answer;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::MarkerLock;
use treelease_client::words::refusal::Refusal;
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::StateName;

use super::{Effect, Phase, RETRY_PAUSE, TreeSide};

/// The pause between two tries for a lock that somebody has.
pub const WITNESS_AGAIN: Duration = Duration::from_secs(1);
/// How much later each place in the queue begins to ask.
pub const WITNESS_TURN: Duration = Duration::from_secs(3);

/// Which fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Whose unclean end.
    pub epoch: Epoch,
    /// Its number.
    pub attempt: u32,
}

/// How far the asking is.
#[derive(Debug, Default)]
pub(super) enum Asking {
    /// Nothing is under way; when the next try is due.
    #[default]
    Idle,
    /// The next try is due then.
    Pause(Attempt, BootTime),
    /// A try is under way.
    Trying(Attempt),
    /// The lock is here, and the servers are told; `Some`: told again then.
    Telling(Attempt, Option<BootTime>),
}

impl TreeSide {
    /// The fence that this side may end by the lock of this marker, and its place in the queue.
    fn fence_to_witness(&self) -> Option<(Attempt, MarkerLock, u32)> {
        let table = self.table.as_ref().filter(|t| t.state == StateName::Fencing)?;
        let marker = table.witness.clone().filter(|_| self.mounted && !self.down && matches!(self.phase, Phase::Reader))?;
        let place = table.waiters.iter().position(|w| w.side == self.me)?;
        Some((Attempt { epoch: table.ended_epoch?, attempt: table.attempt }, marker, place as u32))
    }

    /// What this side does about the fence, for people.
    pub fn witness_word(&self) -> Option<&'static str> {
        self.fence_to_witness()?;
        Some(if matches!(self.asking, Asking::Telling(..)) { "told" } else { "asking" })
    }

    /// Begins, goes on, or lets go.
    pub(super) fn consider_witness(&mut self, now: BootTime) {
        let wanted = self.fence_to_witness();
        let attempt = wanted.as_ref().map(|(attempt, ..)| *attempt);
        match (&self.asking, &wanted) {
            (Asking::Telling(of, _), _) if attempt != Some(*of) => self.stop_asking(),
            (Asking::Pause(of, _), _) if attempt != Some(*of) => self.asking = Asking::Idle,
            _ => {}
        }
        let Some((of, marker, place)) = wanted else { return };
        match self.asking {
            Asking::Idle => {
                self.asking = Asking::Pause(of, now.after(WITNESS_TURN * place));
                self.consider_witness(now);
            }
            Asking::Pause(_, at) if now >= at => {
                self.asking = Asking::Trying(of);
                self.effects.push_back(Effect::AskWitness(of));
            }
            Asking::Telling(_, Some(at)) if now >= at => {
                self.asking = Asking::Telling(of, None);
                self.effects.push_back(Effect::TellWitness(of, marker));
            }
            _ => {}
        }
    }

    fn stop_asking(&mut self) {
        self.asking = Asking::Idle;
        self.effects.push_back(Effect::DropWitness);
    }

    /// A try has ended; `got`: the lock is here, and is this one.
    pub fn handle_witness_try(&mut self, of: Attempt, got: Option<MarkerLock>, now: BootTime) {
        let wanted = self.fence_to_witness().filter(|(attempt, ..)| *attempt == of);
        let expected = matches!(&self.asking, Asking::Trying(trying) if *trying == of);
        match (wanted, got) {
            (Some((_, marker, _)), Some(got)) if expected && got == marker => {
                self.asking = Asking::Telling(of, None);
                self.effects.push_back(Effect::TellWitness(of, marker));
            }
            (_, got) => {
                if got.is_some() {
                    self.effects.push_back(Effect::DropWitness);
                }
                if expected {
                    self.asking = Asking::Pause(of, now.after(WITNESS_AGAIN));
                }
                self.consider_witness(now);
            }
        }
    }

    /// The servers' answer to [`Effect::TellWitness`].
    pub fn handle_witness_answer(&mut self, of: Attempt, answer: &Result<Answer, Refusal>, now: BootTime) {
        if !matches!(&self.asking, Asking::Telling(telling, _) if *telling == of) {
            return;
        }
        match answer {
            // The table says what comes of it; until then the lock stays here, so that nobody else is told the same.
            Ok(Answer::Done) => {}
            Ok(_) => {
                self.stop_asking();
                self.asking = Asking::Pause(of, now.after(WITNESS_AGAIN));
            }
            // Nobody knows: told again. It names epoch and attempt, so twice is once.
            Err(_) => self.asking = Asking::Telling(of, Some(now.after(RETRY_PAUSE))),
        }
    }

    pub(super) fn witness_due(&self) -> Option<BootTime> {
        match self.asking {
            Asking::Pause(_, at) => Some(at),
            Asking::Telling(_, at) => at,
            Asking::Idle | Asking::Trying(_) => None,
        }
    }
}
