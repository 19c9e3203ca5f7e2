//! The leader's timers: when a session's time is up, and when a cooling has passed.
//!
//! Pure and volatile. The leader alone keeps them; a new leader begins with [`Timers::promote`], which arms everything anew,
//! in full, because what earlier leaders acknowledged is unknown to it. They promise I3: a session is named by
//! [`Timers::due`] only when a full TTL has passed on this clock since the last renewal that any leader has acknowledged.
//! Being late is safe, being early is not; so every doubt (a gap in our own clock, a resumed session, another TTL) extends.
//!
//! What is due is only named, as a command that carries the leadership; the replicated state decides (`crate::lease`). They
//! know no wall clock and no network. The caller reads the clock, and reads it again for each call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treelease_proto::command::{Command, Leadership};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{RequestKey, SessionId, TreeId};
use treelease_proto::time::BootTime;

use crate::lease::State;

#[cfg(test)]
mod tests;

/// How often [`Timers::due`] (or [`Timers::tick`]) is expected: short against the shortest TTL and grace.
pub const TICK: Duration = Duration::from_millis(50);
/// Two ticks further apart than this are a gap: this process was starved or suspended, and renewals may have waited unheard.
pub const GAP: Duration = Duration::from_secs(1);
const _: () = assert!(GAP.as_millis() >= 5 * TICK.as_millis());

/// How long a restore may wait for its next piece: they come one right after the other, each asked for again for some seconds.
pub const PIECE_LIMIT: Duration = Duration::from_secs(300);

/// What has a deadline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timed {
    Session(SessionId),
    Cooling(TreeId),
    /// A lower TTL comes into force.
    Settle(SessionId),
    /// The next piece of a restore.
    Piece(RequestKey, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SessionTimer {
    ttl: Duration,
    incarnation: u64,
    deadline: Duration,
    /// Its expiry was named and its outcome is not known yet: no renewal counts (I5).
    doomed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CoolingTimer {
    epoch: Epoch,
    serial: u64,
    deadline: Duration,
    named: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SettleTimer {
    /// The TTL that a renewal may still have been answered with.
    before: Duration,
    incarnation: u64,
    deadline: Duration,
    named: bool,
}

/// All timers of a leader; of a node that does not lead, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timers {
    leading: Option<Leadership>,
    sessions: BTreeMap<SessionId, SessionTimer>,
    coolings: BTreeMap<TreeId, CoolingTimer>,
    settles: BTreeMap<SessionId, SettleTimer>,
    /// The restore whose next piece is waited for, and until when. It stays when it was named: the same one is not named twice.
    piece: Option<(RequestKey, u32, Duration)>,
    /// The deadline of everything that was not named yet, soonest first.
    deadlines: BTreeSet<(Duration, Timed)>,
    last_tick: Option<BootTime>,
    /// Of the state that was followed last.
    followed: Option<u64>,
}

impl Timers {
    /// Of a node that does not lead.
    pub fn new() -> Self {
        Self::default()
    }

    /// This node leads, and has applied its `Lead`: everything begins anew, in full (I3).
    pub fn promote(&mut self, state: &State, leadership: Leadership, now: BootTime) {
        *self = Self { leading: Some(leadership), last_tick: Some(now), ..Self::default() };
        self.follow(state, now);
    }

    /// A control's, in place of [`Self::promote`]: leads on with timers as they are.
    pub fn go_on(&mut self, leadership: Leadership) {
        self.leading = Some(leadership);
    }

    /// This node leads no more. Dooms end with their leadership.
    pub fn demote(&mut self) {
        *self = Self::default();
    }

    /// Which leadership these timers serve.
    pub fn leading(&self) -> Option<Leadership> {
        self.leading
    }

    /// Entries were applied: arms what is new, in full, and forgets what is gone. Cheap when nothing timed has changed.
    pub fn follow(&mut self, state: &State, now: BootTime) {
        if self.leading.is_none() || self.followed == Some(state.timed()) {
            return;
        }
        self.followed = Some(state.timed());
        self.follow_sessions(state, now);
        self.follow_settles(state, now);
        self.follow_coolings(state, now);
        self.follow_restore(state, now);
    }

    fn follow_restore(&mut self, state: &State, now: BootTime) {
        let awaited = state.restoring().map(|(id, next)| (id.clone(), next));
        if self.piece.as_ref().map(|(id, next, _)| (id.clone(), *next)) == awaited {
            return;
        }
        if let Some((id, next, deadline)) = self.piece.take() {
            self.deadlines.remove(&(deadline, Timed::Piece(id, next)));
        }
        if let Some((id, next)) = awaited {
            let deadline = now.elapsed.saturating_add(PIECE_LIMIT);
            self.deadlines.insert((deadline, Timed::Piece(id.clone(), next)));
            self.piece = Some((id, next, deadline));
        }
    }

    fn follow_sessions(&mut self, state: &State, now: BootTime) {
        let gone: Vec<SessionId> = self.sessions.keys().filter(|id| state.session(id).is_none()).cloned().collect();
        for id in gone {
            if let Some(timer) = self.sessions.remove(&id) {
                self.deadlines.remove(&(timer.deadline, Timed::Session(id)));
            }
        }
        for (id, session) in state.sessions() {
            let (ttl, incarnation) = (session.outlives().get(), session.incarnation());
            let doomed = match self.sessions.get(id) {
                Some(timer) if timer.ttl == ttl && timer.incarnation == incarnation => continue,
                // The expiry in flight comes after this change in the log and ends the session whatever changed.
                Some(timer) => timer.doomed,
                None => false,
            };
            let timer = SessionTimer { ttl, incarnation, deadline: now.elapsed.saturating_add(ttl), doomed };
            self.arm_session(id, timer);
        }
    }

    /// The session's expiry was carried out. One that is opened under the same id later is another one, with a timer of its own.
    pub fn ended(&mut self, id: &SessionId) {
        if let Some(timer) = self.sessions.remove(id) {
            self.deadlines.remove(&(timer.deadline, Timed::Session(id.clone())));
        }
    }

    fn arm_session(&mut self, id: &SessionId, timer: SessionTimer) {
        if let Some(old) = self.sessions.get(id) {
            self.deadlines.remove(&(old.deadline, Timed::Session(id.clone())));
        }
        if !timer.doomed {
            self.deadlines.insert((timer.deadline, Timed::Session(id.clone())));
        }
        self.sessions.insert(id.clone(), timer);
    }

    /// Whatever may have been answered before this is over after a full one of those.
    fn follow_settles(&mut self, state: &State, now: BootTime) {
        let lowered = |id: &SessionId| state.session(id).filter(|session| session.outlives() > session.ttl());
        let still = |id: &SessionId, timer: &SettleTimer| {
            lowered(id).is_some_and(|s| s.outlives().get() == timer.before && s.incarnation() == timer.incarnation)
        };
        let gone: Vec<SessionId> =
            self.settles.iter().filter(|(id, timer)| !still(id, timer)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            if let Some(timer) = self.settles.remove(&id) {
                self.deadlines.remove(&(timer.deadline, Timed::Settle(id)));
            }
        }
        for (id, session) in state.sessions() {
            if session.outlives() > session.ttl() && !self.settles.contains_key(id) {
                let (before, incarnation) = (session.outlives().get(), session.incarnation());
                let deadline = now.elapsed.saturating_add(before);
                self.deadlines.insert((deadline, Timed::Settle(id.clone())));
                self.settles.insert(id.clone(), SettleTimer { before, incarnation, deadline, named: false });
            }
        }
    }

    fn follow_coolings(&mut self, state: &State, now: BootTime) {
        let cooling: BTreeMap<&TreeId, _> = state.cooling_trees().collect();
        let still = |id: &TreeId, timer: &CoolingTimer| {
            cooling.get(id).is_some_and(|c| c.ended.epoch == timer.epoch && c.serial == timer.serial)
        };
        let gone: Vec<TreeId> = self.coolings.iter().filter(|(id, timer)| !still(id, timer)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            if let Some(timer) = self.coolings.remove(&id) {
                self.deadlines.remove(&(timer.deadline, Timed::Cooling(id)));
            }
        }
        for (id, cooling) in cooling {
            if self.coolings.contains_key(id) {
                continue;
            }
            let deadline = now.elapsed.saturating_add(cooling.length);
            let timer = CoolingTimer { epoch: cooling.ended.epoch, serial: cooling.serial, deadline, named: false };
            self.deadlines.insert((deadline, Timed::Cooling(id.clone())));
            self.coolings.insert(id.clone(), timer);
        }
    }

    /// A renewal is about to be acknowledged. False: this session is unknown here, or doomed; then it must not be (I5).
    pub fn renewed(&mut self, id: &SessionId, now: BootTime) -> bool {
        let Some(timer) = self.sessions.get(id).filter(|timer| !timer.doomed) else { return false };
        // Never back: a gap may have given it longer.
        let deadline = timer.deadline.max(now.elapsed.saturating_add(timer.ttl));
        let timer = SessionTimer { deadline, ..timer.clone() };
        self.arm_session(id, timer);
        true
    }

    /// Whether its expiry was named and its outcome is not known yet.
    pub fn is_doomed(&self, id: &SessionId) -> bool {
        self.sessions.get(id).is_some_and(|timer| timer.doomed)
    }

    /// The expiry was certainly not logged: the session is as it was, and due again unless a renewal comes first.
    pub fn undoom(&mut self, id: &SessionId) {
        if let Some(timer) = self.sessions.get(id).filter(|timer| timer.doomed) {
            let timer = SessionTimer { doomed: false, ..timer.clone() };
            self.arm_session(id, timer);
        }
    }

    /// The end of that grace was certainly not logged: due again.
    pub fn ungrace(&mut self, id: &TreeId) {
        if let Some(timer) = self.coolings.get_mut(id).filter(|timer| timer.named) {
            timer.named = false;
            self.deadlines.insert((timer.deadline, Timed::Cooling(id.clone())));
        }
    }

    /// That a lower TTL is in force was certainly not logged: due again.
    pub fn unsettle(&mut self, id: &SessionId) {
        if let Some(timer) = self.settles.get_mut(id).filter(|timer| timer.named) {
            timer.named = false;
            self.deadlines.insert((timer.deadline, Timed::Settle(id.clone())));
        }
    }

    /// This process is alive. [`Timers::due`] says so by itself.
    ///
    /// After a gap longer than [`GAP`] every session has its length more: renewals may have lain in our own sockets
    /// meanwhile. Where the gap is above half its TTL, it begins anew. Coolings go on: nobody needs to be heard in them.
    pub fn tick(&mut self, now: BootTime) {
        let gap = self.last_tick.map_or(Duration::ZERO, |last| now.since(last));
        self.last_tick = Some(now);
        if gap <= GAP {
            return;
        }
        let all: Vec<(SessionId, SessionTimer)> = self.sessions.iter().map(|(id, timer)| (id.clone(), timer.clone())).collect();
        for (id, timer) in all {
            let longer = timer.deadline.saturating_add(gap);
            let deadline = if gap > timer.ttl / 2 { longer.max(now.elapsed.saturating_add(timer.ttl)) } else { longer };
            self.arm_session(&id, SessionTimer { deadline, ..timer });
        }
    }

    /// What the leader must propose now, each once.
    pub fn due(&mut self, now: BootTime) -> Vec<Command> {
        let Some(decided_under) = self.leading else { return Vec::new() };
        self.tick(now);
        let mut due = Vec::new();
        while let Some((deadline, _)) = self.deadlines.first()
            && *deadline <= now.elapsed
        {
            let Some((_, timed)) = self.deadlines.pop_first() else { break };
            match timed {
                Timed::Session(session) => {
                    if let Some(timer) = self.sessions.get_mut(&session) {
                        timer.doomed = true;
                        due.push(Command::ExpireSession { session, decided_under });
                    }
                }
                Timed::Settle(session) => {
                    if let Some(timer) = self.settles.get_mut(&session) {
                        timer.named = true;
                        due.push(Command::SettleTtl { session, incarnation: timer.incarnation, decided_under });
                    }
                }
                Timed::Piece(id, next) => due.push(Command::EndRestore { id, next, decided_under }),
                Timed::Cooling(tree) => {
                    if let Some(timer) = self.coolings.get_mut(&tree) {
                        timer.named = true;
                        due.push(Command::EndGrace { tree, epoch: timer.epoch, decided_under });
                    }
                }
            }
        }
        due
    }

    /// When something will be due, if nothing changes. To be woken by; `due` decides.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let (elapsed, _) = self.deadlines.first()?;
        Some(BootTime { elapsed: *elapsed, suspended: Duration::ZERO })
    }

    /// How long a session lives if no renewal comes.
    pub fn session_remaining(&self, id: &SessionId, now: BootTime) -> Option<Duration> {
        self.sessions.get(id).map(|timer| timer.deadline.saturating_sub(now.elapsed))
    }

    /// How long a tree still cools.
    pub fn cooling_remaining(&self, id: &TreeId, now: BootTime) -> Option<Duration> {
        self.coolings.get(id).map(|timer| timer.deadline.saturating_sub(now.elapsed))
    }
}
