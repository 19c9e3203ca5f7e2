//! I1: every grant has the next epoch.

use treelease_proto::epoch::Epoch;

use super::{Broken, Granted};

/// At a grant.
pub fn check(last: Option<&Granted>, epoch: Epoch) -> Result<(), Broken> {
    let before = last.map_or(Epoch::ZERO, |granted| granted.epoch);
    if epoch != before.next() {
        return Err(format!("epoch {epoch} was granted after epoch {before}"));
    }
    Ok(())
}
