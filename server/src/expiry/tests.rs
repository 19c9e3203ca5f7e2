//! Tests of the leader's timers (I3). Time is a number here; a [`Leader`] moves it and keeps a small replicated state.

use treelease_proto::command::*;
use treelease_proto::id::*;
use treelease_proto::refusal::Refusal;
use treelease_proto::time::{Ttl, WallTime};

use super::*;
use crate::lease::Entry;

const TTL: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(5);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
fn id<T: std::str::FromStr>(kind: &str, n: u64) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("{kind}00000-0000-4000-8000-{n:012x}").parse().unwrap()
}
fn session(n: u64) -> SessionId {
    id("bbb", n)
}
fn tree() -> TreeId {
    id("aaa", 1)
}

/// A leader: its state, its timers, its clock.
struct Leader {
    state: State,
    timers: Timers,
    now: BootTime,
    index: u64,
}

impl Leader {
    /// Without a tree.
    fn empty() -> Self {
        let mut leader = Self { state: State::new(), timers: Timers::new(), now: BootTime::default(), index: 0 };
        leader.apply(Command::Found { cluster: id("eee", 1), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX });
        leader.lead();
        leader
    }
    fn new() -> Self {
        let mut leader = Self::empty();
        leader.apply(Command::AddTree { name: "dev".parse().unwrap(), tree: tree(), policy: Vec::new(), root: None });
        leader.lead();
        leader
    }
    /// Applied, and not yet followed.
    fn apply(&mut self, command: Command) -> Answer {
        self.index += 1;
        let request_key: RequestKey = id("ddd", self.index);
        let proposal = Proposal { request_key, actor: "test".into(), at: WallTime::UNKNOWN, command };
        self.state.apply(&Entry { index: self.index, proposal }).answer
    }
    fn lead(&mut self) {
        assert_eq!(self.apply(Command::Lead { node: 1 }), Answer::Done);
        let (number, _) = self.state.leadership().unwrap();
        self.timers.promote(&self.state, number, self.now);
    }
    fn follow(&mut self) {
        self.timers.follow(&self.state, self.now);
    }
    fn open_with(&mut self, n: u64, ttl: Duration, resume: Option<Resume>) {
        let side: SideName = format!("side{n}").parse().unwrap();
        let new_secret_digest = {
            use sha2::{Digest, Sha256};
            Sha256::digest(b"secret").to_vec()
        };
        let (host, boot) = (String::new(), "boot".to_owned());
        let new_session = session(n);
        let machine = String::new();
        let open = OpenSession { side, host, ttl: Ttl::new(ttl), new_session, new_secret_digest, resume, boot, machine };
        let answer = self.apply(Command::OpenSession(open));
        assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
        self.follow();
    }
    fn open(&mut self, n: u64) {
        self.open_with(n, TTL, None);
    }
    fn acquire(&mut self, n: u64) -> LeaseRef {
        let (tree, session) = (tree(), session(n));
        let acquire = Acquire {
            tree: tree.clone(),
            session: session.clone(),
            ask: false,
            first_write: false,
            no_wait: false,
            note: String::new(),
            place: None,
        };
        match self.apply(Command::Acquire(acquire)) {
            Answer::Granted(grant) => LeaseRef { tree, session, epoch: grant.epoch },
            other => panic!("{other:?}"),
        }
    }
    /// Time passes as for a healthy leader: tick by tick. What became due on the way.
    fn pass(&mut self, length: Duration) -> Vec<Command> {
        let end = self.now.after(length);
        let mut due = Vec::new();
        while self.now < end {
            self.now = self.now.after(TICK.min(end.since(self.now)));
            due.extend(self.timers.due(self.now));
        }
        due
    }
    /// Time passes in one piece: this process does not run meanwhile.
    fn starve(&mut self, length: Duration) -> Vec<Command> {
        self.now = self.now.after(length);
        self.timers.due(self.now)
    }
    fn renewed(&mut self, n: u64) -> bool {
        self.timers.renewed(&session(n), self.now)
    }
    fn remaining(&self, n: u64) -> Duration {
        self.timers.session_remaining(&session(n), self.now).expect("a timed session")
    }
}

fn expired(due: &[Command]) -> Vec<SessionId> {
    let expired = |c: &Command| match c {
        Command::ExpireSession { session, .. } => Some(session.clone()),
        _ => None,
    };
    due.iter().filter_map(expired).collect()
}

#[test]
fn i3_a_session_expires_a_full_ttl_after_its_last_renewal_and_not_before() {
    let mut leader = Leader::new();
    leader.open(1);
    assert_eq!(leader.pass(secs(10)), []);
    assert!(leader.renewed(1));
    assert_eq!(leader.pass(TTL - TICK), []);
    let due = leader.pass(TICK);
    assert_eq!(expired(&due), [session(1)]);
    assert!(matches!(due[0], Command::ExpireSession { decided_under, .. } if Some(decided_under) == leader.timers.leading()));
}

#[test]
fn i5_a_doomed_session_is_named_once_and_its_renewals_do_not_count() {
    let mut leader = Leader::new();
    leader.open(1);
    assert_eq!(leader.pass(TTL).len(), 1);
    assert!(leader.timers.is_doomed(&session(1)));
    assert!(!leader.renewed(1));
    assert_eq!(leader.pass(secs(60)), []);
    leader.timers.undoom(&session(1));
    assert!(leader.renewed(1), "the expiry was certainly not logged");
    assert_eq!(leader.pass(TTL - TICK), []);
    assert_eq!(leader.pass(TICK).len(), 1);
}

#[test]
fn an_undoomed_session_without_a_renewal_is_due_again() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(TTL);
    leader.timers.undoom(&session(1));
    assert_eq!(leader.pass(TICK).len(), 1);
}

#[test]
fn i3_a_new_leader_starts_every_session_and_cooling_anew() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.open(2);
    leader.acquire(1);
    leader.apply(Command::Break { tree: tree(), epoch: Epoch::from_raw(1), reason: String::new() });
    leader.follow();
    leader.pass(TTL - secs(1));
    leader.lead();
    assert_eq!(leader.remaining(1), TTL);
    assert_eq!(leader.timers.cooling_remaining(&tree(), leader.now), Some(TTL + GRACE));
    assert_eq!(leader.pass(TTL - TICK), []);
}

#[test]
fn dooms_end_with_their_leadership() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(TTL);
    leader.lead();
    assert!(!leader.timers.is_doomed(&session(1)));
    assert!(leader.renewed(1));
}

#[test]
fn a_node_that_does_not_lead_times_nothing() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.timers.demote();
    leader.follow();
    assert_eq!((leader.pass(TTL * 2), leader.timers.next_deadline(), leader.timers.leading()), (Vec::new(), None, None));
    assert!(!leader.renewed(1));
}

#[test]
fn i3_a_gap_in_the_leaders_clock_extends_the_ttls_by_its_length() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(secs(10));
    assert_eq!(leader.starve(secs(4)), []);
    assert_eq!(leader.remaining(1), secs(5), "five were left before the gap");
}

#[test]
fn i3_a_gap_above_half_a_ttl_starts_it_anew() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.open_with(2, secs(60), None);
    leader.pass(secs(10));
    assert_eq!(leader.starve(secs(20)), []);
    assert_eq!(leader.remaining(1), TTL);
    assert_eq!(leader.remaining(2), secs(50), "for this one the gap is short");
}

#[test]
fn a_gap_undooms_nobody() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(TTL);
    assert_eq!(leader.starve(secs(30)), []);
    assert!(leader.timers.is_doomed(&session(1)) && !leader.renewed(1));
}

#[test]
fn a_renewal_never_shortens_what_a_gap_has_given() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.starve(secs(4));
    let before = leader.remaining(1);
    assert!(before > TTL - TICK);
    assert!(leader.renewed(1));
    assert!(leader.remaining(1) >= before);
}

#[test]
fn i3_a_resumed_session_and_a_higher_ttl_begin_anew() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(TTL - secs(1));
    let resume = || Some(Resume { session: session(1), secret: b"secret".to_vec() });
    leader.open_with(1, TTL, resume());
    assert_eq!(leader.remaining(1), TTL);
    leader.open_with(1, secs(40), resume());
    assert_eq!(leader.remaining(1), secs(40));
}

#[test]
fn an_ended_session_is_forgotten() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.apply(Command::CloseSession { session: session(1) });
    leader.follow();
    assert_eq!(leader.pass(TTL * 2), []);
    assert!(!leader.renewed(1));
    assert_eq!(leader.timers.next_deadline(), None);
}

#[test]
fn a_session_under_the_id_of_one_that_expired_is_another_one() {
    let mut leader = Leader::new();
    leader.open(1);
    assert_eq!(expired(&leader.pass(TTL)), [session(1)]);
    let (leadership, _) = leader.state.leadership().unwrap();
    assert_eq!(leader.apply(Command::ExpireSession { session: session(1), decided_under: leadership }), Answer::Done);
    leader.timers.ended(&session(1));
    leader.open(1);
    assert!(leader.renewed(1), "it is not doomed by the end of the other one");
}

#[test]
fn a_cooling_is_named_after_its_full_length_once() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.acquire(1);
    let due = leader.pass(TTL);
    leader.apply(due[0].clone());
    leader.follow();
    assert_eq!(leader.timers.cooling_remaining(&tree(), leader.now), Some(GRACE));
    assert_eq!(leader.pass(GRACE - TICK), []);
    let due = leader.pass(TICK);
    assert!(matches!(&due[..], [Command::EndGrace { epoch, .. }] if epoch.get() == 1), "{due:?}");
    assert_eq!(leader.pass(secs(60)), []);
    leader.timers.ungrace(&tree());
    assert_eq!(leader.pass(TICK), due);
    assert_eq!(leader.apply(due[0].clone()), Answer::Done);
    leader.follow();
    assert_eq!(leader.timers.cooling_remaining(&tree(), leader.now), None);
}

#[test]
fn a_cooling_that_begins_anew_is_timed_anew() {
    let mut leader = Leader::new();
    leader.open(1);
    let lease = leader.acquire(1);
    leader.apply(Command::Break { tree: tree(), epoch: lease.epoch, reason: String::new() });
    leader.follow();
    leader.pass(secs(3));
    leader.apply(Command::GateClosed(lease));
    leader.follow();
    assert_eq!(leader.timers.cooling_remaining(&tree(), leader.now), Some(GRACE));
    assert_eq!(leader.pass(GRACE).len(), 1);
}

#[test]
fn a_break_is_waited_out_though_the_holders_session_goes_on() {
    let mut leader = Leader::new();
    leader.open(1);
    let lease = leader.acquire(1);
    leader.apply(Command::Break { tree: tree(), epoch: lease.epoch, reason: String::new() });
    leader.follow();
    for _ in 0..19 {
        assert_eq!(leader.pass(secs(1)), []);
        assert!(leader.renewed(1), "its renewals are answered, and prolong nothing of the tree's");
    }
    assert!(matches!(leader.pass(secs(1))[..], [Command::EndGrace { .. }]));
}

#[test]
fn i3_a_lower_ttl_comes_into_force_a_full_old_one_after_this_leader_saw_it() {
    let mut leader = Leader::new();
    leader.open(1);
    let resume = || Some(Resume { session: session(1), secret: b"secret".to_vec() });
    leader.pass(secs(1));
    leader.open_with(1, secs(4), resume());
    for _ in 0..14 {
        assert_eq!(leader.pass(secs(1)), [], "what was answered with 15 s may still be in force");
        assert!(leader.renewed(1));
    }
    // Another leader waits it out anew.
    leader.lead();
    for _ in 0..14 {
        assert_eq!(leader.pass(secs(1)), []);
        assert!(leader.renewed(1));
    }
    let due = leader.pass(secs(1));
    assert!(matches!(due[..], [Command::SettleTtl { incarnation: 2, .. }]), "{due:?}");
    assert_eq!(leader.pass(secs(1)), [], "once");
    assert_eq!(leader.apply(due[0].clone()), Answer::Done);
    leader.follow();
    assert_eq!(leader.pass(secs(3)), []);
    assert_eq!(expired(&leader.pass(secs(1))), [session(1)], "4 s after it was in force");
}

#[test]
fn a_lower_ttl_that_was_not_logged_is_due_again() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.open_with(1, secs(4), Some(Resume { session: session(1), secret: b"secret".to_vec() }));
    leader.pass(secs(10));
    assert!(leader.renewed(1));
    assert_eq!(leader.pass(secs(5)).len(), 1);
    leader.timers.unsettle(&session(1));
    assert!(matches!(leader.pass(secs(1))[..], [Command::SettleTtl { .. }]));
}

#[test]
fn a_restore_whose_pieces_stop_coming_is_forgotten() {
    let mut leader = Leader::empty();
    let piece = |index, id| RestorePiece { id, index, count: 3, text: "x".into() };
    let first = || -> RequestKey { id("ccc", 1) };
    for index in 0..2 {
        assert_eq!(leader.apply(Command::RestorePiece(piece(index, first()))), Answer::Done);
        leader.follow();
        assert!(leader.pass(PIECE_LIMIT - secs(1)).is_empty(), "each piece has its full time");
    }
    let due = leader.pass(secs(2));
    assert!(matches!(&due[..], [Command::EndRestore { next: 2, .. }]), "{due:?}");
    assert!(leader.pass(PIECE_LIMIT * 2).is_empty(), "once");
    assert_eq!(leader.apply(due[0].clone()), Answer::Done);
    leader.follow();
    assert_eq!((leader.state.restoring(), leader.timers.next_deadline()), (None, None));
    // A new leader times it anew, in full.
    leader.apply(Command::RestorePiece(piece(0, first())));
    leader.follow();
    leader.pass(PIECE_LIMIT - secs(1));
    leader.lead();
    assert!(leader.pass(PIECE_LIMIT - secs(1)).is_empty());
    assert!(matches!(leader.pass(secs(1))[..], [Command::EndRestore { next: 1, .. }]));
}

#[test]
fn the_next_deadline_is_the_soonest() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.open_with(2, secs(4), None);
    assert_eq!(leader.timers.next_deadline().unwrap().elapsed, secs(4));
    leader.pass(secs(3));
    assert!(leader.renewed(2));
    assert_eq!(leader.timers.next_deadline().unwrap().elapsed, secs(7));
}

#[test]
fn following_an_unchanged_state_changes_nothing() {
    let mut leader = Leader::new();
    leader.open(1);
    leader.pass(secs(5));
    let before = leader.timers.clone();
    leader.follow();
    assert_eq!(leader.timers, before);
    let refused = leader.apply(Command::CloseSession { session: session(9) });
    assert!(!matches!(refused, Answer::Refused(Refusal { .. })));
    leader.follow();
    assert_eq!(leader.timers, before);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Ticks of any length, renewals whenever: nobody is named before a full TTL since its last acknowledged renewal.
        #[test]
        fn i3_nobody_is_named_early(steps in prop::collection::vec((0..3u64, 0..2_500u64, any::<bool>()), 1..200)) {
            let mut leader = Leader::new();
            let mut renewed = Vec::new();
            for n in 0..3 {
                leader.open_with(n, secs(2 + n), None);
                renewed.push(leader.now);
            }
            for (n, ms, renew) in steps {
                leader.now = leader.now.after(Duration::from_millis(ms));
                if renew && leader.renewed(n) {
                    renewed[n as usize] = leader.now;
                }
                for session in expired(&leader.timers.due(leader.now)) {
                    let n = (0..3).find(|n| super::session(*n) == session).unwrap();
                    prop_assert!(leader.now.since(renewed[n as usize]) >= secs(2 + n));
                    prop_assert!(!leader.renewed(n));
                }
            }
        }
    }
}
