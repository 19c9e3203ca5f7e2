//! Answers by request key, so that a retry after a lost answer does nothing twice.
//!
//! It promises that the newest [`REPLAY_MAX`] keys are known. An older one (where a cluster is busy with nothing else: of half a second
//! ago) is carried out again; that is safe (I1, I2), because every command that ends, moves or vouches for a lease names its epoch, and
//! only costs a second history entry. An `Acquire` may bring a grant once more that nobody asks for by then, and a `Cancel` take a
//! later place in the queue: the side gives the one back, and asks for the other again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use treelease_proto::command::Answer;
use treelease_proto::id::RequestKey;

use super::REPLAY_MAX;
use super::many::Many;

/// The newest answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Replay {
    answers: Many<RequestKey, Answer>,
    /// The keys, oldest first.
    order: VecDeque<RequestKey>,
}

impl Replay {
    pub(super) fn get(&self, key: &RequestKey) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Remembers an answer. The key is new: `apply` has looked.
    pub(super) fn keep(&mut self, key: RequestKey, answer: Answer) {
        while self.order.len() >= REPLAY_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.answers.insert(key, answer);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.answers.len(), self.order.len());
        self.order.len()
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
