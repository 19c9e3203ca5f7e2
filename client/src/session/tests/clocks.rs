//! Suspend, and clocks that disagree.

use super::*;

fn answer_after(side: &mut Side, number: u64, server: Duration) {
    let pairs = vec![side.pair(1)];
    let answer = Answered {
        number,
        nonce: number,
        ttl: TTL,
        alive: true,
        pairs,
        server_elapsed: Some(server),
        why_not: String::new(),
        given_up: false,
    };
    side.core.handle_answer(answer, side.now);
}

#[test]
fn i4_after_a_suspend_of_any_length_only_a_renewal_sent_later_opens() {
    let mut side = Side::new();
    side.sent();
    side.answer(1, 1);
    side.sleep(ms(10));
    assert_eq!(side.right(1), None, "ten milliseconds of sleep, and nobody knows whether it was ten hours");
    let second = side.sent();
    assert_eq!(second.number, 2, "waking up is a reason to renew at once");
    side.answer(2, 1);
    assert!(side.right(1).is_some());
}

#[test]
fn i4_an_answer_to_a_request_sent_before_the_suspend_opens_nothing() {
    let mut side = Side::new();
    side.sent();
    side.sleep(ms(1_000));
    side.answer(1, 1);
    assert_eq!(side.right(1), None);
}

#[test]
fn a_server_on_whose_clock_more_passed_closes_until_a_later_renewal() {
    let mut side = Side::new();
    side.sent();
    side.answer(1, 1);
    side.pass(ms(2_000));
    side.sent();
    side.pass(ms(10));
    answer_after(&mut side, 2, ms(2_100));
    assert_eq!(side.right(1), None);
    let actions = side.drain();
    assert!(actions.contains(&Action::ClockDisagrees { own: ms(2_000), server: ms(2_100) }), "{actions:?}");
    assert!(matches!(actions.last(), Some(Action::Renew(Renewal { number: 3, .. }))), "at once");
    assert_eq!(side.right(1), None, "sent is not acknowledged");
    // The drain sent it at the very moment of the disagreement: that one does not count as later.
    answer_after(&mut side, 3, ms(10));
    assert_eq!(side.right(1), None);
    side.pass(ms(2_000));
    side.sent();
    answer_after(&mut side, 4, ms(2_000));
    assert!(side.right(1).is_some());
}

#[test]
fn drift_and_the_way_there_are_no_disagreement() {
    let mut side = Side::new();
    side.sent();
    side.pass(ms(300));
    side.answer(1, 1);
    side.pass(ms(1_700));
    side.sent();
    side.pass(ms(300));
    // The first took 0 ms to the server, the second 300; and 1 % of drift.
    answer_after(&mut side, 2, ms(2_320));
    assert!(side.right(1).is_some());
}
