//! The nonces of renewals' answers: how a side learns how long the server thinks it took, and how a copied machine shows.
//!
//! Each answer carries a new nonce, each request the one of the last answer that the side has taken. So (DESIGN 3, Clocks) an
//! answer can name the server's elapsed time between the arrivals of this request and of the one whose nonce it names.
//!
//! # Promises
//!
//! *One machine is never taken for two*, however its requests are hedged, repeated, delayed, reordered or left unanswered.
//! Why: a side numbers its requests in the order in which it makes them, and the nonce that it names never goes back in the
//! order in which nonces were given (`client/src/session` takes a nonce only from an answer to a request that named the one it
//! has). So among all of its requests numbers and nonces stand in one order, and one number names one nonce.
//!
//! *Two machines that go on from one state are noticed*, whichever has the higher numbers: each learns nonces that are newer
//! than the other's, so soon two requests stand in opposite orders, or one number names two nonces. [`Verdict::Copied`] stays.
//!
//! *A request that the side itself has given up is not acknowledged*: one with a higher number arrived a full TTL ago, so this
//! one was sent longer ago than that, and its answer would give no right. It gets a nonce and nothing else
//! ([`Verdict::GivenUp`]): the copy of a machine that slept meanwhile cannot write before it is noticed.
//!
//! Volatile. A nonce is made of its leadership and a count, so that nonces of different leaderships have an order too; what a
//! new leader does not know is only what came before it. It does not know a clock: when a request arrived is given.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use treelease_proto::command::Leadership;
use treelease_proto::id::SessionId;
use treelease_proto::time::{BootTime, DRIFT_PERMILLE, Ttl};

/// Answers and requests of one session that are remembered: a dozen TTLs' worth in good times, three in bad ones.
const REMEMBERED: usize = 64;
/// Sessions that are remembered before those that have ended are dropped.
const SWEEP_LEAST: usize = 1_024;
/// Bits of a nonce that count the answers of one session under one leadership: years of them. At the limit all are equal,
/// which accuses nobody.
const COUNT_BITS: u32 = 28;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// A renewal as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Which run of the daemon.
    pub incarnation: u64,
    /// The request's number.
    pub number: u64,
    /// The nonce that it names; 0: none yet.
    pub nonce: u64,
    /// When it arrived.
    pub at: BootTime,
    /// Its session's time to live.
    pub ttl: Ttl,
}

/// What a renewal's number and nonce say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong.
    Fine {
        /// For the answer.
        nonce: u64,
        /// Since the arrival of the request whose nonce it names, if that is known.
        elapsed: Option<Duration>,
    },
    /// Too old for its own side to take an answer from it: nothing is acknowledged.
    GivenUp {
        /// For the answer.
        nonce: u64,
    },
    /// Two machines renew one session.
    Copied,
    /// A later leadership has begun meanwhile.
    Over,
}

#[derive(Debug, Default)]
struct Known {
    incarnation: u64,
    /// Nonces given, oldest first, and when their requests arrived.
    given: VecDeque<(u64, BootTime)>,
    /// How many were given.
    count: u64,
    /// The highest numbers seen: the nonce that each named, and when it arrived first.
    seen: BTreeMap<u64, (u64, BootTime)>,
    copied: bool,
}

/// The nonces of all sessions under one leadership.
#[derive(Debug, Default)]
pub struct Nonces {
    leadership: Leadership,
    sessions: BTreeMap<SessionId, Known>,
    /// With more sessions than this, those that have ended are dropped.
    sweep_above: usize,
}

impl Nonces {
    /// A renewal came in, and is about to be answered under this leadership.
    pub fn arrive(&mut self, leadership: Leadership, session: &SessionId, arrival: Arrival) -> Verdict {
        if leadership < self.leadership {
            return Verdict::Over;
        }
        if self.leadership != leadership {
            *self = Self { leadership, ..Self::default() };
        }
        let known = self.sessions.entry(session.clone()).or_default();
        if known.incarnation != arrival.incarnation {
            *known = Known { incarnation: arrival.incarnation, ..Known::default() };
        }
        known.arrive(leadership, arrival)
    }

    /// Whether it is time to forget sessions that are no more: whenever their number may have doubled.
    pub fn wants_sweep(&self) -> bool {
        self.sessions.len() > self.sweep_above.max(SWEEP_LEAST)
    }

    /// Forgets sessions that are no more.
    pub fn sweep(&mut self, lives: impl Fn(&SessionId) -> bool) {
        self.sessions.retain(|session, _| lives(session));
        self.sweep_above = 2 * self.sessions.len();
    }
}

impl Known {
    fn arrive(&mut self, leadership: Leadership, arrival: Arrival) -> Verdict {
        self.copied |= self.seen.iter().any(|(number, (nonce, _))| contradict((*number, *nonce), arrival));
        if self.copied {
            return Verdict::Copied;
        }
        let given_up = self.given_up(arrival);
        self.seen.entry(arrival.number).or_insert((arrival.nonce, arrival.at));
        if self.seen.len() > REMEMBERED {
            self.seen.pop_first();
        }
        let elapsed = self.given.iter().find(|(nonce, _)| *nonce == arrival.nonce).map(|(_, then)| arrival.at.since(*then));
        self.count = (self.count + 1).min(COUNT_MAX);
        let nonce = (leadership.0 << COUNT_BITS) | self.count;
        // At the limit nonces are not told apart any more, so none of them has a time.
        if self.count < COUNT_MAX {
            self.given.push_back((nonce, arrival.at));
        }
        if self.given.len() > REMEMBERED {
            self.given.pop_front();
        }
        if given_up { Verdict::GivenUp { nonce } } else { Verdict::Fine { nonce, elapsed } }
    }

    /// Whether a later request arrived so long ago that the side does not wait for this one any more, by whatever clock.
    fn given_up(&self, arrival: Arrival) -> bool {
        let ttl = arrival.ttl.get();
        let by_any_clock = ttl + ttl * DRIFT_PERMILLE / 1000;
        self.seen.range(arrival.number + 1..).any(|(_, (_, then))| arrival.at.since(*then) >= by_any_clock)
    }
}

/// One machine's requests never do.
fn contradict(earlier: (u64, u64), arrival: Arrival) -> bool {
    let (number, nonce) = earlier;
    let order = number.cmp(&arrival.number);
    if order.is_eq() { nonce != arrival.nonce } else { nonce.cmp(&arrival.nonce) == order.reverse() }
}

#[cfg(test)]
#[path = "nonce_tests.rs"]
mod tests;
