//! Operations that wait: granted, refused, too late, too many; and never across another side's turn.

use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::policy::OnClose;

use super::super::carriers::CARRIERS;
use super::super::waiters::{ASK_AGAIN, FIRST_WRITE_WAIT, MAX_WAITING, REFUSED_FOR};
use super::super::{Admission, Gate, Op, Opened, Outcome, Right, Standing, Turn};
use super::{Stand, eventually, stand, standing, write_for};
use crate::sync::Ordering;

fn free() -> Standing {
    Standing { may_wait: true, free: true, ..standing(Right::Read) }
}

fn park(gate: &Gate, handle: Option<Opened>) -> mpsc::Receiver<Result<(), Errno>> {
    let (tell, told) = mpsc::channel();
    gate.park(
        Op::Write,
        handle,
        10,
        Box::new(move |turn| {
            let _ = tell.send(match turn {
                Turn::Go(_permit) => Ok(()),
                Turn::No(why) => Err(why),
            });
        }),
    );
    told
}

fn opening(at: &Stand, epoch: u64, run_start: u64) -> Outcome {
    let (epoch, start) = (Epoch::from_raw(epoch), Epoch::from_raw(run_start));
    let until = at.gate.now().after(Duration::from_secs(100));
    at.gate.publish(Standing { serial: 2, epoch, stale_below: start, ..standing(Right::Opening { until }) });
    Outcome::Granted { run_start: RunStart(start), epoch }
}

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn many_waiting_operations_ask_once_and_are_carried_out_when_the_lease_comes() {
    let at = stand(free());
    let waiting: Vec<_> = (0..20).map(|_| park(&at.gate, None)).collect();
    assert_eq!(at.ears.wanted.load(Ordering::SeqCst), 1);
    assert_eq!(at.gate.waiting(), 20);
    let granted = opening(&at, 8, 8);
    at.gate.answer(granted);
    for told in waiting {
        assert_eq!(told.recv_timeout(LIMIT), Ok(Ok(())));
    }
    eventually("all carried out", || at.gate.waiting() == 0);
}

#[test]
fn who_waits_at_rest_asks_again_since_a_word_may_be_lost() {
    let at = stand(standing(Right::Read));
    let until = at.gate.now().after(Duration::from_secs(1_000_000));
    at.gate.publish(standing(Right::Resting { until }));
    let told = park(&at.gate, None);
    let wanted = || at.ears.wanted.load(Ordering::SeqCst);
    assert_eq!(wanted(), 1);
    for times in 2..4 {
        eventually("it is asked again", || {
            at.clock.advance(ASK_AGAIN);
            wanted() >= times
        });
    }
    at.gate.publish(standing(write_for(1_000_000, at.gate.now())));
    assert_eq!(told.recv_timeout(LIMIT), Ok(Ok(())));
}

#[test]
fn an_operation_is_refused_if_another_side_had_a_turn_while_it_waited() {
    let at = stand(free());
    let told = park(&at.gate, None);
    // It came under epoch 7; 8 was another's, 9 is ours.
    let granted = opening(&at, 9, 9);
    at.gate.answer(granted);
    assert_eq!(told.recv_timeout(LIMIT), Ok(Err(Errno::ROFS)));
}

#[test]
fn a_write_through_a_handle_that_became_stale_while_it_waited_is_stale() {
    let at = stand(free());
    let told = park(&at.gate, Some(Opened { epoch: Epoch::from_raw(6) }));
    let granted = opening(&at, 8, 8);
    at.gate.answer(granted);
    assert_eq!(told.recv_timeout(LIMIT), Ok(Err(Errno::STALE)));
}

#[test]
fn after_a_refused_wait_others_are_refused_at_once_until_the_standing_changes_or_time_passes() {
    let at = stand(free());
    let told = park(&at.gate, None);
    at.gate.answer(Outcome::Refused);
    assert_eq!(told.recv_timeout(LIMIT), Ok(Err(Errno::ROFS)));
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Refuse(Errno::ROFS)));
    at.clock.advance(REFUSED_FOR);
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Wait));
    at.gate.answer(Outcome::Refused);
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Wait), "nobody waited: nobody was refused");
    let told = park(&at.gate, None);
    at.gate.answer(Outcome::Refused);
    assert!(told.recv_timeout(LIMIT).unwrap().is_err());
    at.gate.publish(Standing { serial: 3, ..free() });
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Wait));
}

#[test]
fn a_first_write_waits_two_seconds_and_no_longer() {
    let at = stand(free());
    let told = park(&at.gate, None);
    at.clock.advance(FIRST_WRITE_WAIT - Duration::from_millis(1));
    assert!(told.recv_timeout(Duration::from_millis(150)).is_err(), "not yet");
    at.clock.advance(Duration::from_millis(1));
    assert_eq!(told.recv_timeout(LIMIT), Ok(Err(Errno::ROFS)));
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Refuse(Errno::ROFS)));
}

#[test]
fn a_mapped_page_that_waited_and_is_refused_is_counted_as_one() {
    let at = stand(standing(Right::Read));
    let until = at.gate.now().after(Duration::from_secs(100));
    at.gate.publish(standing(Right::Resting { until }));
    let waits = |op| at.gate.park(op, None, 10, Box::new(|_| ()));
    waits(Op::PageWrite);
    waits(Op::Write);
    at.gate.answer(Outcome::Refused);
    assert_eq!((at.gate.counts().refused, at.gate.counts().pages_refused), (2, 1));
}

#[test]
fn one_more_than_may_wait_is_refused_at_once() {
    let at = stand(free());
    let waiting: Vec<_> = (0..MAX_WAITING).map(|_| park(&at.gate, None)).collect();
    assert_eq!(park(&at.gate, None).try_recv(), Ok(Err(Errno::ROFS)));
    at.gate.answer(Outcome::Refused);
    for told in waiting {
        assert_eq!(told.recv_timeout(LIMIT), Ok(Err(Errno::ROFS)));
    }
}

#[test]
fn a_call_that_met_a_closing_gate_goes_on_when_the_handoff_fails() {
    let at = stand(free());
    let until = at.gate.now().after(Duration::from_secs(100));
    let closing = Standing { serial: 4, on_close: OnClose::Wait, ..standing(Right::Closing { until }) };
    at.gate.publish(closing);
    let told = park(&at.gate, None);
    assert!(told.try_recv().is_err());
    assert_eq!(at.ears.wanted.load(Ordering::SeqCst), 0, "the lease is here: nobody asks for it");
    at.gate.publish(Standing { serial: 5, ..standing(write_for(100, at.gate.now())) });
    assert_eq!(told.recv_timeout(LIMIT), Ok(Ok(())));
}

#[test]
fn an_operation_that_parks_after_the_gate_has_opened_goes_on_at_once() {
    let at = stand(free());
    assert!(matches!(at.gate.admit(Op::Write, None), Admission::Wait));
    at.gate.publish(standing(write_for(100, at.gate.now())));
    assert_eq!(park(&at.gate, None).try_recv(), Ok(Ok(())));
}

#[test]
fn what_was_let_go_and_finds_the_tree_at_rest_waits_on_and_is_not_refused() {
    const ROW: usize = 6;
    let at = stand(free());
    let until = at.gate.now().after(Duration::from_secs(100));
    let waiting: Vec<_> = (0..ROW)
        .map(|_| {
            let (tell, told) = mpsc::channel();
            let gate = at.gate.clone();
            let job = move |turn| {
                let said = match turn {
                    Turn::Go(_permit) => Ok(()),
                    Turn::No(why) => Err(why),
                };
                // The storage is slow: meanwhile the tree comes to rest, and the next of the row finds it so.
                if gate.standing().serial < 3 {
                    gate.publish(Standing { serial: 3, ..standing(Right::Resting { until }) });
                }
                let _ = tell.send(said);
            };
            at.gate.park(Op::Write, None, 10, Box::new(job));
            told
        })
        .collect();
    let granted = opening(&at, 8, 8);
    at.gate.answer(granted);
    // Each carrier has ended one at most before the tree was at rest.
    eventually("the first of them asks that the tree wakes", || at.ears.wanted.load(Ordering::SeqCst) == 2);
    eventually("nobody is let through any more", || at.gate.in_flight() == 0 && at.gate.carrying() == 0);
    assert!((ROW - CARRIERS..ROW).contains(&at.gate.waiting()), "{} wait", at.gate.waiting());
    at.gate.publish(Standing { serial: 4, ..standing(write_for(100, at.gate.now())) });
    for told in waiting {
        assert_eq!(told.recv_timeout(LIMIT), Ok(Ok(())));
    }
}
