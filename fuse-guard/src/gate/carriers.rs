//! Carrying out what waited, once the gate lets it go.
//!
//! # Promises
//!
//! - What was let go waits on until a carrier takes it: its limit and the deadline hold for it as for all that waits
//!   ([`super::waiters`]). So it is refused in time although every carrier hangs on a storage that does not answer.
//! - It is judged when it is taken: by the standing and the clock of that moment (I4), and by the run of its arrival (I6). *Why
//!   again:* it may have been let go by a grant that is long over, and another side have had a turn since.
//! - Where those that are there hang, further carriers come: some with each grant, and one after each [`ANOTHER_AFTER`] in which nothing
//!   was taken; never more than [`CARRIERS_MAX`].
//! - Nothing is carried out on the thread that lets it go: that one must never hang.
//!
//! # Does not know
//!
//! What hangs, and whether it ever comes back.

use std::time::Duration;

use rustix::io::Errno;

use super::permits::Gate;
use super::waiters::{Parked, Turn};
use crate::sync::{AtomicUsize, Ordering, lock};

/// Threads that begin to carry out what one grant lets go.
pub const CARRIERS: usize = 4;
/// Carriers of one gate at the same time: more than that many hang only on a storage that is gone, and each keeps its thread.
pub const CARRIERS_MAX: usize = 32;
/// So long after one was taken last, what was let go and still waits gets another carrier.
pub const ANOTHER_AFTER: Duration = Duration::from_secs(1);

/// How many there are.
#[derive(Default)]
pub(super) struct Carriers {
    threads: AtomicUsize,
    /// Operations taken and not yet answered.
    carrying: AtomicUsize,
}

/// One of a count, as long as it lives; also where a job panics.
struct One<'a>(&'a AtomicUsize);

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    /// Operations that waited and are being carried out now.
    pub fn carrying(&self) -> usize {
        self.inner.carriers.carrying.load(Ordering::SeqCst)
    }

    /// Starts so many carriers, or as many as there may be. Where no thread is to be had it is tried again ([`ANOTHER_AFTER`]).
    pub(super) fn start_carriers(&self, many: usize) {
        let threads = &self.inner.carriers.threads;
        for _ in 0..many {
            if threads.fetch_add(1, Ordering::SeqCst) >= CARRIERS_MAX {
                threads.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let gate = self.clone();
            let carrier = std::thread::Builder::new().name("gate-carrier".into()).spawn(move || {
                let _here = One(&gate.inner.carriers.threads);
                while gate.carry_one() {}
            });
            if let Err(why) = carrier {
                threads.fetch_sub(1, Ordering::SeqCst);
                tracing::error!(%why, "no thread to carry out what waited");
                return;
            }
        }
    }

    /// Takes one that was let go, and answers it. False: there is none.
    fn carry_one(&self) -> bool {
        let (parked, run_start, _carrying) = {
            let mut queue = lock(&self.inner.waiters.queue);
            let Some(parked) = queue.take_next(self.now()) else { return false };
            // Before the lock goes, so that it is always counted among those that wait.
            self.inner.carriers.carrying.fetch_add(1, Ordering::SeqCst);
            (parked, queue.run_start, One(&self.inner.carriers.carrying))
        };
        // I6: a grant later than the next one after its arrival means that a run of another side lies between. And though nobody has
        // come to refuse it, nothing begins after its limit.
        if run_start > parked.epoch.next() || parked.is_over(&self.standing(), self.now()) {
            self.refuse([parked]);
            return true;
        }
        // The tree may have come to rest, or its gate begun to close, since it was let go: then it waits on, as what it was when it
        // arrived.
        let (op, handle, arrived) = (parked.op, parked.handle, parked.epoch);
        self.enqueue(parked, |gate| gate.admit_waiter(op, handle, arrived));
        true
    }

    pub(super) fn refuse(&self, all: impl IntoIterator<Item = Parked>) {
        for parked in all {
            self.count_refused(parked.op);
            (parked.job)(Turn::No(Errno::ROFS));
        }
    }
}
