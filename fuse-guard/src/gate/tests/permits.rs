//! Permits: what was admitted before a close has ended before the drain says so; late writes.

use std::sync::Barrier;
use std::time::Duration;

use rustix::io::Errno;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;

use super::super::waiters::ASK_AGAIN;
use super::super::{Admission, Op, Opened, Right, Standing};
use super::{Stand, stand, standing, write_for};
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering};

#[test]
fn after_a_close_and_a_drain_nothing_admitted_before_is_in_flight() {
    // The race of the argument in `permits`: writers against a closer, many times.
    for round in 0..300 {
        let at = stand(standing(Right::Read));
        at.gate.publish(standing(write_for(100, at.gate.now())));
        let (working, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let start = Arc::new(Barrier::new(4));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (gate, working, closed, start) = (at.gate.clone(), working.clone(), closed.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    for _ in 0..50 {
                        match gate.admit(Op::Write, None) {
                            Admission::Permit(permit) => {
                                working.fetch_add(1, Ordering::SeqCst);
                                assert!(!closed.load(Ordering::SeqCst), "admitted after the drain");
                                working.fetch_sub(1, Ordering::SeqCst);
                                permit.finish(gate.now()).unwrap();
                            }
                            Admission::Refuse(why) => assert_eq!(why, Errno::ROFS),
                            Admission::Wait => panic!("nothing may wait here"),
                        }
                    }
                })
            })
            .collect();
        start.wait();
        for _ in 0..round % 40 {
            std::thread::yield_now();
        }
        at.gate.publish(standing(Right::Read));
        assert!(at.gate.drain(Duration::from_secs(5)));
        assert_eq!(working.load(Ordering::SeqCst), 0);
        closed.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
    }
}

#[test]
fn an_operation_that_read_the_standing_before_a_close_and_is_counted_after_its_drain_is_refused() {
    let at = stand(standing(Right::Read));
    at.gate.publish(standing(write_for(100, at.gate.now())));
    // Just between its look at the standing and its count the gate is closed, and drained: nothing is in flight.
    let drained = std::cell::Cell::new(None);
    let admission = at.gate.admit_under(Op::Write, None, |read| {
        if drained.get().is_none() {
            at.gate.publish(standing(Right::Read));
            drained.set(Some(at.gate.drain(Duration::ZERO)));
        }
        read
    });
    assert_eq!(drained.get(), Some(true));
    assert!(matches!(admission, Admission::Refuse(Errno::ROFS)));
    assert_eq!((at.gate.in_flight(), at.gate.counts().admitted), (0, 0), "and is counted no more");
}

#[test]
fn a_drain_does_not_wait_for_pages_in_stage_one_and_does_in_stage_two() {
    let at = stand(standing(Right::Read));
    at.gate.publish(standing(write_for(100, at.gate.now())));
    let Admission::Permit(page) = at.gate.admit(Op::PageWrite, None) else { panic!("refused") };
    at.gate.publish(standing(Right::Closing { until: at.gate.now().after(Duration::from_secs(100)) }));
    assert!(at.gate.drain(Duration::ZERO));
    at.gate.publish(standing(Right::Read));
    assert!(!at.gate.drain(Duration::ZERO));
    drop(page);
    assert!(at.gate.drain(Duration::ZERO));
}

#[test]
fn a_system_call_that_ends_after_the_deadline_is_late() {
    let at = stand(standing(Right::Read));
    at.gate.publish(standing(write_for(10, at.gate.now())));
    let permit = |op| match at.gate.admit(op, None) {
        Admission::Permit(permit) => permit,
        _ => panic!("refused"),
    };
    let (write, last, open, fsync) = (permit(Op::Write), permit(Op::Write), permit(Op::OpenWrite), permit(Op::Fsync));
    assert_eq!(permit(Op::Write).finish(at.gate.now()), Ok(()));
    at.clock.advance(Duration::from_secs(10));
    assert_eq!(last.finish(at.gate.now()), Ok(()), "at the deadline itself it is not after it");
    at.clock.advance(Duration::from_secs(2));
    assert_eq!(write.finish(at.gate.now()), Err(Duration::from_secs(2)));
    assert_eq!(open.finish(at.gate.now()), Ok(()), "an open has changed nothing");
    assert_eq!(fsync.finish(at.gate.now()), Ok(()));
    assert_eq!(at.gate.counts().late, 1);
}

#[test]
fn stale_below_never_goes_back() {
    let at = stand(standing(Right::Read));
    let right = write_for(100, at.gate.now());
    at.gate.publish(Standing { stale_below: Epoch::from_raw(9), ..standing(right) });
    at.gate.publish(Standing { stale_below: Epoch::ZERO, ..standing(right) });
    assert_eq!(at.gate.standing().stale_below, Epoch::from_raw(9));
    let old = Some(Opened { epoch: Epoch::from_raw(8) });
    assert!(matches!(at.gate.admit(Op::Write, old), Admission::Refuse(Errno::STALE)));
}

#[test]
fn observe_lets_through_and_counts_what_it_would_have_refused() {
    let at = stand(Standing { mode: Mode::Observe, ..standing(Right::Read) });
    let Admission::Permit(permit) = at.gate.admit(Op::Mkdir, None) else { panic!("refused") };
    assert_eq!(permit.would_refuse(), Some(Errno::ROFS));
    assert_eq!((at.gate.counts().would_refuse, at.gate.counts().refused), (1, 0));
}

#[test]
fn observe_counts_no_handle_as_stale_that_was_opened_before_the_own_grant_which_it_would_have_waited_for() {
    let at = stand(standing(Right::Read));
    let (right, stale_below) = (write_for(100, at.gate.now()), Epoch::from_raw(9));
    at.gate.publish(Standing { mode: Mode::Observe, epoch: stale_below, stale_below, ..standing(right) });
    let would_refuse = |epoch| match at.gate.admit(Op::Write, Some(Opened { epoch: Epoch::from_raw(epoch) })) {
        Admission::Permit(permit) => permit.would_refuse(),
        _ => panic!("refused"),
    };
    assert_eq!([9, 8, 7].map(would_refuse), [None, None, Some(Errno::STALE)]);
}

#[test]
fn observe_wants_the_lease_where_enforce_would_have_waited_and_counts_that_only_while_another_side_holds_the_tree() {
    let waits = |free| Standing { mode: Mode::Observe, may_wait: true, free, ..standing(Right::Read) };
    let at = stand(waits(true));
    let would_refuse = |at: &Stand| match at.gate.admit(Op::Mkdir, None) {
        Admission::Permit(permit) => permit.would_refuse(),
        _ => panic!("refused"),
    };
    let wanted = |at: &Stand| at.ears.wanted.load(Ordering::SeqCst);
    assert_eq!((would_refuse(&at), wanted(&at)), (None, 1), "it would have waited, and been granted");
    assert_eq!((would_refuse(&at), wanted(&at)), (None, 1), "not said with every write");
    at.clock.advance(ASK_AGAIN);
    at.gate.publish(waits(false));
    assert_eq!((would_refuse(&at), wanted(&at)), (Some(Errno::ROFS), 2));
    let right = write_for(100, at.gate.now());
    at.gate.publish(Standing { mode: Mode::Observe, ..standing(right) });
    assert_eq!((would_refuse(&at), wanted(&at)), (None, 2), "the holder");
    assert_eq!((at.gate.counts().would_refuse, at.gate.counts().refused, at.gate.waiting()), (1, 0, 0));
}
