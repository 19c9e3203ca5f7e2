//! That this side's guard obeys the policy's mode, and that the servers know it: `enforce` is complete only when every side that
//! ever mounted the tree has confirmed it (DESIGN 4).
//!
//! # Promises
//!
//! This side confirms `enforce` only after the gate was given that standing, no permit that an earlier one gave is in flight, and,
//! where this mount has let through what nobody may have held, the storage has confirmed what was written. *Why the last:* what
//! lies in this machine's memory would reach the storage under somebody else's lease.
//!
//! A confirmation names the change of the mode that it is for, so that one on its way while the mode changes again counts for
//! nothing. One that is lost, or that the storage keeps from being true, is tried again with each reading of the servers' table.
//!
//! # Does not know
//!
//! Who else has confirmed: the server does.

use treelease_client::words::policy::Mode;

use super::{Effect, TreeSide};

/// How far this side is with the mode.
#[derive(Debug, Default)]
pub(super) struct Obeying {
    /// The change that is being confirmed.
    asked: Option<u64>,
    /// This mount has let something through that `enforce` might have refused.
    lax: bool,
}

impl TreeSide {
    /// A mount begins. It has let nothing through yet, but one before it may have; and the table is read only later.
    pub(super) fn begin_strict(&mut self) {
        let lax = self.obeying.lax || self.policy.mode != Mode::Enforce;
        self.obeying = Obeying { asked: None, lax };
    }

    /// The servers' table was read, or the tree was mounted.
    pub(super) fn consider_mode(&mut self) {
        let Some(table) = self.table.as_ref().filter(|_| self.mounted) else { return };
        let enforces = self.policy.mode == Mode::Enforce;
        self.obeying.lax |= !enforces;
        let known = table.guards.iter().any(|guard| guard.side == self.me && guard.obeys);
        if known || self.obeying.asked == Some(table.mode_no) || self.down {
            return;
        }
        let no = table.mode_no;
        self.obeying.asked = Some(no);
        self.effects.push_back(match enforces && self.obeying.lax {
            true => Effect::SettleMode(no),
            false => Effect::TellObeys(no),
        });
    }

    /// What the earlier mode let through has ended and is on the storage, or not in time.
    pub fn handle_mode_settled(&mut self, mode_no: u64, settled: bool) {
        if self.obeying.asked != Some(mode_no) {
            return;
        }
        if settled {
            self.effects.push_back(Effect::TellObeys(mode_no));
        } else {
            self.obeying.asked = None;
        }
    }

    /// The servers' answer to [`Effect::TellObeys`].
    pub fn handle_obeys_answer(&mut self, mode_no: u64, taken: bool) {
        if self.obeying.asked != Some(mode_no) {
            return;
        }
        self.obeying.asked = None;
        // What comes now is let through by the present mode.
        if taken && self.table.as_ref().is_some_and(|table| table.mode_no == mode_no) && self.policy.mode == Mode::Enforce {
            self.obeying.lax = false;
        }
    }
}
