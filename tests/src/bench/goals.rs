//! What each row of the guard's tables is to reach, and what to say of it. Pure.
//!
//! The numbers are those that the guard was built towards, measured once with a prototype on another machine (nested
//! virtualisation, a slower disk below): a ratio to a bare directory says as much about the bare directory. So beside it stands
//! what no machine changes: requests, and whether anything is slower than through bindfs.

use super::requests::Counts;
use super::stats::{Samples, three_digits};

/// For how much of a workload its requests are counted, and how many there may be for each.
#[derive(Debug, Clone, Copy)]
pub struct Requests {
    /// At most so many.
    pub most: f64,
    /// For each of what.
    pub per: &'static str,
    /// How many of them one measurement has.
    pub of: usize,
}

/// The goals of one workload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Goal {
    /// So many times the bare directory's time at most.
    pub bare: Option<f64>,
    /// Requests.
    pub requests: Option<Requests>,
}

impl Goal {
    /// The time's cell: the goal, and `met`, `behind`, or `at it` where the goal lies between the best and the worst round.
    pub fn of_time(&self, to_bare: &Samples, to_bindfs: Option<&Samples>) -> String {
        let mut said: Vec<String> = self.bare.iter().map(|goal| judged(*goal, to_bare)).collect();
        if to_bindfs.is_some_and(|ratio| ratio.median() > 1.0) {
            said.push("behind bindfs".into());
        }
        said.join("; ")
    }

    /// The requests' cell.
    pub fn of_requests(&self, counts: &Counts) -> String {
        let Some(Requests { most, per, of }) = self.requests else { return String::new() };
        let each = counts.total() as f64 / of.max(1) as f64;
        // Opening and closing the file is not what is counted.
        let word = if each <= most * 1.005 { "met" } else { "**behind**" };
        format!("{} per {per}, at most {}: {word}", three_digits(each), plain(most))
    }
}

fn judged(goal: f64, ratio: &Samples) -> String {
    let (low, high) = ratio.ends();
    let word = match ratio.median() {
        median if median <= goal => "met",
        _ if low <= goal && goal <= high => "at it",
        _ => "**behind**",
    };
    format!("{}: {word}", plain(goal))
}

/// A goal as it was written down.
fn plain(goal: f64) -> String {
    format!("{goal}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_by_the_median_missed_beyond_every_round_and_in_between_said_to_be_at_hand() {
        let goal = Goal { bare: Some(1.3), requests: None };
        let said = |rounds: [f64; 3]| goal.of_time(&Samples::of(rounds), None);
        assert_eq!(said([1.2, 1.3, 9.0]), "1.3: met");
        assert_eq!(said([1.2, 1.4, 1.5]), "1.3: at it");
        assert_eq!(said([1.4, 1.4, 1.5]), "1.3: **behind**");
        let slower = Samples::of([0.9, 1.1, 1.2]);
        assert_eq!(goal.of_time(&Samples::of([1.0]), Some(&slower)), "1.3: met; behind bindfs");
        assert_eq!(Goal::default().of_time(&Samples::of([1.0]), Some(&Samples::of([0.5]))), "");
    }

    #[test]
    fn requests_are_judged_per_piece_and_an_open_more_is_no_miss() {
        let trace = "x: fuse_request_send: connection 1 req 2 opcode 16 (FUSE_WRITE) len 48\n".repeat(401);
        let counts = Counts::parse(&trace);
        let goal = |of| Goal { bare: None, requests: Some(Requests { most: 1.0, per: "write", of }) };
        assert_eq!(goal(400).of_requests(&counts), "1.00 per write, at most 1: met");
        assert_eq!(goal(100).of_requests(&counts), "4.01 per write, at most 1: **behind**");
        assert_eq!(Goal::default().of_requests(&counts), "");
    }
}
