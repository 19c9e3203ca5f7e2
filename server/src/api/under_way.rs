//! What is worked on over one call that stays open: messages, and those of their questions that wait for an outcome.
//!
//! Promises: a question that waits for one, as a renewal whose session's expiry is being decided, which may take seconds, is no message that is worked on any more: others
//! are read and answered meanwhile, however many such there are. They have a limit of their own; one more is handed back, to be told
//! so. Nothing is lost when whoever waits for the next word stops waiting.
//!
//! It does not know what is said.

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

/// So much at the same time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Messages; no more are read.
    pub messages: usize,
    /// Questions that wait for an outcome; more are told to ask again.
    pub later: usize,
}

/// What there is to say of a message's questions, and what is still to come.
pub(super) struct Step<T> {
    pub answered: Vec<T>,
    pub later: Vec<Later<T>>,
}

impl<T> Default for Step<T> {
    fn default() -> Self {
        Self { answered: Vec::new(), later: Vec::new() }
    }
}

/// A question that waits for an outcome.
pub(super) struct Later<T> {
    pub tag: u64,
    pub answer: BoxFuture<'static, T>,
}

/// See the module.
pub(super) struct UnderWay<T> {
    most: Most,
    messages: FuturesUnordered<BoxFuture<'static, Step<T>>>,
    later: FuturesUnordered<BoxFuture<'static, T>>,
}

/// What there is to say now.
#[derive(Debug, PartialEq)]
pub(super) struct Heard<T> {
    pub answered: Vec<T>,
    /// They would have to wait.
    pub no_room: Vec<u64>,
}

impl<T> UnderWay<T> {
    pub fn new(most: Most) -> Self {
        Self { most, messages: FuturesUnordered::new(), later: FuturesUnordered::new() }
    }

    /// Whether another message may be begun.
    pub fn has_room(&self) -> bool {
        self.messages.len() < self.most.messages
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.later.is_empty()
    }

    pub fn begin(&mut self, message: BoxFuture<'static, Step<T>>) {
        self.messages.push(message);
    }

    /// The next word; none: nothing is under way.
    pub async fn next(&mut self) -> Option<Heard<T>> {
        tokio::select! {
            biased;
            Some(Step { answered, later }) = self.messages.next() => {
                let mut heard = Heard { answered, no_room: Vec::new() };
                for Later { tag, answer } in later {
                    match self.later.len() < self.most.later {
                        true => self.later.push(answer),
                        false => heard.no_room.push(tag),
                    }
                }
                Some(heard)
            }
            Some(answer) = self.later.next() => Some(Heard { answered: vec![answer], no_room: Vec::new() }),
            else => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{pending, ready};

    use super::*;

    /// An answer is the tag of its question.
    type Tag = u64;

    const MOST: Most = Most { messages: 2, later: 600 };

    #[test]
    fn renewals_whose_expiry_is_being_decided_hold_up_no_others() {
        let mut under_way = UnderWay::<Tag>::new(MOST);
        // Two messages full of them: as many as may be worked on.
        for message in 0..2 {
            under_way.begin(step(&[], (0..256).map(|n| doomed(1_000 * message + n)).collect()));
        }
        assert!(!under_way.has_room(), "the control: as long as they are worked on");
        for _ in 0..2 {
            assert_eq!(under_way.next().now_or_never(), Some(Some(Heard { answered: Vec::new(), no_room: Vec::new() })));
        }
        assert!(under_way.has_room());
        assert_eq!(under_way.next().now_or_never(), None, "none of them has an outcome");
        under_way.begin(step(&[7], Vec::new()));
        assert_eq!(tags(under_way.next().now_or_never()), [7]);
        assert!(!under_way.is_empty(), "and they still wait");
    }

    #[test]
    fn an_outcome_is_told_when_it_is_known_and_one_more_than_may_wait_for_theirs_is_handed_back() {
        let mut under_way = UnderWay::<Tag>::new(MOST);
        let (known, outcome) = tokio::sync::oneshot::channel();
        let waits = Later { tag: 5, answer: async { outcome.await.unwrap() }.boxed() };
        let more = (1_000..1_000 + MOST.later as u64).map(doomed);
        under_way.begin(step(&[1], std::iter::once(waits).chain(more).collect()));
        let heard = under_way.next().now_or_never().flatten().unwrap();
        assert_eq!((heard.answered, heard.no_room), (vec![1], vec![1_000 + MOST.later as u64 - 1]));
        assert_eq!(under_way.next().now_or_never(), None);
        known.send(5).unwrap();
        assert_eq!(tags(under_way.next().now_or_never()), [5]);
    }

    #[test]
    fn when_nothing_is_under_way_there_is_no_next_word() {
        let mut under_way = UnderWay::<Tag>::new(MOST);
        assert_eq!(under_way.next().now_or_never(), Some(None));
        assert!(under_way.is_empty() && under_way.has_room());
        under_way.begin(pending().boxed());
        assert!(!under_way.is_empty() && under_way.has_room());
        under_way.begin(pending().boxed());
        assert!(!under_way.has_room());
    }

    /// Without an outcome.
    fn doomed(tag: u64) -> Later<Tag> {
        Later { tag, answer: pending().boxed() }
    }

    fn step(answered: &[Tag], later: Vec<Later<Tag>>) -> BoxFuture<'static, Step<Tag>> {
        ready(Step { answered: answered.to_vec(), later }).boxed()
    }

    fn tags(heard: Option<Option<Heard<Tag>>>) -> Vec<Tag> {
        heard.flatten().map(|heard| heard.answered).unwrap_or_default()
    }
}
