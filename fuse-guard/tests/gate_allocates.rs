//! The gate lets an operation through without asking the allocator for anything: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use treelease_client::words::clock::{Clock, ManualClock};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_guard::fs::caller::Caller;
use treelease_guard::fs::writers::Writers;
use treelease_guard::gate::{Admission, Gate, Hooks, LateWrite, Op, Opened, Refused, Right, Standing};

struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator, unchanged; the count is this thread's own and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.with(|asked| asked.set(asked.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Nobody;

impl Hooks for Nobody {
    fn wants_lease(&self) {}
    fn late_write(&self, _: LateWrite) {}
    fn refused(&self, _: Refused) {}
}

fn asked(work: impl FnOnce()) -> usize {
    let before = ASKED.with(Cell::get);
    work();
    ASKED.with(Cell::get) - before
}

#[test]
fn an_operation_that_is_admitted_allocates_nothing() {
    let clock = Arc::new(ManualClock::new());
    let until = clock.now().after(Duration::from_secs(10));
    let standing = Standing { right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) };
    let gate = Gate::new(standing, clock.clone() as Arc<dyn Clock>, Arc::new(Nobody));
    let through = |op, handle| match gate.admit(op, handle) {
        Admission::Permit(permit) => assert_eq!(permit.finish(clock.now()), Ok(())),
        _ => panic!("{op:?} is admitted"),
    };
    // What a thread needs once (its place in the list of readers) is not an operation's.
    through(Op::Write, None);
    let opened = Some(Opened { epoch: Epoch::ZERO });
    assert_eq!(asked(|| Op::ALL.into_iter().for_each(|op| through(op, opened))), 0);
    assert!(asked(|| drop(std::hint::black_box(Box::new(1)))) > 0, "control: it does count");
}

#[test]
fn a_write_of_a_known_process_is_counted_without_an_allocation() {
    let (writers, now) = (Writers::default(), ManualClock::new().now());
    let who = Caller { uid: 0, gid: 0, pid: std::process::id() };
    writers.wrote(who, 5, || "notes.db".to_owned(), now);
    let again = || (6..100).for_each(|node| writers.wrote(who, node, || panic!("it is known"), now));
    assert_eq!(asked(again), 0);
    assert_eq!(writers.report(|_| None)[0].count, 95);
}
