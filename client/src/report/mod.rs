//! The JSON of the contract (CLI.md, "JSON") as structs: what `-o json` prints and what the daemon writes to `status.json`.
//!
//! Keys are only ever added. Times are RFC 3339 in UTC. Nothing here asks anybody: the facts come in.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::words::command::{Event, EventKind};
use crate::words::id::SideName;
use crate::words::policy::{Fence, Mode};
use crate::words::time::WallTime;
use crate::words::tree::{ClusterStatus, End, FencedSide, Holder, StateName, TreeStatus, Waiter};

#[cfg(test)]
mod tests;

/// The version of all these objects.
pub const SCHEMA: u32 = 1;

/// `status -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// This side; `None` where none is configured (an operator's machine).
    pub side: Option<String>,
    /// What is known of the server.
    pub server: ServerReport,
    /// All trees, by name.
    pub trees: Vec<TreeReport>,
}

/// The `server` of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerReport {
    /// Whether it answered just now. If not, everything else is what was last known.
    pub reachable: bool,
    /// The leader's node.
    pub leader: Option<String>,
    /// How many nodes there are.
    pub nodes: u32,
    /// Whether a quorum answered lately.
    pub quorum: bool,
    /// Whether callers are authenticated.
    pub secure: bool,
    /// Of the state that this report shows.
    pub revision: u64,
    /// The cluster's id.
    #[serde(default)]
    pub cluster: Option<String>,
    /// When the server said so; `None`: never heard of.
    #[serde(default)]
    pub as_of: Option<WallTime>,
    /// Why this side has no session, or the server did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// One tree of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the keys are the contract's
pub struct TreeReport {
    pub name: String,
    pub id: String,
    pub state: StateName,
    pub mode: Mode,
    pub mounted_at: Option<PathBuf>,
    pub holder: Option<HolderReport>,
    pub mine: bool,
    pub at_rest: bool,
    pub epoch: u64,
    pub run_start: u64,
    pub ttl_ms: Option<u64>,
    /// Of the holder's session, if it is not renewed; while cooling: until the grace ends.
    pub expires_in_ms: Option<u64>,
    /// Until when this side may write.
    pub writes_until: Option<WallTime>,
    pub last_end: End,
    pub waiters: Vec<WaiterReport>,
    /// Those waiters who asked the holder to hand over.
    pub requests: Vec<RequestReport>,
    pub holds: Vec<HoldReport>,
    #[serde(default)]
    pub not_enforced_by: Vec<String>,
    /// The sides that ever mounted it, and whether each has confirmed the present mode.
    #[serde(default)]
    pub guards: Vec<GuardReport>,
    pub fence: Option<FenceReport>,
    /// Sides that a fence agent was run against, and that get nothing here until they are unfenced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fenced: Vec<FencedReport>,
    pub roots: Vec<RootReport>,
    /// Why it cools or fences; empty otherwise.
    #[serde(default)]
    pub why: String,
    /// The epoch whose unclean end is waited out: the one that `fence confirm` names.
    #[serde(default)]
    pub ended_epoch: Option<u64>,
    /// The side of that end.
    #[serde(default)]
    pub ended_side: Option<String>,
    /// Whether the holder, or the one whose unclean end is waited out, has said that its guard has the marker's lock: then the storage
    /// can be a witness of its end.
    #[serde(default)]
    pub marker_locked: bool,
    /// Why the holder declined to hand over; `None` if it did not.
    #[serde(default)]
    pub declined: Option<String>,
    /// The last that this side's guard has seen of writes to the storage past the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypassed: Option<BypassReport>,
    /// What this side found when it mounted the tree or was granted it: processes inside, left-overs, checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Who holds a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HolderReport {
    pub side: String,
    pub host: String,
    pub since: WallTime,
    pub note: String,
    #[serde(default)]
    pub epoch: u64,
}

/// Who queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WaiterReport {
    pub side: String,
    pub since: WallTime,
    pub asked: bool,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub note: String,
}

/// Who asked the holder to hand over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RequestReport {
    pub side: String,
    pub since: WallTime,
    pub note: String,
}

/// A local claim on the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HoldReport {
    pub id: String,
    /// The tree's name.
    pub tree: String,
    /// `run` or `acquire`.
    pub kind: String,
    pub pid: u32,
    pub command: String,
    pub tty: Option<String>,
    pub since: WallTime,
    pub note: String,
}

/// Somebody wrote to the storage past the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassReport {
    /// Where, below the root: one of the changes.
    pub path: String,
    /// Whose, where the kernel says so.
    pub pid: Option<u32>,
    /// Its command, unless it had ended already.
    pub command: Option<String>,
    /// How many changes were told last.
    pub count: u64,
    /// When they were told.
    pub last: WallTime,
}

/// A side that ever mounted the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardReport {
    /// Who.
    pub side: String,
    /// Its guard has confirmed the policy's present mode.
    pub obeys: bool,
}

/// A side that a fence agent was run against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the keys say it
pub struct FencedReport {
    pub side: String,
    /// Of the lease whose unclean end it was.
    pub epoch: u64,
    pub agent: String,
    /// An attempt may still act.
    pub acting: bool,
    /// An operator has said that it may have its access back.
    pub unfencing: bool,
}

/// What a fence needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// Its number.
    pub attempt: u32,
    /// `confirm`: a person vouches; `agent`: the policy's command; `nothing`.
    pub needs: String,
    /// What the storage's witness does, where there is one: `asking`: this side's guard asks for the old holder's lock; `told`: it has
    /// it, and tells the servers; `possible`: a side that waits and has the root mounted can ask.
    pub witness: Option<String>,
}

/// A place where the tree's files lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RootReport {
    pub id: String,
    pub path: String,
    pub state: String,
}

/// `status.json` in the runtime directory: a report with when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFile {
    /// The report.
    #[serde(flatten)]
    pub report: Report,
    /// When.
    pub written_at: WallTime,
}

/// `holds -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HoldsReport {
    pub schema: u32,
    pub holds: Vec<HoldReport>,
}

/// `writers -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WritersReport {
    pub schema: u32,
    pub writers: Vec<WriterReport>,
}

/// A process that wrote lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WriterReport {
    /// The tree's name.
    pub tree: String,
    pub pid: u32,
    pub uid: u32,
    pub command: String,
    /// Where it was refused last; if it never was, where it wrote last. Below the tree's root.
    pub path: String,
    /// How often it wrote.
    pub count: u64,
    /// How often it was refused, or in `observe` would have been.
    pub refused: u64,
    pub first: WallTime,
    pub last: WallTime,
}

/// One line of `watch -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct EventLine {
    pub schema: u32,
    #[serde(flatten)]
    pub event: EventReport,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct EventReport {
    pub revision: u64,
    pub at: WallTime,
    /// The tree's name.
    pub tree: String,
    pub event: EventKind,
    pub side: Option<String>,
    pub epoch: u64,
    pub reason: String,
    #[serde(default)]
    pub tree_id: String,
    #[serde(default)]
    pub run_start: u64,
}

/// `history -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HistoryReport {
    pub schema: u32,
    pub tree: String,
    pub entries: Vec<HistoryEntry>,
}

/// One entry of a [`HistoryReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HistoryEntry {
    #[serde(flatten)]
    pub event: EventReport,
    pub actor: String,
    /// Of an end of a lease; `None` if it is no end.
    pub clean: Option<bool>,
    pub files: u64,
    pub bytes: u64,
    /// How many, of what was counted (late writes, for instance).
    #[serde(default)]
    pub count: u64,
}

/// An error, on stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// One of the contract's codes.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Who holds the tree, where that is why.
    pub holder: Option<HolderReport>,
    /// The next thing to type: the first command that a hint names.
    pub next: Option<String>,
    /// All hints.
    #[serde(default)]
    pub hints: Vec<String>,
}

/// What only this side knows about a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalTree {
    /// Where it is guarded.
    pub mounted_at: Option<PathBuf>,
    /// Until when this side may write.
    pub writes_until: Option<WallTime>,
    /// What keeps the lease here.
    pub holds: Vec<HoldReport>,
    /// What this side does as the storage's witness.
    pub witness: Option<String>,
    /// The last that was seen of writes past the mount.
    pub bypassed: Option<BypassReport>,
}

impl Report {
    /// The whole report: the server's word, and what this side knows of each tree (by its status).
    pub fn new(
        status: &ClusterStatus,
        side: Option<&SideName>,
        as_of: WallTime,
        mut local: impl FnMut(&TreeStatus) -> Option<LocalTree>,
    ) -> Self {
        let trees = status.trees.iter().map(|tree| tree_report(tree, side, local(tree))).collect();
        Report { schema: SCHEMA, side: side.map(SideName::to_string), server: ServerReport::new(status, as_of), trees }
    }

    /// A report of a side that has never heard of its server.
    pub fn unknown(side: Option<&SideName>) -> Self {
        Report { schema: SCHEMA, side: side.map(SideName::to_string), server: ServerReport::default(), trees: Vec::new() }
    }
}

impl ServerReport {
    /// From a server's answer.
    pub fn new(status: &ClusterStatus, as_of: WallTime) -> Self {
        Self {
            reachable: true,
            leader: status.leader.map(|node| node.to_string()),
            nodes: status.nodes,
            quorum: status.quorum,
            secure: status.secure,
            revision: status.revision,
            cluster: Some(status.cluster.to_string()),
            as_of: Some(as_of),
            trouble: None,
        }
    }
}

/// One tree, as `side` sees it.
pub fn tree_report(tree: &TreeStatus, side: Option<&SideName>, local: Option<LocalTree>) -> TreeReport {
    let local = local.unwrap_or_default();
    let millis = |d: std::time::Duration| d.as_millis() as u64;
    TreeReport {
        name: tree.name.to_string(),
        id: tree.id.to_string(),
        state: tree.state,
        mode: tree.policy.mode,
        mounted_at: local.mounted_at,
        holder: tree.holder.as_ref().map(HolderReport::from),
        mine: tree.holder.as_ref().is_some_and(|holder| Some(&holder.side) == side),
        at_rest: tree.at_rest,
        epoch: tree.epoch.get(),
        run_start: tree.run_start.0.get(),
        ttl_ms: tree.ttl.map(|ttl| ttl.as_millis()),
        expires_in_ms: tree.remaining.map(millis),
        writes_until: local.writes_until,
        last_end: tree.last_end,
        waiters: tree.waiters.iter().map(WaiterReport::from).collect(),
        requests: tree.waiters.iter().filter(|waiter| waiter.asked).map(RequestReport::from).collect(),
        holds: local.holds,
        guards: tree.guards.iter().map(|g| GuardReport { side: g.side.to_string(), obeys: g.obeys }).collect(),
        not_enforced_by: tree.not_enforced_by().map(SideName::to_string).collect(),
        fence: (tree.state == StateName::Fencing).then(|| FenceReport::new(tree, local.witness)),
        fenced: tree.fenced.iter().map(FencedReport::from).collect(),
        roots: tree
            .roots
            .iter()
            .map(|r| RootReport { id: r.id.to_string(), path: r.path.clone(), state: r.state.as_str().into() })
            .collect(),
        why: tree.why.clone(),
        ended_epoch: tree.ended_epoch.map(|epoch| epoch.get()),
        ended_side: tree.ended_side.as_ref().map(SideName::to_string),
        marker_locked: tree.witness.is_some(),
        declined: Some(tree.declined.clone()).filter(|why| !why.is_empty()),
        bypassed: local.bypassed,
        notes: Vec::new(),
    }
}

impl FenceReport {
    fn new(tree: &TreeStatus, asks: Option<String>) -> Self {
        let possible = || tree.witness.as_ref().map(|_| "possible".to_owned());
        let needs = match tree.policy.fence {
            Fence::Manual => "confirm",
            Fence::Exec(_) => "agent",
            Fence::None => "nothing",
        };
        Self { attempt: tree.attempt, needs: needs.into(), witness: asks.or_else(possible) }
    }
}

impl From<&FencedSide> for FencedReport {
    fn from(f: &FencedSide) -> Self {
        let (side, agent) = (f.side.to_string(), f.agent.clone());
        Self { side, epoch: f.epoch.get(), agent, acting: f.acting, unfencing: f.unfencing }
    }
}

impl From<&Holder> for HolderReport {
    fn from(h: &Holder) -> Self {
        Self { side: h.side.to_string(), host: h.host.clone(), since: h.since, note: h.note.clone(), epoch: h.epoch.get() }
    }
}

impl From<&Waiter> for WaiterReport {
    fn from(w: &Waiter) -> Self {
        Self { side: w.side.to_string(), since: w.since, asked: w.asked, host: w.host.clone(), note: w.note.clone() }
    }
}

impl From<&Waiter> for RequestReport {
    fn from(w: &Waiter) -> Self {
        Self { side: w.side.to_string(), since: w.since, note: w.note.clone() }
    }
}

impl From<&Event> for EventReport {
    fn from(e: &Event) -> Self {
        Self {
            revision: e.revision,
            at: e.at,
            tree: e.name.to_string(),
            event: e.kind,
            side: e.side.as_ref().map(SideName::to_string),
            epoch: e.epoch.get(),
            reason: e.reason.clone(),
            tree_id: e.tree.to_string(),
            run_start: e.run_start.0.get(),
        }
    }
}

impl From<&Event> for EventLine {
    fn from(e: &Event) -> Self {
        Self { schema: SCHEMA, event: e.into() }
    }
}

impl From<&Event> for HistoryEntry {
    fn from(e: &Event) -> Self {
        let clean = match e.end {
            End::None => None,
            End::Clean => Some(true),
            End::Unclean => Some(false),
        };
        Self { event: e.into(), actor: e.actor.clone(), clean, files: e.files, bytes: e.bytes, count: e.count }
    }
}

impl HistoryReport {
    /// The trail of one tree, as the server gave it: newest last.
    pub fn new(tree: &str, events: &[Event]) -> Self {
        Self { schema: SCHEMA, tree: tree.into(), entries: events.iter().map(HistoryEntry::from).collect() }
    }
}

impl From<&Failure> for ErrorReport {
    fn from(f: &Failure) -> Self {
        Self {
            schema: SCHEMA,
            code: f.code.as_str().into(),
            message: f.message.clone(),
            holder: f.holder.as_ref().map(HolderReport::from),
            next: f.hints.iter().find_map(|hint| hint.split('`').nth(1)).map(str::to_string),
            hints: f.hints.clone(),
        }
    }
}
