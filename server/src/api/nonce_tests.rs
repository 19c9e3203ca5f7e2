//! Examples; whole random histories, with real sides, are in `tests/tests/copied_machines.rs`.

use super::*;

const LEADERSHIP: Leadership = Leadership(7);
const TTL: Ttl = Ttl::new(Duration::from_millis(1_000));

/// One session under one leadership, and the nonces that it was answered with.
struct Session {
    nonces: Nonces,
    id: SessionId,
    leadership: Leadership,
    now: u64,
}

impl Session {
    fn new() -> Self {
        Self { nonces: Nonces::default(), id: SessionId::random(), leadership: LEADERSHIP, now: 0 }
    }
    fn verdict(&mut self, number: u64, nonce: u64) -> Verdict {
        self.now += 1;
        self.nonces.arrive(self.leadership, &self.id, arrival(number, nonce, self.now))
    }
    /// The nonce that a request is answered with, which must be in order.
    #[track_caller]
    fn fine(&mut self, number: u64, nonce: u64) -> u64 {
        match self.verdict(number, nonce) {
            Verdict::Fine { nonce, .. } => nonce,
            other => panic!("{number} naming {nonce}: {other:?}"),
        }
    }
    #[track_caller]
    fn copied(&mut self, number: u64, nonce: u64) {
        assert_eq!(self.verdict(number, nonce), Verdict::Copied, "{number} naming {nonce}");
    }
}

fn arrival(number: u64, nonce: u64, ms: u64) -> Arrival {
    let at = BootTime { elapsed: Duration::from_millis(ms), suspended: Duration::ZERO };
    Arrival { incarnation: 1, number, nonce, at, ttl: TTL }
}

#[test]
fn an_answer_names_the_time_since_the_request_whose_nonce_came_back() {
    let (mut nonces, session) = (Nonces::default(), SessionId::random());
    let first = nonces.arrive(LEADERSHIP, &session, arrival(1, 0, 100));
    let Verdict::Fine { nonce, elapsed: None } = first else { panic!("{first:?}") };
    let second = nonces.arrive(LEADERSHIP, &session, arrival(2, nonce, 350));
    assert!(matches!(second, Verdict::Fine { elapsed: Some(d), .. } if d == Duration::from_millis(250)), "{second:?}");
}

#[test]
fn a_hedged_repeated_or_overtaken_request_is_no_copy() {
    let mut side = Session::new();
    let first = side.fine(1, 0);
    let second = side.fine(2, first);
    side.fine(3, first);
    let hedged = side.fine(2, first);
    side.fine(4, second);
    side.fine(6, second);
    side.fine(5, second);
    side.fine(1, 0);
    side.fine(7, hedged);
}

#[test]
fn a_side_whose_answers_are_lost_for_long_is_no_copy() {
    let mut side = Session::new();
    let heard = side.fine(1, 0);
    for number in 2..500 {
        side.fine(number, heard);
    }
}

#[test]
fn a_newer_number_with_an_older_nonce_is_a_copy() {
    let mut side = Session::new();
    let first = side.fine(1, 0);
    let second = side.fine(2, first);
    side.fine(3, second);
    side.copied(4, first);
    side.copied(5, second);
}

#[test]
fn an_older_number_with_a_newer_nonce_is_a_copy() {
    let mut side = Session::new();
    let mut nonce = 0;
    for number in 100..110 {
        nonce = side.fine(number, nonce);
    }
    // The copy goes on from long before: it is answered, and shows with the next request.
    let own = side.fine(50, 0);
    side.copied(51, own);
    side.copied(110, nonce);
}

#[test]
fn one_number_with_two_nonces_is_a_copy() {
    let mut side = Session::new();
    let first = side.fine(1, 0);
    let (one, other) = (side.fine(2, first), side.fine(2, first));
    side.fine(3, one);
    side.copied(3, other);
}

#[test]
fn what_its_side_has_given_up_is_not_acknowledged_and_the_next_one_shows() {
    let mut side = Session::new();
    let mut nonce = 0;
    for number in 100..110 {
        nonce = side.fine(number, nonce);
        side.now += 200;
    }
    let Verdict::GivenUp { nonce: own } = side.verdict(50, 0) else { panic!("a whole TTL is past") };
    side.copied(51, own);
}

#[test]
fn a_later_leadership_knows_nothing_of_before_and_an_earlier_one_says_nothing_more() {
    let mut side = Session::new();
    let first = side.fine(1, 0);
    let second = side.fine(2, first);
    side.leadership = Leadership(8);
    // Its copy named something newer, but that was another leader's to see.
    let third = side.fine(3, first);
    assert!(third > second);
    side.fine(4, third);
    side.copied(5, second);
    side.leadership = LEADERSHIP;
    assert_eq!(side.verdict(6, third), Verdict::Over);
}

#[test]
fn a_restarted_daemon_begins_anew() {
    let mut side = Session::new();
    let first = side.fine(1, 0);
    side.fine(2, first);
    let restarted = Arrival { incarnation: 2, ..arrival(1, 0, 5) };
    assert!(matches!(side.nonces.arrive(LEADERSHIP, &side.id, restarted), Verdict::Fine { elapsed: None, .. }));
}

#[test]
fn what_is_remembered_has_a_limit_and_counting_too() {
    let mut side = Session::new();
    let mut nonce = 0;
    for number in 1..1_000 {
        nonce = side.fine(number, nonce);
    }
    let known = side.nonces.sessions.get_mut(&side.id).unwrap();
    assert_eq!((known.given.len(), known.seen.len()), (REMEMBERED, REMEMBERED));
    known.count = COUNT_MAX - 1;
    for number in 1_000..1_010 {
        nonce = side.fine(number, nonce);
    }
    assert_eq!(nonce >> COUNT_BITS, LEADERSHIP.0);
}

#[test]
fn ended_sessions_are_forgotten() {
    let mut nonces = Nonces::default();
    while !nonces.wants_sweep() {
        nonces.arrive(LEADERSHIP, &SessionId::random(), arrival(1, 0, 1));
    }
    assert_eq!(nonces.sessions.len(), SWEEP_LEAST + 1);
    nonces.sweep(|_| true);
    assert!(!nonces.wants_sweep());
    nonces.sweep(|_| false);
    assert!(nonces.sessions.is_empty());
}
