//! How a lease begins: acquiring, queueing, granting, and what a holder says while it has it.
//!
//! It promises that a free tree with an eligible waiter never stays free ([`State::settle`] runs after every command), that
//! the queue decides except where I2 or the holder's own handoff lets one go ahead, and that nobody is granted a tree whose
//! last lease is still being waited out, except by [`Tree::way_back`].

use std::time::Duration;

use treelease_proto::command::{Acquire, Answer, Event, EventKind, Grant, LeaseRef};
use treelease_proto::id::{MarkerLock, SessionId, TreeId};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::format_duration;
use treelease_proto::tree::End;

use super::history::Context;
use super::queue::Waiting;
use super::{MAX_WAITERS, State, Tree, TreeState, cut, ignore, no_such_tree, refuse};

/// The longest that a decline says: a year, so that nothing overflows.
const DECLINE_MAX_MS: u64 = 366 * 24 * 3_600_000;

impl State {
    pub(super) fn acquire(&mut self, acquire: &Acquire, context: &mut Context) -> Answer {
        let id = &acquire.tree;
        let Some(session) = self.sessions.get(&acquire.session) else {
            return refuse(Code::NotFound, "this side's session has ended; its daemon opens a new one by itself");
        };
        let waiting = Waiting {
            session: acquire.session.clone(),
            side: session.side.clone(),
            host: session.host.clone(),
            since: context.at,
            asked: acquire.ask,
            first_write: acquire.first_write,
            note: cut(&acquire.note),
            // Two machines call themselves this kernel: then nobody comes back as the same one (I2), and no run goes on (I6).
            place: acquire.place.clone().filter(|place| !self.copied_boots.contains(&place.boot)),
        };
        let Some(tree) = self.trees.get_mut(id).filter(|tree| tree.state != TreeState::Retired) else {
            return no_such_tree(id);
        };
        if let TreeState::Held(held) = &mut tree.state
            && held.session == acquire.session
        {
            held.note = waiting.note;
            // Mounted elsewhere meanwhile: which pages are where is not known any more, so there is no way back (I2).
            if waiting.place.is_some() && waiting.place != held.place {
                held.place = None;
                if let Some(run) = &mut tree.run {
                    run.place = None;
                }
            }
            return tree.as_grant().map_or(Answer::Done, Answer::Granted);
        }
        if tree.way_back(&waiting) || self.faulty_way_back(id, &waiting) {
            return Answer::Granted(self.grant(id, waiting, Ahead::CameBack, context));
        }
        if tree_is_free_for(&self.trees[id], &waiting) {
            return Answer::Granted(self.grant(id, waiting, Ahead::No, context));
        }
        let tree = self.trees.get_mut(id).expect("it was there above");
        let known = tree.queue.contains(&acquire.session);
        if acquire.no_wait {
            return Answer::Refused(not_now(tree, &waiting));
        }
        if !known && tree.queue.len() >= MAX_WAITERS {
            return refuse(Code::Limit, format!("{} has {MAX_WAITERS} waiters already; try again later", tree.name));
        }
        let mine = |event: Event| Event { side: Some(waiting.side.clone()), session: Some(waiting.session.clone()), ..event };
        let joined = tree.queue.join(waiting.clone());
        if joined.new {
            context.happened(Event { reason: waiting.note.clone(), ..mine(tree.event(EventKind::Queued, context)) });
        }
        if joined.newly_asked {
            tree.declined.clear();
            if tree.held().is_some() {
                context.happened(Event { reason: waiting.note.clone(), ..mine(tree.event(EventKind::Asked, context)) });
            }
        }
        let answer = Answer::Queued { place: joined.place, holder: tree.holder() };
        if let Some(session) = self.sessions.get_mut(&acquire.session) {
            session.waiting.insert(id.clone());
        }
        answer
    }

    pub(super) fn cancel(&mut self, tree: &TreeId, session: &SessionId, context: &mut Context) -> Answer {
        if !self.trees.contains_key(tree) {
            return no_such_tree(tree);
        }
        if self.leave_queue(tree, session, "", context) { Answer::Done } else { ignore("it is not in the queue") }
    }

    /// Takes a session's entry out of a tree's queue. Whether there was one.
    pub(super) fn leave_queue(&mut self, tree: &TreeId, session: &SessionId, why: &str, context: &mut Context) -> bool {
        if let Some(session) = self.sessions.get_mut(session) {
            session.waiting.remove(tree);
        }
        let Some(tree) = self.trees.get_mut(tree) else { return false };
        let Some(entry) = tree.queue.leave(session) else { return false };
        let event = Event {
            side: Some(entry.side),
            session: Some(entry.session),
            reason: why.to_owned(),
            ..tree.event(EventKind::Cancelled, context)
        };
        context.happened(event);
        true
    }

    /// Grants a free tree to the first waiter that may have it. Runs for every touched tree after every command.
    pub(super) fn settle(&mut self, id: &TreeId, context: &mut Context) {
        let Some(tree) = self.trees.get(id) else { return };
        if tree.state != TreeState::Free {
            return;
        }
        if let Some(next) = tree.queue.first(|side| tree.may_be_granted(side)).cloned() {
            self.grant(id, next, Ahead::No, context);
        }
    }

    /// Grants, and keeps the indexes right. The caller has made sure of I2.
    pub(super) fn grant(&mut self, id: &TreeId, to: Waiting, ahead: Ahead, context: &mut Context) -> Grant {
        let tree = self.trees.get_mut(id).expect("the caller has looked the tree up");
        let session = self.sessions.get_mut(&to.session).expect("only a live session is granted or queued");
        session.waiting.remove(id);
        session.held.insert(id.clone());
        let kernel = session.kernel.clone();
        if self.cooling.remove(id) {
            self.timed += 1;
        }
        let back = match ahead {
            Ahead::CameBack => {
                let back = Event { session: Some(to.session.clone()), ..tree.event(EventKind::Returned, context) };
                Some(Event { reason: "back on the same kernel after its session had expired".into(), ..back })
            }
            Ahead::No | Ahead::HandedOver => None,
        };
        let note = to.note.clone();
        let grant = tree.grant(to, kernel, context.at, ahead == Ahead::CameBack);
        if let Some(back) = back {
            context.happened(Event { epoch: grant.epoch, run_start: grant.run_start, ..back });
        }
        let granted = Event { end: grant.last_end, reason: note, ..tree.event(EventKind::Granted, context) };
        context.happened(granted);
        grant
    }

    /// The holder answers "not now": requests are taken back, the waiters stay.
    pub(super) fn decline(&mut self, lease: &LeaseRef, for_ms: u64, note: &str, context: &mut Context) -> Answer {
        let tree = match self.current(lease) {
            Ok(tree) => tree,
            Err(answer) => return *answer,
        };
        let length = format_duration(Duration::from_millis(for_ms.min(DECLINE_MAX_MS)));
        let text =
            cut(&if note.is_empty() { format!("not now, for {length}") } else { format!("not now, for {length}: {note}") });
        tree.queue.clear_asked();
        tree.declined.clone_from(&text);
        let event = Event { reason: text, ..tree.event(EventKind::Declined, context) };
        context.happened(event);
        Answer::Done
    }

    /// Nothing is unconfirmed: if the lease ends without a word now, grace is enough (DESIGN 3, 1).
    pub(super) fn rest(&mut self, lease: &LeaseRef, number: u64, context: &mut Context) -> Answer {
        self.set_rest(lease, number, true, "", context)
    }

    /// Something will be unconfirmed from now on. What it says of the marker's lock replaces what was said before.
    pub(super) fn active(&mut self, lease: &LeaseRef, number: u64, marker: Option<&MarkerLock>, context: &mut Context) -> Answer {
        let reason = if marker.is_some() { "the marker is locked" } else { "" };
        let answer = self.set_rest(lease, number, false, reason, context);
        if answer == Answer::Done
            && let Some(TreeState::Held(held)) = self.trees.get_mut(&lease.tree).map(|tree| &mut tree.state)
        {
            held.marker = marker.cloned();
        }
        answer
    }

    fn set_rest(&mut self, lease: &LeaseRef, number: u64, at_rest: bool, reason: &str, context: &mut Context) -> Answer {
        let tree = match self.current(lease) {
            Ok(tree) => tree,
            Err(answer) => return *answer,
        };
        let TreeState::Held(held) = &mut tree.state else { return ignore("it is not held") };
        // A delayed `rest` must not follow the `active` that was sent after it: the storage would have unconfirmed writes.
        if number <= held.number {
            return ignore(format!("number {number} is not after {}", held.number));
        }
        held.number = number;
        held.at_rest = at_rest;
        let kind = if at_rest { EventKind::Rest } else { EventKind::Active };
        let event = Event { reason: reason.to_owned(), ..tree.event(kind, context) };
        context.happened(event);
        Answer::Done
    }

    /// The tree of a current lease; else why the command does not count.
    pub(super) fn current(&mut self, lease: &LeaseRef) -> Result<&mut Tree, Box<Answer>> {
        let Some(tree) = self.trees.get_mut(&lease.tree) else { return Err(Box::new(no_such_tree(&lease.tree))) };
        match tree.held() {
            Some(held) if held.session == lease.session && held.epoch == lease.epoch => Ok(tree),
            _ => Err(Box::new(ignore(format!("epoch {} of {} is not this session's any more", lease.epoch, tree.name)))),
        }
    }

    /// A rule left out for a test's control; never in a build without tests.
    fn faulty_way_back(&self, id: &TreeId, waiting: &Waiting) -> bool {
        #[cfg(test)]
        if self.fault == super::tests::Fault::BackFromAnyKernel {
            return self.trees[id].ended().is_some_and(|ended| ended.side.as_ref() == Some(&waiting.side));
        }
        let _ = (id, waiting);
        false
    }
}

/// Why a grant does not come from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    /// It does.
    No,
    /// By I2's way back.
    CameBack,
    /// By the holder's handoff.
    HandedOver,
}

/// A free tree has no eligible waiter (it would have been granted), so whoever comes and may have it is the first.
fn tree_is_free_for(tree: &Tree, waiting: &Waiting) -> bool {
    tree.state == TreeState::Free && tree.may_be_granted(&waiting.side)
}

/// Why a tree cannot be had now, in a sentence that names what to wait for.
fn not_now(tree: &Tree, waiting: &Waiting) -> Refusal {
    let name = &tree.name;
    let refusal = |message: String| Refusal::new(Code::Held, message);
    if tree.is_sealed() {
        return refusal(format!(
            "{name} is sealed: it has no root that takes writes; `treelease tree unseal {name}` makes one live"
        ));
    }
    if tree.state == TreeState::Free && tree.is_fenced(&waiting.side) {
        return refusal(tree.fenced_words(&waiting.side));
    }
    match &tree.state {
        TreeState::Held(held) => {
            let host = if held.host.is_empty() { String::new() } else { format!(" (host {})", held.host) };
            let message = format!("{name} is held by {}{host} since {}, epoch {}", held.side, held.since, held.epoch);
            let refusal = refusal(message);
            match tree.holder() {
                Some(holder) => refusal.held_by(holder),
                None => refusal,
            }
        }
        TreeState::Cooling(cooling) => refusal(format!("{name} {}", cooling.why)),
        TreeState::Fencing(fencing) => refusal(format!("{name} is fencing: {}", fencing.why)),
        TreeState::Free | TreeState::Retired => {
            debug_assert_eq!(tree.last_end, End::Unclean);
            refusal(format!(
                "{name} ended unclean at epoch {}, and its policy `takeover` does not name {}",
                tree.last_epoch, waiting.side
            ))
        }
    }
}
