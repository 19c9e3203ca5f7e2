//! Operations that wait for the lease: a first write on a free tree, a call that meets a closing or an opening gate.
//!
//! # Promises
//!
//! - A waiting operation occupies no thread and no lock of ours, has a limit of its own, and is answered exactly once.
//!   *Why:* it is a value in a queue; whoever takes it out of the queue, under the lock, answers it.
//! - It is refused at its limit, and at the deadline of the right that it waits under (where that passes while the tree goes over, within what a first write waits), by a thread that never touches the storage: so
//!   whatever hangs, nobody waits longer. That holds for those that were let go and wait for a carrier ([`super::carriers`]), too.
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
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::carriers::{ANOTHER_AFTER, CARRIERS};
use super::permits::{Admission, Gate, Permit};
use super::{Op, Opened, Outcome, Right, Standing, in_time};
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering, lock};

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

/// One that waits.
pub(super) struct Parked {
    pub(super) op: Op,
    pub(super) handle: Option<Opened>,
    bytes: usize,
    /// The latest epoch known at arrival.
    pub(super) epoch: Epoch,
    since: BootTime,
    limit: Duration,
    pub(super) job: Job,
}

impl Parked {
    /// Whether it has waited for its limit, or for all the time that its right had.
    pub(super) fn is_over(&self, standing: &Standing, now: BootTime) -> bool {
        // By the present standing: it may have changed between a call's look at it and its place in the queue.
        // Where nothing is refused, only its own limit counts.
        let refuses = standing.mode == Mode::Enforce;
        let limit = if refuses && standing.right == Right::Read { self.limit.min(FIRST_WRITE_WAIT) } else { self.limit };
        let past = standing.right.until().is_some_and(|until| !in_time(until, now));
        now.since(self.since) >= limit || (refuses && past)
    }
}

#[derive(Default)]
pub(super) struct Waiters {
    pub(super) queue: Mutex<Queue>,
    wake: Condvar,
    /// After a refused wait: under which serial, and when.
    refused: Mutex<Option<(u64, BootTime)>>,
    /// In `observe`: when the lease was asked for last, in milliseconds of elapsed time, plus one.
    asked: AtomicU64,
}

#[derive(Default)]
pub(super) struct Queue {
    /// Who waits for the gate.
    parked: VecDeque<Parked>,
    /// Who was let go, and waits for a carrier.
    let_go: VecDeque<Parked>,
    /// Of the latest grant that let any go.
    pub(super) run_start: Epoch,
    /// When a carrier took one last, or one was let go where none had been.
    taken: BootTime,
    bytes: usize,
    sweeping: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.parked.len() + self.let_go.len()
    }

    fn all(&self) -> impl Iterator<Item = &Parked> {
        self.let_go.iter().chain(&self.parked)
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.len() < MAX_WAITING && self.bytes + bytes <= MAX_WAITING_BYTES
    }

    /// Those of which that is so, wherever they wait.
    fn take_if(&mut self, so: impl Fn(&Parked) -> bool) -> Vec<Parked> {
        let mut taken = Vec::new();
        for row in [&mut self.let_go, &mut self.parked] {
            let (gone, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(row).into_iter().partition(&so);
            taken.extend(gone);
            *row = rest;
        }
        self.bytes -= taken.iter().map(|parked| parked.bytes).sum::<usize>();
        taken
    }

    /// For a carrier.
    pub(super) fn take_next(&mut self, now: BootTime) -> Option<Parked> {
        let next = self.let_go.pop_front()?;
        self.bytes -= next.bytes;
        self.taken = now;
        Some(next)
    }

    /// Lets all go, for a grant of that run. How many had not been.
    fn let_all_go(&mut self, run_start: Epoch, now: BootTime) -> usize {
        self.run_start = self.run_start.max(run_start);
        if self.let_go.is_empty() {
            self.taken = now;
        }
        let many = self.parked.len();
        // The lease has come: what is waited for now is a stage.
        self.parked.iter_mut().for_each(|parked| parked.limit = STAGE_WAIT);
        self.let_go.append(&mut self.parked);
        many
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

    pub(super) fn enqueue(&self, parked: Parked, judge: impl FnOnce(&Self) -> Admission) {
        let waiters = &self.inner.waiters;
        let mut queue = lock(&waiters.queue);
        let turn = match judge(self) {
            Admission::Permit(permit) => Turn::Go(permit),
            Admission::Refuse(errno) => Turn::No(errno),
            Admission::Wait if !queue.has_room_for(parked.bytes) => {
                self.count_refused(parked.op);
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
        lock(&self.inner.waiters.queue).len() + self.carrying()
    }

    /// Answers every operation that waits. Granted: they are carried out, on threads of their own; see [`Gate::carrying`].
    pub fn answer(&self, outcome: Outcome) {
        match outcome {
            Outcome::Granted { run_start, .. } => self.let_waiters_go(run_start.0),
            Outcome::Refused => {
                let all = lock(&self.inner.waiters.queue).take_if(|_| true);
                if !all.is_empty() {
                    self.note_refused();
                }
                self.refuse(all);
            }
        }
    }

    pub(super) fn let_waiters_go(&self, run_start: Epoch) {
        let many = lock(&self.inner.waiters.queue).let_all_go(run_start, self.now());
        self.start_carriers(many.min(CARRIERS));
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

    /// Refuses whose time is over, sees to it that somebody carries out what was let go, and asks again for what waits at rest. Ends
    /// with the queue.
    fn sweep(&self) {
        let waiters = &self.inner.waiters;
        let mut asked = self.now();
        loop {
            let mut queue = lock(&waiters.queue);
            if queue.len() == 0 {
                queue.sweeping = false;
                return;
            }
            let (now, standing) = (self.now(), self.standing());
            let over = queue.take_if(|parked| parked.is_over(&standing, now));
            if !over.is_empty() {
                drop(queue);
                if standing.right == Right::Read {
                    self.note_refused();
                }
                self.refuse(over);
                continue;
            }
            if now.since(asked) >= ASK_AGAIN && matches!(standing.right, Right::Resting { .. }) {
                asked = now;
                drop(queue);
                self.inner.hooks.wants_lease();
                continue;
            }
            if !queue.let_go.is_empty() && now.since(queue.taken) >= ANOTHER_AFTER {
                queue.taken = now;
                self.start_carriers(1);
            }
            let nap = queue.all().map(|p| p.limit.saturating_sub(now.since(p.since))).min().unwrap_or(SWEEP);
            let _woken = waiters.wake.wait_timeout(queue, nap.min(SWEEP));
        }
    }
}
