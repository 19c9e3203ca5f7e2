//! Admitted mutations in flight, and the standing that they were admitted under.
//!
//! # Promises
//!
//! After [`Gate::publish`] of a standing that admits nothing, [`Gate::drain`] says yes only when no system call that an
//! earlier standing admitted is in flight (I4, I6: what was admitted before the end has ended before it is said to have).
//!
//! *Why:* an operation counts itself, **then** reads the standing, and goes on only if that one admits it; a close
//! publishes, **then** reads the count. Between the two steps of each side stands a sequentially consistent fence, so of
//! two that cross, at least one sees the other: either the operation reads the new standing and is refused, or the close
//! reads a count that includes it. A look at the standing before counting decides nothing; it keeps a storm of refused
//! operations from holding the count above zero.
//!
//! # Does not know
//!
//! How long a system call may hang: a drain has its limit, and says no.

use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::io::Errno;
use treelease_client::words::clock::Clock;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::hooks::Hooks;
use super::waiters::Waiters;
use super::{Op, Opened, Right, Standing, Verdict, admit, in_time, judge};
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, fence, lock};

/// How long a drain sleeps at most before it looks at the count again; the last permit wakes it before.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// The gate of one tree on this side. Cheap to clone; all clones are one gate.
#[derive(Clone)]
pub struct Gate {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    standing: ArcSwap<Standing>,
    /// One publisher at a time, so that `stale_below` only grows.
    publishing: Mutex<()>,
    /// Permits of calls.
    calls: AtomicUsize,
    /// Permits of page-cache writes, which stage one of closing still admits.
    pages: AtomicUsize,
    draining: AtomicBool,
    drained: (Mutex<()>, Condvar),
    last_mutation: Mutex<Option<BootTime>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) tally: Tally,
    pub(super) waiters: Waiters,
}

#[derive(Default)]
pub(super) struct Tally {
    admitted: AtomicU64,
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
    gate: Arc<Inner>,
    standing: Standing,
    op: Op,
    /// Without one (`off`, `observe`, an operation that needs no lease) nothing is late.
    deadline: Option<BootTime>,
    would_refuse: Option<Errno>,
    counted: bool,
}

impl Gate {
    /// A gate that stands as `standing`.
    pub fn new(standing: Standing, clock: Arc<dyn Clock>, hooks: Arc<dyn Hooks>) -> Self {
        Gate {
            inner: Arc::new(Inner {
                standing: ArcSwap::from_pointee(standing),
                publishing: Mutex::new(()),
                calls: AtomicUsize::new(0),
                pages: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                drained: (Mutex::new(()), Condvar::new()),
                last_mutation: Mutex::new(None),
                clock,
                hooks,
                tally: Tally::default(),
                waiters: Waiters::default(),
            }),
        }
    }

    /// How this side stands.
    pub fn standing(&self) -> Standing {
        self.inner.standing()
    }

    /// The gate's clock.
    pub fn now(&self) -> BootTime {
        self.inner.clock.now()
    }

    /// Replaces the standing. `stale_below` never goes back (I6). Operations that waited go on if the new standing admits
    /// them by itself (a handoff that failed, a mode that was switched off).
    pub fn publish(&self, mut standing: Standing) {
        {
            let _one = lock(&self.inner.publishing);
            standing.stale_below = standing.stale_below.max(self.inner.standing().stale_below);
            self.inner.standing.store(Arc::new(standing));
            // Pairs with the fence in `admit`: what is counted after this was judged by the new standing.
            fence(Ordering::SeqCst);
        }
        let open = matches!(standing.right, Right::Write { until } if in_time(until, self.now()));
        if open || standing.mode != Mode::Enforce {
            self.let_waiters_go(standing.stale_below);
        }
    }

    /// Judges one operation and, if it may go on, counts it.
    pub fn admit(&self, op: Op, handle: Option<Opened>) -> Admission {
        self.admit_under(op, handle, |standing| standing)
    }

    /// As [`Gate::admit`], for an operation that waited: `Opening` admits those.
    pub(super) fn admit_waiter(&self, op: Op, handle: Option<Opened>) -> Admission {
        self.admit_under(op, handle, |mut standing| {
            if let Right::Opening { until } = standing.right {
                standing.right = Right::Write { until };
            }
            standing
        })
    }

    fn admit_under(&self, op: Op, handle: Option<Opened>, view: impl Fn(Standing) -> Standing) -> Admission {
        let inner = &self.inner;
        if !op.needs_the_lease() {
            return Admission::Permit(self.permit(inner.standing(), op, None, false));
        }
        let early = view(inner.standing());
        let verdict = admit(&early, op, handle, inner.clock.now());
        if verdict != Verdict::Admit {
            return self.say_no(&early, op, verdict);
        }
        let counter = inner.counter(op);
        counter.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `publish`: see the module's argument.
        fence(Ordering::SeqCst);
        let standing = view(inner.standing());
        // Read after it was counted (I4): whoever sees no permit in flight when the time is up sees none later.
        let now = inner.clock.now();
        match admit(&standing, op, handle, now) {
            Verdict::Admit => {
                inner.tally.admitted.fetch_add(1, Ordering::Relaxed);
                let would_refuse = match standing.mode {
                    Mode::Observe => self.would_refuse(&standing, judge(&standing, op, handle, now), now),
                    Mode::Off | Mode::Enforce => None,
                };
                if would_refuse.is_some() {
                    inner.tally.would_refuse.fetch_add(1, Ordering::Relaxed);
                }
                Admission::Permit(self.permit(standing, op, would_refuse, true))
            }
            verdict => {
                inner.uncount(op);
                self.say_no(&standing, op, verdict)
            }
        }
    }

    /// In `observe`: what `enforce` would have said. What would have waited wants the lease as it would have there, so that the record
    /// is of sides that meet; on a tree that is held by another side it counts as refused, elsewhere as granted.
    fn would_refuse(&self, standing: &Standing, verdict: Verdict, now: BootTime) -> Option<Errno> {
        match verdict {
            Verdict::Admit => None,
            Verdict::Stale => Some(Errno::STALE),
            Verdict::ReadOnly => Some(Errno::ROFS),
            Verdict::Wait => {
                self.want_lease_lately(now);
                (standing.right == Right::Read && !standing.free).then_some(Errno::ROFS)
            }
        }
    }

    fn permit(&self, standing: Standing, op: Op, would_refuse: Option<Errno>, counted: bool) -> Permit {
        let deadline = if standing.mode == Mode::Enforce && op.changes_storage() { standing.right.until() } else { None };
        Permit { gate: self.inner.clone(), standing, op, deadline, would_refuse, counted }
    }

    fn say_no(&self, standing: &Standing, op: Op, verdict: Verdict) -> Admission {
        let errno = match verdict {
            Verdict::Stale => Errno::STALE,
            Verdict::Wait if !self.refused_lately(standing) => return Admission::Wait,
            Verdict::Wait | Verdict::ReadOnly | Verdict::Admit => Errno::ROFS,
        };
        self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
        if op.page_cache() {
            self.inner.tally.pages_refused.fetch_add(1, Ordering::Relaxed);
        }
        Admission::Refuse(errno)
    }

    /// Counts a page-cache write that was refused for its inode's sake, not the standing's.
    pub fn refused_page(&self) {
        self.inner.tally.refused.fetch_add(1, Ordering::Relaxed);
        self.inner.tally.pages_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until no permit that an earlier standing gave is in flight; false at the limit. While the standing is
    /// `Closing`, page-cache writes go on and are not waited for.
    pub fn drain(&self, limit: Duration) -> bool {
        let inner = &self.inner;
        let start = inner.clock.now();
        inner.draining.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let closing = matches!(inner.standing().right, Right::Closing { .. });
        let mut guard = lock(&inner.drained.0);
        let done = loop {
            if inner.in_flight(!closing) == 0 {
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
        self.inner.in_flight(true)
    }

    /// Whether the standing admits no mutation, and none is in flight that an earlier one admitted.
    pub fn is_shut(&self) -> bool {
        let standing = self.standing();
        let admits = standing.mode != Mode::Enforce || !matches!(standing.right, Right::Read | Right::Resting { .. });
        fence(Ordering::SeqCst);
        !admits && self.in_flight() == 0
    }

    /// When the last admitted mutation finished.
    pub fn last_mutation(&self) -> Option<BootTime> {
        *lock(&self.inner.last_mutation)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let t = &self.inner.tally;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts {
            admitted: get(&t.admitted),
            refused: get(&t.refused),
            would_refuse: get(&t.would_refuse),
            late: get(&t.late),
            waiting: self.waiting() as u64,
            pages_refused: get(&t.pages_refused),
        }
    }
}

impl Inner {
    pub(super) fn standing(&self) -> Standing {
        **self.standing.load()
    }

    fn counter(&self, op: Op) -> &AtomicUsize {
        if op.page_cache() { &self.pages } else { &self.calls }
    }

    fn in_flight(&self, with_pages: bool) -> usize {
        let pages = if with_pages { self.pages.load(Ordering::SeqCst) } else { 0 };
        self.calls.load(Ordering::SeqCst) + pages
    }

    fn uncount(&self, op: Op) {
        if self.counter(op).fetch_sub(1, Ordering::SeqCst) == 1 && self.draining.load(Ordering::SeqCst) {
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

    /// The system call has returned. `Err(by)`: the deadline had passed by then (I4): the application gets EIO, and the
    /// caller tells the hooks. In every run in which the guard itself was not stopped this does not happen.
    pub fn finish(self, now: BootTime) -> Result<(), Duration> {
        if self.op.changes_storage() {
            *lock(&self.gate.last_mutation) = Some(now);
        }
        match self.deadline {
            // At the deadline itself it has returned in time: the clock was read after it.
            Some(until) if now.elapsed > until.elapsed || now.suspended_since(until) => {
                self.gate.tally.late.fetch_add(1, Ordering::Relaxed);
                Err(now.since(until))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.counted {
            self.gate.uncount(self.op);
        }
    }
}
