//! Permits in flight, counted where threads do not meet: each thread has a lane, and few threads share one.
//!
//! # Promises
//!
//! [`Lanes::in_flight`] counts no fewer than were in flight at one moment while it ran; so when it says 0, what had begun before has
//! ended. *Why:* it adds up the ends of all lanes first, then the beginnings. Whatever had begun by the moment between is among the
//! beginnings; and of whatever is among the ends the beginning is too, since it came before. (The other way round an operation that
//! begins and ends in between would hide one that goes on.) An operation ends in the lane that it began in, but nothing rests on that.
//!
//! # Does not know
//!
//! What the operations are, and whether more may begin: [`super::permits`] has that argument.

use std::cell::Cell;

use treelease_client::words::time::{BootTime, from_word, to_word};

use super::Op;
use crate::sync::{Arc, AtomicU64, AtomicUsize, Ordering};

/// More than the threads that serve one mount on an ordinary machine; each costs the gate half a KiB.
const LANES: usize = 8;

/// All lanes of one gate.
pub(super) struct Lanes<G>([Arc<Lane<G>>; LANES]);

/// A few threads' operations. In a cache line of its own, and so is the count of those who know it.
#[repr(align(128))]
pub(super) struct Lane<G> {
    /// By kind: calls, page-cache writes.
    begun: [AtomicU64; 2],
    ended: [AtomicU64; 2],
    /// The elapsed time of the last mutation as a word, plus one; 0: there was none.
    mutated: AtomicU64,
    pub gate: Arc<G>,
}

fn kind(op: Op) -> usize {
    usize::from(op.page_cache())
}

/// This thread's lane in every gate.
#[inline]
fn mine() -> usize {
    const NONE: usize = usize::MAX;
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(NONE) };
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    MINE.with(|mine| {
        if mine.get() == NONE {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % LANES);
        }
        mine.get()
    })
}

impl<G> Lanes<G> {
    pub fn new(gate: &Arc<G>) -> Self {
        let lane = |_| {
            let [begun, ended] = [(); 2].map(|()| [AtomicU64::new(0), AtomicU64::new(0)]);
            Arc::new(Lane { begun, ended, mutated: AtomicU64::new(0), gate: gate.clone() })
        };
        Lanes(std::array::from_fn(lane))
    }

    #[inline]
    pub fn mine(&self) -> &Arc<Lane<G>> {
        &self.0[mine()]
    }

    /// See the module's header.
    pub fn in_flight(&self, with_pages: bool) -> usize {
        let sum = |of: fn(&Lane<G>) -> &[AtomicU64; 2]| {
            let kinds = if with_pages { 2 } else { 1 };
            self.0.iter().flat_map(|lane| &of(lane)[..kinds]).map(|n| n.load(Ordering::SeqCst)).sum::<u64>()
        };
        let ended = sum(|lane| &lane.ended);
        let begun = sum(|lane| &lane.begun);
        begun.saturating_sub(ended) as usize
    }

    /// How many have begun.
    pub fn begun(&self) -> u64 {
        self.0.iter().flat_map(|lane| &lane.begun).map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// When the last mutation ended, on the elapsed-time clock; of suspend it says nothing.
    pub fn mutated(&self) -> Option<BootTime> {
        let last = self.0.iter().map(|lane| lane.mutated.load(Ordering::Relaxed)).max()?;
        last.checked_sub(1).map(|word| BootTime { elapsed: from_word(word), ..BootTime::default() })
    }
}

impl<G> Lane<G> {
    #[inline]
    pub fn begin(&self, op: Op) {
        self.begun[kind(op)].fetch_add(1, Ordering::SeqCst);
    }

    #[inline]
    pub fn end(&self, op: Op) {
        self.ended[kind(op)].fetch_add(1, Ordering::SeqCst);
    }

    /// A mutation ended at that time. Of two threads in one lane the earlier one may be noted last: by that time nothing is decided that
    /// must be right.
    #[inline]
    pub fn mutated(&self, at: BootTime) {
        let word = to_word(at.elapsed) + 1;
        if self.mutated.load(Ordering::Relaxed) < word {
            self.mutated.store(word, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_began_here_and_ended_there_is_in_flight_no_more() {
        let lanes = Lanes::new(&Arc::new(()));
        lanes.0[1].begin(Op::Write);
        lanes.0[2].begin(Op::PageWrite);
        assert_eq!((lanes.in_flight(true), lanes.in_flight(false), lanes.begun()), (2, 1, 2));
        lanes.0[5].end(Op::Write);
        assert_eq!((lanes.in_flight(true), lanes.in_flight(false)), (1, 0));
        lanes.0[2].end(Op::PageWrite);
        assert_eq!((lanes.in_flight(true), lanes.begun()), (0, 2));
    }

    #[test]
    fn while_others_come_and_go_one_that_stays_is_always_counted() {
        let lanes = Lanes::new(&Arc::new(()));
        let over = crate::sync::AtomicBool::new(false);
        lanes.0[7].begin(Op::Write);
        std::thread::scope(|threads| {
            for n in 0..3 {
                let (lanes, over) = (&lanes, &over);
                threads.spawn(move || {
                    let mut at = n;
                    while !over.load(Ordering::SeqCst) {
                        // From lane to lane, as permits that another thread finishes.
                        lanes.0[at % LANES].begin(Op::Write);
                        at += 3;
                        lanes.0[at % LANES].end(Op::Write);
                    }
                });
            }
            let least = (0..20_000).map(|_| lanes.in_flight(true)).min();
            over.store(true, Ordering::SeqCst);
            assert!(least >= Some(1), "{least:?}");
        });
        assert_eq!(lanes.in_flight(true), 1);
    }

    #[test]
    fn the_last_mutation_is_the_last_of_all_lanes() {
        let lanes = Lanes::new(&Arc::new(()));
        assert_eq!(lanes.mutated(), None);
        let at = |s| BootTime::default().after(Duration::from_secs(s));
        lanes.0[3].mutated(at(0));
        assert_eq!(lanes.mutated(), Some(at(0)));
        lanes.0[1].mutated(at(9));
        lanes.0[1].mutated(at(8));
        lanes.0[2].mutated(at(7));
        assert_eq!(lanes.mutated(), Some(at(9)));
    }
}
