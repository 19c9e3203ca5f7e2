//! The table of DESIGN 4.

use std::time::Duration;

use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::{Mode, OnClose};
use treelease_client::words::time::BootTime;

use super::super::{Op, Opened, Right, Standing, Verdict, admit, judge};
use super::standing;

const NOW: BootTime = BootTime { elapsed: Duration::from_secs(100), suspended: Duration::ZERO };
const UNTIL: BootTime = BootTime { elapsed: Duration::from_secs(110), suspended: Duration::ZERO };
const FRESH: Option<Opened> = Some(Opened { epoch: Epoch::from_raw(5) });
const OLD: Option<Opened> = Some(Opened { epoch: Epoch::from_raw(4) });

const READS: [Op; 13] = [
    Op::Lookup,
    Op::Getattr,
    Op::Readdir,
    Op::OpenRead,
    Op::Read,
    Op::Readlink,
    Op::Statfs,
    Op::Getxattr,
    Op::Lseek,
    Op::GetFlags,
    Op::Fsync,
    Op::Flush,
    Op::Release,
];

fn rights() -> [Right; 4] {
    [Right::Read, Right::Write { until: UNTIL }, Right::Opening { until: UNTIL }, Right::Closing { until: UNTIL }]
}

fn mutations() -> impl Iterator<Item = Op> {
    Op::ALL.into_iter().filter(|op| !READS.contains(op))
}

#[test]
fn reading_and_confirming_pass_whatever_the_standing_also_through_a_stale_handle() {
    for right in rights() {
        for op in READS {
            for handle in [None, FRESH, OLD] {
                assert_eq!(admit(&standing(right), op, handle, NOW), Verdict::Admit, "{op:?} {right:?}");
            }
        }
    }
}

#[test]
fn who_does_not_hold_the_lease_is_refused_every_mutation() {
    for op in mutations() {
        assert_eq!(admit(&standing(Right::Read), op, FRESH, NOW), Verdict::ReadOnly, "{op:?}");
    }
}

#[test]
fn the_holder_may_do_everything_until_the_deadline_and_nothing_after_it() {
    let held = standing(Right::Write { until: UNTIL });
    for op in mutations() {
        assert_eq!(admit(&held, op, FRESH, NOW), Verdict::Admit, "{op:?}");
        assert_eq!(admit(&held, op, FRESH, UNTIL), Verdict::ReadOnly, "{op:?} at the deadline");
        let waits = Standing { may_wait: true, ..held };
        assert_eq!(admit(&waits, op, FRESH, UNTIL), Verdict::ReadOnly, "{op:?}: nothing waits for a server that is away");
    }
}

#[test]
fn a_suspend_ends_the_right_whatever_the_clock_says() {
    let woken = BootTime { elapsed: NOW.elapsed, suspended: Duration::from_secs(3) };
    for right in &rights()[1..] {
        for op in mutations() {
            assert_eq!(admit(&standing(*right), op, FRESH, woken), Verdict::ReadOnly, "{op:?} {right:?}");
        }
    }
}

#[test]
fn a_handle_of_an_earlier_run_is_stale_for_ever_whoever_holds_the_tree() {
    for right in rights() {
        for may_wait in [false, true] {
            let at = Standing { may_wait, free: true, ..standing(right) };
            for op in [Op::Write, Op::Fallocate, Op::CopyRange, Op::Truncate] {
                assert_eq!(admit(&at, op, OLD, NOW), Verdict::Stale, "{op:?} {right:?}");
            }
        }
    }
}

#[test]
fn a_first_write_waits_on_a_tree_that_may_be_taken() {
    let at = Standing { may_wait: true, free: true, ..standing(Right::Read) };
    for op in mutations() {
        let expected = match op {
            Op::PageWrite => Verdict::ReadOnly,
            Op::AccessWrite => Verdict::Admit,
            _ => Verdict::Wait,
        };
        assert_eq!(admit(&at, op, FRESH, NOW), expected, "{op:?}");
    }
}

#[test]
fn gits_index_lock_takes_a_free_tree_and_never_waits_on_a_held_one() {
    let free = Standing { may_wait: true, free: true, ..standing(Right::Read) };
    let held = Standing { free: false, ..free };
    assert_eq!(admit(&free, Op::IndexLock, None, NOW), Verdict::Wait);
    assert_eq!(admit(&held, Op::IndexLock, None, NOW), Verdict::ReadOnly);
    assert_eq!(admit(&held, Op::Create, None, NOW), Verdict::Wait);
    assert_eq!(admit(&held, Op::AccessWrite, None, NOW), Verdict::ReadOnly);
}

#[test]
fn while_the_gate_opens_mutations_wait_and_pages_of_this_run_go_through() {
    let opening = standing(Right::Opening { until: UNTIL });
    for op in mutations() {
        let expected = if matches!(op, Op::PageWrite | Op::AccessWrite) { Verdict::Admit } else { Verdict::Wait };
        assert_eq!(admit(&opening, op, FRESH, NOW), expected, "{op:?}");
    }
}

#[test]
fn stage_one_of_closing_admits_page_cache_writes_alone() {
    let refuse = standing(Right::Closing { until: UNTIL });
    let wait = Standing { on_close: OnClose::Wait, ..refuse };
    for op in mutations() {
        let (refused, waits) = match op {
            Op::PageWrite => (Verdict::Admit, Verdict::Admit),
            Op::AccessWrite | Op::IndexLock => (Verdict::ReadOnly, Verdict::ReadOnly),
            _ => (Verdict::ReadOnly, Verdict::Wait),
        };
        assert_eq!(admit(&refuse, op, FRESH, NOW), refused, "{op:?}");
        assert_eq!(admit(&wait, op, FRESH, NOW), waits, "{op:?}");
    }
}

#[test]
fn off_and_observe_refuse_nothing_and_observe_knows_what_it_would_have_refused() {
    for mode in [Mode::Off, Mode::Observe] {
        let at = Standing { mode, ..standing(Right::Read) };
        for op in Op::ALL {
            assert_eq!(admit(&at, op, OLD, NOW), Verdict::Admit, "{op:?} {mode:?}");
        }
        assert_eq!(judge(&at, Op::Write, OLD, NOW), Verdict::Stale);
        assert_eq!(judge(&at, Op::Mkdir, None, NOW), Verdict::ReadOnly);
    }
}
