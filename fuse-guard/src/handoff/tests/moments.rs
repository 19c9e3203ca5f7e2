//! When the gate may close.

use super::*;

#[test]
fn a_quiet_tree_is_pushed_looked_at_once_more_and_closed() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    assert_eq!(steps(&mut h), [Step::LookForMoment]);
    h.handle_moment(idle_tree(), at(1));
    assert_eq!(steps(&mut h), [Step::PushMapped]);
    h.handle_pushed(at(2));
    assert_eq!(steps(&mut h), [Step::LookForMoment]);
    h.handle_moment(idle_tree(), at(3));
    assert_eq!(steps(&mut h), [Step::CloseStageOne, Step::PushAgain]);
}

#[test]
fn plain_writes_delay_it_until_quiet_has_passed() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    steps(&mut h);
    h.handle_moment(written_at(0), at(50));
    assert_eq!(h.next_deadline(), Some(at(200)));
    assert_eq!(steps(&mut h), []);
    h.handle_timeout(at(200));
    assert_eq!(steps(&mut h), [Step::LookForMoment]);
    h.handle_moment(written_at(0), at(201));
    assert_eq!(steps(&mut h), [Step::PushMapped]);
}

#[test]
fn plain_writes_that_never_stop_delay_it_two_seconds_at_most() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    let mut now = 0;
    while steps(&mut h) != [Step::PushMapped] {
        h.handle_moment(written_at(now), at(now));
        now += 20;
        h.handle_timeout(at(now));
        assert!(now <= 2100, "a log line every 20 ms kept the tree");
    }
    assert!(now >= 2000);
}

#[test]
fn a_busy_tree_is_waited_for_and_declined_at_the_limit_with_what_is_busy() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    steps(&mut h);
    h.handle_moment(running("cargo build (pid 12)"), at(0));
    assert_eq!(h.describe(), "waiting for cargo build (pid 12)");
    h.handle_timeout(at(100));
    assert_eq!(steps(&mut h), [Step::LookForMoment]);
    h.handle_moment(running("cargo build (pid 12)"), at(29_990));
    h.handle_timeout(at(30_000));
    let busy = vec!["cargo build (pid 12)".to_owned()];
    assert_eq!(steps(&mut h), [Step::Decline { busy: busy.clone() }, Step::Done]);
    assert_eq!(h.outcome(), Some(&Outcome::Declined { busy }));
}

#[test]
fn a_forced_one_goes_on_at_the_limit() {
    for why in [Why::Asked { force: true }, Why::Down, Why::To { to: "pod".parse().unwrap(), force: true }] {
        let mut h = Handoff::begin(why, limits(), at(0));
        steps(&mut h);
        h.handle_moment(running("x"), at(0));
        h.handle_timeout(at(30_000));
        assert_eq!(steps(&mut h), [Step::PushMapped]);
        h.handle_pushed(at(30_001));
        assert_eq!(steps(&mut h), [Step::CloseStageOne, Step::PushAgain]);
    }
}

#[test]
fn a_release_now_looks_for_no_moment() {
    let mut h = Handoff::begin(Why::Release { now: true }, limits(), at(0));
    assert_eq!(steps(&mut h), [Step::PushMapped]);
    h.handle_pushed(at(1));
    assert_eq!(steps(&mut h), [Step::CloseStageOne, Step::PushAgain]);
}

#[test]
fn a_transaction_that_begins_during_the_push_is_waited_for() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    steps(&mut h);
    h.handle_moment(idle_tree(), at(1));
    h.handle_pushed(at(2));
    steps(&mut h);
    h.handle_moment(Moment { unfinished: vec!["SQLite journal a-journal".into()], ..Moment::default() }, at(3));
    assert_eq!(steps(&mut h), []);
    h.handle_timeout(at(200));
    assert_eq!(steps(&mut h), [Step::LookForMoment]);
    h.handle_moment(idle_tree(), at(201));
    assert_eq!(steps(&mut h), [Step::PushMapped], "and it is pushed anew");
}

#[test]
fn an_idle_holder_that_is_not_idle_after_all_ends_without_a_word() {
    for moment in [running("x"), written_at(0)] {
        let mut h = Handoff::begin(Why::Idle, limits(), at(0));
        steps(&mut h);
        h.handle_moment(moment, at(10));
        assert_eq!(steps(&mut h), [Step::Done]);
        assert!(matches!(h.outcome(), Some(Outcome::Declined { .. })));
    }
}

#[test]
fn a_look_that_never_returns_is_declined_at_the_limit_and_says_so() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    steps(&mut h);
    h.handle_timeout(at(30_000));
    let [Step::Decline { busy }, Step::Done] = &steps(&mut h)[..] else { panic!("it should decline") };
    assert!(busy[0].contains("storage"), "{busy:?}");
}

#[test]
fn taken_back_while_waiting_it_leaves_the_gate_as_it_is() {
    let mut h = Handoff::begin(Why::Asked { force: false }, limits(), at(0));
    h.handle_cancelled(at(1));
    assert_eq!(steps(&mut h), [Step::Done]);
    assert_eq!(h.outcome(), Some(&Outcome::Cancelled));
}
