//! The nonces of renewals' answers: how a side learns how long the server thinks it took, and how a cloned machine shows.
//!
//! Each answer carries a new random nonce, each request the one of the last answer that the side has seen. So (DESIGN 3,
//! Clocks) an answer can name the server's elapsed time between the arrivals of this request and of the one whose nonce it
//! names; and a request with a newer number but an older nonce than another request has named already comes from a second
//! machine with the same session: a clone. Volatile, and of one leadership: a nonce of an earlier leader is unknown, which
//! proves nothing until one of ours has been named. It has no clock and no randomness: both are given.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use treelease_proto::command::Leadership;
use treelease_proto::id::SessionId;
use treelease_proto::time::BootTime;

/// Answers of one session that are remembered: more than a dozen TTLs' worth.
const REMEMBERED: usize = 64;
/// Sessions that are remembered before those that have ended are dropped.
const SWEEP_LEAST: usize = 1_024;

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
}

/// What a renewal's nonce says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong; the elapsed time, if the nonce is known.
    Fine(Option<Duration>),
    /// Two machines renew one session.
    Clone,
}

#[derive(Debug, Default)]
struct Known {
    incarnation: u64,
    /// Nonces given, oldest first: nonce, its place in the order of all, when its request arrived.
    given: VecDeque<(u64, u64, BootTime)>,
    /// How many were given.
    count: u64,
    /// The newest nonce that a request has named (its place, from 1), and the number of that request.
    named: Option<(u64, u64)>,
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
    /// A renewal came in under this leadership, and its answer will carry `fresh`.
    pub fn arrive(&mut self, leadership: Leadership, session: &SessionId, arrival: Arrival, fresh: u64) -> Verdict {
        if self.leadership != leadership {
            *self = Self { leadership, ..Self::default() };
        }
        let known = self.sessions.entry(session.clone()).or_default();
        if known.incarnation != arrival.incarnation {
            *known = Known { incarnation: arrival.incarnation, ..Known::default() };
        }
        known.arrive(arrival, fresh)
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
    fn arrive(&mut self, arrival: Arrival, fresh: u64) -> Verdict {
        let found = self.given.iter().find(|(nonce, ..)| *nonce == arrival.nonce).copied();
        // An unknown nonce is older than every one of ours: it is from before this leadership, or was forgotten.
        let place = found.map_or(0, |(_, place, _)| place);
        if let Some((newest, number)) = self.named
            && arrival.number > number
            && place < newest
        {
            return Verdict::Clone;
        }
        if place > self.named.map_or(0, |(newest, _)| newest) {
            self.named = Some((place, arrival.number));
        }
        self.count += 1;
        self.given.push_back((fresh, self.count, arrival.at));
        if self.given.len() > REMEMBERED {
            self.given.pop_front();
        }
        Verdict::Fine(found.map(|(_, _, then)| arrival.at.since(then)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADERSHIP: Leadership = Leadership(7);

    #[test]
    fn an_answer_names_the_time_since_the_request_whose_nonce_came_back() {
        let (mut nonces, session) = (Nonces::default(), SessionId::random());
        assert_eq!(nonces.arrive(LEADERSHIP, &session, arrival(1, 0, 100), 11), Verdict::Fine(None));
        assert_eq!(nonces.arrive(LEADERSHIP, &session, arrival(2, 11, 350), 12), Verdict::Fine(Some(Duration::from_millis(250))));
    }

    #[test]
    fn a_hedged_or_repeated_request_is_no_clone() {
        let (mut nonces, session) = (Nonces::default(), SessionId::random());
        nonces.arrive(LEADERSHIP, &session, arrival(1, 0, 1), 11);
        for (number, nonce, fresh) in [(2, 11, 12), (3, 11, 13), (4, 13, 14), (2, 11, 15), (3, 0, 16), (5, 15, 17)] {
            let verdict = nonces.arrive(LEADERSHIP, &session, arrival(number, nonce, 2), fresh);
            assert_ne!(verdict, Verdict::Clone, "request {number} naming {nonce}");
        }
    }

    #[test]
    fn a_newer_number_with_an_older_nonce_is_a_clone() {
        let (mut nonces, session) = (Nonces::default(), SessionId::random());
        nonces.arrive(LEADERSHIP, &session, arrival(1, 0, 1), 11);
        nonces.arrive(LEADERSHIP, &session, arrival(2, 11, 2), 12);
        nonces.arrive(LEADERSHIP, &session, arrival(3, 12, 3), 13);
        assert_eq!(nonces.arrive(LEADERSHIP, &session, arrival(4, 11, 4), 14), Verdict::Clone);
        assert_eq!(nonces.arrive(LEADERSHIP, &session, arrival(4, 999, 4), 14), Verdict::Clone);
    }

    #[test]
    fn a_new_leadership_or_a_restarted_daemon_begins_anew() {
        let (mut nonces, session) = (Nonces::default(), SessionId::random());
        nonces.arrive(LEADERSHIP, &session, arrival(1, 0, 1), 11);
        nonces.arrive(LEADERSHIP, &session, arrival(2, 11, 2), 12);
        assert_eq!(nonces.arrive(Leadership(8), &session, arrival(3, 999, 3), 13), Verdict::Fine(None));
        nonces.arrive(Leadership(8), &session, arrival(4, 13, 4), 14);
        let restarted = Arrival { incarnation: 2, ..arrival(1, 0, 5) };
        assert_eq!(nonces.arrive(Leadership(8), &session, restarted, 15), Verdict::Fine(None));
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let (mut nonces, session) = (Nonces::default(), SessionId::random());
        for n in 1..1_000 {
            assert_ne!(nonces.arrive(LEADERSHIP, &session, arrival(n, n.saturating_sub(1), n), n), Verdict::Clone);
        }
        assert_eq!(nonces.sessions[&session].given.len(), REMEMBERED);
    }

    #[test]
    fn ended_sessions_are_forgotten() {
        let mut nonces = Nonces::default();
        while !nonces.wants_sweep() {
            nonces.arrive(LEADERSHIP, &SessionId::random(), arrival(1, 0, 1), 1);
        }
        assert_eq!(nonces.sessions.len(), SWEEP_LEAST + 1);
        nonces.sweep(|_| true);
        assert!(!nonces.wants_sweep());
        nonces.sweep(|_| false);
        assert!(nonces.sessions.is_empty());
    }

    fn arrival(number: u64, nonce: u64, ms: u64) -> Arrival {
        let at = BootTime { elapsed: Duration::from_millis(ms), suspended: Duration::ZERO };
        Arrival { incarnation: 1, number, nonce, at }
    }
}
