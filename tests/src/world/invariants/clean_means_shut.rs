//! I2: when a lease ends clean, its holder's gate is shut and nothing is on its way to the storage.

use treelease_proto::epoch::Epoch;
use treelease_proto::id::SideName;

use super::Broken;

/// At a clean end of that epoch: what the side's gate and its permits are.
pub fn check(side: &SideName, ended: Epoch, under: Option<Epoch>, admits: bool, in_flight: usize) -> Result<(), Broken> {
    // It may have been granted again already, by the same command's settling.
    if under.is_some_and(|epoch| epoch > ended) {
        return Ok(());
    }
    if admits || in_flight > 0 {
        return Err(format!("epoch {ended} of {side} ended clean; its gate admits: {admits}, writes on their way: {in_flight}"));
    }
    Ok(())
}
