//! The marker's lock: what is told of it stays true; and the ended lease's, asked for as a witness.

use treelease_client::words::id::{LockKind, MarkerLock, Place};

use super::*;
use crate::daemon::tree::LockWord;

fn marker(inode: u64) -> MarkerLock {
    MarkerLock { kind: LockKind::Local, place: Place { boot: "b".into(), superblock: 7 }, inode }
}

fn e(epoch: u64) -> Epoch {
    Epoch::from_raw(epoch)
}

/// Open under epoch 1 with the right to write until 90 s, the lock in hand, and the servers told of it.
fn locked() -> World {
    let mut w = World::new();
    let grant = w.grant(1, 1);
    w.tree.handle_grant(grant, at(0));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(1));
    assert!(w.tree.handle_locked(e(1), 0, &LockWord::Held(Some(marker(5))), at(2)));
    w.tree.handle_opened(e(1), Ok(()), at(3));
    w.tree.handle_carried_out(e(1), Ok(()), at(4));
    let number = told(&mut w).expect("the servers are told of the lock");
    assert_eq!(w.tree.marker_to_say(), Some(marker(5)));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }), "the word about the lock holds up no gate");
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(5));
    w.effects();
    w
}

/// The number of the `active` that is to be sent.
fn told(w: &mut World) -> Option<u64> {
    w.effects().into_iter().find_map(|effect| match effect {
        Effect::TellRest { at_rest: false, number } => Some(number),
        _ => None,
    })
}

fn takes(w: &mut World) -> Option<u64> {
    w.effects().into_iter().find_map(|effect| match effect {
        Effect::TakeLock { no, .. } => Some(no),
        _ => None,
    })
}

/// The server was away past the deadline, and is back.
fn lapsed_and_back() -> World {
    let mut w = locked();
    w.tree.handle_right(None, Some(true), at(10_000));
    assert!(w.effects().contains(&Effect::FlushLapsed));
    w.tree.handle_right(Some(at(99_000)), Some(true), at(11_000));
    w.effects();
    w
}

#[test]
fn a_lock_that_cannot_be_a_witness_is_not_spoken_of() {
    let mut w = World::new();
    let grant = w.grant(1, 1);
    w.tree.handle_grant(grant, at(0));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(1));
    w.tree.handle_locked(e(1), 0, &LockWord::Held(None), at(2));
    w.tree.handle_opened(e(1), Ok(()), at(3));
    w.tree.handle_carried_out(e(1), Ok(()), at(4));
    assert_eq!((told(&mut w), w.tree.marker_to_say()), (None, None));
}

/// When the server is back after a deadline and nobody else had a turn, the first mutation waits for one round trip, as at rest:
/// the marker's lock is taken again first, and the server is told.
#[test]
fn past_a_deadline_the_gate_opens_only_with_the_lock_taken_anew_and_said_anew() {
    let mut w = lapsed_and_back();
    assert!(resting_right(&w), "the flush at the deadline may let go of the lock");
    assert_eq!(w.tree.marker_to_say(), None);
    w.tree.handle_first_write(at(11_001));
    let no = takes(&mut w).expect("the lock first");
    assert!(resting_right(&w));
    w.tree.handle_locked(e(1), no, &LockWord::Held(Some(marker(5))), at(11_002));
    let number = told(&mut w).expect("then the active that names it");
    assert!(resting_right(&w));
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(11_003));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }));
}

#[test]
fn if_somebody_else_has_the_lock_by_then_the_active_says_so_and_the_lock_is_tried_for_again() {
    let mut w = lapsed_and_back();
    w.tree.handle_first_write(at(11_001));
    let no = takes(&mut w).unwrap();
    w.tree.handle_locked(e(1), no, &LockWord::Taken, at(11_002));
    let number = told(&mut w).unwrap();
    assert_eq!(w.tree.marker_to_say(), None, "nobody is told of a lock that is not here");
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(11_003));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }));
    let again = w.tree.next_deadline().unwrap();
    w.tree.note_mutation(Some(at(12_900)));
    w.tree.handle_timeout(again.max(at(13_003)));
    let no = takes(&mut w).expect("it is taken when it can be");
    w.tree.handle_locked(e(1), no, &LockWord::Held(Some(marker(5))), at(13_100));
    assert!(told(&mut w).is_some() && w.tree.marker_to_say() == Some(marker(5)));
}

#[test]
fn what_was_asked_for_before_a_second_deadline_counts_no_more() {
    let mut w = lapsed_and_back();
    w.tree.handle_first_write(at(11_001));
    let no = takes(&mut w).unwrap();
    w.tree.handle_right(None, Some(true), at(12_000));
    w.tree.handle_right(Some(at(99_000)), Some(true), at(12_100));
    w.effects();
    // The second flush may let go of what this try has taken.
    assert!(!w.tree.handle_locked(e(1), no, &LockWord::Held(Some(marker(5))), at(12_200)));
    assert_eq!((told(&mut w), w.tree.marker_to_say()), (None, None));
    assert!(resting_right(&w));
}

#[test]
fn a_storage_that_does_not_answer_through_the_lock_closes_the_gate_until_it_is_taken_anew() {
    let mut w = locked();
    w.tree.handle_lock_doubted(e(1), at(100));
    assert!(resting_right(&w) && w.tree.marker_to_say().is_none());
    w.tree.handle_first_write(at(101));
    let no = takes(&mut w).unwrap();
    w.tree.handle_locked(e(1), no, &LockWord::Held(Some(marker(5))), at(102));
    let number = told(&mut w).unwrap();
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(103));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }));
}

#[test]
fn a_handoff_past_a_deadline_lets_nothing_through_meanwhile() {
    let mut w = locked();
    w.tree.begin_end(EndRequest::Release { now: true }, at(9_000));
    w.tree.handle_right(None, Some(true), at(10_000));
    w.tree.handle_right(Some(at(99_000)), Some(true), at(11_000));
    assert_eq!(w.tree.standing(true).right, Right::Read);
}

#[test]
fn a_session_that_ends_flushes_and_then_lets_go_of_the_lock() {
    let mut w = locked();
    w.tree.handle_session_lost("expired", at(100));
    assert!(w.effects().contains(&Effect::FlushLapsed));
}

#[test]
fn a_mount_made_anew_that_does_not_get_the_lock_demands_an_active_that_says_so() {
    let mut w = locked();
    w.tree.handle_mounted(at(100));
    w.tree.handle_right(Some(at(99_000)), Some(true), at(101));
    w.tree.handle_locked(e(1), 0, &LockWord::Taken, at(102));
    w.tree.handle_opened(e(1), Ok(()), at(103));
    w.tree.handle_carried_out(e(1), Ok(()), at(104));
    assert!(resting_right(&w), "the servers were told of a lock that is not here now");
    w.effects();
    w.tree.handle_first_write(at(105));
    assert!(told(&mut w).is_some() && w.tree.marker_to_say().is_none());
}

#[test]
fn the_word_about_the_lock_is_said_again_until_it_is_answered() {
    let mut w = World::new();
    let grant = w.grant(1, 1);
    w.tree.handle_grant(grant, at(0));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(1));
    w.tree.handle_locked(e(1), 0, &LockWord::Held(Some(marker(5))), at(2));
    w.tree.handle_opened(e(1), Ok(()), at(3));
    w.tree.handle_carried_out(e(1), Ok(()), at(4));
    let first = told(&mut w).unwrap();
    w.tree.handle_rest_answer(first, &Err(Refusal::new(Code::Unreachable, "away")), at(5));
    w.tree.handle_timeout(at(100));
    assert_eq!(told(&mut w), None, "after a pause");
    w.tree.handle_timeout(at(400));
    assert!(told(&mut w).is_some_and(|number| number > first));
}

// ---- the ended lease's lock ----

/// The tree fences after the pod's unclean end at epoch 4; these wait.
fn fencing(w: &World, waiters: &[(&str, bool)], witness: Option<MarkerLock>) -> TreeStatus {
    let status = w.status(4, None, waiters);
    TreeStatus {
        state: StateName::Fencing,
        attempt: 1,
        ended_epoch: Some(e(4)),
        ended_side: Some(name("pod")),
        witness,
        ..status
    }
}

fn asks(w: &mut World) -> Option<Attempt> {
    w.effects().into_iter().find_map(|effect| match effect {
        Effect::AskWitness(of) => Some(of),
        _ => None,
    })
}

const OF: Attempt = Attempt { epoch: Epoch::from_raw(4), attempt: 1 };

#[test]
fn the_first_waiter_asks_for_the_old_lock_and_tells_the_servers_when_it_has_it() {
    let mut w = World::new();
    let table = fencing(&w, &[("workstation", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    assert_eq!(asks(&mut w), Some(OF));
    assert_eq!(w.tree.witness_word(), Some("asking"));
    w.tree.handle_witness_try(OF, None, at(10));
    w.tree.handle_timeout(at(500));
    assert_eq!(asks(&mut w), None, "after a pause");
    w.tree.handle_timeout(at(1_010));
    assert_eq!(asks(&mut w), Some(OF));
    w.tree.handle_witness_try(OF, Some(marker(5)), at(1_020));
    assert_eq!(w.effects(), vec![Effect::TellWitness(OF, marker(5))]);
    assert_eq!(w.tree.witness_word(), Some("told"));
    // Nobody knows whether it has arrived: told again, the lock stays.
    w.tree.handle_witness_answer(OF, &Err(Refusal::new(Code::Unreachable, "away")), at(1_030));
    w.tree.handle_timeout(at(1_400));
    assert_eq!(w.effects(), vec![Effect::TellWitness(OF, marker(5))]);
    // Held by whoever was granted: the lock is not kept any longer.
    let after = w.status(5, Some("pod"), &[]);
    w.tree.handle_table(after, None, at(1_500));
    assert!(w.effects().contains(&Effect::DropWitness));
}

#[test]
fn a_lock_that_is_not_the_ended_leases_is_let_go_of_and_nobody_is_told() {
    let mut w = World::new();
    let table = fencing(&w, &[("workstation", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    w.effects();
    w.tree.handle_witness_try(OF, Some(marker(6)), at(10));
    assert_eq!(w.effects(), vec![Effect::DropWitness]);
}

#[test]
fn who_does_not_wait_or_has_no_mount_or_was_told_of_no_lock_does_not_ask() {
    let mut w = World::new();
    let table = fencing(&w, &[("pod", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    assert_eq!(asks(&mut w), None);
    let table = fencing(&w, &[("workstation", false)], None);
    w.tree.handle_table(table, None, at(1));
    assert_eq!((asks(&mut w), w.tree.witness_word()), (None, None));
    let mut w = World::new();
    w.tree.mounted = false;
    let table = fencing(&w, &[("workstation", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    assert_eq!(asks(&mut w), None);
}

#[test]
fn the_second_waiter_asks_later_for_the_first_may_have_no_mount() {
    let mut w = World::new();
    let table = fencing(&w, &[("pod", false), ("workstation", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    assert_eq!(asks(&mut w), None);
    let due = w.tree.next_deadline().unwrap();
    w.tree.handle_timeout(due);
    assert_eq!(asks(&mut w), Some(OF));
    assert!(due > at(1_000));
}

#[test]
fn a_witness_that_the_servers_do_not_take_lets_go_and_asks_again_later() {
    let mut w = World::new();
    let table = fencing(&w, &[("workstation", false)], Some(marker(5)));
    w.tree.handle_table(table, None, at(0));
    w.tree.handle_witness_try(OF, Some(marker(5)), at(10));
    w.effects();
    w.tree.handle_witness_answer(OF, &Ok(Answer::Ignored { why: "it moved on".into() }), at(20));
    assert_eq!(w.effects(), vec![Effect::DropWitness]);
}
