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
