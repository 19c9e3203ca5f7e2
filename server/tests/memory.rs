//! What a tree costs in memory, counted block by block: the state alone, without log, store and transport.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use treelease_proto::command::{Acquire, Answer, Command, LeaseRef, OpenSession, Proposal, Release};
use treelease_proto::id::{ClusterId, RequestKey, SessionId, TreeId};
use treelease_proto::time::{Ttl, WallTime};
use treelease_server::lease::{Entry, State};

/// What a tree may cost that was made, and one that was held and given back five times.
const NEW: usize = 900;
const USED: usize = 1_024;

/// The system's allocator, and what this thread has of it.
struct Counting;

thread_local! {
    static TAKEN: Cell<isize> = const { Cell::new(0) };
}

/// As glibc has it: eight bytes before each block, which is a multiple of sixteen and no less than 32.
fn block(layout: Layout) -> isize {
    (layout.size() + 8).next_multiple_of(16).max(32) as isize
}

fn count(bytes: isize) {
    // A thread that ends frees after its counter has gone.
    let _ = TAKEN.try_with(|taken| taken.set(taken.get() + bytes));
}

// SAFETY: every block is the system's, by the very layout that was asked for; counting takes none itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(block(layout));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-block(layout));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn taken<T>(make: impl FnOnce() -> T) -> (usize, T) {
    let before = TAKEN.with(Cell::get);
    let made = make();
    ((TAKEN.with(Cell::get) - before) as usize, made)
}

struct World {
    state: State,
    index: u64,
}

impl World {
    fn apply(&mut self, command: Command) -> Answer {
        self.index += 1;
        let at = WallTime::from_millis(1_764_500_000_000 + self.index as i64);
        let proposal =
            Proposal { request_key: RequestKey::random(), actor: "side workstation (host a-host)".into(), at, command };
        self.state.apply(&Entry { index: self.index, proposal }).answer
    }

    /// So many trees, each held and given back so often.
    fn with(trees: usize, turns: usize) -> World {
        let mut world = World { state: State::new(), index: 0 };
        world.apply(Command::Found { cluster: ClusterId::random(), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX });
        let session = SessionId::random();
        world.apply(Command::OpenSession(OpenSession {
            side: "workstation".parse().unwrap(),
            host: "a-host".into(),
            ttl: Ttl::DEFAULT,
            new_session: session.clone(),
            new_secret_digest: vec![7; 32],
            resume: None,
            boot: "boot".into(),
            machine: String::new(),
        }));
        for n in 0..trees {
            let (name, tree) = (format!("many-{n}").parse().unwrap(), TreeId::random());
            let policy = [("min_hold", "0s"), ("fence", "none"), ("grace", "0s")].map(|(k, v)| (k.to_owned(), v.to_owned()));
            world.apply(Command::AddTree { name, tree: tree.clone(), policy: policy.into(), root: None });
            for _ in 0..turns {
                let (tree, session) = (tree.clone(), session.clone());
                let acquire = Acquire {
                    tree: tree.clone(),
                    session: session.clone(),
                    ask: false,
                    first_write: false,
                    no_wait: false,
                    note: String::new(),
                    place: None,
                };
                let Answer::Granted(grant) = world.apply(Command::Acquire(acquire)) else { panic!("it is free") };
                let lease = LeaseRef { tree, session, epoch: grant.epoch };
                let release = Release { lease, files: 3, bytes: 4_096, late_refused: 0, to: None, note: String::new() };
                assert_eq!(world.apply(Command::Release(release)), Answer::Done);
            }
        }
        world
    }
}

/// As a node has it after a restart.
fn read_again(state: &State) -> State {
    let json = serde_json::to_string(state).unwrap();
    let mut again: State = serde_json::from_str(&json).unwrap();
    again.was_read([]);
    assert!(again == *state);
    again
}

#[test]
fn a_tree_takes_less_than_a_kibibyte_also_after_a_restart_and_a_copy_of_all_takes_next_to_nothing() {
    const FEW: usize = 2_500;
    const MANY: usize = 10_000;
    assert!(taken(|| vec![0u8; 1 << 20]).0 >= 1 << 20, "the control: what is taken is counted");
    for (turns, most) in [(0, NEW), (5, USED)] {
        let (few, few_trees) = taken(|| World::with(FEW, turns));
        let (many, many_trees) = taken(|| World::with(MANY, turns));
        let each = (many - few) / (MANY - FEW);
        let (few_again, few_read) = taken(|| read_again(&few_trees.state));
        let (many_again, many_read) = taken(|| read_again(&many_trees.state));
        let each_again = (many_again - few_again) / (MANY - FEW);
        let (copy, copied) = taken(|| many_trees.state.clone());
        println!("{turns} turns: {each} bytes a tree, {each_again} after a restart; {copy} for a copy of all");
        assert!(each <= most, "{each} bytes a tree after {turns} turns");
        assert!(each_again <= most, "{each_again} bytes a tree after {turns} turns and a restart");
        // The answers for retries are a fixed number, and the rest are pointers to what both share.
        assert!(copy <= 20 * MANY, "a copy of {MANY} trees takes {copy} bytes");
        drop((few_read, many_read, copied));
    }
}
