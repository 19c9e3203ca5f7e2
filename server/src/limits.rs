//! How much callers may take of this node: `[limits]` of its configuration.
//!
//! | key | limits | what is beyond it |
//! |---|---|---|
//! | `trees`, `sessions` | of the cluster | is refused by the leader |
//! | `waiters` | of one tree | is refused by the leader |
//! | `watches` | streams of events from this node | is refused |
//! | `connections` | to this node, other nodes' too | is closed at once |
//! | as many | calls to this node over which renewals come, and over which commands do | is refused; those by calls of their own are not |
//! | `streams`, `calls` | of one connection: open at the same time; worked on at the same time | waits |
//!
//! Promises: what is not said has the value that this version is made and tested for; a value outside its range, and a key for
//! something that cannot be changed, is refused by name. The first three only ever refuse earlier than the replicated state, which
//! has the same limits for every node, would: so nodes may differ, and the leader's counts. A few commands that are on their way at
//! the same moment may pass it together. What is there already, and what is asked again, passes: so nobody is refused who counts
//! all the same. *Why the leader looks twice:* a first try that this leader has proposed and not applied yet is not in the state
//! that it looks at; so before it refuses it has a question about nothing logged ([`nothing`]), and looks again when that has its
//! answer: everything that was proposed before is applied then. It does not know who calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use treelease_proto::command::{AttemptRef, Command};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{RequestKey, SideName, TreeId};
use treelease_proto::refusal::{Code, Refusal};

use crate::lease::{HISTORY_MAX, MAX_SESSIONS, MAX_TREES, MAX_WAITERS, State};

/// Largest message that is taken from a caller.
pub const MESSAGE_MAX: usize = 64 * 1024;
/// Connections, if nothing is said: several for each of a thousand sides.
const CONNECTIONS: usize = 4_096;
/// Watches, streams and calls at most: beyond that it is memory that is short, not a number.
const MOST: usize = 65_536;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of the cluster.
    pub trees: usize,
    /// Of the cluster: one for each side.
    pub sessions: usize,
    /// Of one tree.
    pub waiters: usize,
    /// Streams of events from this node.
    pub watches: usize,
    /// To this node.
    pub connections: usize,
    /// Calls on one connection at the same time, streams of events included.
    pub streams: usize,
    /// Calls of one connection that are worked on at the same time.
    pub calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            trees: MAX_TREES,
            sessions: MAX_SESSIONS,
            waiters: MAX_WAITERS,
            watches: 1_024,
            connections: CONNECTIONS,
            streams: 1_024,
            calls: 256,
        }
    }
}

/// A key, the least and the most that it may be, and its place.
type Key = (&'static str, usize, usize, fn(&mut Limits) -> &mut usize);

const KEYS: [Key; 7] = [
    ("trees", 1, MAX_TREES, |l| &mut l.trees),
    ("sessions", 1, MAX_SESSIONS, |l| &mut l.sessions),
    ("waiters", 1, MAX_WAITERS, |l| &mut l.waiters),
    ("watches", 1, MOST, |l| &mut l.watches),
    // Two of each other node, and somebody who asks for its status.
    ("connections", 32, 1_000_000, |l| &mut l.connections),
    ("streams", 16, MOST, |l| &mut l.streams),
    ("calls", 16, MOST, |l| &mut l.calls),
];

/// What cannot be changed, how it is, and why.
const FIXED: [(&str, usize, &str); 3] = [
    ("message_size", MESSAGE_MAX, "a command must fit into one record of the log, on every node"),
    ("history", HISTORY_MAX, "every node must remember the same, or their states would differ"),
    ("members", crate::formation::MEMBERS_MAX, "more nodes survive no more and agree more slowly"),
];

impl Limits {
    /// From the table of a configuration file; what is wrong is named.
    pub fn check(written: &BTreeMap<String, toml::Value>) -> Result<Self, String> {
        let mut limits = Self::default();
        for (name, value) in written {
            if let Some((_, is, why)) = FIXED.iter().find(|fixed| fixed.0 == name) {
                return Err(format!("[limits] {name}: it is {is} and cannot be changed: {why}; take the line out"));
            }
            let Some((_, least, most, place)) = KEYS.iter().find(|key| key.0 == name) else {
                let known = KEYS.map(|key| key.0).join(", ");
                return Err(format!("[limits] {name}: there is no such limit; use {known}"));
            };
            let number = value.as_integer().and_then(|number| usize::try_from(number).ok());
            let fits = number.filter(|number| (*least..=*most).contains(number));
            *place(&mut limits) = fits.ok_or_else(|| {
                format!("[limits] {name} = {value}: it must be a number within {least} and {most}, without quotes")
            })?;
        }
        Ok(limits)
    }

    /// Those that a connection has from its begin.
    pub fn of_a_connection(&self) -> (usize, usize) {
        (self.streams, self.calls)
    }

    /// Whether they say anything about such a command that the replicated state would not say by itself.
    pub fn concern(&self, command: &Command) -> bool {
        match command {
            Command::AddTree { .. } | Command::Takeover { .. } => self.trees < MAX_TREES,
            Command::OpenSession(_) => self.sessions < MAX_SESSIONS,
            Command::Acquire(acquire) => self.waiters < MAX_WAITERS && !acquire.no_wait,
            _ => false,
        }
    }

    /// Why the leader with these limits does not propose that command, if it does not. What is there in this state already, and
    /// what has been answered under that key, passes.
    pub fn refuses(&self, command: &Command, key: &RequestKey, state: &State) -> Option<Refusal> {
        if state.has_answered(key) {
            return None;
        }
        let (what, key) = match command {
            Command::AddTree { tree, .. } | Command::Takeover { tree, .. } => {
                let one_too_many = state.tree_count() >= self.trees && state.tree(tree).is_none();
                one_too_many.then(|| (format!("this server has {} trees", self.trees), "trees"))?
            }
            Command::OpenSession(open) => {
                let is_there = || state.sessions().any(|(_, session)| *session.side() == open.side);
                let one_too_many = state.session_count() >= self.sessions && !is_there();
                one_too_many.then(|| (format!("this server has {} sessions", self.sessions), "sessions"))?
            }
            Command::Acquire(acquire) => {
                let (tree, session) = (state.tree(&acquire.tree)?, state.session(&acquire.session)?);
                let one_too_many = tree.waiters() >= self.waiters && tree.would_wait(&acquire.session, session.side());
                one_too_many.then(|| (format!("{} has {} waiters", tree.name(), self.waiters), "waiters"))?
            }
            _ => return None,
        };
        let why = format!("{what} already, which is what `{key}` in the leading node's [limits] allows; try again later");
        Some(Refusal::new(Code::Limit, why))
    }
}

/// A question whose answer changes nothing: when it comes, all that was proposed before it is applied.
pub fn nothing() -> Command {
    let side: SideName = "nobody".parse().expect("a name");
    Command::FenceStands { attempt: AttemptRef { tree: TreeId::random(), side, epoch: Epoch::ZERO, number: 0 } }
}

/// The limits of a running node; they can change.
#[derive(Debug, Clone, Default)]
pub struct Live(Arc<RwLock<Limits>>);

impl Live {
    /// These, for now.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(RwLock::new(limits)))
    }

    /// As they are now.
    pub fn get(&self) -> Limits {
        *self.0.read().expect("nothing panics while it holds the limits")
    }

    /// From now on these. What is beyond them already stays until it ends by itself.
    pub fn change(&self, limits: Limits) {
        *self.0.write().expect("nothing panics while it holds the limits") = limits;
    }
}

/// How many of something there are, where the limit can change.
#[derive(Debug, Default)]
pub struct Seats(AtomicUsize);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Seat(Arc<Seats>);

impl Seats {
    /// One more, if there are fewer than that.
    pub fn take(self: &Arc<Self>, most: usize) -> Option<Seat> {
        let one_more = |taken| (taken < most).then_some(taken + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Seat(self.clone()))
    }

    /// How many there are.
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Limits, String> {
        Limits::check(&toml::from_str(text).unwrap())
    }

    #[test]
    fn what_is_not_said_is_as_this_version_is_made() {
        assert_eq!(check("").unwrap(), Limits::default());
        let all: String = KEYS.iter().map(|(name, least, ..)| format!("{name} = {least}\n")).collect();
        let least = Limits { trees: 1, sessions: 1, waiters: 1, watches: 1, connections: 32, streams: 16, calls: 16 };
        assert_eq!(check(&all).unwrap(), least);
        assert_eq!(check("waiters = 7").unwrap(), Limits { waiters: 7, ..Limits::default() });
        for (name, least, most, place) in KEYS {
            let default = *place(&mut Limits::default());
            assert!((least..=most).contains(&default), "{name}: {default}");
        }
    }

    #[test]
    fn what_is_out_of_range_unknown_or_fixed_is_named() {
        for (text, says) in [
            ("trees = 0", "trees = 0: it must be a number within 1 and 100000"),
            ("trees = 100001", "within 1 and 100000"),
            ("waiters = -1", "waiters = -1"),
            ("waiters = \"7\"", "without quotes"),
            ("calls = 1.5", "within 16"),
            ("tree = 5", "no such limit; use trees, sessions, waiters"),
            ("message_size = 5", "cannot be changed: a command must fit"),
            ("history = 5", "cannot be changed"),
            ("members = 11", "it is 9 and cannot be changed"),
        ] {
            let why = check(text).unwrap_err();
            assert!(why.starts_with("[limits] ") && why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn seats_are_given_back_and_a_lower_limit_takes_none_away() {
        let seats = Arc::new(Seats::default());
        let (first, second) = (seats.take(2).unwrap(), seats.take(2));
        assert!(second.is_some() && seats.take(2).is_none());
        assert!(seats.take(1).is_none() && seats.taken() == 2);
        drop(first);
        assert!(seats.take(1).is_none() && seats.take(2).is_some());
        drop(second);
        assert_eq!(seats.taken(), 0);
    }
}
