//! Whatever happens in whatever order, the promises of the module's header hold.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Input {
    Moment { busy: bool, wrote: bool },
    Pushed,
    Drained(bool),
    Flushed(bool),
    Released(u8),
    Gone,
    Cancelled,
    Wait(u64),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(busy, wrote)| Input::Moment { busy, wrote }),
        6 => Just(Input::Pushed),
        4 => prop::bool::weighted(0.8).prop_map(Input::Drained),
        4 => prop::bool::weighted(0.8).prop_map(Input::Flushed),
        3 => (0_u8..3).prop_map(Input::Released),
        1 => Just(Input::Gone),
        1 => Just(Input::Cancelled),
        6 => prop_oneof![1_u64..300, 1000_u64..70_000].prop_map(Input::Wait),
    ]
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![
        any::<bool>().prop_map(|now| Why::Release { now }),
        any::<bool>().prop_map(|force| Why::Asked { force }),
        Just(Why::Idle),
        any::<bool>().prop_map(|force| Why::To { to: "pod".parse().unwrap(), force }),
        Just(Why::Down),
    ]
}

/// What a daemon has seen and done, told apart from the core's own state: the oracle.
#[derive(Debug, Default)]
struct Seen {
    closed_for_all: bool,
    drained: bool,
    flushed: bool,
    let_go: bool,
    done: bool,
}

/// Walks the inputs, and says which promise is broken.
fn walk(why: Why, inputs: &[Input], break_a_rule: bool) -> Result<Seen, String> {
    let mut now = 0;
    let mut seen = Seen::default();
    let mut h = Handoff::begin(why, limits(), at(0));
    for input in inputs {
        for step in steps(&mut h) {
            if seen.done {
                return Err(format!("{step:?} after it was done"));
            }
            match step {
                Step::CloseStageTwo(_) => seen.closed_for_all = true,
                Step::Flush if !seen.drained => return Err("flush before the permits ended".into()),
                Step::Release { .. } if !(seen.closed_for_all && seen.drained && seen.flushed) => {
                    return Err("release before everything was durable".into());
                }
                Step::Release { .. } | Step::Surrender { .. } => seen.let_go = true,
                Step::Reopen if seen.let_go => return Err("reopened after it was let go".into()),
                Step::Done => seen.done = true,
                _ => {}
            }
        }
        match input {
            Input::Moment { busy, wrote } => {
                let mut moment = if *busy { running("x") } else { idle_tree() };
                moment.last_mutation = wrote.then(|| at(now));
                h.handle_moment(moment, at(now));
            }
            Input::Pushed => h.handle_pushed(at(now)),
            Input::Drained(yes) => {
                seen.drained |= *yes && seen.closed_for_all || break_a_rule;
                h.handle_drained(*yes || break_a_rule, at(now));
            }
            Input::Flushed(ok) => {
                seen.flushed |= *ok && seen.drained && !break_a_rule;
                let result = if *ok || break_a_rule { Ok((1, 1)) } else { Err("EIO".into()) };
                h.handle_flushed(result, at(now));
            }
            Input::Released(n) => {
                let answered = match n {
                    0 => Answered::Done,
                    1 => Answered::Unknown,
                    _ => Answered::Refused("no".into()),
                };
                h.handle_released(answered, at(now));
            }
            Input::Gone => h.handle_gone("expired", at(now)),
            Input::Cancelled => h.handle_cancelled(at(now)),
            Input::Wait(ms) => {
                now += ms;
                h.handle_timeout(at(now));
            }
        }
        if h.outcome().is_some() && h.next_deadline().is_some() {
            return Err("over, and still a deadline".into());
        }
        if h.describe().is_empty() {
            return Err("nothing to tell to who waits".into());
        }
    }
    Ok(seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_order_of_events_breaks_a_promise(why in why(), inputs in prop::collection::vec(input(), 1..60)) {
        prop_assert_eq!(walk(why, &inputs, false).err(), None);
    }

    #[test]
    fn with_time_alone_every_handoff_comes_to_its_end_or_asks_the_server(why in why(), busy in any::<bool>()) {
        let mut h = Handoff::begin(why, limits(), at(0));
        let mut now = at(0);
        let mut asked = false;
        for _ in 0..2000 {
            for step in steps(&mut h) {
                match step {
                    Step::LookForMoment => h.handle_moment(if busy { running("x") } else { idle_tree() }, now),
                    Step::Release { .. } | Step::Surrender { .. } => asked = true,
                    _ => {}
                }
            }
            let Some(deadline) = h.next_deadline() else { break };
            now = now.max(deadline);
            h.handle_timeout(now);
        }
        prop_assert!(asked || h.outcome().is_some());
        prop_assert!(now <= at(30_000 + 5_000 + 5_000 + 60_000 + 1_000), "no longer than its limits together: {:?}", now);
    }
}

/// The positive control: a daemon that lies about the flush is caught, so the oracle looks.
#[test]
fn a_release_without_a_flush_is_caught_by_the_oracle() {
    let inputs = [Input::Pushed, Input::Pushed, Input::Drained(true), Input::Flushed(false), Input::Wait(1), Input::Wait(1)];
    let caught = walk(Why::Release { now: true }, &inputs, true);
    assert!(caught.is_err_and(|why| why.contains("durable")));
}
