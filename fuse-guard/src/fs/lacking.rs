//! Extended attributes that a file is known not to have: those that are asked for again and again.
//!
//! The kernel asks for `security.capability` before the first write to each file, and once more after each new look at its attributes;
//! and whoever makes something in a directory must know whether that one has a default access control list.
//!
//! # Promises
//!
//! - It is remembered under the serial under which the storage was asked, and believed by who believes the node: the holder.
//! - What comes through this mount is never missed. *Why:* whoever sets or removes an attribute says so ([`Lacking::changed`]) after
//!   the call below and before its program hears of it, and whoever found none says how many had said so before it asked.
//!
//! # Does not know
//!
//! Files; who holds the lease ([`super::Fs::believes`]).

use crate::sync::{AtomicU64, Ordering};

/// So many changes are told apart; nobody asks for longer than it takes to make them.
const CHANGES: u32 = 20;

/// Which attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `security.capability`.
    Capability,
    /// `system.posix_acl_default`, of a directory.
    DefaultList,
}

/// When it was asked for: before, or after, an attribute was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked(u64);

impl Asked {
    /// Of what has just been made, and has none by that.
    pub const AT_BIRTH: Asked = Asked(0);
}

/// What one node lacks.
#[derive(Debug, Default)]
pub struct Lacking {
    changes: AtomicU64,
    /// Serial plus one, and below it the changes until then.
    found: [AtomicU64; 2],
}

fn mark(serial: u64, changes: u64) -> u64 {
    (serial.wrapping_add(1) << CHANGES) | (changes & ((1 << CHANGES) - 1))
}

impl Lacking {
    /// Before the storage is asked.
    pub fn asks(&self) -> Asked {
        Asked(self.changes.load(Ordering::SeqCst))
    }

    /// It has none, as the storage said under this serial.
    pub fn found_none(&self, which: Which, asked: Asked, serial: u64) {
        self.found[which as usize].store(mark(serial, asked.0), Ordering::SeqCst);
    }

    /// Whether it was found under this serial to have none, and nobody has set any since.
    pub fn has_none(&self, which: Which, serial: u64) -> bool {
        self.found[which as usize].load(Ordering::SeqCst) == mark(serial, self.changes.load(Ordering::SeqCst))
    }

    /// An attribute was set or removed, or may have been.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_believed_under_its_serial_until_one_is_set() {
        let lacking = Lacking::default();
        assert!(!lacking.has_none(Which::Capability, 0), "nobody has asked");
        lacking.found_none(Which::Capability, lacking.asks(), 7);
        assert!(lacking.has_none(Which::Capability, 7));
        assert!(!lacking.has_none(Which::Capability, 8), "another side may have had a turn");
        assert!(!lacking.has_none(Which::DefaultList, 7), "another attribute");
        lacking.changed();
        assert!(!lacking.has_none(Which::Capability, 7));
    }

    #[test]
    fn one_that_is_set_while_it_is_asked_for_is_not_missed() {
        let lacking = Lacking::default();
        let asked = lacking.asks();
        lacking.changed();
        lacking.found_none(Which::Capability, asked, 7);
        assert!(!lacking.has_none(Which::Capability, 7));
        lacking.found_none(Which::Capability, Asked::AT_BIRTH, 7);
        assert!(!lacking.has_none(Which::Capability, 7), "set since it was made");
    }
}
