//! The network between sides and nodes: it loses, delays, repeats and overtakes, and is cut one way or both.

use std::time::Duration;

use super::plan::{Plan, Weather};
use super::rng::Rng;

/// What a side's way to the nodes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To all.
    Open,
    /// To none.
    Cut,
    /// Requests arrive, answers do not.
    NoAnswers,
    /// Requests do not arrive; what was asked before is answered.
    NoRequests,
    /// To this node alone.
    Only(usize),
    /// To all, but every answer takes very long.
    LateAnswers,
}

/// The network.
#[derive(Debug)]
pub struct Net {
    weather: Weather,
    ttl: Duration,
    /// Of each side.
    pub ways: Vec<Way>,
}

impl Net {
    /// Whole.
    pub fn new(plan: &Plan) -> Self {
        Self { weather: plan.weather, ttl: plan.ttl.get(), ways: vec![Way::Open; plan.sides] }
    }

    /// It is whole and calm from now on.
    pub fn heal(&mut self) {
        self.weather = Weather::Calm;
        self.ways.fill(Way::Open);
    }

    /// The delays after which a request of that side reaches that node; none: it is lost.
    pub fn there(&self, side: usize, node: usize, rng: &mut Rng) -> Vec<Duration> {
        match self.ways[side] {
            Way::Cut | Way::NoRequests => Vec::new(),
            Way::Only(only) if only != node => Vec::new(),
            Way::Open | Way::NoAnswers | Way::Only(_) | Way::LateAnswers => self.delays(rng),
        }
    }

    /// The same for an answer.
    pub fn back(&self, side: usize, node: usize, rng: &mut Rng) -> Vec<Duration> {
        match self.ways[side] {
            Way::Cut | Way::NoAnswers => Vec::new(),
            Way::Only(only) if only != node => Vec::new(),
            Way::LateAnswers => vec![rng.between(self.ttl / 8, self.ttl / 2)],
            Way::Open | Way::NoRequests | Way::Only(_) => self.delays(rng),
        }
    }

    fn delays(&self, rng: &mut Rng) -> Vec<Duration> {
        match self.weather {
            Weather::Calm => vec![rng.ms(1, 20)],
            Weather::Slow if rng.chance(8) => vec![rng.between(Duration::from_millis(100), self.ttl)],
            Weather::Slow => vec![rng.ms(5, 300)],
            Weather::Lossy if rng.chance(15) => Vec::new(),
            Weather::Lossy if rng.chance(8) => vec![rng.ms(1, 100), rng.ms(1, 3_000)],
            Weather::Lossy => vec![rng.ms(1, 100)],
        }
    }
}
