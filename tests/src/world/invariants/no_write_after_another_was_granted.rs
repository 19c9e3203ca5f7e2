//! From the moment a side is granted, no other side's gate admits, and no write of another one is on its way.
//!
//! Stronger than that two gates never admit at once: the new holder's gate opens later. A write that is still on its way is allowed
//! only where the guard itself was stopped between check and call; then the program must learn of it (EIO).

use treelease_proto::epoch::Epoch;
use treelease_proto::id::SideName;

use super::{Broken, Granted};

/// A side's gate admits under its epoch.
pub fn check_gate(side: &SideName, epoch: Option<Epoch>, granted: Option<&Granted>) -> Result<(), Broken> {
    match granted {
        Some(granted) if granted.side != *side => Err(format!(
            "the gate of {side} admits (epoch {epoch:?}), and {} was granted epoch {} at {:?}",
            granted.side, granted.epoch, granted.at
        )),
        _ => Ok(()),
    }
}

/// A write ends. `interrupted`: the process did not run all the time since it was admitted.
pub fn check_end(side: &SideName, late: bool, interrupted: bool, granted: Option<&Granted>) -> Result<(), Broken> {
    let other = granted.filter(|granted| granted.side != *side);
    match other {
        Some(granted) if !interrupted => {
            Err(format!("a write of {side} ended after {} was granted epoch {}", granted.side, granted.epoch))
        }
        Some(granted) if !late => Err(format!(
            "a write of {side} ended after {} was granted epoch {}, and the program was told that all is well",
            granted.side, granted.epoch
        )),
        _ => Ok(()),
    }
}
