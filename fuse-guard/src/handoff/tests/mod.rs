//! What the handoff core promises, as examples and under random inputs.

mod closing;
mod moments;
mod random;

use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::*;

fn at(ms: u64) -> BootTime {
    BootTime { elapsed: Duration::from_millis(ms), suspended: Duration::ZERO }
}

fn limits() -> Limits {
    Limits {
        quiet: Duration::from_millis(200),
        handoff_wait: Duration::from_secs(30),
        flush_limit: Duration::from_secs(60),
        drain: DRAIN_LIMIT,
    }
}

fn idle_tree() -> Moment {
    Moment::default()
}

fn written_at(ms: u64) -> Moment {
    Moment { last_mutation: Some(at(ms)), ..Moment::default() }
}

fn running(command: &str) -> Moment {
    Moment { run_holds: vec![command.into()], ..Moment::default() }
}

fn steps(h: &mut Handoff) -> Vec<Step> {
    std::iter::from_fn(|| h.poll_step()).collect()
}

/// A handoff whose gate is closed and drained, and whose flush has begun, at one second.
fn flushing(why: Why) -> Handoff {
    let mut h = Handoff::begin(why, limits(), at(0));
    h.handle_moment(idle_tree(), at(1000));
    h.handle_pushed(at(1000));
    h.handle_moment(idle_tree(), at(1000));
    h.handle_pushed(at(1000));
    h.handle_drained(true, at(1000));
    assert_eq!(steps(&mut h).last(), Some(&Step::Flush));
    h
}
