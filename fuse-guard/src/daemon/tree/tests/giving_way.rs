//! When a holder looks whether to give way, as examples.

use super::*;

/// An idle tree that somebody waits for, whose handoff was declined at this time because something is unfinished.
fn declined(now: u64) -> World {
    let mut w = World::new();
    let me = w.me.clone();
    w.open(1, 1, 90_000, at(0));
    let waits = w.status(1, Some("workstation"), &[("pod", false)]);
    w.tree.handle_table(waits, Some(&me), at(100));
    w.tree.handle_timeout(at(now));
    assert!(w.tree.is_ending(), "idle for long enough");
    let moment = w.tree.moment(vec!["an flock on `f`".into()]);
    w.tree.feed_ending(w.tree.end_no(), |h, n| h.handle_moment(moment, n), at(now));
    assert!(w.tree.is_open(), "{:?}", w.tree.phase);
    w.effects();
    w
}

#[test]
fn an_idle_handoff_that_was_declined_is_not_tried_again_at_once() {
    let mut w = declined(10_000);
    let end = w.tree.end_no();
    w.tree.handle_timeout(at(10_020));
    assert_eq!((w.tree.end_no(), w.tree.is_open()), (end, true), "the same is in the way still");
    // It is not forgotten either.
    let later = at(10_000).after(end::DECLINE_PAUSE);
    w.tree.handle_timeout(later);
    assert!(w.tree.is_ending());
}

#[test]
fn a_daemon_that_ends_with_a_lease_has_shut_its_gate_before_the_mount_goes() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_down(at(10));
    assert!(matches!(w.tree.standing(false).right, Right::Write { .. }), "it waits for a good moment still");
    w.tree.handle_gone_down();
    assert_eq!(w.tree.standing(false).right, Right::Read);
}

#[test]
fn a_tree_that_cannot_be_handed_over_comes_to_rest_all_the_same() {
    let mut w = declined(10_000);
    w.tree.handle_timeout(at(10_020));
    assert!(w.effects().iter().any(|e| matches!(e, Effect::Settle(_))), "{:?}", w.tree.phase);
}

#[test]
fn a_grant_of_which_only_the_table_tells_is_worth_a_renewal_until_it_is_known_and_never_once_it_was_let_go() {
    let mut w = World::new();
    let free = w.status(4, None, &[]);
    let held = w.status(5, Some("workstation"), &[]);
    let pods = w.status(5, Some("pod"), &[]);
    let asks = |w: &World, status: &TreeStatus| w.tree.was_granted_unheard(status, Some(&w.me));
    assert!(!asks(&w, &free) && !asks(&w, &pods) && asks(&w, &held));
    w.open(5, 5, 90_000, at(0));
    assert!(!asks(&w, &held), "it is known");
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    until_release(&mut w, 11);
    w.tree.handle_end_answer(w.tree.end_no(), Ok(Answer::Done), at(20));
    assert!(!asks(&w, &held), "a node that is behind says so: that epoch is over here");
    assert!(asks(&w, &w.status(6, Some("workstation"), &[])));
}
