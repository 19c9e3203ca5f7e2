//! Whose guards obey the policy's mode (`off`, `observe`, `enforce`): `enforce` is complete only when every side that ever
//! mounted the tree has confirmed it (DESIGN 4).
//!
//! It promises that a confirmation counts for the very change of the mode that it names: one that was under way while the mode
//! changed is none of the new one. *Why a number, not the mode:* from `enforce` to `observe` and back, an old word for `enforce`
//! would say that nothing is in flight of what `observe` let through.
//!
//! A side that is gone for good never confirms: an operator says so ([`State::forget_side`]), and may, because what its guard let
//! through went with it. One that comes back all the same says again that it has the tree mounted.
//!
//! It decides nothing about leases: those are granted in every mode, and I1 does not ask who obeys.

use treelease_proto::command::{Answer, Event, EventKind};
use treelease_proto::id::{SessionId, SideName, TreeId};
use treelease_proto::policy::Mode;
use treelease_proto::refusal::Code;
use treelease_proto::tree::GuardOf;

use super::history::Context;
use super::policies;
use super::{State, Tree, ignore, no_such_tree, refuse};

/// Sides remembered for one tree: as many as can queue for it.
pub const GUARDS_MAX: usize = super::MAX_WAITERS;

/// For the history.
const ALL_OBEY: &str = "mode=enforce is obeyed by every side that ever mounted the tree";

impl Tree {
    /// Its owner has decided anew.
    pub(super) fn follow(&mut self, policy: policies::Shared) {
        if policy.mode != self.policy.mode {
            self.mode_no += 1;
        }
        self.policy = policy;
    }

    pub(super) fn guards_now(&self) -> Vec<GuardOf> {
        self.guards.iter().map(|(side, no)| GuardOf { side: side.clone(), obeys: *no == self.mode_no }).collect()
    }

    fn all_obey(&self) -> bool {
        self.guards.values().all(|no| *no == self.mode_no)
    }
}

impl State {
    /// The trees that wait for that side's word, or did.
    pub(super) fn mounted_by(&self, side: &SideName) -> Vec<TreeId> {
        self.trees.iter().filter(|(_, tree)| tree.guards.contains_key(side)).map(|(id, _)| id.clone()).collect()
    }

    /// A side is gone for good, says an operator.
    pub(super) fn forget_side(&mut self, side: &SideName, reason: &str, context: &mut Context) -> Answer {
        if let Some(session) = self.sides.get(side).and_then(|id| self.sessions.get(id)) {
            let host = if session.host.is_empty() { "its host" } else { &session.host };
            let why = format!(
                "the daemon of {side} runs (on {host}): it is not gone; stop it there with `treelease down`, then try again"
            );
            return refuse(Code::Busy, why);
        }
        let mounted = self.mounted_by(side);
        if mounted.is_empty() {
            return refuse(Code::NotFound, format!("there is no side {side} that ever mounted a tree of this server"));
        }
        for id in mounted {
            let Some(tree) = self.trees.get_mut(&id) else { continue };
            let before = tree.all_obey();
            tree.guards.remove(side);
            let event = |tree: &Tree, reason| Event { reason, ..tree.event(EventKind::Policy, context) };
            let mut happened =
                vec![Event { side: Some(side.clone()), ..event(tree, format!("the side {side} is gone for good: {reason}")) }];
            if tree.all_obey() && !before && tree.policy.mode == Mode::Enforce {
                happened.push(event(tree, ALL_OBEY.to_owned()));
            }
            happened.into_iter().for_each(|event| context.happened(event));
        }
        Answer::Done
    }

    /// A side has mounted the tree, or follows a changed mode.
    pub(super) fn obeys(&mut self, id: &TreeId, session: &SessionId, mode_no: u64, context: &mut Context) -> Answer {
        let Some(side) = self.sessions.get(session).map(|session| session.side.clone()) else {
            return ignore("there is no such session");
        };
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if mode_no > tree.mode_no {
            return refuse(Code::Usage, format!("{} has had {} changes of its mode, not {mode_no}", tree.name, tree.mode_no));
        }
        if !tree.guards.contains_key(&side) && tree.guards.len() >= GUARDS_MAX {
            // Who obeys the present mode and has no session makes room: it says so again when it comes back.
            let present = tree.mode_no;
            let gone = tree.guards.iter().find(|(side, no)| **no == present && !self.sides.contains_key(*side));
            let Some(gone) = gone.map(|(side, _)| side.clone()) else {
                return refuse(Code::Limit, format!("{GUARDS_MAX} sides have mounted {} already", tree.name));
            };
            tree.guards.remove(&gone);
        }
        if tree.guards.get(&side).is_some_and(|known| *known >= mode_no) {
            return if mode_no < tree.mode_no { ignore("the mode has changed since") } else { Answer::Done };
        }
        let before = tree.all_obey();
        // An older one than the present is kept too: that side has the tree mounted, and does not obey yet.
        tree.guards.insert(side, mode_no);
        if tree.all_obey() && !before && tree.policy.mode == Mode::Enforce {
            let event = Event { reason: ALL_OBEY.to_owned(), ..tree.event(EventKind::Policy, context) };
            context.happened(event);
        }
        Answer::Done
    }
}
