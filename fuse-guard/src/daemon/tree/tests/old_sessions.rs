//! What an ended session asked for, and what comes back in the next one, as examples.

use super::*;

fn asks(w: &mut World) -> bool {
    w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. }))
}

/// A command waits; it was asked for in one session, and then in the next. The number of the first one.
fn asked_twice() -> (World, HoldId, u64) {
    let mut w = World::new();
    let (me, busy) = (w.me.clone(), w.status(1, Some("pod"), &[]));
    w.tree.handle_table(busy, Some(&me), at(0));
    let id = w.hold(HoldKind::Run, at(1));
    let first = w.tree.session_no();
    assert!(asks(&mut w));
    w.tree.handle_session_lost("expired", at(2));
    w.tree.handle_session_opened(at(3));
    assert!(asks(&mut w), "the next session has no place in the queue");
    (w, id, first)
}

#[test]
fn an_answer_to_what_an_earlier_session_asked_refuses_nobody() {
    let (mut w, id, first) = asked_twice();
    let ended = Refusal::new(Code::NotFound, "this side's session has ended");
    w.tree.handle_acquire_answer(first, Ok(Answer::Refused(ended)), at(4));
    assert!(w.tree.holds.contains_key(&id), "{:?}", w.effects());
}

#[test]
fn an_answer_to_what_an_earlier_session_asked_is_not_taken_for_the_present_ones() {
    let (mut w, _, first) = asked_twice();
    let grant = w.grant(2, 2);
    w.tree.handle_acquire_answer(first, Ok(Answer::Granted(grant)), at(4));
    assert!(matches!(w.tree.phase, Phase::Reader), "what it granted went with it");
    w.tree.handle_acquire_answer(first, Err(Refusal::new(Code::OutcomeUnknown, "?")), at(5));
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Queued { place: 1, holder: None }), at(6));
    assert_eq!(w.tree.line, Line::In { asked: false, first_write: false, place: 1 }, "a place that nobody would ever leave");
}

#[test]
fn what_was_being_given_up_when_the_session_ended_is_not_asked_for_again() {
    for (request, comes_back) in [
        (None, true),
        (Some(EndRequest::Asked), true),
        (Some(EndRequest::Release { now: false }), false),
        (Some(EndRequest::Release { now: true }), false),
        (Some(EndRequest::To { side: name("pod"), force: false }), false),
    ] {
        let mut w = World::new();
        w.open(1, 1, 90_000, at(0));
        if let Some(request) = request.clone() {
            w.tree.begin_end(request, at(10));
        }
        w.tree.handle_session_lost("expired", at(20));
        w.effects();
        w.tree.handle_session_opened(at(30));
        assert_eq!(asks(&mut w), comes_back, "{request:?}");
    }
}

#[test]
fn what_was_to_be_given_up_as_soon_as_it_is_awake_is_not_asked_for_again_either() {
    let (mut w, number) = resting();
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(1_020));
    w.tree.begin_end(EndRequest::Release { now: true }, at(2_000));
    w.tree.handle_session_lost("expired", at(2_010));
    w.effects();
    w.tree.handle_session_opened(at(2_020));
    assert!(!asks(&mut w));
}

#[test]
fn that_the_session_has_ended_refuses_only_who_does_not_wait() {
    let mut w = World::new();
    let (me, busy) = (w.me.clone(), w.status(1, Some("pod"), &[]));
    w.tree.handle_table(busy, Some(&me), at(0));
    let waits = w.hold(HoldKind::Run, at(1));
    let ended = Refusal::new(Code::NotFound, "this side's session has ended");
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Refused(ended)), at(2));
    assert!(w.tree.holds.contains_key(&waits), "it waits for the next session");
    // Control: a tree that is not there any more is nothing to wait for.
    let mut w = World::new();
    let (me, mut retired) = (w.me.clone(), w.status(1, None, &[]));
    retired.state = StateName::Retired;
    w.tree.handle_table(retired, Some(&me), at(0));
    let waits = w.hold(HoldKind::Run, at(1));
    let gone = Refusal::new(Code::NotFound, "there is no such tree");
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Refused(gone)), at(2));
    assert!(!w.tree.holds.contains_key(&waits));
}
