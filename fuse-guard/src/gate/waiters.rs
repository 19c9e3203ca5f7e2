//! Operations that wait for the lease: a first write on a free tree, a call that meets a closing or an opening gate.
//!
//! # Promises
//!
//! - A waiting operation occupies no thread and no lock of ours, has a limit of its own, and is answered exactly once.
//!   *Why:* it is a value in a queue; whoever takes it out of the queue, under the lock, answers it.
//! - None is forgotten between judgement and queue: [`Gate::park`] judges once more under the queue's lock, and an answer
//!   takes that lock after the standing was published.
//! - I6: an operation keeps the run of its arrival: if another side has had a turn since, it is refused.
//!
//! # Does not know
//!
//! What the operations are. The kernel may hold locks for them (of a directory, of a file): so they are answered before
//! caches are dropped.

use std::collections::VecDeque;
use std::time::Duration;

use rustix::io::Errno;
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::time::BootTime;

use super::permits::{Admission, Gate, Permit};
use super::{Op, Opened, Outcome, Right, Standing};
use crate::sync::{Arc, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, lock};

/// Operations that may wait at the same time; one more is refused at once.
pub const MAX_WAITING: usize = 1024;
/// Bytes that waiting writes may hold together; above, the next one is refused at once.
pub const MAX_WAITING_BYTES: usize = 64 << 20;
/// How long a first write waits for the lease: longer, and an editor looks dead.
pub const FIRST_WRITE_WAIT: Duration = Duration::from_secs(2);
/// How long a call waits for a gate that closes or opens. A handoff has limits of its own, all shorter in sum than this.
pub const STAGE_WAIT: Duration = Duration::from_secs(120);
/// After a refused wait, how long further operations are refused at once while the standing stays the same.
pub const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Threads that carry out the operations that waited.
pub(super) const CARRIERS: usize = 4;
/// At rest, who waits asks again so often: a word to the loop may be lost (its mailbox was full), and [`STAGE_WAIT`] is long.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long the sweeper sleeps at most before it reads the clock again.
const SWEEP: Duration = Duration::from_millis(50);

/// A waiting operation's turn.
pub enum Turn {
    /// Carry it out.
    Go(Permit),
    /// Answer with this error.
    No(Errno),
}

/// What to do when the turn comes: carry out and reply. Never called under a lock of the gate.
pub type Job = Box<dyn FnOnce(Turn) + Send>;

struct Parked {
    op: Op,
    handle: Option<Opened>,
    bytes: usize,
    /// The latest epoch known at arrival.
    epoch: Epoch,
    since: BootTime,
    limit: Duration,
    job: Job,
}

#[derive(Default)]
pub(super) struct Waiters {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Operations taken out of the queue and not yet answered.
    carrying: AtomicUsize,
    /// After a refused wait: under which serial, and when.
    refused: Mutex<Option<(u64, BootTime)>>,
    /// In `observe`: when the lease was asked for last, in milliseconds of elapsed time, plus one.
    asked: AtomicU64,
}

#[derive(Default)]
struct Queue {
    parked: VecDeque<Parked>,
    bytes: usize,
    sweeping: bool,
}

impl Queue {
    fn take_all(&mut self) -> VecDeque<Parked> {
        self.bytes = 0;
        std::mem::take(&mut self.parked)
    }
}

impl Gate {
    /// Parks an operation that may wait, or gives it its turn at once if that has changed meanwhile. `bytes`: what it holds.
    pub fn park(&self, op: Op, handle: Option<Opened>, bytes: usize, job: Job) {
        let standing = self.standing();
        let limit = if standing.right == Right::Read { FIRST_WRITE_WAIT } else { STAGE_WAIT };
        let parked = Parked { op, handle, bytes, epoch: standing.epoch, since: self.now(), limit, job };
        self.enqueue(parked, |gate| gate.admit(op, handle));
    }

    fn enqueue(&self, parked: Parked, judge: impl FnOnce(&Self) -> Admission) {
        let waiters = &self.inner.waiters;
        let mut queue = lock(&waiters.queue);
        let turn = match judge(self) {
            Admission::Permit(permit) => Turn::Go(permit),
            Admission::Refuse(errno) => Turn::No(errno),
            Admission::Wait if queue.parked.len() >= MAX_WAITING || queue.bytes + parked.bytes > MAX_WAITING_BYTES => {
                self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
                Turn::No(Errno::ROFS)
            }
            Admission::Wait => {
                let standing = self.standing();
                let first = queue.parked.is_empty();
                queue.bytes += parked.bytes;
                queue.parked.push_back(parked);
                if !queue.sweeping {
                    queue.sweeping = true;
                    let gate = self.clone();
                    let swept = std::thread::Builder::new().name("gate-sweeper".into()).spawn(move || gate.sweep());
                    if swept.is_err() {
                        // Nobody would ever refuse it: at once, rather than never.
                        queue.sweeping = false;
                        let alone = queue.parked.pop_back();
                        queue.bytes -= alone.as_ref().map_or(0, |parked| parked.bytes);
                        drop(queue);
                        return self.refuse(alone);
                    }
                }
                drop(queue);
                waiters.wake.notify_all();
                match standing.right {
                    Right::Read | Right::Resting { .. } if first => self.inner.hooks.wants_lease(),
                    // The kernel holds locks for this operation that the dropping of caches under way needs (m, DESIGN 4): it is
                    // carried out now, as those that came before. `stale_below` is the run start of the grant that opens.
                    Right::Opening { .. } => self.let_waiters_go(standing.stale_below),
                    _ => {}
                }
                return;
            }
        };
        drop(queue);
        (parked.job)(turn);
    }

    /// Nothing waits, and the lease is wanted all the same (`observe`): the loop is told so once in a while.
    pub(super) fn want_lease_lately(&self, now: BootTime) {
        let (asked, ms) = (&self.inner.waiters.asked, now.elapsed.as_millis() as u64 + 1);
        let before = asked.load(Ordering::Relaxed);
        let due = before == 0 || ms >= before + ASK_AGAIN.as_millis() as u64;
        if due && asked.compare_exchange(before, ms, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.inner.hooks.wants_lease();
        }
    }

    /// Operations that wait or are being carried out after a wait.
    pub fn waiting(&self) -> usize {
        lock(&self.inner.waiters.queue).parked.len() + self.carrying()
    }

    /// Operations that waited and are being carried out now.
    pub fn carrying(&self) -> usize {
        self.inner.waiters.carrying.load(Ordering::SeqCst)
    }

    /// Answers every operation that waits. Granted: they are carried out, on threads of their own; see [`Gate::carrying`].
    pub fn answer(&self, outcome: Outcome) {
        match outcome {
            Outcome::Granted { run_start, .. } => self.let_waiters_go(run_start.0),
            Outcome::Refused => {
                let all = lock(&self.inner.waiters.queue).take_all();
                if !all.is_empty() {
                    self.note_refused();
                }
                self.refuse(all);
            }
        }
    }

    pub(super) fn let_waiters_go(&self, run_start: Epoch) {
        let all = lock(&self.inner.waiters.queue).take_all();
        if all.is_empty() {
            return;
        }
        let threads = all.len().min(CARRIERS);
        self.inner.waiters.carrying.fetch_add(all.len(), Ordering::SeqCst);
        let row = Arc::new(Mutex::new(all));
        for n in 0..threads {
            let (gate, mine) = (self.clone(), row.clone());
            let carrier = std::thread::Builder::new().name(format!("gate-carrier-{n}"));
            if carrier.spawn(move || gate.carry(&mine, RunStart(run_start))).is_err() {
                // No thread to be had: on this one, rather than never.
                self.carry(&row, RunStart(run_start));
            }
        }
    }

    fn carry(&self, row: &Mutex<VecDeque<Parked>>, run_start: RunStart) {
        loop {
            let Some(parked) = lock(row).pop_front() else { return };
            // I6: a grant later than the next one after its arrival means that a run of another side lies between.
            if run_start.0 > parked.epoch.next() {
                self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
                (parked.job)(Turn::No(Errno::ROFS));
            } else {
                // The tree may have come to rest, or its gate begun to close, since it was let go: then it waits on, as what it
                // was when it arrived, but for a stage now.
                let (op, handle) = (parked.op, parked.handle);
                let limit = if self.standing().right == Right::Read { parked.limit } else { STAGE_WAIT };
                self.enqueue(Parked { limit, ..parked }, |gate| gate.admit_waiter(op, handle));
            }
            self.inner.waiters.carrying.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn refuse(&self, all: impl IntoIterator<Item = Parked>) {
        for parked in all {
            self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
            (parked.job)(Turn::No(Errno::ROFS));
        }
    }

    fn note_refused(&self) {
        *lock(&self.inner.waiters.refused) = Some((self.standing().serial, self.now()));
    }

    /// Whether a wait was refused under this serial a short while ago. Waiting for a stage is another matter.
    pub(super) fn refused_lately(&self, standing: &Standing) -> bool {
        standing.right == Right::Read
            && lock(&self.inner.waiters.refused)
                .is_some_and(|(serial, at)| serial == standing.serial && self.now().since(at) < REFUSED_FOR)
    }

    /// Refuses what has waited for its limit, and asks again for what waits at rest. Ends with the queue.
    fn sweep(&self) {
        let waiters = &self.inner.waiters;
        let mut asked = self.now();
        loop {
            let mut queue = lock(&waiters.queue);
            if queue.parked.is_empty() {
                queue.sweeping = false;
                return;
            }
            let now = self.now();
            if now.since(asked) >= ASK_AGAIN && matches!(self.standing().right, Right::Resting { .. }) {
                asked = now;
                drop(queue);
                self.inner.hooks.wants_lease();
                continue;
            }
            // By the present standing: it may have changed between a call's look at it and its place in the queue.
            let reads = self.standing().right == Right::Read;
            let limit = |parked: &Parked| if reads { parked.limit.min(FIRST_WRITE_WAIT) } else { parked.limit };
            let (late, rest): (VecDeque<_>, VecDeque<_>) =
                queue.take_all().into_iter().partition(|parked| now.since(parked.since) >= limit(parked));
            queue.bytes = rest.iter().map(|parked| parked.bytes).sum();
            queue.parked = rest;
            if late.is_empty() {
                let nap = queue.parked.iter().map(|p| p.limit.saturating_sub(now.since(p.since))).min().unwrap_or(SWEEP);
                let _woken = waiters.wake.wait_timeout(queue, nap.min(SWEEP));
                continue;
            }
            drop(queue);
            self.note_refused();
            self.refuse(late);
        }
    }
}
