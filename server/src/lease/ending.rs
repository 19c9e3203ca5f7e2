//! How a lease ends, and what must pass before another side has the tree (I2).
//!
//! It promises that a tree leaves `Held` only by the holder's own word, by an expiry that the present leadership decided, or
//! by the proof that two machines renew one session, or by an operator's break of the very epoch that he looked at; and that
//! it leaves `Cooling` and `Fencing` only when the time has passed under one leadership and the fence that the policy asks for
//! is done (by an agent: `fencing`), or the storage is a witness of the old holder's end, or when an operator vouches.

use std::time::Duration;

use treelease_proto::command::{Answer, Event, EventKind, Leadership, LeaseRef, Release};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{MarkerLock, SessionId, TreeId};
use treelease_proto::policy::Fence;
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::tree::End;

use super::acquire::Ahead;
use super::history::Context;
use super::queue::Waiting;
use super::tree::{How, TreeState};
use super::{FILES_SHOWN, State, Tree, cut, ignore, no_such_tree, refuse};

impl State {
    /// A clean end; with `to`, that side is granted next, ahead of the queue.
    pub(super) fn release(&mut self, release: &Release, context: &mut Context) -> Answer {
        let lease = &release.lease;
        let next = match self.current(lease).map(|tree| tree.name.clone()) {
            Err(answer) => return *answer,
            Ok(name) => match &release.to {
                None => None,
                Some(side) => match self.sides.get(side) {
                    None => {
                        return refuse(
                            Code::NotFound,
                            format!("{side} has no session: its daemon does not run; {name} is still yours"),
                        );
                    }
                    Some(session) if *session == lease.session => {
                        return refuse(Code::Usage, format!("{side} has {name} already; name another side"));
                    }
                    Some(_) if self.trees[&lease.tree].is_fenced(side) => {
                        let why = self.trees[&lease.tree].fenced_words(side);
                        return refuse(Code::Busy, format!("{why}; {name} is still yours"));
                    }
                    Some(session) => Some(session.clone()),
                },
            },
        };
        let tree = self.trees.get_mut(&lease.tree).expect("it is current");
        let released = Event {
            end: End::Clean,
            files: release.files,
            bytes: release.bytes,
            count: release.late_refused,
            reason: release.note.clone(),
            ..tree.event(EventKind::Released, context)
        };
        context.happened(released);
        if let (Some(_), Some(side)) = (&next, &release.to) {
            let handoff = Event { reason: format!("to {side}"), ..tree.event(EventKind::Handoff, context) };
            context.happened(handoff);
        }
        let from = tree.held().map(|held| held.side.to_string()).unwrap_or_default();
        tree.end_clean();
        self.no_longer_held(lease);
        if let Some(next) = next {
            let to = self.handed_to(&lease.tree, &next, &from, context);
            self.grant(&lease.tree, to, Ahead::HandedOver, context);
        }
        Answer::Done
    }

    /// The next holder as it waits, or as if it did.
    fn handed_to(&self, tree: &TreeId, session: &SessionId, from: &str, context: &Context) -> Waiting {
        if let Some(waiting) = self.trees.get(tree).and_then(|t| t.queue.iter().find(|w| w.session == *session)) {
            return waiting.clone();
        }
        let live = &self.sessions[session];
        Waiting {
            session: session.clone(),
            side: live.side.clone(),
            host: live.host.clone(),
            since: context.at,
            asked: false,
            first_write: false,
            note: format!("handed over by {from}"),
            // Not known: it did not ask. So it is a new run, which is the safe side.
            place: None,
        }
    }

    /// The gate never opened. The side's queue entry is gone already (a grant takes it), so it is passed over until it asks.
    ///
    /// A clean end, except for a lease that came by I2's way back: what its side had written before the expiry is as
    /// unconfirmed as it was, so the waits begin anew, and no other side is granted without them.
    pub(super) fn give_back(&mut self, lease: &LeaseRef, reason: &str, context: &mut Context) -> Answer {
        let tree = match self.current(lease) {
            Ok(tree) => tree,
            Err(answer) => return *answer,
        };
        let came_back = tree.came_back;
        let end = if came_back { End::Unclean } else { End::Clean };
        let event = Event { end, reason: format!("given back: {reason}"), ..tree.event(EventKind::Released, context) };
        context.happened(event);
        if came_back {
            tree.forget_lock();
            let grace = tree.policy.grace;
            cool(
                tree,
                How::Expired,
                grace,
                "waits for grace",
                "it came back after an expiry, and its gate could not open",
                context,
            );
            self.now_cooling(&lease.tree);
        } else {
            tree.end_unopened();
        }
        self.no_longer_held(lease);
        Answer::Done
    }

    /// The holder could not flush: grace, then the fence, and no way back.
    pub(super) fn surrender(&mut self, lease: &LeaseRef, reason: &str, files: &[String], context: &mut Context) -> Answer {
        let tree = match self.current(lease) {
            Ok(tree) => tree,
            Err(answer) => return *answer,
        };
        let mut text = reason.to_owned();
        if !files.is_empty() {
            let named: Vec<&str> = files.iter().take(FILES_SHOWN).map(String::as_str).collect();
            text = format!("{text}; may be lost: {}", named.join(", "));
            if files.len() > FILES_SHOWN {
                text = format!("{text} and {} more", files.len() - FILES_SHOWN);
            }
        }
        let event =
            Event { end: End::Unclean, reason: text, files: files.len() as u64, ..tree.event(EventKind::Surrendered, context) };
        context.happened(event);
        let grace = tree.policy.grace;
        cool(tree, How::Surrendered, grace, "waits for grace", "it could not flush", context);
        self.no_longer_held(lease);
        self.now_cooling(&lease.tree);
        Answer::Done
    }

    /// The expired session's lease on one tree. The session itself ends in `session`.
    pub(super) fn expire_lease(&mut self, tree: &TreeId, context: &mut Context) {
        let Some(tree) = self.trees.get_mut(tree) else { return };
        let Some(held) = tree.held() else { return };
        let rest = if held.at_rest { "at rest" } else { "active" };
        let event = Event {
            end: End::Unclean,
            reason: format!("no renewal for a full TTL; it was {rest}"),
            ..tree.event(EventKind::Expired, context)
        };
        context.happened(event);
        // A full TTL has passed since the last acknowledged renewal (I3), so the gate is shut (I4): grace only.
        let grace = tree.policy.grace;
        cool(tree, How::Expired, grace, "waits for grace", "its session expired", context);
        let id = tree.id.clone();
        self.now_cooling(&id);
    }

    /// The lease of a session that two machines renewed. Both were answered, so a full TTL is waited out first, as after a
    /// break; one machine's word that its gate is shut says nothing of the other's.
    pub(super) fn end_copied_lease(&mut self, tree: &TreeId, ttl: Duration, context: &mut Context) {
        let Some(tree) = self.trees.get_mut(tree) else { return };
        let Some(held) = tree.held() else { return };
        let rest = if held.at_rest { "at rest" } else { "active" };
        let reason = format!(
            "two machines renewed this session: one is a copy of the other (a cloned or restored machine); it was {rest}"
        );
        let event = Event { end: End::Unclean, reason, ..tree.event(EventKind::Copied, context) };
        context.happened(event);
        let length = ttl.saturating_add(tree.policy.grace);
        cool(tree, How::Copied, length, "waits for a full TTL and grace", "two machines renewed its session", context);
        let id = tree.id.clone();
        self.now_cooling(&id);
    }

    /// An operator ends a lease. The holder may not hear of it: its right to write lasts as long as its last renewal says, so
    /// a full TTL is waited out first (I2 c, I4). The session lives on; its renewals list the pair no more.
    pub(super) fn break_lease(&mut self, id: &TreeId, epoch: Epoch, reason: &str, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        let lease = match tree.held() {
            Some(held) if held.epoch == epoch => LeaseRef { tree: id.clone(), session: held.session.clone(), epoch },
            _ => return Answer::Refused(moved_on(tree, epoch)),
        };
        // The largest that any renewal may still have been answered with (`session`).
        let ttl = self.sessions.get(&lease.session).map_or(self.ttl_max, |session| session.outlives()).get();
        let event = Event { end: End::Unclean, reason: reason.to_owned(), ..tree.event(EventKind::Broken, context) };
        context.happened(event);
        let length = ttl.saturating_add(tree.policy.grace);
        cool(tree, How::Broken, length, "waits for a full TTL and grace", "it was broken", context);
        self.no_longer_held(&lease);
        self.now_cooling(id);
        Answer::Done
    }

    /// The broken holder's own word that its gate is shut: the rest of the TTL need not be waited out, grace begins now.
    pub(super) fn gate_closed(&mut self, lease: &LeaseRef, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(&lease.tree) else { return no_such_tree(&lease.tree) };
        let ended = match &tree.state {
            TreeState::Cooling(cooling)
                if cooling.ended.how == How::Broken
                    && cooling.ended.epoch == lease.epoch
                    && cooling.ended.session.as_ref() == Some(&lease.session) =>
            {
                cooling.ended.clone()
            }
            _ => return ignore(format!("{} does not wait for that gate", tree.name)),
        };
        let event = tree.event(EventKind::GateClosed, context);
        context.happened(event);
        let why = format!(
            "waits for grace after {}'s unclean end at epoch {} (it was broken, its gate is shut)",
            who(tree),
            ended.epoch
        );
        let grace = tree.policy.grace;
        tree.cool(super::Ended { how: How::BrokenAndShut, ..ended }, grace, why);
        self.now_cooling(&lease.tree);
        Answer::Done
    }

    /// The cooling has passed on the leader's clock.
    pub(super) fn end_grace(&mut self, id: &TreeId, epoch: Epoch, under: Leadership, context: &mut Context) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership decided this");
        }
        #[cfg(test)]
        let skip_fence = self.fault == super::tests::Fault::NoFence;
        #[cfg(not(test))]
        let skip_fence = false;
        let Some(tree) = self.trees.get_mut(id) else { return ignore("there is no such tree") };
        let active = match &tree.state {
            TreeState::Cooling(cooling) if cooling.ended.epoch == epoch => cooling.ended.active,
            _ => return ignore(format!("{} does not cool after epoch {epoch}", tree.name)),
        };
        let whose = who(tree);
        if active && tree.policy.fence != Fence::None && !skip_fence {
            let agent = match (&tree.policy.fence, tree.ended().and_then(|ended| ended.whom_to_fence())) {
                (Fence::Exec(agent), Some(_)) => format!("the fence agent `{agent}`, which is run when another side waits, or "),
                (Fence::Exec(agent), None) => format!("(whom to fence is not known, so `{agent}` is not run) "),
                _ => String::new(),
            };
            let witness = match tree.ended().is_some_and(|ended| ended.marker.is_some()) {
                true => ", or the marker's lock in a waiter's hand: the storage's word that the old holder is gone",
                false => "",
            };
            let why = format!(
                "{whose}'s lease ended unclean at epoch {epoch} with writes that may be unconfirmed: \
                 needs {agent}`treelease fence confirm {} --epoch {epoch} --reason …`{witness}",
                tree.name
            );
            tree.fence(why.clone());
            let event = Event { reason: why, ..tree.event(EventKind::Fencing, context) };
            context.happened(event);
        } else {
            let why = if active {
                "no fence: an old holder's unconfirmed writes may still arrive"
            } else {
                "grace is over, and the tree was at rest: nothing was left behind"
            };
            let event = Event { reason: why.into(), ..tree.event(EventKind::Freed, context) };
            context.happened(event);
            tree.free_unclean();
        }
        self.cooling.remove(id);
        self.timed += 1;
        Answer::Done
    }

    /// An operator vouches: what is left of the waits is skipped, and that is on record.
    pub(super) fn fence_confirm(&mut self, id: &TreeId, epoch: Epoch, reason: &str, context: &mut Context) -> Answer {
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        if tree.ended().is_none_or(|ended| ended.epoch != epoch) {
            return Answer::Refused(moved_on(tree, epoch));
        }
        let event = Event { reason: format!("vouched: {reason}"), ..tree.event(EventKind::Fenced, context) };
        context.happened(event);
        tree.free_unclean();
        if self.cooling.remove(id) {
            self.timed += 1;
        }
        Answer::Done
    }

    /// A waiter's guard has the marker's lock in hand that the ended lease's guard had: the fence's success (DESIGN 3, the storage
    /// is a witness).
    ///
    /// Why the lock's being free is enough: the holder said `active` with it in hand, and lets go of it only when its gate is shut,
    /// all permits have ended and the flush has returned 0, or by its end. On a filesystem of one kernel the lock is free only
    /// when the last thread of that process is gone, and a call that it had in flight has then ended. A restarted daemon of the
    /// same session that has not locked again yet is no exception: its lease is the one that has ended, so it opens nothing.
    pub(super) fn witnessed(&mut self, witness: Witness<'_>, context: &mut Context) -> Answer {
        let Witness { tree: id, epoch, attempt, session, marker } = witness;
        #[cfg(test)]
        let unsaid = self.fault == super::tests::Fault::WitnessUnsaid;
        #[cfg(not(test))]
        let unsaid = false;
        let Some(tree) = self.trees.get_mut(id) else { return no_such_tree(id) };
        let said = match &tree.state {
            TreeState::Fencing(fencing) if fencing.ended.epoch == epoch && fencing.attempt == attempt => &fencing.ended.marker,
            _ => return ignore(format!("{} does not wait for a fence after epoch {epoch}, attempt {attempt}", tree.name)),
        };
        // The very same lock, on the same known kernel: another one that is free says nothing about the holder.
        if !(unsaid || said.as_ref() == Some(marker) && !marker.place.boot.is_empty()) {
            return ignore(format!("the lease of epoch {epoch} did not say that it had this lock on {}'s marker", tree.name));
        }
        let Some(side) = tree.queue.iter().find(|w| w.session == *session).map(|w| w.side.clone()) else {
            return ignore(format!("who does not wait for {} is no witness", tree.name));
        };
        let reason =
            format!("{side} has got the marker's lock: {} is gone, or has let go of it with everything written", who(tree));
        let event = Event { reason, ..tree.event(EventKind::Witnessed, context) };
        context.happened(event);
        tree.free_unclean();
        Answer::Done
    }

    fn no_longer_held(&mut self, lease: &LeaseRef) {
        if let Some(session) = self.sessions.get_mut(&lease.session) {
            session.held.remove(&lease.tree);
        }
    }

    pub(super) fn now_cooling(&mut self, tree: &TreeId) {
        self.cooling.insert(tree.clone());
        self.timed += 1;
    }
}

/// What [`State::witnessed`] is told; see the command.
pub(super) struct Witness<'a> {
    pub(super) tree: &'a TreeId,
    pub(super) epoch: Epoch,
    pub(super) attempt: u32,
    pub(super) session: &'a SessionId,
    pub(super) marker: &'a MarkerLock,
}

/// Ends a lease unclean and says so.
fn cool(tree: &mut Tree, how: How, length: Duration, waits: &str, because: &str, context: &mut Context) {
    let why = format!("{waits} after {}'s unclean end at epoch {} ({because})", who(tree), tree.last_epoch);
    tree.end_unclean(how, length, why.clone());
    let event = Event { reason: cut(&why), ..tree.event(EventKind::Cooling, context) };
    context.happened(event);
}

/// Whose lease it is, or was.
fn who(tree: &Tree) -> String {
    let side = tree.held().map(|held| &held.side).or_else(|| tree.ended().and_then(|ended| ended.side.as_ref()));
    side.map_or_else(|| "another cluster".to_owned(), ToString::to_string)
}

/// The operator looked at something that is no more.
pub(super) fn moved_on(tree: &Tree, epoch: Epoch) -> Refusal {
    let state = tree.state_name().as_str();
    let message =
        format!("{} has moved on from epoch {epoch}: it is {state} at epoch {}; look again", tree.name, tree.last_epoch);
    let refusal = Refusal::new(Code::EpochMoved, message);
    match tree.holder() {
        Some(holder) => refusal.held_by(holder),
        None => refusal,
    }
}
