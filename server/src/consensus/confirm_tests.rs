//! Which round serves whom, and who waits for company.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;

/// Whoever waits for company waits longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A session's renewal, in its time.
fn calm(whose: u64) -> Asks {
    Asks { can_wait: true, whose, ..Asks::AT_ONCE }
}

#[tokio::test]
async fn a_caller_is_never_served_by_a_round_that_started_before_it_came() {
    for asks in [Asks::AT_ONCE, calm(7)] {
        let world = World::gated();
        let first = world.call(Asks::AT_ONCE);
        until(|| world.rounds() == 1).await;
        let late: Vec<_> = (0..10).map(|_| world.call(asks)).collect();
        world.queued(10).await;

        world.gate.add_permits(1);
        first.await.unwrap().unwrap();
        until(|| world.rounds() == 2).await;
        assert!(late.iter().all(|l| !l.is_finished()), "the first round does not count for those who came later");

        world.gate.add_permits(1);
        for caller in late {
            caller.await.unwrap().unwrap();
        }
        assert_eq!(world.rounds(), 2, "one round serves all who waited for it");
    }
}

#[tokio::test]
async fn a_round_that_takes_too_long_is_no_confirmation() {
    let times = Times { round: Duration::from_millis(5), company: FOR_EVER };
    let confirmer = Confirmer::with(std::future::pending, || false, times);
    assert!(confirmer.confirm(Asks::AT_ONCE).await.is_err());
}

#[tokio::test]
async fn i5_those_who_wait_for_company_are_served_by_a_round_that_begins_after_the_last_of_them_came() {
    let world = World::gated();
    world.meet().await;
    let mut all: Vec<_> = (0..3).map(|n| world.call(calm(n))).collect();
    world.settle().await;
    assert_eq!(world.rounds(), 2, "they wait for company, and none has begun");
    // Who cannot wait takes them along.
    all.push(world.call(Asks::AT_ONCE));
    until(|| world.rounds() == 3).await;
    // It has begun: who comes now is not served by it.
    let late = world.call(calm(9));
    world.queued(1).await;
    world.gate.add_permits(1);
    for caller in all {
        caller.await.unwrap().unwrap();
    }
    world.settle().await;
    assert!(!late.is_finished() && world.rounds() == 3);
    let last = world.call(Asks::AT_ONCE);
    world.gate.add_permits(1);
    late.await.unwrap().unwrap();
    last.await.unwrap().unwrap();
    assert_eq!(world.rounds(), 4);
}

#[tokio::test]
async fn nobody_waits_when_enough_are_there() {
    let world = World::open(FOR_EVER, false);
    world.meet().await;
    let all: Vec<_> = (0..ENOUGH as u64).map(|n| world.call(calm(n))).collect();
    for caller in all {
        caller.await.unwrap().unwrap();
    }
    world.call(Asks { renewals: ENOUGH, ..calm(1) }).await.unwrap().unwrap();
    assert!((4..=ENOUGH as u32 + 3).contains(&world.rounds()), "{} rounds", world.rounds());
}

#[tokio::test]
async fn nobody_waits_for_company_that_is_not_to_be_expected_or_saves_nothing() {
    // One session alone, however often it renews: else it would hang here.
    let world = World::open(FOR_EVER, false);
    for _ in 0..20 {
        world.call(calm(1)).await.unwrap().unwrap();
    }
    assert_eq!(world.rounds(), 20);
    // A round that asks nobody.
    let world = World::open(FOR_EVER, true);
    world.meet().await;
    world.call(calm(1)).await.unwrap().unwrap();
    assert_eq!(world.rounds(), 3);
}

#[tokio::test]
async fn company_that_does_not_come_is_not_waited_for_longer_than_that() {
    let world = World::open(Duration::from_millis(200), false);
    world.meet().await;
    world.call(calm(1)).await.unwrap().unwrap();
    assert_eq!(world.rounds(), 3);
}

#[test]
fn company_is_expected_while_more_than_one_session_renews() {
    let begin = Instant::now();
    let mut lately = Lately::default();
    let mut after = |ms: u64, asks: Asks| {
        let caller = Caller { answer: oneshot::channel().0, asks, came: begin + Duration::from_millis(ms) };
        lately.came(&[caller], COMPANY);
        lately.several(COMPANY)
    };
    assert!(!after(0, calm(1)), "the first one of all");
    assert!(!after(1, calm(1)), "the same one again");
    assert!(after(5, calm(2)));
    assert!(after(6, calm(2)), "another one was there just now");
    assert!(!after(17, calm(2)), "not any more");
    assert!(!after(40, calm(1)), "too rarely to meet");
    assert!(after(45, calm(2)));
    assert!(!after(100, calm(2)));
    assert!(after(101, Asks { renewals: 2, ..calm(2) }), "two that came together");
}

/// A confirmer whose rounds are counted, and go on with permits.
struct World {
    confirmer: Confirmer,
    count: Arc<AtomicU32>,
    gate: Arc<Semaphore>,
}

impl World {
    fn new(permits: usize, company: Duration, is_free: bool) -> Self {
        let (count, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(permits)));
        let round = {
            let (count, gate) = (count.clone(), gate.clone());
            move || {
                let (count, gate) = (count.clone(), gate.clone());
                async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    Ok(())
                }
            }
        };
        // Far above what a busy machine needs for the tests here.
        let confirmer = Confirmer::with(round, move || is_free, Times { round: FOR_EVER, company });
        Self { confirmer, count, gate }
    }

    fn gated() -> Self {
        Self::new(0, FOR_EVER, false)
    }

    fn open(company: Duration, is_free: bool) -> Self {
        Self::new(1_000_000, company, is_free)
    }

    fn rounds(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    fn call(&self, asks: Asks) -> JoinHandle<Result<(), Unconfirmed>> {
        let confirmer = self.confirmer.clone();
        tokio::spawn(async move { confirmer.confirm(asks).await })
    }

    /// Two sessions renew right after each other, in a round each: from now on company is to be expected.
    async fn meet(&self) {
        for whose in [100, 101] {
            self.gate.add_permits(1);
            self.call(Asks { whose, ..Asks::AT_ONCE }).await.unwrap().unwrap();
        }
    }

    /// So many are in the queue.
    async fn queued(&self, callers: usize) {
        until(|| self.confirmer.queue.capacity() == WAITING_MAX - callers).await;
    }

    /// Everybody has done what there is to do now.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

async fn until(condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the condition never came true");
}
