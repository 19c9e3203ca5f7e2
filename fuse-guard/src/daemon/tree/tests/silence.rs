//! What a silent storage, and an error of writing back, do to a lease, as examples.

use super::*;

#[test]
fn while_the_storage_is_silent_mutations_wait_until_the_deadline_and_go_on_when_it_confirms() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    let serial = w.tree.standing(true).serial;
    assert!(!w.tree.handle_silence(false), "no news");
    assert!(w.tree.handle_silence(true) && !w.tree.handle_silence(true));
    let shut = w.tree.standing(true);
    assert_eq!(shut.right, Right::Resting { until: at(90_000) });
    assert!(shut.serial > serial, "nothing is answered under the standing of before");
    w.effects();
    // Who waits does not open it, and it does not come to rest: a flush would hang.
    w.tree.handle_first_write(at(5_000));
    w.tree.handle_timeout(at(60_000));
    assert_eq!(w.effects(), vec![]);
    assert!(std::iter::from_fn(|| w.tree.poll_effect()).next().is_none(), "and no published standing bounces who waits");
    assert!(w.tree.handle_silence(false));
    assert_eq!(w.tree.standing(true).right, Right::Write { until: at(90_000) });
    assert_eq!(w.tree.poll_effect(), Some(Effect::Publish));
}

#[test]
fn a_tree_before_a_silent_storage_is_handed_over_with_its_gate_closing_from_the_start() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_silence(true);
    w.tree.begin_end(EndRequest::Release { now: false }, at(100));
    assert!(w.tree.is_ending());
    let closing = Right::Closing { until: at(90_000) };
    assert_eq!(w.tree.standing(true).right, closing, "mapped pages are taken, and nothing else");
    assert!(!w.tree.handle_silence(true), "it is silent still");
    assert_eq!(w.tree.standing(true).right, closing, "the next look does not open it");
}

#[test]
fn the_silence_of_a_storage_that_this_side_does_not_write_to_is_none() {
    let mut w = World::new();
    assert!(!w.tree.handle_silence(true) && !w.tree.is_silenced());
    w.open(1, 1, 90_000, at(0));
    assert_eq!(w.tree.standing(true).right, Right::Write { until: at(90_000) });
}

#[test]
fn an_error_of_writing_back_ends_the_lease_and_one_that_comes_after_its_end_nothing() {
    let mut w = World::new();
    w.tree.handle_write_back_error(at(0));
    assert_eq!(w.effects(), vec![]);
    w.open(1, 1, 90_000, at(0));
    w.effects();
    w.tree.handle_write_back_error(at(100));
    assert!(w.tree.is_ending());
    let end = w.tree.end_no();
    w.tree.handle_write_back_error(at(200));
    assert_eq!(w.tree.end_no(), end);
}
