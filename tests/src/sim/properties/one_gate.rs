//! I4: at no moment of true time do two gates admit for one tree; and from the moment a side is granted, no other one's admits,
//! and no write of another one that was admitted is still on its way, unless its program is told that it failed.

use super::{Broken, Granted};

/// Of one tree at this moment: the sides whose gates admit.
pub fn check(admit: &[usize], granted: Option<&Granted>) -> Result<(), Broken> {
    if admit.len() > 1 {
        return Err(format!("the gates of sides {admit:?} admit at the same moment"));
    }
    match (admit.first(), granted) {
        (Some(side), Some(granted)) if granted.side != *side => Err(format!(
            "the gate of side {side} admits, and side {} was granted epoch {} at {:?}",
            granted.side, granted.epoch, granted.at
        )),
        _ => Ok(()),
    }
}

/// A write of that side ends. `late`: its program is told that it failed; `interrupted`: its process was stopped meanwhile.
pub fn check_end(side: usize, late: bool, interrupted: bool, granted: Option<&Granted>) -> Result<(), Broken> {
    match granted.filter(|granted| granted.side != side) {
        Some(granted) if !interrupted || !late => Err(format!(
            "a write of side {side} ended after side {} was granted epoch {} (stopped meanwhile: {interrupted}, told: {late})",
            granted.side, granted.epoch
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use treelease_proto::epoch::Epoch;

    use super::*;

    #[test]
    fn i4_a_second_gate_and_a_gate_after_anothers_grant_are_seen() {
        let granted = Granted { epoch: Epoch::ZERO.next(), side: 1, at: Duration::ZERO };
        check(&[], Some(&granted)).unwrap();
        check(&[1], Some(&granted)).unwrap();
        check(&[0], None).unwrap();
        check(&[0], Some(&granted)).unwrap_err();
        check(&[0, 1], None).unwrap_err();
        check_end(1, false, false, Some(&granted)).unwrap();
        check_end(0, true, true, Some(&granted)).unwrap();
        check_end(0, true, false, Some(&granted)).unwrap_err();
        check_end(0, false, true, Some(&granted)).unwrap_err();
    }
}
