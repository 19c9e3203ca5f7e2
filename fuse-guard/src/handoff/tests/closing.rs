//! From the closed gate to the end.

use super::*;

#[test]
fn a_clean_handoff_closes_drains_flushes_and_releases_in_this_order() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_flushed(Ok((3, 86_016)), at(1100));
    assert_eq!(steps(&mut h), [Step::Release { files: 3, bytes: 86_016, to: None, request: 1 }]);
    assert!(!h.may_reopen());
    h.handle_released(Answered::Done, at(1200));
    assert_eq!(steps(&mut h), [Step::Done]);
    assert_eq!(h.outcome(), Some(&Outcome::Released { files: 3, bytes: 86_016, not_to: None }));
}

#[test]
fn permits_that_do_not_end_are_waited_for_and_surrender_the_tree_at_the_flush_limit() {
    let mut h = Handoff::begin(Why::Release { now: true }, limits(), at(0));
    h.handle_pushed(at(0));
    h.handle_pushed(at(0));
    assert_eq!(steps(&mut h).last(), Some(&Step::CloseStageTwo(DRAIN_LIMIT)));
    h.handle_drained(false, at(5000));
    assert_eq!(steps(&mut h), [Step::CloseStageTwo(DRAIN_LIMIT)]);
    h.handle_drained(false, at(58_000));
    assert_eq!(steps(&mut h), [Step::CloseStageTwo(Duration::from_secs(2))]);
    h.handle_drained(false, at(60_000));
    assert!(matches!(&steps(&mut h)[..], [Step::Surrender { why, request: 1 }] if why.contains("60s") || why.contains("1m")));
    assert!(!h.may_reopen());
}

#[test]
fn a_flush_error_surrenders_and_nothing_reopens_after_it() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_flushed(Err("notes.db: Input/output error".into()), at(1100));
    assert!(matches!(&steps(&mut h)[..], [Step::Surrender { why, .. }] if why.contains("notes.db")));
    h.handle_cancelled(at(1200));
    assert_eq!(steps(&mut h), []);
    h.handle_released(Answered::Done, at(1300));
    assert_eq!(steps(&mut h), [Step::Done]);
    assert!(matches!(h.outcome(), Some(Outcome::Surrendered { .. })));
}

#[test]
fn a_flush_that_takes_too_long_surrenders_and_its_late_answer_changes_nothing() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_timeout(at(61_000));
    assert!(matches!(&steps(&mut h)[..], [Step::Surrender { .. }]));
    h.handle_flushed(Ok((1, 1)), at(61_001));
    assert_eq!(steps(&mut h), []);
}

#[test]
fn an_unknown_outcome_is_asked_again_as_the_same_request_and_the_gate_stays_shut() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_flushed(Ok((0, 0)), at(1100));
    let first = steps(&mut h);
    h.handle_released(Answered::Unknown, at(1200));
    assert_eq!(h.next_deadline(), Some(at(1300)));
    h.handle_cancelled(at(1250));
    h.handle_timeout(at(1300));
    assert_eq!(steps(&mut h), first, "the same request");
    h.handle_released(Answered::Unknown, at(1400));
    assert_eq!(h.next_deadline(), Some(at(1600)), "less often");
    h.handle_timeout(at(1600));
    h.handle_released(Answered::Refused("epoch 3 has ended".into()), at(1700));
    assert_eq!(h.outcome(), Some(&Outcome::Gone { why: "epoch 3 has ended".into() }));
    assert!(!h.may_reopen());
}

#[test]
fn a_side_without_a_session_gets_nothing_and_the_tree_is_freed() {
    let mut h = flushing(Why::To { to: "pod".parse().unwrap(), force: false });
    h.handle_flushed(Ok((0, 0)), at(1100));
    assert!(matches!(&steps(&mut h)[..], [Step::Release { to: Some(side), request: 1, .. }] if side.as_str() == "pod"));
    h.handle_released(Answered::Refused("pod has no session".into()), at(1200));
    assert!(matches!(&steps(&mut h)[..], [Step::Release { to: None, request: 2, .. }]), "another request, another key");
    h.handle_released(Answered::Done, at(1300));
    assert!(matches!(h.outcome(), Some(Outcome::Released { not_to: Some(why), .. }) if why.contains("pod")));
}

#[test]
fn taken_back_with_the_gate_closed_it_reopens() {
    let mut h = Handoff::begin(Why::Release { now: true }, limits(), at(0));
    h.handle_pushed(at(0));
    steps(&mut h);
    h.handle_cancelled(at(1));
    assert_eq!(steps(&mut h), [Step::Reopen, Step::Done]);
}

#[test]
fn taken_back_during_the_flush_it_hears_the_flush_out_first() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_cancelled(at(1050));
    assert_eq!(steps(&mut h), []);
    h.handle_flushed(Ok((1, 1)), at(1100));
    assert_eq!(steps(&mut h), [Step::Reopen, Step::Done]);

    let mut h = flushing(Why::Asked { force: false });
    h.handle_cancelled(at(1050));
    h.handle_flushed(Err("EIO".into()), at(1100));
    assert!(matches!(&steps(&mut h)[..], [Step::Surrender { .. }]));
}

#[test]
fn a_push_that_hangs_is_given_up_and_its_late_answer_does_not_count_for_the_next() {
    let mut h = Handoff::begin(Why::Release { now: true }, limits(), at(0));
    steps(&mut h);
    h.handle_timeout(at(5000));
    assert_eq!(steps(&mut h), [Step::CloseStageOne, Step::PushAgain]);
    h.handle_pushed(at(5001));
    assert_eq!(steps(&mut h), [], "that was the first push");
    h.handle_pushed(at(5002));
    assert_eq!(steps(&mut h), [Step::CloseStageTwo(DRAIN_LIMIT)]);
}

#[test]
fn a_lease_that_goes_meanwhile_ends_it_with_the_gate_shut() {
    let mut h = flushing(Why::Asked { force: false });
    h.handle_gone("broken by an operator", at(1100));
    assert_eq!(steps(&mut h), [Step::Done]);
    assert!(!h.may_reopen());
    h.handle_flushed(Ok((1, 1)), at(1200));
    assert_eq!(steps(&mut h), []);
}
