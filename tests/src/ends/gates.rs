//! Were ever two gates open at once? Judged from when each side's writes succeeded, on one clock. Pure.
//!
//! # What is exact
//!
//! A write that succeeded was admitted at some moment between its start and its end. Two writes that succeeded under one epoch
//! enclose a time in which nobody else held the tree: from the end of the first one to the start of the last one at the latest. So:
//!
//! - another side's write that began and ended within that time was admitted by a second open gate ([`judge`], *within*);
//! - a write under an epoch that began after a write under a higher epoch had ended came too late (*after*);
//! - a write under an epoch that the servers granted to somebody else, or to nobody, was not its own (*whose*).
//!
//! Writes that only overlap prove nothing, since the moment of admission is not known more exactly; they are no finding. What is
//! called a finding is one, however the processes were scheduled.
//!
//! The epoch of a write is what the guard's own `.treelease/status.json` says as `mine`, before and after it; where these two
//! differ the write has none, and only the first rule judges it.

use std::collections::BTreeMap;

/// One write that succeeded, in nanoseconds of CLOCK_MONOTONIC_RAW.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// Which side wrote.
    pub side: usize,
    /// Before the system call.
    pub start: u64,
    /// After it.
    pub end: u64,
    /// Under which epoch, where that is sure.
    pub epoch: Option<u64>,
}

impl Success {
    /// As a scribe notes it: start, end, epoch or `-`.
    pub fn parse(side: usize, line: &str) -> Option<Success> {
        let mut words = line.split(' ');
        let (start, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let epoch = match words.next()? {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Success { side, start, end, epoch })
    }
}

/// A time in which an epoch surely stood, and where its writes began and ended at the extremes.
#[derive(Debug, Clone, Copy)]
struct Turn {
    side: usize,
    first_end: u64,
    last_start: u64,
}

/// What is wrong with these writes, given which side was granted which epoch. Empty: nothing.
pub fn judge(writes: &[Success], granted: &BTreeMap<u64, usize>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut turns: BTreeMap<(u64, usize), Turn> = BTreeMap::new();
    for write in writes {
        let Some(epoch) = write.epoch else { continue };
        let turn =
            turns.entry((epoch, write.side)).or_insert(Turn { side: write.side, first_end: write.end, last_start: write.start });
        turn.first_end = turn.first_end.min(write.end);
        turn.last_start = turn.last_start.max(write.start);
    }
    for (epoch, side) in turns.keys() {
        if granted.get(epoch) != Some(side) {
            findings.push(format!("whose: side {side} wrote under epoch {epoch}, granted to {:?}", granted.get(epoch)));
        }
    }
    for write in writes {
        let within = |turn: &Turn| turn.side != write.side && turn.first_end <= write.start && write.end <= turn.last_start;
        if let Some(((epoch, side), turn)) = turns.iter().find(|(_, turn)| within(turn)) {
            findings.push(format!("within: {write:?} lies in the turn of side {side} under epoch {epoch}: {turn:?}"));
        }
    }
    let mut higher: Option<(u64, Turn)> = None;
    for ((epoch, side), turn) in turns.iter().rev() {
        if let Some((above, first)) = higher.filter(|(above, first)| above > epoch && turn.last_start >= first.first_end) {
            findings.push(format!("after: side {side} wrote under epoch {epoch} ({turn:?}) after epoch {above} ({first:?})"));
        }
        if higher.is_none_or(|(_, first)| turn.first_end < first.first_end) {
            higher = Some((*epoch, *turn));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(side: usize, start: u64, end: u64, epoch: u64) -> Success {
        Success { side, start, end, epoch: (epoch > 0).then_some(epoch) }
    }

    fn kinds(writes: &[Success], granted: &[(u64, usize)]) -> Vec<String> {
        let found = judge(writes, &granted.iter().copied().collect());
        found.iter().filter_map(|f| f.split(':').next().map(str::to_owned)).collect()
    }

    const GRANTED: [(u64, usize); 3] = [(1, 0), (2, 1), (3, 0)];

    #[test]
    fn turns_one_after_the_other_are_fine_also_where_answers_came_late() {
        let writes = [write(0, 0, 10, 1), write(0, 20, 100, 1), write(1, 60, 70, 2), write(1, 80, 120, 2), write(0, 110, 130, 3)];
        assert!(kinds(&writes, &GRANTED).is_empty());
    }

    #[test]
    fn a_write_within_anothers_turn_is_found_whatever_epoch_it_claims() {
        for epoch in [0, 1, 3] {
            let writes = [write(1, 10, 20, 2), write(0, 30, 40, epoch), write(1, 50, 60, 2)];
            assert!(kinds(&writes, &GRANTED).contains(&"within".to_owned()), "{epoch}");
        }
        // The control: it only touches the turn.
        for (start, end) in [(15, 40), (30, 55)] {
            assert!(kinds(&[write(1, 10, 20, 2), write(0, start, end, 0), write(1, 50, 60, 2)], &GRANTED).is_empty());
        }
    }

    #[test]
    fn a_write_of_an_earlier_epoch_after_one_of_a_later_is_found_also_when_each_is_a_single_one() {
        assert_eq!(kinds(&[write(1, 10, 20, 2), write(0, 20, 40, 1)], &GRANTED), ["after"]);
        assert!(kinds(&[write(1, 10, 20, 2), write(0, 19, 40, 1)], &GRANTED).is_empty());
        // With an epoch between them.
        assert_eq!(kinds(&[write(1, 50, 55, 2), write(0, 10, 20, 3)], &GRANTED), ["after"]);
    }

    #[test]
    fn a_write_under_an_epoch_of_somebody_else_is_found() {
        assert_eq!(kinds(&[write(0, 0, 1, 2)], &GRANTED), ["whose"]);
        assert_eq!(kinds(&[write(0, 0, 1, 9)], &GRANTED), ["whose"]);
    }
}
