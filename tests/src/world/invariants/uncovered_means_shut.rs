//! What holds after a virtual machine was paused and none of its clocks shows it.
//!
//! Nothing on it can know. The gate may admit, while another side has the tree, until the first answer to a renewal that was sent
//! after the thaw, and never longer than the right to write had left on the machine's own clock, which is less than a TTL.

use std::time::Duration;

use super::{Broken, Gate};

/// At this moment: a gate that admits although its machine was paused and nothing has uncovered it.
pub fn check(gate: &Gate, ttl: Duration, now: Duration) -> Result<(), Broken> {
    match gate.deluded {
        // Clocks may be 1 % wrong.
        Some(thawed) if gate.admits && now > thawed + ttl + ttl / 100 => Err(format!(
            "side {} was paused, has run again since {thawed:?}, and its gate still admits without an answer",
            gate.side
        )),
        _ => Ok(()),
    }
}
