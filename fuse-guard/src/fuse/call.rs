//! One mutation on its way: the gate, the filesystem, the gate again, the reply; now, or after a wait.

use std::ffi::OsString;

use treelease_client::words::time::BootTime;

use super::Shared;
use super::answer::Answer;
use crate::fs::Fs;
use crate::fs::caller::Caller;
use crate::fs::error::{Errno, Result, reason};
use crate::fs::write_back::Room;
use crate::gate::{Admission, LateWrite, Op, Opened, Permit, Refused, Standing, Turn};
use crate::sync::Arc;

/// One mutation: what the gate and a report need to know of it.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) who: Caller,
    pub(super) op: Op,
    /// The node that it changes, and the name below it.
    pub(super) on: u64,
    pub(super) name: Option<OsString>,
    pub(super) handle: Option<Opened>,
    /// What it holds while it waits.
    pub(super) bytes: usize,
}

impl Call {
    /// Asks the gate: carries the work out now, later, or not at all. The reply is sent exactly once.
    pub(super) fn start<A, W>(self, reply: A, work: W)
    where
        A: Answer,
        W: FnOnce(&Fs, Caller, &Standing) -> Result<A::Value> + Send + 'static,
    {
        if let Err(why) = self.shared.fs.vet(self.on, self.name.as_deref()) {
            return self.refuse(why, reply);
        }
        match self.shared.fs.gate.admit(self.op, self.handle) {
            Admission::Permit(permit) => self.carry_out(permit, reply, work),
            Admission::Refuse(why) => self.refuse(why, reply),
            Admission::Wait => {
                let gate = self.shared.fs.gate.clone();
                let (op, handle, bytes) = (self.op, self.handle, self.bytes);
                let job = move |turn| match turn {
                    Turn::Go(permit) => self.carry_out(permit, reply, work),
                    Turn::No(why) => self.refuse(why, reply),
                };
                gate.park(op, handle, bytes, Box::new(job));
            }
        }
    }

    /// As [`Call::start`], when so many bytes may be unconfirmed too ([`crate::fs::write_back`]).
    pub(super) fn start_in_turn<A, W>(self, room: u64, reply: A, work: W)
    where
        A: Answer,
        W: FnOnce(&Fs, Caller, &Standing) -> Result<A::Value> + Send + 'static,
    {
        let (write_back, held) = (self.shared.fs.write_back.clone(), self.bytes);
        let go = move |leave: Option<Room>| match leave {
            Some(room) => self.start(reply, move |fs, who, seen| {
                let _until_then = room;
                work(fs, who, seen)
            }),
            None => {
                if self.op.page_cache() {
                    self.shared.fs.gate.refused_page();
                }
                self.refuse(reason::READ_ONLY, reply);
            }
        };
        match write_back.room(room) {
            Some(leave) => go(Some(leave)),
            None => write_back.park(room, held, Box::new(go)),
        }
    }

    fn carry_out<A: Answer>(self, permit: Permit, reply: A, work: impl FnOnce(&Fs, Caller, &Standing) -> Result<A::Value>) {
        let fs = &self.shared.fs;
        let standing = *permit.standing();
        if self.op.changes_storage() {
            crate::failpoint::here("call-admitted");
        }
        let result = work(fs, self.who, &standing);
        reply.send(fs, self.finish::<A>(permit, result));
    }

    /// Gate again: the permit ends, and what finished after the deadline is an error and a report.
    pub(super) fn finish<A: Answer>(&self, permit: Permit, result: Result<A::Value>) -> Result<A::Value> {
        let fs = &self.shared.fs;
        let now = fs.gate.at_latest();
        if let Some(why) = permit.would_refuse() {
            self.would_refuse(why, now);
        }
        if self.op.changes_storage() && result.is_ok() {
            fs.writers.wrote(self.who, self.on, || self.path(), now);
        }
        match permit.finish(now) {
            // An error of its own says that nothing was changed; an I/O error does not say so.
            Err(by) if result.as_ref().err().is_none_or(|why| *why == reason::LATE) => {
                let (pid, op) = (self.who.pid, self.op.as_str());
                self.shared.hooks.late_write(LateWrite { pid, op, path: self.path(), by });
                if let Ok(value) = result {
                    A::untold(fs, value);
                }
                Err(reason::LATE)
            }
            _ => result,
        }
    }

    pub(super) fn refuse<A: Answer>(&self, why: Errno, reply: A) {
        let fs = &self.shared.fs;
        fs.writers.refused(self.who, self.on, || self.path(), fs.gate.now());
        self.report(why, true);
        if self.op.page_cache() {
            // The kernel believes that its page is written: the next open drops it.
            fs.nodes.get(self.on).iter().for_each(|node| node.spoil());
            fs.late.note(self.path());
        }
        reply.send(&self.shared.fs, Err(why));
    }

    /// `observe` let it through. Said once for each process and file: the rest is counted.
    fn would_refuse(&self, why: Errno, now: BootTime) {
        if self.shared.fs.writers.refused(self.who, self.on, || self.path(), now) {
            self.report(why, false);
        }
    }

    fn report(&self, why: Errno, enforced: bool) {
        let (pid, uid) = (self.who.pid, self.who.uid);
        let errno = why.raw_os_error();
        self.shared.hooks.refused(Refused { pid, uid, op: self.op.as_str(), path: self.path(), errno, enforced });
    }

    fn path(&self) -> String {
        self.shared.fs.describe(self.on, self.name.as_deref())
    }
}
