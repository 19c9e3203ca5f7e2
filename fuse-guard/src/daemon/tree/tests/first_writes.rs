//! When a first write takes the lease, and when it does not, as examples.

use super::*;

fn asks(w: &mut World) -> bool {
    w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. }))
}

/// A first write has been granted epoch 1, and the gate could not open: by a check that failed, or by time.
fn could_not_open(by_time: bool) -> (World, u64) {
    let mut w = World::new();
    let (me, free) = (w.me.clone(), w.status(0, None, &[]));
    w.tree.handle_table(free, Some(&me), at(0));
    w.tree.handle_first_write(at(1));
    assert!(asks(&mut w));
    let grant = w.grant(1, 1);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(2));
    let held = w.status(1, Some("workstation"), &[]);
    w.tree.handle_table(held, Some(&me), at(3));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(4));
    let mut now = 5;
    if by_time {
        now = 3 + OPEN_LIMIT.as_millis() as u64;
        w.tree.handle_first_write(at(now - 1));
        w.tree.handle_timeout(at(now));
    } else {
        w.tree.handle_opened(Epoch::from_raw(1), Err(Refusal::new(Code::Storage, "disk full")), at(now));
    }
    assert!(matches!(w.tree.phase, Phase::Reader), "{:?}", w.tree.phase);
    w.tree.handle_owed_answer(Epoch::from_raw(1), true, at(now + 1));
    w.effects();
    (w, now + 2)
}

#[test]
fn after_a_gate_that_could_not_open_the_own_give_back_invites_no_further_first_write() {
    for by_time in [false, true] {
        let (mut w, now) = could_not_open(by_time);
        let (me, free) = (w.me.clone(), w.status(1, None, &[]));
        let serial = w.tree.serial;
        w.tree.handle_table(free, Some(&me), at(now));
        assert_eq!(w.tree.serial, serial, "the gate would let each further operation try again");
        w.tree.handle_first_write(at(now + 1));
        assert!(!asks(&mut w), "a grant for each write (by time: {by_time})");
        // Not for ever.
        let later = at(now).after(FIRST_WRITE_PAUSE);
        w.tree.handle_first_write(later);
        assert!(asks(&mut w));
    }
}

#[test]
fn after_another_sides_turn_a_first_write_may_try_again() {
    let (mut w, now) = could_not_open(false);
    let me = w.me.clone();
    for status in [w.status(2, Some("pod"), &[]), w.status(2, None, &[])] {
        w.tree.handle_table(status, Some(&me), at(now));
    }
    w.tree.handle_first_write(at(now + 1));
    assert!(asks(&mut w));
}

#[test]
fn a_person_is_not_kept_from_trying() {
    let (mut w, now) = could_not_open(false);
    w.hold(HoldKind::Acquire, at(now));
    assert!(asks(&mut w));
}
