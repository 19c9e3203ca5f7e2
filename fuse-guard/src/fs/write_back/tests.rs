//! The shell's threads: one that cannot be started, and one that must not hang on the storage. What is decided is in `plan_tests`.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::Mode as Bits;
use treelease_client::words::clock::{Clock, ManualClock};
use treelease_client::words::epoch::Epoch;

use super::threads::{Running, START_AGAIN};
use super::*;
use crate::fs::inode::Nodes;
use crate::gate::{Hooks, LateWrite, Refused, Standing};

const DIRTY_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
/// For other threads on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

struct Nobody;

impl Hooks for Nobody {
    fn wants_lease(&self) {}
    fn late_write(&self, _: LateWrite) {}
    fn refused(&self, _: Refused) {}
}

/// Writing back to a far storage, with the lease for ten seconds; no thread runs.
struct Scene {
    clock: Arc<ManualClock>,
    write_back: Arc<WriteBack>,
    nodes: Nodes,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let until = clock.now().after(Duration::from_secs(10));
        let standing = Standing { epoch: Epoch::from_raw(2), right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) };
        let gate = Gate::new(standing, clock.clone() as Arc<dyn Clock>, Arc::new(Nobody));
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Bits::empty()).unwrap();
        let scene = Scene { clock, write_back: WriteBack::new(gate, true), nodes: Nodes::new(root).unwrap(), _dir: dir };
        scene.write_back.set(Some(DIRTY_MAX));
        scene
    }

    /// Has threads for these roles started; what others would be for is only said to be.
    fn start(&self, roles: &[Role]) {
        self.write_back.start(|role| {
            let write_back = self.write_back.clone();
            match (role, roles.contains(&role)) {
                (Role::Calls, _) | (_, false) => Ok(()),
                (role, true) => std::thread::Builder::new().spawn(move || write_back.carry(role == Role::Refuses)).map(drop),
            }
        });
    }

    /// A job that says that it was called, and with what, and hangs until it is let go.
    fn hangs(&self, room: u64) -> (Receiver<Option<u64>>, Sender<()>) {
        let ((called, was_called), (go, gone)) = (channel(), channel::<()>());
        let job = move |leave: Option<Room>| {
            let _test_is_over = called.send(leave.map(|room| room.bytes));
            let _let_go = gone.recv();
        };
        self.write_back.park(room, 0, Box::new(job));
        (was_called, go)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.write_back.end();
    }
}

#[test]
fn a_thread_that_cannot_be_started_is_tried_again_and_said_and_what_is_due_counts_as_a_silent_storage() {
    let s = Scene::new();
    let tries = std::cell::Cell::new(0);
    let fails = |_| {
        tries.set(tries.get() + 1);
        Err(io::ErrorKind::WouldBlock.into())
    };
    s.write_back.start(fails);
    s.write_back.start(fails);
    assert_eq!((tries.get(), s.write_back.take_trouble(), s.write_back.take_trouble()), (1, Some(true), None));
    assert_eq!(s.write_back.silent_at(PATIENCE), None, "nothing is unconfirmed");
    s.write_back.wrote(s.nodes.root(), 100);
    let due = s.clock.now().after(DIRTY_MAX / 2);
    assert_eq!(s.write_back.silent_at(PATIENCE), Some(due.after(PATIENCE)), "the gate shuts then");
    s.clock.advance(START_AGAIN);
    s.write_back.start(fails);
    assert_eq!((tries.get(), s.write_back.take_trouble()), (2, None), "that is no news");
    s.clock.advance(START_AGAIN);
    let mut started = Vec::new();
    s.write_back.start(|role| {
        started.push(role);
        Ok(())
    });
    started.dedup();
    assert_eq!(started, [Role::Refuses, Role::Carries, Role::Calls]);
    assert_eq!((s.write_back.take_trouble(), s.write_back.silent_at(PATIENCE)), (Some(false), None));
    // One dies.
    drop(Running(&s.write_back, Role::Calls));
    let mut again = Vec::new();
    s.write_back.start(|role| {
        again.push(role);
        Ok(())
    });
    assert_eq!(again, [Role::Calls]);
}

#[test]
fn a_write_that_nobody_would_take_up_waits_on_its_own_thread_and_no_longer_than_it_may() {
    let s = Scene::new();
    s.write_back.start(|_| Err(io::ErrorKind::WouldBlock.into()));
    for refused in [true, false] {
        let full = s.write_back.room(plan::UNCONFIRMED_MAX).unwrap();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| {
                let (called, was_called) = channel();
                s.write_back.park(1, 0, Box::new(move |leave: Option<Room>| called.send(leave.map(|room| room.bytes)).unwrap()));
                was_called.recv_timeout(LONG).unwrap()
            });
            if refused {
                // The lease is renewed meanwhile.
                let until = s.clock.now().after(100_000 * ROOM_WAIT);
                let gate = &s.write_back.gate;
                gate.publish(Standing { right: Right::Write { until }, ..gate.standing() });
                while !waits.is_finished() {
                    s.clock.advance(ROOM_WAIT / 4);
                    std::thread::sleep(LOOK / 10);
                }
                assert_eq!(waits.join().unwrap(), None, "it has waited for too long");
            } else {
                drop(full);
                assert_eq!(waits.join().unwrap(), Some(1), "there is room");
            }
        });
    }
}

/// What becomes of a write that waits for room when all that carry out such writes hang on the storage and the time is up.
fn past_the_deadline(roles: &[Role]) -> Option<Option<u64>> {
    let s = Scene::new();
    s.start(roles);
    let _full = s.write_back.room(plan::UNCONFIRMED_MAX).unwrap();
    let hang: Vec<_> = (0..CARRIERS).map(|_| s.hangs(0)).collect();
    assert!(hang.iter().all(|(called, _)| called.recv_timeout(LONG) == Ok(Some(0))));
    let (called, _go) = s.hangs(1);
    assert_eq!(s.write_back.waiting(), 1);
    s.clock.advance(Duration::from_secs(11));
    let patience = if roles.contains(&Role::Refuses) { LONG } else { 5 * LOOK };
    called.recv_timeout(patience).ok()
}

#[test]
fn a_write_that_waits_is_given_to_the_gate_at_the_deadline_though_all_that_carry_out_writes_hang_on_the_storage() {
    let without_room = Some(Some(0));
    assert_eq!(past_the_deadline(&[Role::Carries, Role::Refuses]), without_room);
    assert_eq!(past_the_deadline(&[Role::Carries]), None, "control: without the one that never hangs");
}
