//! I1: every grant of a tree has the next epoch.

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn i1_an_epoch_that_comes_again_or_is_left_out_is_seen() {
        let (one, two) = (Epoch::ZERO.next(), Epoch::ZERO.next().next());
        let granted = Granted { epoch: one, side: 0, at: Duration::ZERO };
        check(None, one).unwrap();
        check(Some(&granted), two).unwrap();
        check(Some(&granted), one).unwrap_err();
        check(Some(&granted), two.next()).unwrap_err();
    }
}
