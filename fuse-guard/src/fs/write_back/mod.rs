//! Little is ever unconfirmed (DESIGN 3): on network storage what the holder writes is confirmed continuously, and whoever writes
//! faster than that waits.
//!
//! [`plan`] decides; this is its shell: threads that make the calls ([`WriteBack::work`]), and threads that carry out the writes
//! that waited ([`WriteBack::carry`]).
//!
//! # Promises
//!
//! - What was acknowledged is in the account before its program hears so, and leaves it by a call that began later. *So a mark is
//!   set after the write*: one set before it could be taken by a call that did not see its bytes.
//! - An error that a call meets is remembered for the epoch, as that of every flush is ([`super::dirty`]): the lease does not end
//!   clean, and every later fsync or close through a handle of that file says it, since the kernel may have told nobody else.
//! - Each call has a descriptor of its own: on a program's it would take the error away that the kernel keeps for that program.
//! - A write that waits occupies no thread of the mount, no lock and no permit; it is judged by the gate when its turn comes, so a
//!   deadline ends its wait. Only where more wait than may ([`PARKED_MAX`]), or where nobody is there to take it up, does the kernel's
//!   thread itself.
//! - A thread that cannot be started, or has died, is tried again every [`threads::START_AGAIN`], and that is said ([`WriteBack::take_trouble`]).
//!   While nobody makes calls, what is due counts as a storage that is silent ([`WriteBack::silent_at`]): so the gate shuts.
//!
//! # Does not know
//!
//! The lease; why and for how long writing back is on.

pub mod plan;
pub mod threads;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rustix::fs::{OFlags, fdatasync};
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::error::Errno;
use super::inode::Node;
use super::{Fs, reopen};
use crate::gate::{Gate, Right, in_time};
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering, PoisonError, lock};
use plan::{Mark, Plan, Ticket};
use threads::{Role, Threads};

/// Threads that carry out writes that waited.
pub const CARRIERS: usize = 2;
/// Writes that may wait for room at the same time, and the bytes that they hold.
const PARKED_MAX: (usize, usize) = (1024, 64 << 20);
/// How long a write waits for room at most: longer, and the storage is gone. As for a gate that closes or opens.
pub const ROOM_WAIT: Duration = crate::gate::waiters::STAGE_WAIT;
/// How long a thread sleeps at most, while there is something to come, before it reads the clock again.
const LOOK: Duration = Duration::from_millis(100);
/// Files with an error that are told apart; with more, every file counts as one.
const BROKEN_MAX: usize = 1024;

/// What to do when there is room; without, the wait was too long.
pub type Job = Box<dyn FnOnce(Option<Room>) + Send>;

/// Writing back of one mount.
pub struct WriteBack {
    /// Whether the storage may keep what it has acknowledged in this machine's memory while another machine looks.
    remote: bool,
    on: AtomicBool,
    /// Some file has met an error.
    any_broken: AtomicBool,
    gate: Gate,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    plan: Plan,
    /// The files of the account.
    nodes: BTreeMap<u64, Arc<Node>>,
    parked: VecDeque<Parked>,
    held: usize,
    /// Files that met an error, and which, as long as the kernel knows them: their handles are to tell.
    broken: BTreeMap<u64, Errno>,
    /// More than can be told apart, in this epoch.
    all_broken: Option<Errno>,
    /// An error that the daemon has not heard of.
    unheard: bool,
    threads: Threads,
    over: bool,
}

struct Parked {
    room: u64,
    held: usize,
    since: BootTime,
    job: Job,
}

/// Leave to write so many bytes, until it is dropped.
pub struct Room {
    of: Option<Arc<WriteBack>>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(of) = self.of.take() {
            let mut state = lock(&of.state);
            state.plan.came_out(self.bytes);
            of.tell_parked(&state);
        }
    }
}

impl WriteBack {
    pub(super) fn new(gate: Gate, remote: bool) -> Arc<Self> {
        let state = State {
            plan: Plan::new(Duration::ZERO),
            nodes: BTreeMap::new(),
            parked: VecDeque::new(),
            held: 0,
            broken: BTreeMap::new(),
            all_broken: None,
            unheard: false,
            threads: Threads::default(),
            over: false,
        };
        let (on, any_broken) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(WriteBack { remote, on, any_broken, gate, state: Mutex::new(state), wake: Condvar::new() })
    }

    // ---- the daemon's side ----

    /// From now on nothing stays unconfirmed for longer than this; None: writing back is off. Off too where storage is this
    /// machine's own. The threads are started by [`WriteBack::start`].
    pub fn set(&self, dirty_max: Option<Duration>) {
        let Some(dirty_max) = dirty_max.filter(|_| self.remote) else {
            if self.on.swap(false, Ordering::SeqCst) {
                self.clear(&mut lock(&self.state));
            }
            return;
        };
        if lock(&self.state).plan.set_dirty_max(dirty_max) {
            self.wake.notify_all();
        }
        self.on.store(true, Ordering::SeqCst);
    }

    /// An epoch of ours begins: what an earlier one has written is its end's matter.
    pub fn begin(&self) {
        let mut state = lock(&self.state);
        self.clear(&mut state);
        (state.all_broken, state.unheard) = (None, false);
    }

    fn clear(&self, state: &mut State) {
        state.plan.clear();
        state.nodes.clear();
        self.wake.notify_all();
    }

    /// The mount is gone: its threads end, and who waits is judged by the gate.
    pub fn end(&self) {
        lock(&self.state).over = true;
        self.wake.notify_all();
    }

    /// Bytes unconfirmed, and for how long the oldest has been.
    pub fn unconfirmed(&self) -> (u64, Duration) {
        lock(&self.state).plan.unconfirmed(self.gate.now())
    }

    /// Writes that wait for room.
    pub fn waiting(&self) -> usize {
        lock(&self.state).parked.len()
    }

    /// When no call has returned for so long, if none returns until then. None: none is under way, nor due and nobody there to make
    /// it.
    pub fn silent_at(&self, patience: Duration) -> Option<BootTime> {
        let state = lock(&self.state);
        let nobody = state.threads.none_since(Role::Calls);
        let unmade = nobody.zip(state.plan.due_at()).map(|(since, due)| due.max(since).after(patience));
        state.plan.silent_at(patience).into_iter().chain(unmade).min()
    }

    /// Whether a call has met an error since this was asked last.
    pub fn take_failed(&self) -> bool {
        self.any_broken.load(Ordering::SeqCst) && std::mem::take(&mut lock(&self.state).unheard)
    }

    // ---- writers ----

    /// Leave to write so many bytes now. None: [`WriteBack::park`].
    pub fn room(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        if !self.on.load(Ordering::Relaxed) {
            return Some(Room { of: None, bytes: 0 });
        }
        let now = self.gate.now();
        let mut state = lock(&self.state);
        // First come, first served.
        if state.parked.is_empty() && state.plan.let_in(bytes, now) {
            return Some(Room { of: Some(self.clone()), bytes });
        }
        self.is_ending(now).then_some(Room { of: None, bytes: 0 })
    }

    /// Puts a write away until there is room. `held`: what it keeps in memory.
    pub fn park(self: &Arc<Self>, room: u64, held: usize, job: Job) {
        let since = self.gate.now();
        let mut state = lock(&self.state);
        while !state.over && (state.parked.len() >= PARKED_MAX.0 || state.held + held > PARKED_MAX.1) {
            state = self.nap(state, LOOK);
        }
        // Nobody would take it up.
        while !state.over && !state.threads.run(Role::Carries) {
            if let Some(leave) = self.leave(&mut state, (room, since), false) {
                drop(state);
                return job(leave);
            }
            state = self.nap(state, LOOK);
        }
        state.held += held;
        state.parked.push_back(Parked { room, held, since, job });
        let over = state.over;
        drop(state);
        self.wake.notify_all();
        if over {
            // No carrier comes any more.
            self.carry(false);
        }
    }

    /// Bytes were written to a file: before its program hears so.
    pub(super) fn wrote(&self, node: &Arc<Node>, bytes: u64) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let now = self.gate.now();
        let mut state = lock(&self.state);
        let file = node.generation;
        if !state.plan.has(file) {
            state.nodes.insert(file, node.clone());
        }
        if state.plan.wrote(file, bytes, now) {
            self.wake.notify_all();
        }
    }

    /// The kernel has forgotten the node. A file without a name needs no call.
    pub(super) fn forgotten(&self, node: &Node) {
        if self.any_broken.load(Ordering::Relaxed) {
            lock(&self.state).broken.remove(&node.generation);
        }
        if !self.on.load(Ordering::Relaxed) || !lock(&self.state).plan.has(node.generation) {
            return;
        }
        if node.is_nameless() {
            let mut state = lock(&self.state);
            state.plan.forget(node.generation);
            state.nodes.remove(&node.generation);
            self.tell_parked(&state);
        }
    }

    /// Before an fsync of a program's.
    pub(super) fn mark(&self, node: &Node) -> Option<Mark> {
        if self.on.load(Ordering::Relaxed) { lock(&self.state).plan.mark(node.generation) } else { None }
    }

    /// It has returned 0.
    pub(super) fn confirmed(&self, node: &Node, mark: Option<Mark>) {
        let Some(mark) = mark else { return };
        let mut state = lock(&self.state);
        state.plan.confirmed(node.generation, mark, self.gate.now());
        state.drop_node(node.generation);
        self.tell_parked(&state);
    }

    /// Whether no call for this file has met an error.
    pub(super) fn intact(&self, node: &Node) -> Result<(), Errno> {
        if !self.any_broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        let state = lock(&self.state);
        state.broken.get(&node.generation).copied().or(state.all_broken).map_or(Ok(()), Err)
    }

    // ---- threads ----

    fn nap<'a>(&self, state: MutexGuard<'a, State>, long: Duration) -> MutexGuard<'a, State> {
        self.wake.wait_timeout(state, long).unwrap_or_else(PoisonError::into_inner).0
    }

    fn tell_parked(&self, state: &State) {
        if !state.parked.is_empty() {
            self.wake.notify_all();
        }
    }

    /// Whether a flush follows, and the gate admits nothing more than mapped pages: those do not wait, since their refusal would be
    /// silent, and whatever else waited is refused by the gate.
    fn is_ending(&self, now: BootTime) -> bool {
        let standing = self.gate.standing();
        let lasts = match standing.right {
            Right::Write { until } | Right::Opening { until } | Right::Resting { until } => in_time(until, now),
            Right::Closing { .. } | Right::Read => false,
        };
        standing.mode == Mode::Enforce && !lasts
    }

    /// Makes the calls that are due, until the mount is gone. For [`plan::CALLS`] threads; each may be lost in a call.
    pub fn work(&self, fs: &Fs) {
        let mut state = lock(&self.state);
        while !state.over {
            let now = self.gate.now();
            let next = state.plan.next(now, self.is_ending(now));
            let job = next.and_then(|file| Some((state.nodes.get(&file)?.clone(), state.plan.begin(file, now)?)));
            let Some((node, ticket)) = job else {
                state = match state.plan.due_at() {
                    None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(at) if at > now => self.nap(state, at.since(now).min(LOOK)),
                    // All that may be under way is: the next return wakes this thread.
                    Some(_) => self.nap(state, LOOK),
                };
                continue;
            };
            drop(state);
            let result = confirm(&node);
            state = self.returned(fs, &node, &ticket, result);
        }
    }

    fn returned(&self, fs: &Fs, node: &Node, ticket: &Ticket, result: Result<(), Errno>) -> MutexGuard<'_, State> {
        if let Err(why) = result {
            let path = fs.nodes.path_of(node);
            tracing::error!(path, %why, "what was written could not be made durable");
            fs.dirty.failed(path, why);
        }
        let mut state = lock(&self.state);
        if let Err(why) = result {
            match state.broken.len() {
                BROKEN_MAX.. => state.all_broken = Some(why),
                _ => _ = state.broken.insert(node.generation, why),
            }
            state.unheard = true;
            self.any_broken.store(true, Ordering::SeqCst);
        }
        state.plan.end(ticket, self.gate.now());
        state.drop_node(node.generation);
        self.wake.notify_all();
        state
    }

    /// Whether the gate admits nothing any more, mapped pages neither.
    fn is_shut(&self, now: BootTime) -> bool {
        let standing = self.gate.standing();
        standing.mode == Mode::Enforce && standing.right.until().is_none_or(|until| !in_time(until, now))
    }

    /// What becomes of a write of so many bytes that has waited since then. None: it waits on.
    fn leave(self: &Arc<Self>, state: &mut State, (room, since): (u64, BootTime), refuses: bool) -> Option<Option<Room>> {
        let now = self.gate.now();
        let too_long = now.since(since) >= ROOM_WAIT;
        if refuses && !state.over && !self.is_shut(now) {
            too_long.then_some(None)
        } else if state.over || !self.on.load(Ordering::SeqCst) || self.is_ending(now) {
            // The gate says what becomes of it.
            Some(Some(Room { of: None, bytes: 0 }))
        } else if state.plan.let_in(room, now) {
            Some(Some(Room { of: Some(self.clone()), bytes: room }))
        } else {
            too_long.then_some(None)
        }
    }

    /// Carries out the writes that waited, until the mount is gone. `refuses`: only those that the gate refuses by now, so that there
    /// is one thread that never hangs on the storage.
    pub fn carry(self: &Arc<Self>, refuses: bool) {
        let mut state = lock(&self.state);
        loop {
            let Some(first) = state.parked.front() else {
                if state.over {
                    return;
                }
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let leave = (first.room, first.since);
            let leave = self.leave(&mut state, leave, refuses);
            let Some(leave) = leave else {
                state = self.nap(state, LOOK);
                continue;
            };
            let Some(parked) = state.parked.pop_front() else { continue };
            state.held -= parked.held;
            drop(state);
            self.wake.notify_all();
            (parked.job)(leave);
            state = lock(&self.state);
        }
    }
}

impl State {
    fn drop_node(&mut self, file: u64) {
        if !self.plan.has(file) {
            self.nodes.remove(&file);
        }
    }
}

/// Makes durable what was written to a file. A descriptor of our own: the kernel tells each of an error once.
fn confirm(node: &Node) -> Result<(), Errno> {
    let opened = reopen(&node.fd, OFlags::RDONLY).or_else(|_| reopen(&node.fd, OFlags::WRONLY));
    let synced = opened.and_then(|fd| {
        loop {
            match fdatasync(&fd) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        }
    });
    match synced {
        // Nobody can open it by its mode any more, or root is a stranger here, or no descriptor is left. Who has it open alone is flushed when it closes it;
        // and the flush before the lease goes has `syncfs` for it.
        Err(Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE) => {
            let pages = lock(&node.writable).pages.clone();
            pages.map_or(Ok(()), |fd| fdatasync(&*fd))
        }
        // Deleted: nothing to lose.
        Err(Errno::STALE | Errno::NOENT) => Ok(()),
        // Of the call, not of the storage.
        Err(Errno::INVAL | Errno::ROFS | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
