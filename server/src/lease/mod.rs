//! The replicated state: who may write which tree. Read this like the rules of a board game.
//!
//! One committed entry after the other goes through [`State::apply`], which answers it and says what happened. It promises I1
//! and I2 (DESIGN 3): a tree has at most one holder, its epochs only grow, and it passes to another side only after a clean
//! release, or after the waits and the fence that an unclean end asks for. It promises too that a refused or ignored command
//! leaves everything as it was (except that the answer is remembered, `replay`), and that equal entries make equal states on
//! every node: no clock, no randomness, no IO, no map without an order.
//!
//! It does not know the time: it holds lengths, and the leader's timers (`crate::expiry`) say when one has passed, by a command
//! that carries their leadership. It does not know who is calling either: names come checked from the api.
//!
//! | file | is |
//! |---|---|
//! | `shared`, `many`, `policies` | maps and policies that a copy of the state shares with it |
//! | `tree` | one tree, and the only transitions that it has; the only caller of `Epoch::next` |
//! | `acquire`, `ending` | how a lease begins, how it ends |
//! | `fencing`, `trials` | fence agents: attempts, their ends, and the sides that were fenced; trying one |
//! | `restarted` | a fenced side whose machine was restarted is let in, where the policy says so |
//! | `queue` | who waits, in which order |
//! | `session` | sessions, and the proof by which a restarted daemon goes on |
//! | `restore` | another cluster's backup; a tree lifted above what the storage has seen |
//! | `registry`, `retiring` | trees, roots, policy; their end |
//! | `history`, `ring`, `replay` | the audit trail, small; a retry does nothing twice |
//! | `nodes` | which node numbers were ever used; the shortest time to live |
//! | `status` | the state as others see it |
//! | `invariant` | I1 and I2 as functions, called after every command in tests and debug builds |

mod acquire;
mod ending;
mod fencing;
mod guards;
mod history;
pub mod invariant;
mod many;
mod nodes;
mod policies;
mod queue;
mod registry;
mod replay;
mod restarted;
pub mod restore;
mod retiring;
mod ring;
mod session;
mod shared;
mod status;
#[cfg(test)]
mod tests;
mod tree;
mod trials;

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use treelease_proto::command::{Answer, Command, Event, Leadership, Proposal};
use treelease_proto::id::{ClusterId, NodeId, RequestKey, RootId, SessionId, SideName, TreeId, TreeName};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::{Ttl, WallTime};

use history::{Context, Histories};
use many::Many;
use policies::Policies;
use replay::Replay;
use shared::Shared;

pub use fencing::{FenceDue, FenceOpen, Fenced, OPEN_MAX, Open};
pub use restarted::Kernel;
pub use retiring::{TOMBSTONES_MAX, Tombstone};
pub use session::Session;
pub use status::Holdings;
pub use tree::{Cooling, Ended, Fencing, Held, How, Tree, TreeState};
pub use trials::TrialDue;

/// What this build makes of a log: one more whenever the same entries would make another state, or another answer, than before (a command
/// or a field that was not there, another rule). Nodes whose builds differ in it are strangers to each other ([`crate::consensus::peers`]):
/// else what an older one drops would be missing in its state, and in the log that it hands on. Builds of before there was this
/// number say 0.
pub const VERSION: u32 = 1;
/// Most trees: a snapshot of so many still fits into memory several times over.
pub const MAX_TREES: usize = 100_000;
/// Most sessions, one per side: at TTL/5 each, what one leader can confirm.
pub const MAX_SESSIONS: usize = 10_000;
/// Most waiters of one tree: more sides than share one directory.
pub const MAX_WAITERS: usize = 256;
/// Most events kept of one tree: some months of an ordinary one.
pub const HISTORY_MAX: usize = 1_000;
/// Most answers kept for retries: minutes of an ordinary server, half a second of one that does nothing else ([`replay`]).
pub const REPLAY_MAX: usize = 4_096;
/// Most kernels that are remembered as copied: a machine is cloned by hand, and forgets its boot id with its next boot.
pub const COPIED_MAX: usize = 256;
/// Longest text of a person's (note, reason, host, actor), in characters; longer ones are cut.
pub const TEXT_MAX: usize = treelease_proto::convert::TEXT_MAX;
/// Most files that a surrender's history entry names.
pub const FILES_SHOWN: usize = 20;

/// One command of a committed entry. `index` is the entry's log index: several commands of one batch share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In the log.
    pub index: u64,
    /// What is asked, by whom.
    pub proposal: Proposal,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// For who asked.
    pub answer: Answer,
    /// For watchers, in order; they are in the history too.
    pub events: Vec<Event>,
}

/// Everything that the nodes agree on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    cluster: Option<ClusterId>,
    ttl_min: Ttl,
    ttl_max: Ttl,
    /// Numbers of nodes that are or were members: none of them is given again (I7).
    #[serde(default)]
    node_ids: BTreeSet<NodeId>,
    leadership: Option<(Leadership, NodeId)>,
    revision: u64,
    trees: Many<TreeId, Tree>,
    /// Index: the tree of each name.
    names: Shared<TreeName, TreeId>,
    /// Index: the tree of each root.
    roots: Shared<RootId, TreeId>,
    sessions: Many<SessionId, Session>,
    /// Index: the one session of each side.
    sides: Shared<SideName, SessionId>,
    /// Index: the trees that are cooling, so that the leader's timers need not look at all trees.
    cooling: BTreeSet<TreeId>,
    /// Index: the trees that are fencing or have a fenced side, for the same reason.
    #[serde(default)]
    fences: BTreeSet<TreeId>,
    /// Trees that were removed: their ids are never used again.
    #[serde(default)]
    tombstones: Shared<TreeId, Tombstone>,
    /// Boot ids of machines of which there is a copy, oldest first: that a kernel has this id proves nothing any more.
    #[serde(default)]
    copied_boots: VecDeque<String>,
    /// The clusters whose backups this one has grown from, oldest first (I8).
    #[serde(default)]
    predecessors: Vec<ClusterId>,
    /// A backup that comes in.
    #[serde(default)]
    restoring: Option<restore::Upload>,
    /// One more whenever something changes that a leader times: a session, its TTL, its incarnation, a cooling, a restore.
    timed: u64,
    history: Histories,
    replay: Replay,
    #[serde(skip)]
    policies: Policies,
    /// A rule left out on purpose, so that tests can show that they would notice.
    #[cfg(test)]
    #[serde(skip)]
    fault: tests::Fault,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Nothing: no cluster, no trees.
    pub fn new() -> Self {
        Self {
            cluster: None,
            ttl_min: Ttl::MIN,
            ttl_max: Ttl::MAX,
            node_ids: BTreeSet::new(),
            leadership: None,
            revision: 0,
            trees: Many::default(),
            names: Shared::default(),
            roots: Shared::default(),
            sessions: Many::default(),
            sides: Shared::default(),
            cooling: BTreeSet::new(),
            fences: BTreeSet::new(),
            tombstones: Shared::default(),
            copied_boots: VecDeque::new(),
            predecessors: Vec::new(),
            restoring: None,
            timed: 0,
            history: Histories::default(),
            replay: Replay::default(),
            policies: Policies::default(),
            #[cfg(test)]
            fault: tests::Fault::default(),
        }
    }

    /// Carries out one committed command. Total: every command has an answer.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        let Proposal { request_key, actor, at, command } = &entry.proposal;
        let replayed = match command {
            // Asked again until it is answered, as by a caller.
            Command::Found { .. } => true,
            // A question about now: an old yes would shut a side out for nothing.
            Command::FenceStands { .. } => false,
            // The server's own carry their proof of being current (leadership, epoch), and are never retried as such.
            command => command.servers_own().is_none(),
        };
        if replayed && let Some(answer) = self.replay.get(request_key) {
            return Applied { answer: answer.clone(), events: Vec::new() };
        }
        if self.cluster.is_none() && !matches!(command, Command::Lead { .. } | Command::Found { .. }) {
            // Not remembered: the same request may be right a moment later.
            let why = "this server is not founded yet: it has no cluster id; try again in a moment";
            return Applied { answer: refuse(Code::Internal, why), events: Vec::new() };
        }
        let touched = self.touched_by(command);
        #[cfg(debug_assertions)]
        let before: Vec<Option<Tree>> = touched.iter().map(|id| self.trees.get(id).cloned()).collect();

        let mut context = Context::new(actor, *at);
        let answer = self.carry_out(entry.index, command, &mut context);
        for tree in &touched {
            self.settle(tree, &mut context);
            self.let_in_the_restarted(tree, &mut context);
            self.index_fences(tree);
        }
        let mut events = context.into_events();
        for event in &mut events {
            self.revision += 1;
            event.revision = self.revision;
            self.history.add(event);
        }
        if replayed && self.cluster.is_some() {
            self.replay.keep(request_key.clone(), answer.clone());
        }

        #[cfg(debug_assertions)]
        self.assert_invariants(command, &touched, &before);
        Applied { answer, events }
    }

    /// Whether a request with that key has its answer, as far as those are remembered.
    pub fn has_answered(&self, key: &RequestKey) -> bool {
        self.replay.get(key).is_some()
    }

    fn carry_out(&mut self, index: u64, command: &Command, context: &mut Context) -> Answer {
        match command {
            Command::Lead { node } => self.lead(Leadership(index), *node),
            Command::Found { cluster, ttl_min, ttl_max } => self.found(cluster, *ttl_min, *ttl_max),
            Command::RaiseTtl { ttl_min } => self.raise_ttl(*ttl_min),
            Command::OpenSession(open) => self.open_session(open, context),
            Command::CloseSession { session } => self.close_session(session, context),
            Command::ExpireSession { session, decided_under } => self.expire_session(session, *decided_under, context),
            Command::EndCopied { session, incarnation } => self.end_copied(session, *incarnation, context),
            Command::SettleTtl { session, incarnation, decided_under } => self.settle_ttl(session, *incarnation, *decided_under),
            Command::Acquire(acquire) => self.acquire(acquire, context),
            Command::Cancel { tree, session } => self.cancel(tree, session, context),
            Command::Decline { lease, for_ms, note } => self.decline(lease, *for_ms, note, context),
            Command::Rest { lease, number } => self.rest(lease, *number, context),
            Command::Active { lease, number, marker } => self.active(lease, *number, marker.as_ref(), context),
            Command::Release(release) => self.release(release, context),
            Command::GiveBack { lease, reason } => self.give_back(lease, reason, context),
            Command::Surrender { lease, reason, files } => self.surrender(lease, reason, files, context),
            Command::Break { tree, epoch, reason } => self.break_lease(tree, *epoch, reason, context),
            Command::GateClosed(lease) => self.gate_closed(lease, context),
            Command::EndGrace { tree, epoch, decided_under } => self.end_grace(tree, *epoch, *decided_under, context),
            Command::FenceConfirm { tree, epoch, reason } => self.fence_confirm(tree, *epoch, reason, context),
            Command::Witnessed { tree, epoch, attempt, session, marker } => {
                let witness = ending::Witness { tree, epoch: *epoch, attempt: *attempt, session, marker };
                self.witnessed(witness, context)
            }
            Command::FenceAttempt { attempt, verb, agent, deadline_ms, decided_under } => {
                let deadline = std::time::Duration::from_millis(*deadline_ms);
                self.fence_attempt(attempt, *verb, agent, deadline, *decided_under, context)
            }
            Command::FenceResult { attempt, outcome, detail, decided_under } => {
                self.fence_result(attempt, *outcome, detail, *decided_under, context)
            }
            Command::FenceLapsed { attempt, decided_under } => self.fence_lapsed(attempt, *decided_under, context),
            Command::FenceStands { attempt } => self.fence_stands(attempt),
            Command::Unfence { tree, side, epoch, reason, by_hand } => {
                self.unfence(tree, side, *epoch, reason, *by_hand, context)
            }
            Command::AddTree { name, tree, policy, root } => self.add_tree(name, tree, policy, root.as_ref(), context),
            Command::SetPolicy { tree, policy } => self.set_policy(tree, policy, context),
            Command::AddRoot { tree, root } => self.add_root(tree, root, context),
            Command::FenceTest { tree, side } => self.fence_test(tree, side, index, context),
            Command::FenceTested { tree, number, outcome, detail, decided_under } => {
                self.fence_tested(tree, *number, *outcome, detail, *decided_under, context)
            }
            Command::SetRoot { tree, root, epoch, state, reason } => self.set_root(tree, root, *epoch, *state, reason, context),
            Command::RemoveRoot { tree, root, reason } => self.remove_root(tree, root, reason, context),
            Command::Retire { tree, epoch, reason } => self.retire(tree, *epoch, reason, context),
            Command::RemoveTree { tree, reason } => self.remove_tree(tree, reason, context),
            Command::Takeover { name, tree, root, reason, from_cluster, above } => {
                let new = registry::NewTree { name, tree, root: Some(root) };
                self.takeover(new, reason, from_cluster, *above, context)
            }
            Command::RestorePiece(piece) => self.restore_piece(piece, context),
            Command::EndRestore { id, next, decided_under } => self.end_restore(id, *next, *decided_under),
            Command::ForgetSide { side, reason } => self.forget_side(side, reason, context),
            Command::RaiseEpoch { tree, above, reason } => self.raise_epoch(tree, *above, reason, context),
            Command::Obeys { tree, session, mode_no } => self.obeys(tree, session, *mode_no, context),
            Command::Report { lease, event, reason, count } => self.report(lease, *event, reason, *count, context),
        }
    }

    /// A leadership begins. Its number only grows, so that a decision of an earlier one is never taken for the present one's.
    fn lead(&mut self, number: Leadership, node: NodeId) -> Answer {
        if self.leadership.is_some_and(|(current, _)| number <= current) {
            return ignore("a later leadership has begun");
        }
        self.leadership = Some((number, node));
        Answer::Done
    }

    fn found(&mut self, cluster: &ClusterId, ttl_min: Ttl, ttl_max: Ttl) -> Answer {
        match &self.cluster {
            Some(ours) if ours == cluster => return Answer::Done,
            Some(ours) => return refuse(Code::Config, format!("this is cluster {ours} already, not {cluster}")),
            None => {}
        }
        if ttl_min < Ttl::MIN || ttl_max > Ttl::MAX || ttl_min > ttl_max {
            return refuse(Code::Config, "the limits of the time to live must lie within 2s and 1h, the lower one first");
        }
        self.cluster = Some(cluster.clone());
        (self.ttl_min, self.ttl_max) = (ttl_min, ttl_max);
        Answer::Done
    }

    /// Whether a decision of that leadership still counts (I3, I5).
    fn leads(&self, decided_under: Leadership) -> bool {
        self.leadership.is_some_and(|(current, _)| current == decided_under)
    }

    /// The trees that a command can change: what to settle and to check afterwards.
    fn touched_by(&self, command: &Command) -> Vec<TreeId> {
        match command {
            Command::Lead { .. }
            | Command::Found { .. }
            | Command::RestorePiece(_)
            | Command::EndRestore { .. }
            | Command::RaiseTtl { .. }
            | Command::SettleTtl { .. } => Vec::new(),
            Command::OpenSession(open) => self.shut_out_of(&open.side),
            Command::ForgetSide { side, .. } => self.mounted_by(side),
            Command::CloseSession { session } | Command::ExpireSession { session, .. } | Command::EndCopied { session, .. } => {
                match self.sessions.get(session) {
                    Some(session) => session.held.union(&session.waiting).cloned().collect(),
                    None => Vec::new(),
                }
            }
            Command::Acquire(acquire) => vec![acquire.tree.clone()],
            Command::Release(release) => vec![release.lease.tree.clone()],
            Command::GateClosed(lease)
            | Command::GiveBack { lease, .. }
            | Command::Surrender { lease, .. }
            | Command::Rest { lease, .. }
            | Command::Active { lease, .. }
            | Command::Decline { lease, .. }
            | Command::Report { lease, .. } => vec![lease.tree.clone()],
            Command::FenceAttempt { attempt, .. }
            | Command::FenceResult { attempt, .. }
            | Command::FenceLapsed { attempt, .. }
            | Command::FenceStands { attempt } => vec![attempt.tree.clone()],
            Command::EndGrace { tree, .. }
            | Command::Unfence { tree, .. }
            | Command::Cancel { tree, .. }
            | Command::Break { tree, .. }
            | Command::FenceConfirm { tree, .. }
            | Command::Witnessed { tree, .. }
            | Command::AddTree { tree, .. }
            | Command::SetPolicy { tree, .. }
            | Command::AddRoot { tree, .. }
            | Command::Obeys { tree, .. }
            | Command::RaiseEpoch { tree, .. }
            | Command::FenceTest { tree, .. }
            | Command::FenceTested { tree, .. }
            | Command::SetRoot { tree, .. }
            | Command::RemoveRoot { tree, .. }
            | Command::Retire { tree, .. }
            | Command::RemoveTree { tree, .. }
            | Command::Takeover { tree, .. } => vec![tree.clone()],
        }
    }

    /// I1 and I2 after every command. A state of more than a test's size is checked only where it changed.
    #[cfg(debug_assertions)]
    fn assert_invariants(&self, command: &Command, touched: &[TreeId], before: &[Option<Tree>]) {
        const SMALL: usize = 64;
        #[cfg(test)]
        if self.fault != tests::Fault::None {
            return;
        }
        for (id, before) in touched.iter().zip(before) {
            let (Some(before), Some(after)) = (before, self.trees.get(id)) else { continue };
            assert_eq!(invariant::check_step(before, after, command, self.leadership), Ok(()), "{command:?}");
            assert_eq!(invariant::check_tree(self, id), Ok(()), "{command:?}");
        }
        if self.trees.len() + self.sessions.len() <= SMALL {
            assert_eq!(invariant::check(self), Ok(()), "{command:?}");
        }
    }
}

/// The first [`TEXT_MAX`] characters.
fn cut(s: &str) -> String {
    match s.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => s[..at].to_owned(),
        None => s.to_owned(),
    }
}

/// Whole milliseconds, as the log keeps it: the leader applies its entry from memory, a restarted node from disk.
fn to_millis(at: WallTime) -> WallTime {
    WallTime::parse(&at.to_string())
}

fn refuse(code: Code, message: impl Into<String>) -> Answer {
    Answer::Refused(Refusal::new(code, message))
}

fn ignore(why: impl Into<String>) -> Answer {
    Answer::Ignored { why: why.into() }
}

fn no_such_tree(id: &TreeId) -> Answer {
    refuse(Code::NotFound, format!("there is no tree with the id {id}; `treelease tree list` shows those there are"))
}

const _: () = assert!(TEXT_MAX >= 500 && HISTORY_MAX > 0 && REPLAY_MAX > 0);
