//! What is worked on over one call for renewals: messages, and those of their renewals that wait for an outcome.
//!
//! Promises: a renewal whose session's expiry is being decided, which may take seconds, is no message that is worked on any more: others
//! are read and answered meanwhile, however many such there are. They have a limit of their own; one more is handed back, to be told
//! so. Nothing is lost when whoever waits for the next word stops waiting.
//!
//! It does not know what is said.

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use treelease_proto::wire;

use super::renew::{Later, Step};

/// So much at the same time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Messages; no more are read.
    pub messages: usize,
    /// Renewals that wait for an outcome; more are told to ask again.
    pub later: usize,
}

/// See the module.
pub(super) struct UnderWay {
    most: Most,
    messages: FuturesUnordered<BoxFuture<'static, Step>>,
    later: FuturesUnordered<BoxFuture<'static, wire::RenewalAnswered>>,
}

/// What there is to say now.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Heard {
    pub answered: Vec<wire::RenewalAnswered>,
    /// They would have to wait.
    pub no_room: Vec<u64>,
}

impl UnderWay {
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

    pub fn begin(&mut self, message: BoxFuture<'static, Step>) {
        self.messages.push(message);
    }

    /// The next word; none: nothing is under way.
    pub async fn next(&mut self) -> Option<Heard> {
        tokio::select! {
            biased;
            Some(Step { answered, later }) = self.messages.next() => {
                let mut heard = Heard { answered, ..Heard::default() };
                for Later { tag, answer } in later {
                    match self.later.len() < self.most.later {
                        true => self.later.push(answer),
                        false => heard.no_room.push(tag),
                    }
                }
                Some(heard)
            }
            Some(answer) = self.later.next() => Some(Heard { answered: vec![answer], ..Heard::default() }),
            else => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{pending, ready};

    use super::*;

    const MOST: Most = Most { messages: 2, later: 600 };

    #[test]
    fn renewals_whose_expiry_is_being_decided_hold_up_no_others() {
        let mut under_way = UnderWay::new(MOST);
        // Two messages full of them: as many as may be worked on.
        for message in 0..2 {
            under_way.begin(step(&[], (0..256).map(|n| doomed(1_000 * message + n)).collect()));
        }
        assert!(!under_way.has_room(), "the control: as long as they are worked on");
        for _ in 0..2 {
            assert_eq!(under_way.next().now_or_never(), Some(Some(Heard::default())));
        }
        assert!(under_way.has_room());
        assert_eq!(under_way.next().now_or_never(), None, "none of them has an outcome");
        under_way.begin(step(&[7], Vec::new()));
        assert_eq!(tags(under_way.next().now_or_never()), [7]);
        assert!(!under_way.is_empty(), "and they still wait");
    }

    #[test]
    fn an_outcome_is_told_when_it_is_known_and_one_more_than_may_wait_for_theirs_is_handed_back() {
        let mut under_way = UnderWay::new(MOST);
        let (known, outcome) = tokio::sync::oneshot::channel();
        let waits = Later { tag: 5, answer: async { outcome.await.unwrap() }.boxed() };
        let more = (1_000..1_000 + MOST.later as u64).map(doomed);
        under_way.begin(step(&[1], std::iter::once(waits).chain(more).collect()));
        let heard = under_way.next().now_or_never().flatten().unwrap();
        assert_eq!((heard.answered, heard.no_room), (vec![answer(1)], vec![1_000 + MOST.later as u64 - 1]));
        assert_eq!(under_way.next().now_or_never(), None);
        known.send(answer(5)).unwrap();
        assert_eq!(tags(under_way.next().now_or_never()), [5]);
    }

    #[test]
    fn when_nothing_is_under_way_there_is_no_next_word() {
        let mut under_way = UnderWay::new(MOST);
        assert_eq!(under_way.next().now_or_never(), Some(None));
        assert!(under_way.is_empty() && under_way.has_room());
        under_way.begin(pending().boxed());
        assert!(!under_way.is_empty() && under_way.has_room());
        under_way.begin(pending().boxed());
        assert!(!under_way.has_room());
    }

    fn answer(tag: u64) -> wire::RenewalAnswered {
        wire::RenewalAnswered { tag, word: None }
    }

    /// Without an outcome.
    fn doomed(tag: u64) -> Later {
        Later { tag, answer: pending().boxed() }
    }

    fn step(answered: &[u64], later: Vec<Later>) -> BoxFuture<'static, Step> {
        ready(Step { answered: answered.iter().copied().map(answer).collect(), later }).boxed()
    }

    fn tags(heard: Option<Option<Heard>>) -> Vec<u64> {
        heard.flatten().unwrap_or_default().answered.iter().map(|one| one.tag).collect()
    }
}
