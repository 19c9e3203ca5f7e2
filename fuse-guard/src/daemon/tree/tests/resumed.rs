//! What an earlier run of the daemon left is taken for what it is, whichever answer brings it, as examples.

use super::*;

fn four() -> Epoch {
    Epoch::from_raw(4)
}

fn asks(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Acquire { .. }))
}

/// Through everything that would open the gate, if it may open.
fn drive_open(w: &mut World, now: u64) {
    w.tree.handle_right(Some(at(90_000)), Some(true), at(now));
    w.tree.handle_opened(four(), Ok(()), at(now));
    w.tree.handle_carried_out(four(), Ok(()), at(now));
}

#[test]
fn before_a_resumed_sessions_first_answer_nothing_is_asked_for() {
    let mut w = World::new();
    w.tree.handle_session_resumed();
    w.tree.handle_session_opened(at(0));
    w.hold(HoldKind::Run, at(1));
    w.tree.handle_first_write(at(2));
    w.tree.handle_timeout(at(3));
    assert!(!asks(&w.effects()), "the server would answer with the lease of the run before");
    w.tree.handle_left_behind(None);
    w.tree.handle_timeout(at(4));
    assert!(asks(&w.effects()), "nothing was left: the command must not wait for ever");
}

#[test]
fn a_lease_whose_release_had_left_never_opens_although_an_acquire_is_answered_with_it() {
    let mut w = World::new();
    w.tree.handle_left_behind(Some((four(), Past::Released)));
    w.hold(HoldKind::Run, at(0));
    w.effects();
    let grant = w.grant(4, 4);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(1));
    drive_open(&mut w, 2);
    assert!(matches!(w.tree.phase, Phase::Reader), "{:?}", w.tree.phase);
    assert!(w.effects().contains(&Effect::ReleaseAgain { epoch: four() }));
}

#[test]
fn a_grant_taken_for_a_new_one_goes_back_when_it_is_known_that_its_release_had_left() {
    let mut w = World::new();
    w.hold(HoldKind::Run, at(0));
    let grant = w.grant(4, 4);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant.clone())), at(1));
    w.tree.handle_resumed(grant, Past::Released, at(2));
    drive_open(&mut w, 3);
    assert!(matches!(w.tree.phase, Phase::Reader), "{:?}", w.tree.phase);
    assert_eq!(w.tree.standing(true).right, Right::Read);
    assert!(w.effects().contains(&Effect::ReleaseAgain { epoch: four() }));
}

#[test]
fn a_lease_that_an_earlier_run_wrote_under_is_not_given_back_as_clean_when_nobody_wants_it_any_more() {
    for inherited in [true, false] {
        let mut w = World::new();
        if inherited {
            w.tree.handle_left_behind(Some((four(), Past::Wrote)));
        }
        let id = w.hold(HoldKind::Run, at(0));
        w.tree.handle_hold_gone(&id, at(1));
        w.effects();
        let grant = w.grant(4, 4);
        w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(2));
        w.tree.handle_down(at(3));
        let given_back = w.effects().iter().any(|e| matches!(e, Effect::GiveBack { .. }));
        // Control: a grant of its own is given back in the same place.
        assert_eq!(given_back, !inherited, "nobody knows what the earlier run has flushed");
    }
}

#[test]
fn the_next_session_owes_nothing_to_the_run_before() {
    let mut w = World::new();
    w.tree.handle_session_resumed();
    w.tree.handle_session_opened(at(0));
    w.tree.handle_session_lost("expired", at(1));
    w.tree.handle_session_opened(at(2));
    w.hold(HoldKind::Run, at(3));
    assert!(asks(&w.effects()));
}
