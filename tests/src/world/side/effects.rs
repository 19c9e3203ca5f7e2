//! What the tree asks for, carried out (as `daemon/effects.rs`).

use std::time::Duration;

use treelease_guard::daemon::tree::Effect;
use treelease_guard::gate::Permit;
use treelease_guard::handoff::Step;
use treelease_proto::command::{Acquire, Command, Release};
use treelease_proto::epoch::Epoch;
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::BootTime;

use super::{Fault, Local, Out, Purpose, Rng, Side};

impl Side {
    pub(in crate::world) fn carry_out(&mut self, now: BootTime, rng: &mut Rng) {
        while let Some(effect) = self.tree.poll_effect() {
            self.perform(effect, now, rng);
        }
    }

    fn perform(&mut self, effect: Effect, now: BootTime, rng: &mut Rng) {
        let lease = |epoch| self.session_id.as_ref().map(|session| self.tree.lease_ref(session, epoch));
        match effect {
            Effect::Publish => {
                let mut standing = self.tree.standing(self.session.is_some());
                if self.fault == Fault::NothingStale {
                    standing.stale_below = Epoch::ZERO;
                }
                self.gate.publish(standing);
            }
            Effect::RenewNow => {
                if let (Some(epoch), Some(session)) = (self.tree.grant().map(|g| g.epoch), &mut self.session) {
                    session.note_grant(&self.tree.id, epoch, now);
                }
                self.drive_session(now, rng);
            }
            Effect::Acquire { ask, first_write, no_wait, note } => match self.session_id.clone() {
                Some(session) => {
                    let (tree, place) = (self.tree.id.clone(), Some(self.place.clone()));
                    let acquire = Acquire { tree, session, ask, first_write, no_wait, note, place };
                    self.send(Command::Acquire(acquire), Purpose::Acquire(self.tree.session_no()), rng);
                }
                None => {
                    let refusal = Refusal::new(Code::Unreachable, "this side has no session yet");
                    self.tree.handle_acquire_answer(self.tree.session_no(), Err(refusal), now);
                }
            },
            Effect::Cancel => {
                if let Some(session) = self.session_id.clone() {
                    self.send(Command::Cancel { tree: self.tree.id.clone(), session }, Purpose::Cancel, rng);
                }
            }
            Effect::Open(grant) => {
                let (long, fine) = (rng.chance(4), !rng.chance(2));
                let after = if long { rng.ms(500, 9_000) } else { rng.ms(1, 100) };
                self.after(after, Local::Opened(grant.epoch, fine));
            }
            Effect::CarryOut(grant) => {
                self.write_waiting(now, rng);
                let fine = !rng.chance(1);
                self.after(rng.ms(1, 60), Local::CarriedOut(grant.epoch, fine));
            }
            Effect::RefuseWaiters => self.waiting = false,
            Effect::GiveBack { epoch, reason } => {
                if let Some(lease) = lease(epoch) {
                    self.send(Command::GiveBack { lease, reason }, Purpose::Owed(epoch), rng);
                }
            }
            Effect::SurrenderUnopened { epoch, reason } => {
                if let Some(lease) = lease(epoch) {
                    self.send(Command::Surrender { lease, reason, files: Vec::new() }, Purpose::Owed(epoch), rng);
                }
            }
            Effect::SayGateClosed { epoch } => self.after(rng.ms(1, 50), Local::Shut(epoch)),
            Effect::Settle(no) => self.after(Duration::ZERO, Local::Settle(no, 0)),
            Effect::TellRest { at_rest, number } => {
                let Some(lease) = self.session_id.as_ref().and_then(|session| self.tree.lease(session)) else { return };
                let command = match at_rest {
                    true => Command::Rest { lease, number },
                    false => Command::Active { lease, number, marker: None },
                };
                self.send(command, Purpose::Rest(number), rng);
            }
            // A storage without locks: nothing is claimed of it, and nobody asks for one.
            Effect::TakeLock { epoch, no } => self.after(rng.ms(1, 20), Local::Unlockable(epoch, no)),
            Effect::Step(step) => self.step(step, rng),
            Effect::EndResult(result) => self.outs.push(Out::End(result)),
            // Caches, nodes, and what people read. Effects that come later and need an answer must be taken up here: the world's
            // end, where somebody must get the tree, shows that they are missing.
            _ => {}
        }
    }

    fn step(&mut self, step: Step, rng: &mut Rng) {
        let no = self.tree.end_no();
        let lease = self.session_id.as_ref().and_then(|session| self.tree.lease(session));
        match step {
            Step::LookForMoment => self.after(rng.ms(1, 20), Local::Moment(no)),
            Step::PushMapped | Step::PushAgain => self.after(rng.ms(1, 80), Local::Pushed(no)),
            Step::CloseStageTwo(_) => self.after(Duration::ZERO, Local::Drain(no, 0)),
            Step::Flush => {
                let (fine, long) = (!rng.chance(3), rng.chance(3));
                self.after(if long { rng.ms(1_000, 8_000) } else { rng.ms(1, 150) }, Local::Flushed(no, fine));
            }
            Step::Release { files, bytes, to, request } => {
                let Some(lease) = lease else { return };
                let release = Release { lease, files, bytes, late_refused: 0, to, note: String::new() };
                self.send_end(Command::Release(release), request, rng);
            }
            Step::Surrender { why, request } => {
                let Some(lease) = lease else { return };
                self.send_end(Command::Surrender { lease, reason: why, files: Vec::new() }, request, rng);
            }
            Step::Decline { busy } => {
                let Some(lease) = lease else { return };
                self.send(Command::Decline { lease, for_ms: 0, note: busy.join(", ") }, Purpose::Tell, rng);
            }
            Step::CloseStageOne | Step::Reopen | Step::Done => {}
        }
    }

    fn send_end(&mut self, command: Command, request: u32, rng: &mut Rng) {
        let epoch = self.epoch().unwrap_or(Epoch::ZERO);
        let key = match &self.end_key {
            Some((e, r, key)) if (*e, *r) == (epoch, request) => key.clone(),
            _ => rng.id(),
        };
        self.end_key = Some((epoch, request, key.clone()));
        let no = self.tree.end_no();
        self.send_keyed(command, Purpose::End(no), key);
    }

    /// A write that the gate has admitted is on its way to the storage.
    pub(in crate::world) fn fly(&mut self, permit: Permit, opened: Option<Epoch>, rng: &mut Rng) {
        let (Some(epoch), write) = (self.epoch(), self.next) else { return };
        self.next += 1;
        self.permits.push((write, permit));
        self.outs.push(Out::Admitted { epoch, write, opened });
        // Shorter than the least margin: that is there for the writes that were admitted just before the deadline.
        let takes = if rng.chance(5) { rng.ms(50, 200) } else { rng.ms(0, 25) };
        self.after(takes, Local::Landed(write));
    }
}
