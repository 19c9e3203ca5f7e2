//! One file per behaviour: examples first, then whole random histories.

mod answers;
mod clocks;
mod random;
mod rhythm;

use std::time::Duration;

use super::*;
use crate::words::epoch::RunStart;
use crate::words::tree::End;

/// A session of 10 s at time zero, with what a test needs to talk to it.
struct Side {
    core: SessionCore,
    now: BootTime,
    tree: TreeId,
}

const TTL: Ttl = Ttl::new(Duration::from_secs(10));
/// What a renewal's right is long: 10 s less 1 % less a margin of 1 s.
const RIGHT: Duration = Duration::from_millis(8_900);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Side {
    fn new() -> Self {
        let now = BootTime::default();
        Side { core: SessionCore::new(SessionId::random(), 1, TTL, now), now, tree: TreeId::random() }
    }

    fn pass(&mut self, d: Duration) {
        self.now.elapsed += d;
    }

    fn sleep(&mut self, d: Duration) {
        self.now.elapsed += d;
        self.now.suspended += d;
    }

    /// The next renewal, which must be due.
    fn sent(&mut self) -> Renewal {
        loop {
            match self.core.poll_action(self.now).expect("a renewal is due") {
                Action::Renew(renewal) => return renewal,
                _ => continue,
            }
        }
    }

    fn drain(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action(self.now)).collect()
    }

    fn pair(&self, epoch: u64) -> HeldPair {
        let epoch = Epoch::from_raw(epoch);
        HeldPair { tree: self.tree.clone(), epoch, run_start: RunStart(epoch), root: None, last_end: End::None }
    }

    fn answer_with(&mut self, number: u64, pairs: Vec<HeldPair>) {
        let answer = Answered {
            number,
            nonce: 1000 + number,
            ttl: TTL,
            alive: true,
            pairs,
            server_elapsed: None,
            why_not: String::new(),
            given_up: false,
        };
        self.core.handle_answer(answer, self.now);
    }

    fn answer(&mut self, number: u64, epoch: u64) {
        let pair = self.pair(epoch);
        self.answer_with(number, vec![pair]);
    }

    fn right(&self, epoch: u64) -> Option<Duration> {
        self.core.right(&self.tree, Epoch::from_raw(epoch), self.now).map(|until| until.elapsed)
    }
}
