//! I2: when a lease ends clean, its holder's gate is shut and nothing is on its way to the storage.

use treelease_proto::epoch::Epoch;

use super::Broken;

/// At a clean end of that epoch: under which one the side's gate is, and what it does.
pub fn check(side: usize, ended: Epoch, under: Option<Epoch>, admits: bool, in_flight: usize) -> Result<(), Broken> {
    // It may have been granted again already, by the same command's settling.
    if under.is_some_and(|epoch| epoch > ended) {
        return Ok(());
    }
    if admits || in_flight > 0 {
        return Err(format!(
            "epoch {ended} of side {side} ended clean; its gate admits: {admits}, writes on their way: {in_flight}"
        ));
    }
    Ok(())
}
