//! Tests of the lease state: examples, one file per behaviour; random sequences; and every short sequence.
//!
//! A [`World`] is a state with a log of its own. After every command it checks the invariants, and that a refused or ignored
//! command has changed nothing.

mod breaking;
mod coming_back;
mod copied;
mod damaged_backups;
mod ending;
mod explore;
mod explore_fences;
mod fences;
mod granting;
mod guards;
mod nodes;
mod oracle;
mod queueing;
mod random;
mod reasons;
mod registry;
mod repeating;
mod resting;
mod restoring;
mod retiring;
mod sessions;
mod witnessing;

use std::time::Duration;

use sha2::{Digest, Sha256};
use treelease_proto::command::*;
use treelease_proto::epoch::Epoch;
use treelease_proto::id::*;
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::{Ttl, WallTime};
use treelease_proto::tree::{End, Root, RootState, StateName, TreeStatus};

use super::{Applied, Entry, State, invariant};

/// A rule left out on purpose, for the positive controls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// None.
    #[default]
    None,
    /// A tree goes on from grace without its fence.
    NoFence,
    /// The same side comes back whatever its kernel and however its lease ended.
    BackFromAnyKernel,
    /// A free lock is taken for a witness although the ended lease had not said that it had it.
    WitnessUnsaid,
    /// An agent's result counts whatever attempt it names, and under whichever leadership it was run.
    AnyFenceResult,
    /// That an agent has acted is forgotten: the side may be granted without having its access back.
    FenceForgotten,
    /// A fenced side's every session shows that its mount is fresh.
    AnyKernelIsFresh,
}

/// The TTL of every session here.
const TTL: Duration = Duration::from_secs(15);
/// The grace of a tree with the default policy.
const GRACE: Duration = Duration::from_secs(5);
/// The node that leads.
const NODE: NodeId = 1;

fn uuid(kind: &str, n: u64) -> String {
    format!("{kind}00000-0000-4000-8000-{n:012x}")
}
fn tree_id(n: u64) -> TreeId {
    uuid("aaa", n).parse().unwrap()
}
fn session_id(n: u64) -> SessionId {
    uuid("bbb", n).parse().unwrap()
}
fn root(n: u64) -> Root {
    Root { id: uuid("ccc", n).parse().unwrap(), path: format!("/mnt/{n}"), state: RootState::Live }
}
fn key(n: u64) -> RequestKey {
    uuid("ddd", n).parse().unwrap()
}
fn cluster_id(n: u64) -> ClusterId {
    uuid("eee", n).parse().unwrap()
}
fn side(name: &str) -> SideName {
    name.parse().unwrap()
}
/// A kernel, with the one superblock that it mounts.
fn kernel(name: &str) -> Option<Place> {
    Some(Place { boot: format!("boot-{name}"), superblock: 7 })
}
/// The marker's lock on that kernel, as a guard finds it.
fn marker_on(name: &str) -> MarkerLock {
    MarkerLock { kind: LockKind::Local, place: kernel(name).unwrap(), inode: 12 }
}
fn digest(secret: &[u8]) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}
fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}
fn open_of(name: &str, session: SessionId) -> OpenSession {
    OpenSession {
        side: side(name),
        host: format!("{name}-host"),
        ttl: Ttl::new(TTL),
        new_session: session,
        new_secret_digest: digest(name.as_bytes()),
        resume: None,
        boot: format!("boot-{name}"),
        machine: String::new(),
    }
}
fn acquire_of(tree: &TreeId, session: &SessionId) -> Acquire {
    Acquire {
        tree: tree.clone(),
        session: session.clone(),
        ask: false,
        first_write: false,
        no_wait: false,
        note: String::new(),
        place: None,
    }
}

/// A state and its log.
#[derive(Clone)]
struct World {
    state: State,
    index: u64,
    events: Vec<Event>,
}

impl World {
    /// Not founded.
    fn empty() -> Self {
        Self { state: State::new(), index: 0, events: Vec::new() }
    }
    /// Founded, led, with one tree (`tree_id(1)`, named `dev`).
    fn new() -> Self {
        let mut world = Self::empty();
        let found = Command::Found { cluster: cluster_id(1), ttl_min: Ttl::MIN, ttl_max: Ttl::new(Duration::from_secs(60)) };
        assert_eq!(world.run(found), Answer::Done);
        assert_eq!(world.run(Command::Lead { node: NODE }), Answer::Done);
        world.add_tree(1, "dev");
        world
    }
    fn add_tree(&mut self, n: u64, name: &str) -> TreeId {
        let add = Command::AddTree { name: name.parse().unwrap(), tree: tree_id(n), policy: Vec::new(), root: Some(root(n)) };
        assert!(matches!(self.run(add), Answer::TreeAdded { .. }));
        tree_id(n)
    }
    /// One command in an entry of its own.
    fn run(&mut self, command: Command) -> Answer {
        self.run_keyed(key(1_000_000 + self.index), command)
    }
    fn run_keyed(&mut self, request_key: RequestKey, command: Command) -> Answer {
        self.index += 1;
        let at = WallTime(WallTime::UNKNOWN.0 + Duration::from_secs(self.index));
        let entry = Entry { index: self.index, proposal: Proposal { request_key, actor: "test".into(), at, command } };
        let before = self.state.clone();
        let Applied { answer, events } = self.state.apply(&entry);
        assert_eq!(invariant::check(&self.state), Ok(()));
        if matches!(answer, Answer::Refused(_) | Answer::Ignored { .. }) {
            assert_eq!(events, Vec::new(), "{answer:?}");
            assert!(without_replay(&before) == without_replay(&self.state), "{answer:?} changed something");
        }
        self.events = events;
        answer
    }
    fn open(&mut self, name: &str, session: u64) -> SessionId {
        let answer = self.run(Command::OpenSession(open_of(name, session_id(session))));
        assert!(matches!(answer, Answer::Opened { incarnation: 1, resumed: false, .. }), "{answer:?}");
        session_id(session)
    }
    /// For the first tree, on a kernel named after the session.
    fn acquire(&mut self, session: &SessionId) -> Answer {
        let place = kernel(session.as_str());
        self.run(Command::Acquire(Acquire { place, ..acquire_of(&tree_id(1), session) }))
    }
    fn granted(&mut self, session: &SessionId) -> LeaseRef {
        match self.acquire(session) {
            Answer::Granted(grant) => LeaseRef { tree: grant.tree, session: session.clone(), epoch: grant.epoch },
            other => panic!("not granted: {other:?}"),
        }
    }
    fn queued(&mut self, session: &SessionId) -> u32 {
        match self.acquire(session) {
            Answer::Queued { place, .. } => place,
            other => panic!("not queued: {other:?}"),
        }
    }
    fn release(&mut self, lease: &LeaseRef) -> Answer {
        self.run(Command::Release(release_of(lease)))
    }
    fn expire(&mut self, session: &SessionId) -> Answer {
        let decided_under = self.leadership();
        self.run(Command::ExpireSession { session: session.clone(), decided_under })
    }
    fn end_grace(&mut self, epoch: u64) -> Answer {
        let decided_under = self.leadership();
        self.run(Command::EndGrace { tree: tree_id(1), epoch: Epoch::from_raw(epoch), decided_under })
    }
    fn confirm(&mut self, epoch: u64) -> Answer {
        self.run(Command::FenceConfirm { tree: tree_id(1), epoch: Epoch::from_raw(epoch), reason: "unplugged".into() })
    }
    /// The holder says that it writes, and that it has this lock.
    fn active(&mut self, lease: &LeaseRef, number: u64, marker: Option<MarkerLock>) -> Answer {
        self.run(Command::Active { lease: lease.clone(), number, marker })
    }
    /// A waiter has got the lock.
    fn witness(&mut self, epoch: u64, attempt: u32, session: &SessionId, marker: MarkerLock) -> Answer {
        let epoch = Epoch::from_raw(epoch);
        self.run(Command::Witnessed { tree: tree_id(1), epoch, attempt, session: session.clone(), marker })
    }
    fn set(&mut self, key: &str, value: &str) -> Answer {
        self.run(Command::SetPolicy { tree: tree_id(1), policy: pairs(&[(key, value)]) })
    }
    fn leadership(&self) -> Leadership {
        self.state.leadership().expect("led").0
    }
    /// Of the first tree.
    fn status(&self) -> TreeStatus {
        self.state.tree_status(&tree_id(1)).expect("there is a tree")
    }
    fn stands(&self) -> StateName {
        self.status().state
    }
    /// The session that has the first tree.
    fn holder(&self) -> Option<SessionId> {
        self.status().holder.map(|holder| holder.session)
    }
    fn length(&self) -> Duration {
        self.state.coolings().next().expect("it cools").2
    }
    /// What the last command made happen.
    fn kinds(&self) -> Vec<EventKind> {
        self.events.iter().map(|event| event.kind).collect()
    }
}

fn release_of(lease: &LeaseRef) -> Release {
    Release { lease: lease.clone(), files: 3, bytes: 4096, late_refused: 0, to: None, note: String::new() }
}

/// All of a state but the memory of answers.
fn without_replay(state: &State) -> State {
    let mut state = state.clone();
    state.replay.clear();
    state
}

fn refusal(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
fn code(answer: Answer) -> Code {
    refusal(answer).code
}
fn ignored(answer: &Answer) -> bool {
    matches!(answer, Answer::Ignored { .. })
}
fn run_start(answer: &Answer) -> u64 {
    match answer {
        Answer::Granted(grant) => grant.run_start.0.get(),
        other => panic!("not granted: {other:?}"),
    }
}
fn last_end(answer: &Answer) -> End {
    match answer {
        Answer::Granted(grant) => grant.last_end,
        other => panic!("not granted: {other:?}"),
    }
}
