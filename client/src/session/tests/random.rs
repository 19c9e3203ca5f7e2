//! I4 against a world: whatever is delayed, lost, reordered or broken, and however the clocks drift within the drift term, the
//! right to write ends before anybody else may be granted.
//!
//! The world keeps real time; side and server each have a clock of their own rate. The server does what I3 and I5 say and
//! nothing more. The control counts from an answer's arrival, the usual mistake: the same histories must catch it.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// The world moves in steps of so many real milliseconds.
const STEP: u64 = 50;
const STEPS: usize = 1_200;
const SHORT: Ttl = Ttl::new(Duration::from_secs(4));

#[derive(Debug, Clone)]
struct World {
    /// Rates of the clocks, in parts of ten thousand; two of them differ by less than 1 %.
    side_rate: u64,
    server_rate: u64,
    /// For each renewal in turn: steps there, steps back; `None`: lost.
    ways: Vec<(Option<u8>, Option<u8>)>,
    /// When an operator breaks the lease; when the side is granted it anew is the server's decision.
    break_at: usize,
}

fn world() -> impl Strategy<Value = World> {
    // Most ways are short; some take longer than a TTL.
    let way = prop_oneof![4 => (0u8..4).prop_map(Some), 2 => (0u8..120).prop_map(Some), 1 => Just(None)];
    (9_955u64..=10_045, 9_955u64..=10_045, prop::collection::vec((way.clone(), way), 8..60), 0..2 * STEPS)
        .prop_map(|(side_rate, server_rate, ways, break_at)| World { side_rate, server_rate, ways, break_at })
}

fn clock(step: usize, rate: u64) -> BootTime {
    BootTime { elapsed: Duration::from_micros(step as u64 * STEP * rate / 10), suspended: Duration::ZERO }
}

/// Runs a history. `from_arrival`: the mistaken rule decides instead of the core. Says when a write and another's grant met.
fn run(world: &World, from_arrival: bool) -> Result<usize, String> {
    let (tree, epoch) = (TreeId::random(), Epoch::from_raw(1));
    let pair = HeldPair { tree: tree.clone(), epoch, run_start: RunStart(epoch), root: None, last_end: End::None };
    let mut core = SessionCore::new(SessionId::random(), 1, SHORT, clock(0, world.side_rate));
    let mut requests: Vec<(usize, usize, u64)> = Vec::new();
    let mut answers: Vec<(usize, Answered)> = Vec::new();
    let (mut acknowledged, mut alive, mut held) = (clock(0, world.server_rate), true, true);
    // From when on the server may grant the tree to somebody else, by its own clock.
    let mut free_from: Option<BootTime> = None;
    let (mut naive, mut ways, mut written) = (None, world.ways.iter().cycle(), 0);
    for step in 0..STEPS {
        let (here, there) = (clock(step, world.side_rate), clock(step, world.server_rate));
        while let Some(action) = core.poll_action(here) {
            if let Action::Renew(renewal) = action {
                let (to, back) = ways.next().expect("a cycle");
                if let Some(to) = to {
                    let back = back.map_or(usize::MAX, usize::from);
                    requests.push((step + usize::from(*to), back, renewal.number));
                }
            }
        }
        if step == world.break_at && held {
            held = false;
            free_from = Some(there.after(SHORT.get()));
        }
        if alive && there.since(acknowledged) >= SHORT.get() {
            alive = false;
            free_from = free_from.or(Some(there));
        }
        for (_, back, number) in requests.extract_if(.., |(at, ..)| *at == step) {
            if alive {
                acknowledged = there;
            }
            let pairs = if alive && held { vec![pair.clone()] } else { vec![] };
            let answer = Answered {
                number,
                nonce: number,
                ttl: SHORT,
                alive,
                pairs,
                server_elapsed: None,
                why_not: String::new(),
                given_up: false,
            };
            answers.push((step.saturating_add(back), answer));
        }
        for (_, answer) in answers.extract_if(.., |(at, _)| *at == step) {
            if answer.alive && !answer.pairs.is_empty() {
                naive = Some(deadline::write_until(here, SHORT));
            }
            core.handle_answer(answer, here);
        }
        let until = if from_arrival { naive } else { core.right(&tree, epoch, here) };
        let may_write = until.is_some_and(|until| here.elapsed < until.elapsed);
        written += usize::from(may_write);
        if may_write && free_from.is_some_and(|free| there.elapsed >= free.elapsed) {
            return Err(format!("step {step}: this side writes and another may be granted"));
        }
    }
    Ok(written)
}

#[test]
fn i4_whatever_happens_to_renewals_the_right_ends_before_anybody_else_is_granted() {
    let mut runner = TestRunner::new(Config { cases: 2_000, failure_persistence: None, ..Config::default() });
    let total = std::cell::Cell::new((0usize, 0usize));
    runner
        .run(&world(), |world| {
            let n = run(&world, false).map_err(TestCaseError::fail)?;
            let (sum, count) = total.get();
            total.set((sum + n, count + 1));
            Ok(())
        })
        .unwrap();
    let (written, runs) = total.get();
    assert!(written > runs * 20, "the world lets hardly anybody write: {written} steps in {runs} runs prove nothing");
}

#[test]
fn i4_control_counting_from_the_answers_arrival_is_caught() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 2_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let found = runner.run(&world(), |world| run(&world, true).map(drop).map_err(TestCaseError::fail));
    assert!(found.is_err(), "the test above proves nothing");
}
