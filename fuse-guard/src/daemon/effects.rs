//! Carrying out what a tree asks for ([`tree::Effect`](super::tree::Effect)).
//!
//! Nothing here waits: what touches the lower filesystem runs on a thread that may be lost ([`super::storage`]), and its end comes back as
//! a [`Done`]. The order of a tree's effects is kept: a standing is published before the drain that relies on it begins. What is sent to
//! the servers about an end has been noted for a restart ([`super::restart`]).

#[cfg(test)]
mod tests;

use std::sync::Arc;

use treelease_client::words::command::{Acquire, Answer, Command, Release};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{RequestKey, TreeId};
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;
use treelease_client::words::wire::{self, hold_answer, progress};

use super::servers::{Job, Purpose};
use super::storage::DROP_LIMIT;
use super::tree::{Attempt, Effect, LockWord, Past};
use super::{Daemon, Msg, Tree};
use crate::gate::Outcome;
use crate::handoff::{PUSH_LIMIT, Step};
use crate::lower::witness::Lock;

/// Left-over notes kept for `status`.
pub(super) const NOTES_MAX: usize = 32;

/// Something about one tree has come to its end elsewhere.
#[derive(Debug)]
pub(crate) enum Done {
    /// The servers' answer to a command.
    Answer(Purpose, Result<Answer, Refusal>),
    /// The marker's lock was asked for, for this epoch, in this try.
    Locked(Epoch, u64, Result<(LockWord, Option<Arc<Lock>>), Refusal>),
    /// The storage was looked at through the lock of that epoch.
    LookedAfter(Epoch, Result<(), String>),
    /// The ended lease's lock was asked for.
    Asked(Attempt, Option<Arc<Lock>>),
    /// Marker, stamp and left-overs are seen to; notes for people.
    Opened(Epoch, Result<Vec<String>, Refusal>),
    /// Waiting operations carried out, caches dropped.
    CarriedOut(Epoch, Result<(), String>),
    /// A look at what goes on. This and the next three: for the end of that number.
    Moment(u64, Vec<String>),
    /// Mapped pages pushed.
    Pushed(u64),
    /// Permits in flight ended, or not in time.
    Drained(u64, bool),
    /// Everything of this epoch made durable, or what failed.
    Flushed(u64, Result<(u64, u64), String>),
    /// A broken lease's gate is shut and drained.
    Shut(Epoch),
    /// Permits ended and storage confirmed before rest; `Err(true)`: a write-back error.
    Settled(u64, Result<(), bool>),
    /// What an earlier mode let through has ended and is on the storage; for the mode of that number.
    ModeSettled(u64, bool),
    /// A first write waits at the gate.
    FirstWrite,
    /// A write ended after the deadline.
    LateWrite(String),
    /// The lower tree was changed past the mount.
    Bypassed(Vec<crate::lower::bypass::Past>),
}

impl Daemon {
    /// Carries out what all trees ask for, until none asks any more.
    pub(super) fn carry_out(&mut self, now: BootTime) {
        let ids: Vec<TreeId> = self.trees.keys().cloned().collect();
        for id in ids {
            while let Some(effect) = self.trees.get_mut(&id).and_then(|t| t.side.poll_effect()) {
                tracing::trace!(tree = %id, ?effect, "effect");
                self.perform(&id, effect, now);
            }
        }
    }

    fn perform(&mut self, id: &TreeId, effect: Effect, now: BootTime) {
        match effect {
            Effect::Publish => self.publish(id),
            Effect::RenewNow => self.renew_for(id, now),
            Effect::Acquire { ask, first_write, no_wait, note } => self.acquire(id, ask, first_write, no_wait, note, now),
            Effect::Cancel => {
                if let Some(session) = self.file.session.clone() {
                    self.send(id, Command::Cancel { tree: id.clone(), session }, Purpose::Cancel, RequestKey::random());
                }
            }
            Effect::Open(grant) => self.open_root(id, grant),
            Effect::ReplaceNodes => {
                // I6: what is mapped or open for writing since before the other side's turn shares no page with what is opened now.
                if let Some(mount) = self.mount(id).filter(|_| !self.faults.no_stale) {
                    let replaced = mount.replace_written_nodes();
                    tracing::debug!(tree = %id, replaced, "nodes of an earlier run replaced");
                }
            }
            Effect::CarryOut(grant) => self.carry_out_waiting(id, grant),
            Effect::RefuseWaiters => {
                if let Some(mount) = self.mount(id) {
                    mount.answer_waiters(Outcome::Refused);
                }
            }
            Effect::GiveBack { epoch, reason } => {
                tracing::warn!(tree = %id, %epoch, reason, "grant given back");
                if !self.note_let_go(id, epoch, Past::GivenBack) {
                    return self.owed_later(id, epoch, now);
                }
                self.drop_lock(id);
                if let Some(lease) = self.lease(id, epoch) {
                    self.send(id, Command::GiveBack { lease, reason }, Purpose::Owed(epoch), RequestKey::random());
                }
            }
            Effect::SurrenderUnopened { epoch, reason } => {
                tracing::error!(tree = %id, %epoch, reason, "the resumed lease cannot be used: surrendered");
                if !self.note_let_go(id, epoch, Past::Surrendered) {
                    return self.owed_later(id, epoch, now);
                }
                self.drop_lock(id);
                if let Some(lease) = self.lease(id, epoch) {
                    let command = Command::Surrender { lease, reason, files: Vec::new() };
                    self.send(id, command, Purpose::Owed(epoch), RequestKey::random());
                }
            }
            Effect::ReleaseAgain { epoch } => {
                if let Some(lease) = self.lease(id, epoch) {
                    let note = "asked again after the daemon's restart".to_owned();
                    let release = Release { lease, files: 0, bytes: 0, late_refused: 0, to: None, note };
                    self.send(id, Command::Release(release), Purpose::Owed(epoch), RequestKey::random());
                }
            }
            Effect::DropCaches => {
                if let Some(mount) = self.mount(id) {
                    tokio::task::spawn_blocking(move || mount.drop_caches(DROP_LIMIT));
                }
            }
            Effect::SayGateClosed { epoch } => self.shut(id, epoch),
            Effect::FlushLapsed => self.flush_lapsed(id),
            Effect::Settle(no) => self.settle(id, no),
            Effect::TellRest { at_rest, number } => {
                let Some(lease) = self.current_lease(id) else { return };
                let marker = self.trees.get(id).and_then(|t| t.side.marker_to_say());
                let command = match at_rest {
                    true => Command::Rest { lease, number },
                    false => Command::Active { lease, number, marker },
                };
                self.send(id, command, Purpose::Rest(number), RequestKey::random());
            }
            Effect::TakeLock { epoch, no } => self.take_lock(id, epoch, no),
            Effect::AskWitness(of) => self.ask_witness(id, of),
            Effect::TellWitness(of, marker) => self.tell_witness(id, of, marker),
            Effect::DropWitness => self.drop_witness(id),
            Effect::SettleMode(no) => self.settle_mode(id, no),
            Effect::TellObeys(no) => self.tell_obeys(id, no),
            Effect::Step(step) => self.step(id, step, now),
            Effect::HoldGranted(hold) => self.hold_granted(id, &hold),
            Effect::HoldWaits(hold) => self.hold_waits(id, &hold),
            Effect::HoldRefused(hold, refusal) => self.hold_refused(id, &hold, refusal.into()),
            Effect::HoldLost(hold, reason) => {
                // The stream stays: its end says that the command has ended.
                self.tell_hold(id, &hold, hold_answer::Kind::Lost(wire::Lost { reason }), false);
            }
            Effect::EndResult(result) => self.end_result(id, result),
            Effect::EndProgress(message) => self.tell_enders(id, progress::Kind::Step(wire::Step { message })),
            Effect::Note(note) => self.note(id, note),
        }
    }

    // ---- the steps of an end ----

    fn step(&mut self, id: &TreeId, step: Step, now: BootTime) {
        let mount = self.mount(id);
        let Some(tree) = self.trees.get(id) else { return };
        let (limit, no) = (tree.side.policy.flush_limit, tree.side.end_no());
        match step {
            Step::LookForMoment => {
                self.elsewhere(id, move || Done::Moment(no, mount.map(|m| m.unfinished()).unwrap_or_default()));
            }
            Step::PushMapped | Step::PushAgain => self.elsewhere(id, move || {
                if let Some(Err(why)) = mount.map(|m| m.push_mapped(PUSH_LIMIT)) {
                    tracing::warn!(why, "mapped pages could not all be pushed");
                }
                Done::Pushed(no)
            }),
            Step::CloseStageTwo(drain) => self.elsewhere(id, move || Done::Drained(no, mount.is_none_or(|m| m.drain(drain)))),
            Step::Flush => {
                // An earlier run of the daemon wrote through a mount that this one could not make again.
                let blind = mount.is_none() && self.wrote_through_a_mount(id);
                self.elsewhere(id, move || {
                    let flushed = match mount.map(|m| m.flush(limit)) {
                        None if blind => Err("the tree is not mounted any more, so nobody knows what is on the storage".into()),
                        None => Ok((0, 0)),
                        Some(Ok(flushed)) => Ok((flushed.files, flushed.bytes)),
                        Some(Err(failed)) => Err(format!("{} ({})", failed.why, failed.files.join(", "))),
                    };
                    Done::Flushed(no, flushed)
                });
            }
            Step::Release { files, bytes, to, request } => {
                let tree_note = tree.end_note.clone();
                let Some(lease) = self.current_lease(id) else { return };
                let refused = mount.map_or(0, |m| m.counts().pages_refused);
                let late_refused = self.trees.get_mut(id).map_or(0, |tree| tree.late.for_release(lease.epoch, refused));
                if !self.note_let_go(id, lease.epoch, Past::Released) {
                    return self.end_later(id, no, now);
                }
                let release = Release { lease, files, bytes, late_refused, to, note: tree_note };
                self.send_end(id, Command::Release(release), request);
            }
            Step::Surrender { why, request } => {
                let Some(lease) = self.current_lease(id) else { return };
                if let Some(lock) = self.trees.get(id).and_then(|t| t.locks.own.as_ref()) {
                    lock.keep();
                }
                if !self.note_let_go(id, lease.epoch, Past::Surrendered) {
                    return self.end_later(id, no, now);
                }
                tracing::error!(tree = %id, why, "surrendered: the lease ends unclean");
                self.send_end(id, Command::Surrender { lease, reason: why, files: Vec::new() }, request);
            }
            Step::Decline { busy } => {
                let Some(lease) = self.current_lease(id) else { return };
                let command = Command::Decline { lease, for_ms: 0, note: busy.join(", ") };
                self.send(id, command, Purpose::Tell, RequestKey::random());
            }
            Step::CloseStageOne | Step::Reopen | Step::Done => {}
        }
    }

    // ---- servers ----

    pub(super) fn lease(&self, id: &TreeId, epoch: Epoch) -> Option<treelease_client::words::command::LeaseRef> {
        Some(self.trees.get(id)?.side.lease_ref(self.file.session.as_ref()?, epoch))
    }

    pub(super) fn current_lease(&self, id: &TreeId) -> Option<treelease_client::words::command::LeaseRef> {
        self.trees.get(id)?.side.lease(self.file.session.as_ref()?)
    }

    fn renew_for(&mut self, id: &TreeId, now: BootTime) {
        let epoch = self.trees.get(id).and_then(|t| t.side.grant()).map(|g| g.epoch);
        if let (Some(session), Some(epoch)) = (&mut self.session, epoch) {
            session.note_grant(id, epoch, now);
        }
        self.drive_session(now);
    }

    fn acquire(&mut self, id: &TreeId, ask: bool, first_write: bool, no_wait: bool, note: String, now: BootTime) {
        let session = self.file.session.clone().filter(|_| self.session.is_some());
        let Some(session) = session else {
            let why =
                if self.link.trouble.is_empty() { "this side has no session yet".to_owned() } else { self.link.trouble.clone() };
            let refusal = Refusal::new(Code::Unreachable, why);
            if let Some(tree) = self.trees.get_mut(id) {
                tree.side.handle_acquire_answer(tree.side.session_no(), Err(refusal), now);
            }
            return;
        };
        let Some(tree) = self.trees.get(id) else { return };
        let (place, no) = (tree.mounted.as_ref().and_then(|m| m.place.clone()), tree.side.session_no());
        let command = Command::Acquire(Acquire { tree: id.clone(), session, ask, first_write, no_wait, note, place });
        self.send(id, command, Purpose::Acquire(no), RequestKey::random());
    }

    fn send_end(&mut self, id: &TreeId, command: Command, request: u32) {
        // The same request asked again carries the same key (DESIGN 5, step 5).
        let Some(tree) = self.trees.get_mut(id) else { return };
        let epoch = tree.side.grant().map_or(Epoch::ZERO, |g| g.epoch);
        let key = match &tree.end_key {
            Some((e, r, key)) if (*e, *r) == (epoch, request) => key.clone(),
            _ => RequestKey::random(),
        };
        tree.end_key = Some((epoch, request, key.clone()));
        let no = tree.side.end_no();
        // The lock goes last, and before a release is sent. A surrender keeps it.
        let release = matches!(command, Command::Release(_));
        let unlock = tree.locks.own.take_if(|_| release);
        self.send_after(id, unlock, command, Purpose::End(no), key);
    }

    pub(super) fn send(&mut self, id: &TreeId, command: Command, purpose: Purpose, key: RequestKey) {
        self.send_after(id, None, command, purpose, key);
    }

    fn send_after(&mut self, id: &TreeId, unlock: Option<Arc<Lock>>, command: Command, purpose: Purpose, key: RequestKey) {
        let Some(tree) = self.trees.get(id) else { return };
        let (servers, cluster) = (self.servers.clone(), self.file.cluster.clone());
        if let Err(error) = tree.wire.try_send(Job { key, unlock, command, purpose: purpose.clone(), servers, cluster }) {
            tracing::error!(tree = %id, %error, "too many commands wait for the servers");
            let refusal = Refusal::new(Code::Limit, "too many commands wait for the lease servers");
            let (mail, id) = (self.mail.clone(), id.clone());
            tokio::spawn(async move { mail.send(Msg::Tree(id, Done::Answer(purpose, Err(refusal)))).await });
        }
    }

    // ---- what came back ----

    pub(super) fn handle_done(&mut self, id: &TreeId, done: Done, now: BootTime) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        match done {
            Done::Answer(Purpose::Acquire(no), answer) => {
                tree.side.handle_acquire_answer(no, answer, now);
                self.read_table_soon(now);
            }
            Done::Answer(Purpose::Owed(epoch), answer) => tree.side.handle_owed_answer(epoch, answer.is_ok(), now),
            Done::Answer(Purpose::Cancel, Ok(Answer::Done)) => tree.side.handle_cancelled(),
            Done::Answer(Purpose::End(no), answer) => {
                tree.side.handle_end_answer(no, answer.map_err(|r| r.message), now);
                self.read_table_soon(now);
            }
            Done::Answer(Purpose::Witness(of), answer) => {
                tree.side.handle_witness_answer(of, &answer, now);
                self.read_table_soon(now);
            }
            Done::Answer(Purpose::Obeys(no), answer) => {
                tree.side.handle_obeys_answer(no, answer == Ok(Answer::Done));
                self.read_table_soon(now);
            }
            Done::ModeSettled(no, settled) => tree.side.handle_mode_settled(no, settled),
            Done::Locked(epoch, no, result) => self.handle_locked(id, epoch, no, result, now),
            Done::LookedAfter(epoch, looked) => self.handle_looked_after(id, epoch, looked, now),
            Done::Asked(of, lock) => self.handle_asked(id, of, lock, now),
            Done::Answer(Purpose::Rest(number), answer) => tree.side.handle_rest_answer(number, &answer, now),
            Done::Answer(Purpose::Tell | Purpose::Cancel, _) => {}
            Done::Settled(no, settled) => tree.side.handle_settled(no, settled, now),
            Done::Opened(epoch, result) => {
                let result = result.map(|notes| {
                    for note in notes {
                        keep_note(tree, note);
                    }
                });
                tree.side.handle_opened(epoch, result, now);
            }
            Done::CarriedOut(epoch, dropped) => {
                tree.unflushed = true;
                tree.side.handle_carried_out(epoch, dropped, now);
            }
            Done::Moment(no, unfinished) => {
                if let Some(mounted) = &tree.mounted {
                    tree.side.note_mutation(mounted.mount.last_mutation());
                }
                let moment = tree.side.moment(unfinished);
                tree.side.feed_ending(no, |handoff, now| handoff.handle_moment(moment, now), now);
            }
            Done::Pushed(no) => tree.side.feed_ending(no, |handoff, now| handoff.handle_pushed(now), now),
            Done::Drained(no, drained) => tree.side.feed_ending(no, |handoff, now| handoff.handle_drained(drained, now), now),
            Done::Flushed(no, flushed) => tree.side.feed_ending(no, |handoff, now| handoff.handle_flushed(flushed, now), now),
            Done::Shut(epoch) => {
                if let Some(lease) = self.lease(id, epoch) {
                    self.send(id, Command::GateClosed(lease), Purpose::Tell, RequestKey::random());
                }
            }
            Done::FirstWrite if tree.unmounting => {
                if let Some(mounted) = &tree.mounted {
                    mounted.mount.answer_waiters(Outcome::Refused);
                }
            }
            Done::FirstWrite => tree.side.handle_first_write(now),
            Done::Bypassed(past) => self.bypassed(id, past, now),
            Done::LateWrite(what) => {
                keep_note(tree, what.clone());
                let epoch = tree.side.latest;
                if let Some(lease) = self.lease(id, epoch) {
                    let event = treelease_client::words::command::EventKind::LateWrite;
                    self.send(id, Command::Report { lease, event, reason: what, count: 1 }, Purpose::Tell, RequestKey::random());
                }
            }
        }
    }

    fn note(&mut self, id: &TreeId, note: String) {
        tracing::info!(tree = %id, note);
        if let Some(tree) = self.trees.get_mut(id) {
            keep_note(tree, note);
        }
    }
}

pub(super) fn keep_note(tree: &mut Tree, note: String) {
    if tree.notes.len() >= NOTES_MAX {
        tree.notes.remove(0);
    }
    tree.notes.push(note);
}
