//! What is to happen when, and what came of it: for both simulated worlds.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

/// When, the how many-th, and what: boxed, since a heap moves its entries about.
pub struct Scheduled<What>(pub Duration, pub u64, pub Box<What>);

impl<What> PartialEq for Scheduled<What> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<What> Eq for Scheduled<What> {}
impl<What> PartialOrd for Scheduled<What> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<What> Ord for Scheduled<What> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The property that does not hold, and when.
    pub broken: Option<(Duration, String)>,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// A line for each event, if asked for.
    pub trace: Vec<String>,
}
