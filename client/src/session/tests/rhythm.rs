//! When renewals go out, and what people are told.

use super::*;

#[test]
fn renewals_go_out_at_a_fifth_of_the_ttl_answered_or_not() {
    let mut side = Side::new();
    let mut numbers = vec![];
    for _ in 0..40 {
        numbers.extend(side.drain().into_iter().filter_map(|action| match action {
            Action::Renew(renewal) => Some((side.now.elapsed.as_millis(), renewal.number)),
            _ => None,
        }));
        side.pass(ms(250));
    }
    assert_eq!(numbers, [(0, 1), (2_000, 2), (4_000, 3), (6_000, 4), (8_000, 5)]);
}

#[test]
fn only_a_renewal_that_goes_out_because_it_is_time_can_wait_for_others() {
    let mut side = Side::new();
    assert!(!side.sent().can_wait, "before the first answer there is no right");
    side.answer(1, 1);
    let interval = TTL.renewal_interval();
    side.pass(interval);
    assert!(side.sent().can_wait);
    side.answer(2, 1);
    // A grant: only a renewal sent after it opens the gate.
    side.core.note_grant(&side.tree.clone(), Epoch::from_raw(2), side.now);
    assert!(!side.sent().can_wait);
    side.answer(3, 2);
    side.pass(interval);
    assert!(side.sent().can_wait, "as before");
    // The last one has no answer yet, or will have none.
    side.pass(interval);
    assert!(!side.sent().can_wait);
    side.answer(5, 2);
    side.pass(interval);
    assert!(side.sent().can_wait);
    side.core.handle_failure(6, side.now);
    side.pass(interval);
    assert!(!side.sent().can_wait);
    side.answer(7, 2);
    // The machine has slept: the gate is shut.
    side.sleep(ms(10));
    assert!(!side.sent().can_wait);
}

#[test]
fn a_lost_renewal_is_followed_by_the_next_before_its_time_and_never_in_a_hurry() {
    let mut side = Side::new();
    side.sent();
    side.core.handle_failure(1, side.now);
    assert!(side.drain().is_empty(), "not at once");
    assert_eq!(side.core.next_deadline().unwrap().elapsed, ms(500));
    side.pass(ms(500));
    assert_eq!(side.sent().number, 2);
}

#[test]
fn a_server_that_is_away_for_longer_than_a_right_lasts_is_asked_no_more_often_than_when_all_is_well() {
    let mut side = Side::new();
    let mut tries = vec![];
    for _ in 0..240 {
        for action in side.drain() {
            if let Action::Renew(renewal) = action {
                tries.push(side.now.elapsed);
                side.core.handle_failure(renewal.number, side.now);
            }
        }
        side.pass(ms(250));
    }
    let within = |from: u64, to: u64| tries.iter().filter(|at| (ms(from)..ms(to)).contains(at)).count();
    assert_eq!(within(0, 10_000), 20, "each half second while a right may live");
    assert_eq!(within(20_000, 60_000), 20, "each fifth of the TTL later");
    let number = side.core.next_number();
    side.core.renew_now(side.now);
    side.sent();
    side.answer(number, 1);
    side.core.renew_now(side.now);
    side.sent();
    side.core.handle_failure(number + 1, side.now);
    assert_eq!(side.core.next_deadline().unwrap().elapsed - side.now.elapsed, ms(500), "in a hurry again");
}

#[test]
fn no_more_than_five_are_ever_in_flight() {
    let mut side = Side::new();
    let mut sent = 0;
    for _ in 0..100 {
        side.core.renew_now(side.now);
        sent += side.drain().len();
        side.pass(ms(1));
    }
    assert_eq!(sent, MAX_IN_FLIGHT);
}

#[test]
fn a_side_warns_before_its_writes_stop_once_and_says_when_it_is_well_again() {
    let mut side = Side::new();
    side.sent();
    side.answer(1, 1);
    let mut told = vec![];
    for _ in 0..35 {
        side.pass(ms(250));
        told.extend(side.drain().into_iter().filter(|action| matches!(action, Action::Warn(_))));
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(matches!(told[0], Action::Warn(Warning::Late { by }) if by >= ms(2_000) && by < ms(3_000)));
    assert!(matches!(told[1], Action::Warn(Warning::WritesStopIn(left)) if left <= ms(3_334) && left > ms(3_000)));
    assert!(side.core.late(side.now).is_some());
    side.answer(5, 1);
    assert!(matches!(side.drain()[0], Action::Warn(Warning::Back { .. })));
    assert_eq!(side.core.late(side.now), None);
}

#[test]
fn the_next_deadline_is_never_after_the_next_thing_to_do() {
    let mut side = Side::new();
    side.sent();
    side.answer(1, 1);
    for _ in 0..100 {
        let due = side.core.next_deadline().unwrap();
        if due.elapsed > side.now.elapsed + ms(1) {
            side.pass(due.elapsed - side.now.elapsed - ms(1));
            assert!(side.drain().is_empty(), "something was due before {due:?}");
        }
        side.pass(ms(1));
        side.drain();
    }
}

#[test]
fn round_trips_are_kept_and_bounded() {
    let mut side = Side::new();
    for number in 1..=40 {
        side.core.renew_now(side.now);
        side.sent();
        side.pass(ms(number));
        side.answer(number, 1);
    }
    let trips: Vec<_> = side.core.round_trips().collect();
    assert_eq!(trips.len(), ROUND_TRIPS_KEPT);
    assert_eq!(trips.last(), Some(&ms(40)));
}
