//! I2: after an unclean end no other kernel is granted before the waits have passed, or an operator has vouched. A side on another
//! machine is another kernel, whatever its name.

use std::time::Duration;

use treelease_proto::command::{Event, EventKind};
use treelease_proto::tree::End;

use super::Broken;

/// An unclean end of a tree that is waited out.
#[derive(Debug, Default)]
pub struct Waits(Option<(Option<usize>, Duration)>);

impl Waits {
    /// Something happened to the tree; `side`: whose session it is about. Clocks may be 1 % wrong.
    pub fn check(
        &mut self,
        event: &Event,
        side: Option<usize>,
        ttl: Duration,
        grace: Duration,
        at: Duration,
    ) -> Result<(), Broken> {
        let wait = |length: Duration| Some((side, at + length - length / 100));
        match event.kind {
            EventKind::Expired | EventKind::Surrendered => self.0 = wait(grace),
            EventKind::Broken | EventKind::Copied => self.0 = wait(ttl + grace),
            // Its daemon's word: the rest of the TTL need not be waited out. That may have passed meanwhile all the same.
            EventKind::GateClosed => self.0 = [wait(grace), self.0].into_iter().flatten().min_by_key(|(_, until)| *until),
            // Given back after it had come back: the waits begin anew.
            EventKind::Released if event.end == End::Unclean => self.0 = wait(grace),
            EventKind::Fenced => self.0 = None,
            EventKind::Granted => {
                if let Some((ended, until)) = self.0.take()
                    && (side.is_none() || side != ended)
                    && at < until
                {
                    return Err(format!(
                        "side {side:?} was granted {:?} before the waits after the last end were over",
                        until - at
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
