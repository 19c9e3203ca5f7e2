//! What was let go while those that carry out hang on the storage: in time or not at all, and never in a later run.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::io::Errno;
use treelease_client::words::epoch::{Epoch, RunStart};

use super::super::carriers::{ANOTHER_AFTER, CARRIERS, CARRIERS_MAX};
use super::super::waiters::{FIRST_WRITE_WAIT, STAGE_WAIT};
use super::super::{Mode, Op, Outcome, Right, Standing, Turn};
use super::{Stand, eventually, stand, standing, write_for};

/// For other threads on a loaded machine.
const LONG: Duration = Duration::from_secs(60);
/// How long the lease lasts: longer than anybody waits.
const LEASE: Duration = Duration::from_secs(1000);
/// One that ends before.
const SHORT: Duration = Duration::from_secs(15);

/// An operation that waits, what it was told, and what lets it end: until then it hangs.
struct Call {
    told: Receiver<Result<(), Errno>>,
    ends: Sender<()>,
}

impl Call {
    fn is_told(&self) -> Result<(), Errno> {
        self.told.recv_timeout(LONG).expect("it waits for ever")
    }
}

fn hangs(at: &Stand) -> Call {
    let ((tell, told), (ends, ended)) = (channel(), channel::<()>());
    let job = move |turn| {
        let permit = match turn {
            Turn::Go(permit) => permit,
            Turn::No(why) => {
                let _test_is_over = tell.send(Err(why));
                return;
            }
        };
        let _test_is_over = tell.send(Ok(()));
        let _let_go = ended.recv();
        drop(permit);
    };
    at.gate.park(Op::Mkdir, None, 10, Box::new(job));
    Call { told, ends }
}

/// Granted this epoch, of a run that begins with it, for so long.
fn grant(at: &Stand, epoch: u64, lasts: Duration) {
    let epoch = Epoch::from_raw(epoch);
    let until = at.gate.now().after(lasts);
    let serial = at.gate.standing().serial + 1;
    at.gate.publish(Standing { serial, epoch, stale_below: epoch, ..standing(Right::Opening { until }) });
    at.gate.answer(Outcome::Granted { run_start: RunStart(epoch), epoch });
}

/// So many calls more than carriers, let go by the grant of epoch 8, of which all that have begun hang.
fn all_hang(more: usize, lasts: Duration) -> (Stand, Vec<Call>, Vec<Call>) {
    let at = stand(Standing { may_wait: true, free: true, ..standing(Right::Read) });
    let mut begun: Vec<Call> = (0..CARRIERS + more).map(|_| hangs(&at)).collect();
    grant(&at, 8, lasts);
    let rest = begun.split_off(CARRIERS);
    assert!(begun.iter().all(|call| call.is_told() == Ok(())));
    assert_eq!((at.gate.carrying(), at.gate.in_flight(), at.gate.waiting()), (CARRIERS, CARRIERS, CARRIERS + more));
    (at, begun, rest)
}

#[test]
fn i4_what_was_let_go_and_not_begun_is_refused_at_the_deadline_though_all_that_carry_out_hang() {
    let (at, begun, rest) = all_hang(3, SHORT);
    at.clock.advance(SHORT);
    assert!(rest.iter().all(|call| call.is_told() == Err(Errno::ROFS)));
    assert_eq!((at.gate.waiting(), at.gate.counts().refused), (CARRIERS, 3));
    drop(begun);
    eventually("the others end", || at.gate.waiting() == 0 && at.gate.in_flight() == 0);
    assert_eq!(at.gate.counts().admitted as usize, CARRIERS, "nothing else was let through, when there was somebody for it");
}

#[test]
fn what_was_let_go_and_not_begun_is_refused_when_it_has_waited_for_its_limit_though_the_lease_goes_on() {
    let (at, _begun, rest) = all_hang(1, LEASE);
    at.clock.advance(STAGE_WAIT);
    assert_eq!(rest[0].is_told(), Err(Errno::ROFS));
}

#[test]
fn i6_what_was_let_go_in_one_run_is_not_begun_in_a_later_one() {
    let (at, begun, rest) = all_hang(1, LEASE);
    // The lease goes; epoch 9 is another side's; 10 is ours.
    let before = at.gate.standing();
    at.gate.publish(Standing { serial: before.serial + 1, right: Right::Read, ..before });
    let epoch = Epoch::from_raw(9);
    at.gate.publish(Standing { serial: before.serial + 2, right: Right::Read, epoch, stale_below: epoch, ..before });
    let (epoch, right) = (Epoch::from_raw(10), write_for(LEASE.as_secs(), at.gate.now()));
    at.gate.publish(Standing { serial: before.serial + 3, right, epoch, stale_below: epoch, ..before });
    // The storage answers.
    drop(begun);
    assert_eq!(rest[0].is_told(), Err(Errno::ROFS));
}

#[test]
fn what_was_let_go_is_not_refused_for_having_waited_when_nothing_is_refused_any_more() {
    let (at, begun, rest) = all_hang(1, LEASE);
    let before = at.gate.standing();
    at.gate.publish(Standing { serial: before.serial + 1, mode: Mode::Observe, right: Right::Read, ..before });
    at.clock.advance(FIRST_WRITE_WAIT);
    drop(begun);
    assert_eq!(rest[0].is_told(), Ok(()));
}

#[test]
fn where_all_that_carry_out_hang_another_one_comes_and_there_is_an_end_to_them() {
    let (at, mut begun, mut rest) = all_hang(CARRIERS_MAX, LEASE);
    while begun.len() < CARRIERS_MAX {
        at.clock.advance(ANOTHER_AFTER);
        let next = rest.remove(0);
        assert_eq!(next.is_told(), Ok(()), "with {} that hang", begun.len());
        begun.push(next);
    }
    at.clock.advance(ANOTHER_AFTER);
    at.clock.advance(STAGE_WAIT);
    assert!(rest.iter().all(|call| call.is_told() == Err(Errno::ROFS)));
    assert_eq!(at.gate.carrying(), CARRIERS_MAX);
    begun.into_iter().for_each(|call| _ = call.ends.send(()));
    eventually("the others end", || at.gate.waiting() == 0);
}
