//! The state as others see it: what a renewal lists, what `status` shows, what a leader times. Reads only, decides nothing.

use std::time::Duration;

use treelease_proto::command::{HeldPair, Leadership};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{ClusterId, NodeId, SessionId, SideName, TreeId, TreeName};
use treelease_proto::time::Ttl;
use treelease_proto::tree::{Holder, SessionStatus, StateName, TreeStatus};

use super::tree::{Cooling, TreeState};
use super::{Session, State, Tree};

/// How much there is of what, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Living sessions.
    pub sessions: usize,
    /// Trees, by how they stand.
    pub trees: Vec<(StateName, usize)>,
}

impl State {
    /// How much there is of what.
    pub fn holdings(&self) -> Holdings {
        let every = [StateName::Free, StateName::Held, StateName::Cooling, StateName::Fencing, StateName::Retired];
        let mut trees = every.map(|state| (state, 0)).to_vec();
        for tree in self.trees.values() {
            let name = tree.state_name();
            if let Some((_, count)) = trees.iter_mut().find(|(state, _)| *state == name) {
                *count += 1;
            }
        }
        Holdings { sessions: self.sessions.len(), trees }
    }

    /// Which cluster; `None` before it is founded.
    pub fn cluster(&self) -> Option<&ClusterId> {
        self.cluster.as_ref()
    }
    /// The last `Lead`: its number and its node.
    pub fn leadership(&self) -> Option<(Leadership, NodeId)> {
        self.leadership
    }
    /// One more with each event.
    pub fn revision(&self) -> u64 {
        self.revision
    }
    /// The shortest and the longest time to live that this cluster takes.
    pub fn limits(&self) -> (Ttl, Ttl) {
        (self.ttl_min, self.ttl_max)
    }
    /// A live session.
    pub fn session(&self, id: &SessionId) -> Option<&Session> {
        self.sessions.get(id)
    }
    /// How many sessions live.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }
    /// How many trees there are.
    pub fn tree_count(&self) -> usize {
        self.trees.len()
    }
    /// Every live session.
    pub fn sessions(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.sessions.iter()
    }
    /// Every live session, as `status` shows it.
    pub fn session_statuses(&self) -> Vec<SessionStatus> {
        let status = |(id, s): (&SessionId, &Session)| SessionStatus {
            session: id.clone(),
            side: s.side.clone(),
            host: s.host.clone(),
            ttl: s.ttl,
            since: s.since,
        };
        self.sessions.iter().map(status).collect()
    }
    /// What a session holds: what a renewal's answer lists (I4, I5).
    pub fn held_by(&self, id: &SessionId) -> Vec<HeldPair> {
        let Some(session) = self.sessions.get(id) else { return Vec::new() };
        session.held.iter().filter_map(|tree| self.trees.get(tree)?.as_grant()).collect()
    }
    /// A tree.
    pub fn tree(&self, id: &TreeId) -> Option<&Tree> {
        self.trees.get(id)
    }
    /// Every tree, by id.
    pub fn trees(&self) -> impl Iterator<Item = (&TreeId, &Tree)> {
        self.trees.iter()
    }
    /// The tree of that name.
    pub fn tree_named(&self, name: &TreeName) -> Option<&TreeId> {
        self.names.get(name)
    }
    /// Every tree, by name.
    pub fn trees_by_name(&self) -> impl Iterator<Item = &TreeId> {
        self.names.values()
    }
    /// One tree as `status` shows it; `remaining` is for who has the timers.
    pub fn tree_status(&self, id: &TreeId) -> Option<TreeStatus> {
        let tree = self.trees.get(id)?;
        let (attempt, why) = match &tree.state {
            TreeState::Cooling(cooling) => (0, cooling.why.clone()),
            TreeState::Fencing(fencing) => (fencing.attempt, fencing.why.clone()),
            TreeState::Free | TreeState::Held(_) | TreeState::Retired => (0, String::new()),
        };
        let held = tree.held();
        Some(TreeStatus {
            id: tree.id.clone(),
            name: tree.name.clone(),
            policy: (*tree.policy).clone(),
            roots: tree.roots.clone(),
            state: tree.state_name(),
            holder: tree.holder(),
            at_rest: held.is_some_and(|held| held.at_rest),
            epoch: tree.last_epoch,
            run_start: tree.run_start(),
            run_side: tree.run.as_ref().map(|run| run.side.clone()),
            last_end: tree.last_end,
            waiters: tree.queue.iter().map(|w| w.as_waiter()).collect(),
            attempt,
            why,
            ttl: held.and_then(|held| self.sessions.get(&held.session)).map(|session| session.ttl),
            remaining: None,
            ended_epoch: tree.ended().map(|ended| ended.epoch),
            ended_side: tree.ended().and_then(|ended| ended.side.clone()),
            declined: tree.declined.clone(),
            fenced: tree.fenced_sides(),
            mode_no: tree.mode_no,
            guards: tree.guards_now(),
            witness: held.map_or_else(|| tree.ended().and_then(|ended| ended.marker.clone()), |held| held.marker.clone()),
        })
    }
    /// The trees whose cooling a leader must time: which, after which epoch, how long.
    pub fn coolings(&self) -> impl Iterator<Item = (TreeId, Epoch, Duration)> {
        self.cooling_trees().map(|(id, cooling)| (id.clone(), cooling.ended.epoch, cooling.length))
    }
    /// The same, whole.
    pub(crate) fn cooling_trees(&self) -> impl Iterator<Item = (&TreeId, &Cooling)> {
        self.cooling.iter().filter_map(|id| match &self.trees.get(id)?.state {
            TreeState::Cooling(cooling) => Some((id, &**cooling)),
            _ => None,
        })
    }
    /// One more whenever something changed that a leader times, so that its timers need not compare what did not.
    pub(crate) fn timed(&self) -> u64 {
        self.timed
    }
}

impl Tree {
    /// How many sessions wait for it.
    pub fn waiters(&self) -> usize {
        self.queue.len()
    }
    /// Whether that session would be one more of them: it is not there already, and its side has no lease to come back to (I2).
    pub fn would_wait(&self, session: &SessionId, side: &SideName) -> bool {
        let is_there = self.queue.contains(session) || self.held().is_some_and(|held| held.session == *session);
        let may_come_back = self.ended().is_some_and(|ended| ended.side.as_ref() == Some(side));
        self.state != TreeState::Free && !is_there && !may_come_back
    }
    /// Who has it.
    pub fn holder(&self) -> Option<Holder> {
        self.held().map(|held| Holder {
            side: held.side.clone(),
            host: held.host.clone(),
            session: held.session.clone(),
            epoch: held.epoch,
            since: held.since,
            note: held.note.clone(),
        })
    }
}
