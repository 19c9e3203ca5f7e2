//! I4: what an answer gives, and what it does not.

use super::*;

#[test]
fn i4_there_is_no_right_before_a_renewal_has_listed_the_pair() {
    let mut side = Side::new();
    assert_eq!(side.right(1), None);
    let first = side.sent();
    assert_eq!((first.number, first.nonce), (1, 0));
    side.answer_with(1, vec![]);
    assert_eq!(side.right(1), None, "acknowledged, but not listed");
    side.core.renew_now(side.now);
    let second = side.sent();
    assert_eq!((second.number, second.nonce), (2, 1001), "it names the last answer");
    side.answer(2, 7);
    assert_eq!(side.right(7), Some(RIGHT));
    assert_eq!(side.right(6), None, "another epoch");
    assert_eq!(side.right(8), None);
}

#[test]
fn i4_the_right_counts_from_the_sending_whatever_the_way_back_took() {
    let mut side = Side::new();
    side.sent();
    side.pass(ms(5_000));
    side.answer(1, 1);
    assert_eq!(side.right(1), Some(RIGHT));
    side.pass(ms(3_899));
    assert!(side.right(1).is_some());
    side.pass(ms(1));
    assert_eq!(side.right(1), None, "the deadline itself is too late");
}

#[test]
fn i4_an_answer_older_than_the_last_one_neither_opens_nor_lengthens_nor_closes() {
    let mut side = Side::new();
    side.sent();
    side.pass(ms(2_000));
    side.sent();
    side.answer(2, 1);
    assert_eq!(side.right(1), Some(ms(2_000) + RIGHT));
    side.answer_with(1, vec![]);
    assert_eq!(side.right(1), Some(ms(2_000) + RIGHT), "what 1 did not list, 2 did");

    let mut side = Side::new();
    side.sent();
    side.pass(ms(2_000));
    side.sent();
    side.answer_with(2, vec![]);
    side.answer(1, 1);
    assert_eq!(side.right(1), None, "what 1 listed is over, 2 says");
}

#[test]
fn i4_an_answer_counts_once_and_only_for_a_request_that_was_sent() {
    let mut side = Side::new();
    side.answer(1, 1);
    assert_eq!(side.right(1), None, "nothing was sent");
    side.sent();
    side.answer(1, 1);
    side.pass(ms(2_000));
    side.answer(1, 2);
    assert_eq!(side.right(2), None, "a replay");
    assert_eq!(side.right(1), Some(RIGHT));
}

#[test]
fn i4_a_grant_opens_only_by_a_renewal_sent_after_it() {
    let mut side = Side::new();
    let before = side.sent();
    let tree = side.tree.clone();
    side.core.note_grant(&tree, Epoch::from_raw(3), side.now);
    let after = side.sent();
    side.answer(before.number, 3);
    assert_eq!(side.right(3), None, "sent before the grant was known");
    side.answer(after.number, 3);
    assert_eq!(side.right(3), Some(RIGHT));
}

#[test]
fn per_tree_a_pair_that_is_not_listed_any_more_ends_and_the_others_stay() {
    let mut side = Side::new();
    let other = HeldPair { tree: TreeId::random(), ..side.pair(9) };
    side.sent();
    let both = vec![side.pair(1), other.clone()];
    side.answer_with(1, both);
    assert!(side.right(1).is_some());
    side.pass(ms(2_000));
    side.sent();
    side.answer_with(2, vec![other.clone()]);
    assert_eq!(side.right(1), None);
    assert!(side.core.right(&other.tree, other.epoch, side.now).is_some());
    assert_eq!(side.core.listed().len(), 1);
}

#[test]
fn i4_the_ttl_is_the_one_that_the_answer_names() {
    let mut side = Side::new();
    side.sent();
    let pairs = vec![side.pair(1)];
    let ttl = Ttl::new(ms(5_000));
    let answer =
        Answered { number: 1, nonce: 1, ttl, alive: true, pairs, server_elapsed: None, why_not: String::new(), given_up: false };
    side.core.handle_answer(answer, side.now);
    assert_eq!(side.right(1), Some(ms(4_450)));
    assert_eq!(side.core.ttl(), ttl);
}

#[test]
fn a_session_that_has_ended_has_no_right_and_nothing_more_to_do() {
    let mut side = Side::new();
    side.sent();
    side.answer(1, 1);
    side.pass(ms(2_000));
    side.sent();
    let pairs = vec![side.pair(1)];
    let why_not = "expired".to_string();
    let answer = Answered { number: 2, nonce: 0, ttl: TTL, alive: false, pairs, server_elapsed: None, why_not, given_up: false };
    side.core.handle_answer(answer, side.now);
    assert_eq!(side.core.ended(), Some("expired"));
    assert_eq!(side.right(1), None);
    side.pass(ms(60_000));
    assert!(side.drain().is_empty());
    assert_eq!(side.core.next_deadline(), None);
}

#[test]
fn the_nonce_never_goes_back_in_the_servers_order_however_answers_overtake_each_other() {
    let mut side = Side::new();
    let next = |side: &mut Side| {
        side.core.renew_now(side.now);
        side.sent().nonce
    };
    side.sent();
    side.answer(1, 1);
    assert_eq!((next(&mut side), next(&mut side)), (1001, 1001));
    // The server may have seen 3 before 2: then 3's nonce is older than 2's.
    side.answer(2, 1);
    assert_eq!(next(&mut side), 1002);
    side.answer(3, 1);
    assert_eq!(side.core.listed_by(), 3, "its list counts all the same");
    assert_eq!(next(&mut side), 1002);
    side.answer(4, 1);
    assert_eq!(next(&mut side), 1004);
}

#[test]
fn i4_an_answer_that_acknowledges_nothing_opens_nothing_and_its_nonce_counts() {
    let mut side = Side::new();
    side.sent();
    let pairs = vec![side.pair(1)];
    let answer = Answered {
        number: 1,
        nonce: 77,
        ttl: TTL,
        alive: true,
        pairs,
        server_elapsed: None,
        why_not: String::new(),
        given_up: true,
    };
    side.core.handle_answer(answer, side.now);
    assert_eq!((side.right(1), side.core.listed_by()), (None, 0));
    side.pass(ms(500));
    assert_eq!(side.sent().nonce, 77, "soon, so that the server sees who it is");
}
