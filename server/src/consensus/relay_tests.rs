//! What is put on a call to the leader while that does not read: it is hung, or only being called.

use std::pin::pin;

use futures::poll;

use super::*;

/// Far above what a busy machine needs.
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn renewals_whose_callers_have_gone_are_not_sent_and_take_nobodys_room() {
    let (open, messages) = call();
    for n in 0..WAITING_MAX as u64 {
        let mut gives_up = pin!(open.renew(renewal(n), LONG));
        assert!(poll!(&mut gives_up).is_pending(), "{n}");
    }
    let mut waits = pin!(open.renew(renewal(77), LONG));
    assert!(poll!(&mut waits).is_pending(), "it has room");
    let mut messages = pin!(messages);
    let asked = messages.next().await.unwrap().asked;
    assert_eq!(numbers(&asked), [77], "and goes out first");
    let answered = Word::Failed(wire::CallFailed { code: 1, message: "its own".into() });
    hand_out(&open.waiting, vec![wire::RenewalAnswered { tag: asked[0].tag, word: Some(answered.clone()) }]);
    assert_eq!(waits.await.unwrap(), answered);
}

#[tokio::test]
async fn those_that_are_waited_for_all_go_out_the_oldest_first_and_one_more_than_may_wait_is_turned_away() {
    let (open, messages) = call();
    let mut all: Vec<_> = (0..WAITING_MAX as u64).map(|n| Box::pin(open.renew(renewal(n), LONG))).collect();
    for one in &mut all {
        assert!(poll!(one).is_pending());
    }
    assert!(matches!(open.renew(renewal(0), LONG).await, Err(End::NotSent(why)) if why.contains("wait for the leader")));
    let mut messages = pin!(messages);
    let mut sent = Vec::new();
    while sent.len() < WAITING_MAX {
        let asked = messages.next().await.unwrap().asked;
        assert!(asked.len() <= IN_MESSAGE_MAX);
        sent.extend(numbers(&asked));
    }
    assert_eq!(sent, (0..WAITING_MAX as u64).collect::<Vec<_>>());
    drop(all);
    drop(open);
    assert_eq!(messages.next().await, None, "with the last who can ask the call ends");
}

#[tokio::test]
async fn what_a_renewal_has_waited_in_the_queue_is_not_its_time_at_the_leader() {
    let queue = Queue::default();
    let now = Instant::now();
    let _over = queue.put(1, Queued { renewal: renewal(1), until: now });
    let _half = queue.put(2, Queued { renewal: renewal(2), until: now + LONG / 2 });
    let asked = queue.take();
    assert_eq!(numbers(&asked), [2], "one whose time is over would be answered to nobody");
    assert!((1..=LONG.as_millis() as u64 / 2).contains(&asked[0].limit_ms), "{}", asked[0].limit_ms);
}

#[tokio::test]
async fn a_renewal_that_is_put_on_a_call_that_has_ended_was_not_sent() {
    let (open, messages) = call();
    drop(messages);
    assert!(matches!(open.renew(renewal(1), LONG).await, Err(End::NotSent(_))));
}

fn call() -> (Open, impl Stream<Item = wire::RenewalsForwarded>) {
    let member = Member { addr: "leader:1".into(), disk: "disk-1".into() };
    Open::new(Way { leader: 1, member, token: None }, wire::Stamp::default())
}

fn renewal(number: u64) -> wire::RenewRequest {
    wire::RenewRequest { number, ..Default::default() }
}

fn numbers(asked: &[wire::RenewalAsked]) -> Vec<u64> {
    asked.iter().map(|one| one.renewal.as_ref().unwrap().number).collect()
}
