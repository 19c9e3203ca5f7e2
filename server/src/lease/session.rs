//! Sessions: one for each side, and the proof by which a restarted daemon goes on with its own.
//!
//! It promises that a side has at most one session (I1 would not need it, people do), that only who knows the secret goes on
//! with one, and that whatever is waited out is the largest TTL that a renewal may still have been answered with: a lower one is
//! answered at once, and waited for only after a full old one ([`Session::outlives`]). It knows no renewals: those are never
//! logged (I5).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use treelease_proto::command::{Answer, Leadership, OpenSession};
use treelease_proto::id::{SessionId, SideName, TreeId};
use treelease_proto::refusal::Code;
use treelease_proto::time::{Ttl, WallTime, format_duration};

use super::history::Context;
use super::restarted::Kernel;
use super::{COPIED_MAX, MAX_SESSIONS, State, cut, ignore, refuse};

/// One run of a side's daemon; a resumed one goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    pub(super) side: SideName,
    pub(super) host: String,
    pub(super) ttl: Ttl,
    /// The TTL before it was lowered, until the leader has waited for a full one of those.
    #[serde(default)]
    pub(super) lowered_from: Option<Ttl>,
    pub(super) incarnation: u64,
    pub(super) boot: String,
    /// Machine and boot, if the daemon knows its machine.
    #[serde(default)]
    pub(super) kernel: Option<Box<Kernel>>,
    pub(super) since: WallTime,
    pub(super) digest: Vec<u8>,
    /// Index: what it holds, so that a renewal need not look at all trees.
    pub(super) held: BTreeSet<TreeId>,
    /// Index: where it queues.
    pub(super) waiting: BTreeSet<TreeId>,
}

impl Session {
    /// Whose.
    pub fn side(&self) -> &SideName {
        &self.side
    }
    /// The daemon's host, for people.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// What its renewals are answered with: so long it may write after one.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }
    /// How long it lives without a renewal: the largest TTL that one may still have been answered with.
    pub fn outlives(&self) -> Ttl {
        self.lowered_from.map_or(self.ttl, |before| before.max(self.ttl))
    }
    /// Which run of the daemon: 1, and one more with each resume.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
    /// The kernel's boot id.
    pub fn boot(&self) -> &str {
        &self.boot
    }
    /// Its daemon's machine; empty if that is not known.
    pub fn machine(&self) -> &str {
        self.kernel.as_ref().map_or("", |kernel| kernel.machine())
    }
    /// When it was opened.
    pub fn since(&self) -> WallTime {
        self.since
    }

    fn proves(&self, secret: &[u8]) -> bool {
        // Digests are compared, so the time that it takes tells nothing of the secret.
        Sha256::digest(secret).as_slice() == self.digest
    }
}

impl State {
    pub(super) fn open_session(&mut self, open: &OpenSession, context: &mut Context) -> Answer {
        // Its daemon was told of the raised limit once, and is again: a restart must not be the end of what it holds.
        let goes_on =
            self.sides.get(&open.side).and_then(|id| self.sessions.get(id).zip(Some(id))).is_some_and(|(session, id)| {
                open.resume.as_ref().is_some_and(|r| r.session == *id && session.proves(&r.secret)) && session.boot == open.boot
            });
        let ttl = if goes_on { open.ttl.max(self.ttl_min) } else { open.ttl };
        if ttl < self.ttl_min || ttl > self.ttl_max {
            let [ttl, min, max] = [open.ttl, self.ttl_min, self.ttl_max].map(|ttl| format_duration(ttl.get()));
            return refuse(
                Code::Config,
                format!("a ttl of {ttl} is outside what this server takes, {min} to {max}; set `ttl` within that"),
            );
        }
        if let Some(id) = self.sides.get(&open.side).cloned() {
            let session = self.sessions.get_mut(&id).expect("the index of sides names live sessions");
            // From another boot it is another side (I2): the old kernel may still have pages to send. Then it waits like one.
            if !goes_on {
                let host = if session.host.is_empty() { "another daemon" } else { &session.host };
                return refuse(
                    Code::Held,
                    format!(
                        "side {} is in use by {host} since {}; it is free when that session has ended",
                        open.side, session.since
                    ),
                );
            }
            session.incarnation += 1;
            session.digest.clone_from(&open.new_secret_digest);
            session.host = cut(&open.host);
            // A renewal that was answered with the old one gives a right to write for so long (I4): it is waited for until then.
            let before = session.outlives();
            session.ttl = ttl;
            session.lowered_from = Some(before).filter(|before| *before > ttl);
            self.timed += 1;
            return Answer::Opened { session: id, incarnation: session.incarnation, ttl: session.ttl, resumed: true };
        }
        if self.sessions.contains_key(&open.new_session) {
            return refuse(Code::Usage, format!("session {} exists already; make a new id", open.new_session));
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return refuse(Code::Limit, format!("this server has {MAX_SESSIONS} sessions already"));
        }
        let session = Session {
            side: open.side.clone(),
            host: cut(&open.host),
            ttl: open.ttl,
            lowered_from: None,
            incarnation: 1,
            boot: cut(&open.boot),
            kernel: self.kernel_of(open),
            since: context.at,
            digest: open.new_secret_digest.clone(),
            held: BTreeSet::new(),
            waiting: BTreeSet::new(),
        };
        self.sides.insert(open.side.clone(), open.new_session.clone());
        self.sessions.insert(open.new_session.clone(), session);
        self.timed += 1;
        Answer::Opened { session: open.new_session.clone(), incarnation: 1, ttl: open.ttl, resumed: false }
    }

    pub(super) fn close_session(&mut self, id: &SessionId, context: &mut Context) -> Answer {
        let Some(session) = self.sessions.get(id) else { return ignore("there is no such session") };
        if let Some(tree) = session.held.iter().next().and_then(|tree| self.trees.get(tree)) {
            let name = &tree.name;
            return refuse(Code::Busy, format!("{} still holds {name}: release it first", session.side));
        }
        self.end_session(id, "its session was closed", context);
        Answer::Done
    }

    /// A full TTL without an acknowledged renewal, says the present leader (I3).
    pub(super) fn expire_session(&mut self, id: &SessionId, under: Leadership, context: &mut Context) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership decided this");
        }
        let Some(session) = self.sessions.get(id) else { return ignore("there is no such session") };
        for tree in session.held.clone() {
            self.expire_lease(&tree, context);
        }
        self.end_session(id, "its session expired", context);
        Answer::Done
    }

    /// A full old TTL has passed since it was lowered, says the present leader: no renewal of before gives a right any more.
    pub(super) fn settle_ttl(&mut self, id: &SessionId, incarnation: u64, under: Leadership) -> Answer {
        if !self.leads(under) {
            return ignore("another leadership decided this");
        }
        let Some(session) = self.sessions.get_mut(id) else { return ignore("there is no such session") };
        if session.incarnation != incarnation || session.lowered_from.is_none() {
            return ignore("its time to live was not lowered in that run of the daemon");
        }
        session.lowered_from = None;
        self.timed += 1;
        Answer::Done
    }

    /// Two machines renewed it in this run of the daemon: each may write until its own time is up, and nobody knows which one
    /// is the copy. So it ends for both, and its side has no way back (I2).
    pub(super) fn end_copied(&mut self, id: &SessionId, incarnation: u64, context: &mut Context) -> Answer {
        let Some(session) = self.sessions.get(id) else { return ignore("there is no such session") };
        if session.incarnation != incarnation {
            return ignore(format!("the session goes on in run {} of the daemon", session.incarnation));
        }
        let (ttl, boot, held) = (session.outlives().get(), session.boot.clone(), session.held.clone());
        self.was_copied(boot);
        for tree in held {
            self.end_copied_lease(&tree, ttl, context);
        }
        self.end_session(id, "two machines renewed its session", context);
        Answer::Done
    }

    /// Of that kernel there is a copy. Of too many the oldest go.
    pub(super) fn was_copied(&mut self, boot: String) {
        if boot.is_empty() || self.copied_boots.contains(&boot) {
            return;
        }
        while self.copied_boots.len() >= COPIED_MAX {
            self.copied_boots.pop_front();
        }
        self.copied_boots.push_back(boot);
    }

    /// It is gone, with its places in queues. What it held is the caller's to end.
    fn end_session(&mut self, id: &SessionId, why: &str, context: &mut Context) {
        let Some(session) = self.sessions.get(id) else { return };
        for tree in session.waiting.clone() {
            self.leave_queue(&tree, id, why, context);
        }
        if let Some(session) = self.sessions.remove(id) {
            self.sides.remove(&session.side);
        }
        self.timed += 1;
    }
}
