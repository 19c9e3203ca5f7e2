//! I6: a file that was opened before another side's turn is never written again.

use treelease_proto::epoch::Epoch;
use treelease_proto::id::SideName;

use super::Broken;

/// A write through a file was admitted that was opened under `opened`; `grants`: all grants so far, in order.
pub fn check(side: &SideName, opened: Epoch, grants: &[(Epoch, SideName)]) -> Result<(), Broken> {
    match grants.iter().find(|(epoch, who)| *epoch > opened && who != side) {
        Some((epoch, who)) => {
            Err(format!("{side} writes through a file that it opened under epoch {opened}; {who} had epoch {epoch} since"))
        }
        None => Ok(()),
    }
}
