//! What the gate costs: `cargo bench -p treelease-guard`. DESIGN's goal is below 100 ns for an admitted operation, without an
//! allocation.
//!
//! Without a benchmark library: it is one number each, the best of many batches, so that what else runs on the machine is left out.
//! `./tests/bench` makes its lines a table.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use treelease_client::words::clock::{Clock, ManualClock, SideClock};
use treelease_client::words::policy::Mode;
use treelease_guard::fs::caller::Caller;
use treelease_guard::fs::writers::Writers;
use treelease_guard::gate::{Admission, Gate, Hooks, LateWrite, Op, Refused, Right, Standing, admit};

const BATCHES: usize = 200;
const BATCH: u32 = 10_000;

/// The system's allocator, counted.
struct Counted;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: what is asked for is asked of the system's allocator as it is, and its answer passed on.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` came from the line above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTED: Counted = Counted;

struct Nobody;

impl Hooks for Nobody {
    fn wants_lease(&self) {}
    fn late_write(&self, _: LateWrite) {}
    fn refused(&self, _: Refused) {}
}

fn best(what: &str, mut one: impl FnMut()) {
    let (mut least, timer) = (Duration::MAX, SideClock::new());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..BATCHES {
        let start = timer.now();
        (0..BATCH).for_each(|_| one());
        least = least.min(timer.now().since(start));
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("{what:<60} {:>7.1} ns {allocations} allocations", least.as_secs_f64() * 1e9 / f64::from(BATCH));
}

fn open(clock: &dyn Clock) -> Standing {
    let until = clock.now().after(Duration::from_secs(3600));
    Standing { right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) }
}

fn through(gate: &Gate, op: Op) {
    let Admission::Permit(permit) = gate.admit(op, None) else { panic!("admitted") };
    permit.finish(gate.at_latest()).expect("in time");
}

/// While another thread does the same.
fn beside(what: &str, gate: &Gate) {
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let (other, stop) = (gate.clone(), &over);
        threads.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                (0..BATCH).for_each(|_| through(&other, Op::Write));
            }
        });
        best(what, || through(gate, Op::Write));
        over.store(true, Ordering::Relaxed);
    });
}

fn main() {
    let clock: Arc<dyn Clock> = Arc::new(SideClock::new());
    let standing = open(&*clock);
    let now = clock.now();
    best("the decision alone", || _ = black_box(admit(black_box(&standing), Op::Write, None, now)));
    best("one reading of the clock", || _ = black_box(clock.now()));
    best("what time it is at the latest", || _ = black_box(clock.at_latest()));
    let gate = Gate::new(standing, clock.clone(), Arc::new(Nobody));
    best("an admitted write, without what it does at its end", || _ = black_box(gate.admit(Op::Write, None)));
    best("an admitted write, from gate to gate", || through(&gate, Op::Write));
    beside("the same, while another thread does so too", &gate);
    let (writers, who) = (Writers::default(), Caller { uid: 0, gid: 0, pid: std::process::id() });
    best("a write of a known process, counted for `treelease writers`", || writers.wrote(who, 7, || "notes".into(), now));
    best("what needs no lease", || _ = black_box(gate.admit(Op::Read, None)));
    let manual: Arc<dyn Clock> = Arc::new(ManualClock::new());
    let still = Gate::new(open(&*manual), manual.clone(), Arc::new(Nobody));
    best("an admitted write, on a clock that costs a lock only", || through(&still, Op::Write));
}
