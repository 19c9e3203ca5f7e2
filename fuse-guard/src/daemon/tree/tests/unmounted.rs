//! Without a mount the commands under the lease are what may still write, as examples.

use super::*;
use crate::handoff::Step;

/// A tree without a mount, written by a command.
fn with_command() -> (World, HoldId) {
    let mut w = World::new();
    w.tree.mounted = false;
    let id = w.hold(HoldKind::Run, at(0));
    w.open(1, 1, 90_000, at(0));
    w.effects();
    (w, id)
}

fn loses(effects: &[Effect], id: &HoldId) -> bool {
    effects.iter().any(|e| matches!(e, Effect::HoldLost(lost, _) if lost == id))
}

/// As the daemon does it, until nothing more is asked for. What was asked for.
fn drive(w: &mut World, now: u64) -> Vec<Effect> {
    let mut all = Vec::new();
    loop {
        let effects = w.effects();
        if effects.is_empty() {
            return all;
        }
        let no = w.tree.end_no();
        for effect in &effects {
            match effect {
                Effect::Step(Step::PushMapped | Step::PushAgain) => w.tree.feed_ending(no, |h, n| h.handle_pushed(n), at(now)),
                Effect::Step(Step::CloseStageTwo(_)) => w.tree.feed_ending(no, |h, n| h.handle_drained(true, n), at(now)),
                Effect::Step(Step::Flush) => w.tree.feed_ending(no, |h, n| h.handle_flushed(Ok((0, 0)), n), at(now)),
                _ => {}
            }
        }
        all.extend(effects);
    }
}

fn releases(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Step(Step::Release { .. })))
}

#[test]
fn without_a_mount_a_release_goes_out_only_when_the_command_has_ended() {
    for request in [EndRequest::Release { now: true }, EndRequest::To { side: name("pod"), force: true }, EndRequest::Down] {
        let (mut w, id) = with_command();
        w.tree.begin_end(request.clone(), at(10));
        let mut effects = drive(&mut w, 10);
        // At their limit they go on past the command.
        let limit = w.tree.next_deadline().unwrap().max(at(60_000));
        if !loses(&effects, &id) {
            let moment = w.tree.moment(Vec::new());
            w.tree.feed_ending(w.tree.end_no(), |h, n| h.handle_moment(moment, n), at(11));
            w.tree.handle_timeout(limit);
            effects.extend(drive(&mut w, 60_000));
        }
        assert!(loses(&effects, &id), "{request:?}: it must end");
        assert!(!releases(&effects), "{request:?}: it writes still");
        w.tree.handle_hold_gone(&id, at(60_100));
        assert!(releases(&drive(&mut w, 60_100)), "{request:?}: {:?}", w.tree.phase);
    }
}

#[test]
fn with_a_mount_the_gate_keeps_the_command_from_writing_and_nobody_waits_for_it() {
    let (mut w, _) = with_command();
    w.tree.mounted = true;
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    assert!(releases(&drive(&mut w, 10)));
}

#[test]
fn a_command_that_does_not_end_makes_the_end_unclean_and_holds_up_nobody_for_ever() {
    let (mut w, _) = with_command();
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    drive(&mut w, 10);
    w.tree.handle_right(Some(at(900_000)), Some(true), at(20));
    let limit = w.tree.next_deadline().unwrap();
    assert!(limit <= at(10).after(w.tree.policy.flush_limit));
    w.tree.handle_timeout(limit);
    let effects = drive(&mut w, 60_000);
    assert!(effects.iter().any(|e| matches!(e, Effect::Step(Step::Surrender { .. }))), "{effects:?}");
}

#[test]
fn without_a_mount_a_lease_that_was_taken_away_is_called_shut_only_when_the_command_has_ended() {
    let (mut w, id) = with_command();
    let shut = Effect::SayGateClosed { epoch: Epoch::from_raw(1) };
    w.tree.handle_right(None, Some(false), at(20));
    let effects = w.effects();
    assert!(loses(&effects, &id) && !effects.contains(&shut), "{effects:?}");
    w.tree.handle_hold_gone(&id, at(30));
    assert!(w.effects().contains(&shut));
}

#[test]
fn the_end_of_a_command_of_an_earlier_end_does_not_drain_a_later_one() {
    let (mut w, first) = with_command();
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    drive(&mut w, 10);
    w.tree.handle_session_lost("expired", at(20));
    let second = w.hold(HoldKind::Run, at(30));
    w.open(2, 1, 90_000, at(30));
    w.tree.begin_end(EndRequest::Release { now: true }, at(40));
    drive(&mut w, 40);
    w.tree.handle_hold_gone(&first, at(41));
    assert!(!releases(&drive(&mut w, 41)), "the second command writes still");
    w.tree.handle_hold_gone(&second, at(42));
    assert!(releases(&drive(&mut w, 42)));
}
