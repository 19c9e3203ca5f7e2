//! I2: after an unclean end nobody else is granted before the waits have passed, or an operator has vouched.

use std::time::Duration;

use treelease_proto::command::{Event, EventKind};
use treelease_proto::id::SideName;

use super::Broken;

/// An unclean end that is waited out.
#[derive(Debug, Default)]
pub struct Waits(Option<(SideName, Duration)>);

impl Waits {
    /// Something happened to the tree. Clocks may be 1 % wrong.
    pub fn check(&mut self, event: &Event, ttl: Duration, grace: Duration, at: Duration) -> Result<(), Broken> {
        let wait = |length: Duration| event.side.clone().map(|side| (side, at + length - length / 100));
        match event.kind {
            EventKind::Expired | EventKind::Surrendered => self.0 = wait(grace),
            // Its daemon's word: the rest of the TTL need not be waited out. That may have passed meanwhile all the same.
            EventKind::GateClosed => {
                self.0 = [wait(grace), self.0.take()].into_iter().flatten().min_by_key(|(_, until)| *until);
            }
            EventKind::Broken => self.0 = wait(ttl + grace),
            // Given back after it had come back: the waits begin anew.
            EventKind::Released if event.end == treelease_proto::tree::End::Unclean => self.0 = wait(grace),
            EventKind::Fenced => self.0 = None,
            EventKind::Granted => {
                if let Some((side, until)) = &self.0
                    && event.side.as_ref() != Some(side)
                    && at < *until
                {
                    return Err(format!(
                        "{:?} was granted {:?} before the waits after {side}'s end were over",
                        event.side,
                        *until - at
                    ));
                }
                self.0 = None;
            }
            _ => {}
        }
        Ok(())
    }
}
