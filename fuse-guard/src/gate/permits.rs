//! Admitted mutations in flight, and the standing that they were admitted under.
//!
//! # Promises
//!
//! After [`Gate::publish`] of a standing that admits nothing, [`Gate::drain`] says yes only when no system call that an
//! earlier standing admitted is in flight (I4, I6: what was admitted before the end has ended before it is said to have).
//!
//! *Why:* an operation counts itself, **then** looks whether the standing is still the one that it read, and goes on only if that
//! one, or else the new one, admits it; a close publishes, **then** reads the count. All four steps are sequentially consistent, so
//! of two that cross, at least one sees the other: either the operation sees the new standing and is refused, or the close reads a
//! count that includes it. What is decided before counting decides nothing; it keeps a storm of refused operations from holding
//! the count above zero.
//!
//! *The clock* is read after counting, too (I4): whoever sees no permit in flight when the time is up sees none later. It says at first
//! what time it is at the latest ([`Clock::at_latest`]), which is one reading in the place of four: who is in time by that is admitted.
//! Who is not makes the full reading, and only that one refuses. So nothing is admitted that the full reading of the moment would
//! refuse, and nothing is refused that it would admit. The deadline is in the standing alone: one that is brought forward holds for
//! every operation that is counted after it was published, since no thread keeps a word about it.
//!
//! A permit costs two readings of the clock, and what is changed for it lies in its thread's own cache lines ([`super::lanes`]).
//!
//! # Does not know
//!
//! How long a system call may hang: a drain has its limit, and says no.

use std::time::Duration;

use rustix::io::Errno;
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::carriers::Carriers;
use super::hooks::Hooks;
use super::lanes::{Lane, Lanes};
use super::published::Published;
use super::waiters::Waiters;
use super::{Op, Opened, Right, Standing, Verdict, admit, in_time, judge};
use crate::sync::{Arc, AtomicBool, AtomicU64, Condvar, Mutex, Ordering, fence, lock};

/// How long a drain sleeps at most before it looks at the count again; the last permit wakes it before.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// The gate of one tree on this side. Cheap to clone; all clones are one gate.
#[derive(Clone)]
pub struct Gate {
    pub(super) inner: Arc<Inner>,
    lanes: Arc<Lanes<Inner>>,
}

pub(super) struct Inner {
    standing: Published,
    /// One publisher at a time, so that `stale_below` only grows.
    publishing: Mutex<()>,
    draining: AtomicBool,
    drained: (Mutex<()>, Condvar),
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) tally: Tally,
    pub(super) waiters: Waiters,
    pub(super) carriers: Carriers,
}

#[derive(Default)]
pub(super) struct Tally {
    /// Counted, and refused then.
    turned_away: AtomicU64,
    pub(super) refused: AtomicU64,
    would_refuse: AtomicU64,
    late: AtomicU64,
    pages_refused: AtomicU64,
}

/// What the gate has counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Mutations that went on.
    pub admitted: u64,
    /// Mutations that were refused.
    pub refused: u64,
    /// Mutations that `observe` let through.
    pub would_refuse: u64,
    /// System calls that finished after the deadline. 0 in every healthy run.
    pub late: u64,
    /// Operations that wait now.
    pub waiting: u64,
    /// Page-cache writes among the refused: the process that wrote them learned nothing.
    pub pages_refused: u64,
}

/// The gate's answer to one operation.
pub enum Admission {
    /// Carry it out, then [`Permit::finish`].
    Permit(Permit),
    /// Park it ([`Gate::park`]).
    Wait,
    /// Answer with this error.
    Refuse(Errno),
}

/// An admitted operation in flight. Counts until it is finished or dropped.
pub struct Permit {
    /// Where it is counted; what needs no lease is not.
    lane: Option<Arc<Lane<Inner>>>,
    standing: Standing,
    op: Op,
    would_refuse: Option<Errno>,
}

impl Gate {
    /// A gate that stands as `standing`.
    pub fn new(standing: Standing, clock: Arc<dyn Clock>, hooks: Arc<dyn Hooks>) -> Self {
        let inner = Arc::new(Inner {
            standing: Published::new(standing),
            publishing: Mutex::new(()),
            draining: AtomicBool::new(false),
            drained: (Mutex::new(()), Condvar::new()),
            clock,
            hooks,
            tally: Tally::default(),
            waiters: Waiters::default(),
            carriers: Carriers::default(),
        });
        Gate { lanes: Arc::new(Lanes::new(&inner)), inner }
    }

    /// How this side stands.
    pub fn standing(&self) -> Standing {
        self.inner.standing.read().0
    }

    /// The gate's clock.
    pub fn now(&self) -> BootTime {
        self.inner.clock.now()
    }

    /// What time it is at the latest ([`Clock::at_latest`]).
    pub fn at_latest(&self) -> BootTime {
        self.inner.clock.at_latest()
    }

    /// Whether a deadline has not passed by now (I4).
    pub fn in_time(&self, until: BootTime) -> bool {
        in_time(until, self.at_latest()) || in_time(until, self.now())
    }

    /// Replaces the standing. `stale_below` never goes back (I6). Operations that waited go on if the new standing admits
    /// them by itself (a handoff that failed, a mode that was switched off).
    pub fn publish(&self, mut standing: Standing) {
        {
            let _one = lock(&self.inner.publishing);
            standing.stale_below = standing.stale_below.max(self.standing().stale_below);
            // What is counted after this is judged by the new standing.
            self.inner.standing.publish(standing);
        }
        let open = matches!(standing.right, Right::Write { until } if self.in_time(until));
        if open || standing.mode != Mode::Enforce {
            self.let_waiters_go(standing.stale_below);
        }
    }

    /// Judges one operation and, if it may go on, counts it.
    pub fn admit(&self, op: Op, handle: Option<Opened>) -> Admission {
        self.admit_under(op, handle, |standing| standing)
    }

    /// As [`Gate::admit`], for an operation that waited: `Opening` admits those, and nothing admits one that came, when `arrived` was the
    /// latest epoch, before a turn of another side's (I6).
    pub(super) fn admit_waiter(&self, op: Op, handle: Option<Opened>, arrived: Epoch) -> Admission {
        self.admit_under(op, handle, |mut standing| {
            if standing.stale_below > arrived.next() {
                (standing.right, standing.may_wait) = (Right::Read, false);
            } else if let Right::Opening { until } = standing.right {
                standing.right = Right::Write { until };
            }
            standing
        })
    }

    /// `view`: the standing as this operation sees it; asked for the one that it reads, and again if it has changed once it was counted.
    #[inline]
    pub(super) fn admit_under(&self, op: Op, handle: Option<Opened>, view: impl Fn(Standing) -> Standing) -> Admission {
        let inner = &*self.inner;
        let (read, version) = inner.standing.read();
        if !op.needs_the_lease() {
            return Admission::Permit(Permit { lane: None, standing: read, op, would_refuse: None });
        }
        let mut standing = view(read);
        // As if its time had only begun: whom that does not help is not counted.
        if admit(&standing, op, handle, BootTime::default()) != Verdict::Admit {
            return self.say_no(&standing, op, admit(&standing, op, handle, self.now()));
        }
        let lane = self.lanes.mine();
        lane.begin(op);
        if !inner.standing.is_still(version) {
            standing = view(inner.standing.latest());
        }
        // Read after it was counted: see the module's argument.
        let mut now = inner.clock.at_latest();
        let mut verdict = admit(&standing, op, handle, now);
        if verdict != Verdict::Admit || standing.mode == Mode::Observe {
            now = inner.clock.now();
            verdict = admit(&standing, op, handle, now);
        }
        if verdict != Verdict::Admit {
            inner.tally.turned_away.fetch_add(1, Ordering::Relaxed);
            inner.uncount(lane, op);
            return self.say_no(&standing, op, verdict);
        }
        let would_refuse = match standing.mode {
            Mode::Observe => {
                // Its open did not wait for this side's own grant, as it would have: only another side's turn between makes it stale.
                let stale = handle.filter(|opened| standing.stale_below > opened.epoch.next());
                self.would_refuse(&standing, judge(&standing, op, stale, now), now)
            }
            Mode::Off | Mode::Enforce => None,
        };
        Admission::Permit(Permit { lane: Some(lane.clone()), standing, op, would_refuse })
    }

    /// In `observe`: what `enforce` would have said. What would have waited wants the lease as it would have there, so that the record
    /// is of sides that meet; on a tree that is held by another side it counts as refused, elsewhere as granted.
    fn would_refuse(&self, standing: &Standing, verdict: Verdict, now: BootTime) -> Option<Errno> {
        let why = match verdict {
            Verdict::Admit => None,
            Verdict::Stale => Some(Errno::STALE),
            Verdict::ReadOnly => Some(Errno::ROFS),
            Verdict::Wait => {
                self.want_lease_lately(now);
                (standing.right == Right::Read && !standing.free).then_some(Errno::ROFS)
            }
        };
        if why.is_some() {
            self.inner.tally.would_refuse.fetch_add(1, Ordering::Relaxed);
        }
        why
    }

    #[cold]
    fn say_no(&self, standing: &Standing, op: Op, verdict: Verdict) -> Admission {
        let errno = match verdict {
            Verdict::Stale => Errno::STALE,
            Verdict::Wait if !self.refused_lately(standing) => return Admission::Wait,
            Verdict::Wait | Verdict::ReadOnly | Verdict::Admit => Errno::ROFS,
        };
        self.count_refused(op);
        Admission::Refuse(errno)
    }

    /// An operation is refused, at once or after a wait.
    pub(super) fn count_refused(&self, op: Op) {
        self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
        if op.page_cache() {
            self.inner.tally.pages_refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a page-cache write that was refused for its inode's sake, not the standing's.
    pub fn refused_page(&self) {
        self.count_refused(Op::PageWrite);
    }

    /// Waits until no permit that an earlier standing gave is in flight; false at the limit. While the standing is
    /// `Closing`, page-cache writes go on and are not waited for.
    pub fn drain(&self, limit: Duration) -> bool {
        let inner = &self.inner;
        let start = inner.clock.now();
        inner.draining.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let closing = matches!(self.standing().right, Right::Closing { .. });
        let mut guard = lock(&inner.drained.0);
        let done = loop {
            if self.lanes.in_flight(!closing) == 0 {
                break true;
            }
            let passed = inner.clock.now().since(start);
            if passed >= limit {
                break false;
            }
            let nap = DRAIN_LOOK.min(limit - passed);
            guard = inner.drained.1.wait_timeout(guard, nap).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        };
        drop(guard);
        inner.draining.store(false, Ordering::SeqCst);
        done
    }

    /// Mutations in flight now.
    pub fn in_flight(&self) -> usize {
        self.lanes.in_flight(true)
    }

    /// Whether the standing admits no mutation, and none is in flight that an earlier one admitted.
    pub fn is_shut(&self) -> bool {
        let standing = self.standing();
        let admits = standing.mode != Mode::Enforce || !matches!(standing.right, Right::Read | Right::Resting { .. });
        fence(Ordering::SeqCst);
        !admits && self.in_flight() == 0
    }

    /// When the last admitted mutation finished, on the elapsed-time clock, or a few milliseconds later; of suspend it says nothing.
    pub fn last_mutation(&self) -> Option<BootTime> {
        self.lanes.mutated()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let t = &self.inner.tally;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        // In this order: whoever is turned away has begun.
        let turned_away = get(&t.turned_away);
        Counts {
            admitted: self.lanes.begun().saturating_sub(turned_away),
            refused: get(&t.refused),
            would_refuse: get(&t.would_refuse),
            late: get(&t.late),
            waiting: self.waiting() as u64,
            pages_refused: get(&t.pages_refused),
        }
    }
}

impl Inner {
    #[inline]
    fn uncount(&self, lane: &Lane<Inner>, op: Op) {
        lane.end(op);
        if self.draining.load(Ordering::SeqCst) {
            let _guard = lock(&self.drained.0);
            self.drained.1.notify_all();
        }
    }
}

impl Permit {
    /// The standing under which it was admitted.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What `enforce` would have answered, in `observe`.
    pub fn would_refuse(&self) -> Option<Errno> {
        self.would_refuse
    }

    /// Without one (`off`, `observe`, what changes nothing on the storage) nothing is late.
    #[inline]
    fn deadline(&self) -> Option<BootTime> {
        let has = self.standing.mode == Mode::Enforce && self.op.changes_storage();
        if has { self.standing.right.until() } else { None }
    }

    /// The system call has returned, at the latest at that time ([`Gate::at_latest`]). `Err(by)`: the deadline had passed by then (I4):
    /// the application gets EIO, and the caller tells the hooks. In every run in which the guard itself was not stopped this does not
    /// happen.
    #[inline]
    pub fn finish(self, at_latest: BootTime) -> Result<(), Duration> {
        let Some(lane) = &self.lane else { return Ok(()) };
        if self.op.changes_storage() {
            lane.mutated(at_latest);
        }
        let Some(until) = self.deadline() else { return Ok(()) };
        // At the deadline itself it has returned in time: the clock was read after it.
        let late = |now: BootTime| now.elapsed > until.elapsed || now.suspended_since(until);
        if !late(at_latest) {
            return Ok(());
        }
        let now = lane.gate.clock.now();
        if !late(now) {
            return Ok(());
        }
        lane.gate.tally.late.fetch_add(1, Ordering::Relaxed);
        Err(now.since(until))
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.gate.uncount(lane, self.op);
        }
    }
}
