//! One tree and its transitions. Nothing else changes a tree's state, and nothing else makes an epoch.
//!
//! ```text
//!            grant                    release, give_back
//!   Free ───────────▶ Held ─────────────────────────────────▶ Free (clean)
//!    ▲                 │ expire, break, surrender, copied
//!    │                 ▼
//!    │ at rest,      Cooling ──▶ Fencing        both: back to Held for the same side on the same kernel after an expiry,
//!    └─ no fence ──────┴────────────┴─▶ Free (unclean)      and Free (unclean) at once when an operator vouches, and out of
//!                                                           Fencing when the storage is a witness or an agent succeeded
//! ```
//!
//! I1: there is one `Held` with one session in it, and `grant` is the only caller of `Epoch::next`.
//! I2: the only exits of `Held` are `end_clean` (the holder's own word) and `end_unclean` (into `Cooling`); the only ways on
//! are those drawn above. Who may take which is decided in `acquire` and `ending`; `invariant::check_step` looks after them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use treelease_proto::command::{Event, EventKind, Grant};
use treelease_proto::epoch::{Epoch, RunStart};
use treelease_proto::id::{MarkerLock, Place, RootId, SessionId, SideName, TreeId, TreeName};
use treelease_proto::policy::{Policy, Takeover};
use treelease_proto::time::{WallTime, millis};
use treelease_proto::tree::{End, Root, RootState, StateName};

use super::fencing::Fenced;
use super::history::Context;
use super::policies;
use super::queue::{Queue, Waiting};
use super::restarted::Kernel;
use super::trials::Trial;

/// How a tree stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeState {
    /// Nobody has it, and nothing is waited for.
    Free,
    /// One session has it.
    Held(Box<Held>),
    /// It ended unclean, and a length of time must pass.
    Cooling(Box<Cooling>),
    /// That time has passed; somebody must make sure that the old holder cannot write any more.
    Fencing(Box<Fencing>),
    /// At its end of life.
    Retired,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Held {
    /// Whose.
    pub session: SessionId,
    /// Its side.
    pub side: SideName,
    /// Its host.
    pub host: String,
    /// The grant's number.
    pub epoch: Epoch,
    /// When it was granted.
    pub since: WallTime,
    /// The holder's word that storage has confirmed everything.
    pub at_rest: bool,
    /// Of the last `rest` or `active`; a lower or equal one is ignored.
    pub number: u64,
    /// What for.
    pub note: String,
    /// Kernel and superblock, if known (I2: the way back).
    pub place: Option<Place>,
    /// How the lease before it ended.
    pub after: End,
    /// The marker's lock, by the last `active`: the holder has it until nothing is unconfirmed, or its process is gone.
    pub marker: Option<MarkerLock>,
    /// Its session's, if known: a fence ends with it.
    #[serde(default)]
    pub kernel: Option<Box<Kernel>>,
}

/// A lease that ended unclean.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// Its number; after a takeover, the greatest found on the storage.
    pub epoch: Epoch,
    /// Whose; unknown after a takeover.
    pub side: Option<SideName>,
    /// Its host, for people and agents; empty if it is not known.
    #[serde(default)]
    pub host: String,
    /// Its session; unknown after a takeover.
    pub session: Option<SessionId>,
    /// Where it wrote, if known.
    pub place: Option<Place>,
    /// Whether something may be unconfirmed: it was not at rest.
    pub active: bool,
    /// By what.
    pub how: How,
    /// The marker's lock that its holder said to have: who gets it is a witness of the holder's end.
    pub marker: Option<MarkerLock>,
    /// The holder's, if known.
    #[serde(default)]
    pub kernel: Option<Box<Kernel>>,
}

impl Ended {
    /// The side that may have left writes behind, if that is known for sure: not after a restore, when others may have held the
    /// tree since.
    pub(super) fn whom_to_fence(&self) -> Option<&SideName> {
        self.side.as_ref().filter(|_| self.how != How::Restored)
    }
}

/// By what a lease ended unclean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Its session expired: a full TTL has passed already (I3). The only end with a way back.
    Expired,
    /// By an operator; the holder may not know it yet.
    Broken,
    /// By an operator, and the holder has said that its gate is shut.
    BrokenAndShut,
    /// By the holder, which could not flush.
    Surrendered,
    /// Two machines renewed its session: neither is known to be the right one, and both may write until their time is up.
    Copied,
    /// Under another cluster, of which nothing is known.
    Takeover,
    /// Under a server of which this one has grown from an older copy: who was granted it since is unknown.
    Restored,
}

/// See [`TreeState::Cooling`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cooling {
    /// What ended.
    pub ended: Ended,
    /// How long to wait, from when a leader applies it.
    #[serde(with = "millis")]
    pub length: Duration,
    /// Differs between any two coolings of a tree, so that timers notice a new one.
    pub serial: u64,
    /// For people.
    pub why: String,
}

/// See [`TreeState::Fencing`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fencing {
    /// What ended.
    pub ended: Ended,
    /// Of the fence, from 1: the last that an agent began, where one did.
    pub attempt: u32,
    /// For people: what is needed.
    pub why: String,
}

/// The last unbroken row of grants to one side on one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) side: SideName,
    pub(super) place: Option<Place>,
    pub(super) start: RunStart,
    /// No later grant belongs to it: it ended by break or surrender.
    pub(super) closed: bool,
}

/// A tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tree {
    pub(super) id: TreeId,
    pub(super) name: TreeName,
    pub(super) policy: policies::Shared,
    pub(super) roots: Vec<Root>,
    pub(super) state: TreeState,
    /// Of the last grant; 0 before the first (I1: only grows).
    pub(super) last_epoch: Epoch,
    pub(super) last_end: End,
    pub(super) run: Option<Run>,
    pub(super) queue: Queue,
    /// The side came back by the way of I2 already: it does not jump the queue a second time.
    pub(super) came_back: bool,
    /// Why the holder declined; empty if it did not.
    pub(super) declined: String,
    /// Of the last cooling.
    pub(super) coolings: u64,
    /// Sides against which a fence agent was run.
    #[serde(default)]
    pub(super) fenced: BTreeMap<SideName, Fenced>,
    /// Its agent is to be tried.
    #[serde(default)]
    pub(super) trial: Option<Trial>,
    /// Counts the changes of the policy's mode.
    #[serde(default)]
    pub(super) mode_no: u64,
    /// The sides that ever mounted it, and the number of the mode that each has confirmed last.
    #[serde(default)]
    pub(super) guards: BTreeMap<SideName, u64>,
}

impl Tree {
    pub(super) fn new(id: TreeId, name: TreeName, policy: policies::Shared, root: Option<Root>) -> Self {
        Self {
            id,
            name,
            policy,
            roots: root.into_iter().collect(),
            state: TreeState::Free,
            last_epoch: Epoch::ZERO,
            last_end: End::None,
            run: None,
            queue: Queue::default(),
            came_back: false,
            declined: String::new(),
            coolings: 0,
            fenced: BTreeMap::new(),
            trial: None,
            mode_no: 0,
            guards: BTreeMap::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &TreeName {
        &self.name
    }
    /// Its owner's decisions.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
    /// How it stands.
    pub fn state(&self) -> &TreeState {
        &self.state
    }
    /// Of the last grant.
    pub fn epoch(&self) -> Epoch {
        self.last_epoch
    }
    /// How the last lease ended.
    pub fn last_end(&self) -> End {
        self.last_end
    }
    /// Where its files lie.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }
    /// The one root that takes writes.
    pub fn live_root(&self) -> Option<&RootId> {
        self.roots.iter().find(|r| r.state == RootState::Live).map(|r| &r.id)
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match &self.state {
            TreeState::Held(held) => Some(held),
            _ => None,
        }
    }

    /// The unclean end that is being waited out.
    pub(super) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            TreeState::Cooling(cooling) => Some(&cooling.ended),
            TreeState::Fencing(fencing) => Some(&fencing.ended),
            _ => None,
        }
    }

    pub(super) fn state_name(&self) -> StateName {
        match self.state {
            TreeState::Free => StateName::Free,
            TreeState::Held(_) => StateName::Held,
            TreeState::Cooling(_) => StateName::Cooling,
            TreeState::Fencing(_) => StateName::Fencing,
            TreeState::Retired => StateName::Retired,
        }
    }

    /// The last run's start; 0 before the first grant.
    pub(super) fn run_start(&self) -> RunStart {
        self.run.as_ref().map(|run| run.start).unwrap_or_default()
    }

    /// Whether a free tree may go to this side: not while that is fenced or all roots are sealed; after an unclean end the owner's `takeover` decides.
    pub(super) fn may_be_granted(&self, side: &SideName) -> bool {
        !self.is_fenced(side) && !self.is_sealed() && self.may_take_over(side)
    }

    /// Whether it has roots, and none that takes writes.
    pub(super) fn is_sealed(&self) -> bool {
        !self.roots.is_empty() && self.live_root().is_none()
    }

    /// No later grant goes on where the last one was.
    pub(super) fn close_run(&mut self) {
        if let Some(run) = &mut self.run {
            run.closed = true;
        }
    }

    /// The end of a free tree.
    pub(super) fn retire(&mut self) {
        debug_assert!(self.state == TreeState::Free);
        self.state = TreeState::Retired;
        for root in &mut self.roots {
            root.state = RootState::Sealed;
        }
        self.close_run();
    }

    /// The owner's decision alone.
    pub(super) fn may_take_over(&self, side: &SideName) -> bool {
        match &self.policy.takeover {
            Takeover::Sides(sides) if self.last_end == End::Unclean => sides.contains(side),
            _ => true,
        }
    }

    /// I2's way back: the same side on the same kernel, both known, after an expiry and nothing else; past the queue only once.
    ///
    /// Why it is safe at once: the side's earlier writes and its later ones go through one kernel and one superblock, so they
    /// share every page, and nobody else can have written between, since the tree was cooling or fencing all the time.
    pub(super) fn way_back(&self, waiting: &Waiting) -> bool {
        let Some(ended) = self.ended() else { return false };
        let same_kernel = match (&ended.place, &waiting.place) {
            (Some(then), Some(now)) => then == now && !now.boot.is_empty(),
            _ => false,
        };
        let others_wait = self.queue.iter().any(|w| w.session != waiting.session);
        // An agent that may still act, or has acted, would meet the new lease.
        let fenced = self.is_fenced(&waiting.side);
        let same_side = ended.side.as_ref() == Some(&waiting.side);
        ended.how == How::Expired && same_side && same_kernel && !fenced && !(self.came_back && others_wait)
    }

    /// Grants the tree. The caller has made sure of I2; the run goes on only on the same known kernel.
    pub(super) fn grant(&mut self, to: Waiting, kernel: Option<Box<Kernel>>, at: WallTime, comes_back: bool) -> Grant {
        debug_assert!(self.held().is_none(), "I1");
        let epoch = self.last_epoch.next();
        let goes_on = |run: &Run| !run.closed && run.side == to.side && run.place.is_some() && run.place == to.place;
        let start = match &self.run {
            Some(run) if goes_on(run) => run.start,
            _ => RunStart(epoch),
        };
        self.queue.leave(&to.session);
        self.last_epoch = epoch;
        self.came_back = comes_back;
        self.declined.clear();
        self.run = Some(Run { side: to.side.clone(), place: to.place.clone(), start, closed: false });
        self.state = TreeState::Held(Box::new(Held {
            session: to.session,
            side: to.side,
            host: to.host,
            epoch,
            since: at,
            // What it will have written is unknown until it says `rest`.
            at_rest: false,
            number: 0,
            note: to.note,
            place: to.place,
            after: self.last_end,
            // A lock that an earlier lease had says nothing about this one.
            marker: None,
            kernel,
        }));
        self.as_grant().expect("it was granted just now")
    }

    /// The lease as its holder is told of it.
    pub(super) fn as_grant(&self) -> Option<Grant> {
        let held = self.held()?;
        Some(Grant {
            tree: self.id.clone(),
            epoch: held.epoch,
            run_start: self.run_start(),
            root: self.live_root().cloned(),
            last_end: held.after,
        })
    }

    /// The holder's own word that everything is on the storage: nothing to wait for (I2 a).
    pub(super) fn end_clean(&mut self) {
        debug_assert!(self.held().is_some());
        self.state = TreeState::Free;
        self.last_end = End::Clean;
        self.came_back = false;
        self.declined.clear();
    }

    /// The gate never opened: as a clean end, but what the lease before it left behind is still there to be looked at.
    pub(super) fn end_unopened(&mut self) {
        let after = self.held().map_or(End::None, |held| held.after);
        self.end_clean();
        if after == End::Unclean {
            self.last_end = End::Unclean;
        }
    }

    /// Any other end: `Cooling`, for so long (I2 b, c).
    pub(super) fn end_unclean(&mut self, how: How, length: Duration, why: String) {
        let Some(held) = self.held() else { return };
        let ended = Ended {
            epoch: held.epoch,
            side: Some(held.side.clone()),
            host: held.host.clone(),
            session: Some(held.session.clone()),
            place: held.place.clone(),
            // A flush that failed leaves unconfirmed writes, whatever was said before.
            active: !held.at_rest || how == How::Surrendered,
            how,
            marker: held.marker.clone(),
            kernel: held.kernel.clone(),
        };
        if how != How::Expired {
            self.close_run();
        }
        self.declined.clear();
        self.cool(ended, length, why);
    }

    /// Cools from now on, or anew.
    pub(super) fn cool(&mut self, ended: Ended, length: Duration, why: String) {
        self.coolings += 1;
        self.last_end = End::Unclean;
        self.state = TreeState::Cooling(Box::new(Cooling { ended, length, serial: self.coolings, why }));
    }

    /// The lease that came back and never opened had no unconfirmed writes of its own: its lock is no witness of the earlier ones.
    pub(super) fn forget_lock(&mut self) {
        if let TreeState::Held(held) = &mut self.state {
            held.marker = None;
        }
    }

    /// The grace is over, the fence is not.
    pub(super) fn fence(&mut self, why: String) {
        if let TreeState::Cooling(cooling) = &self.state {
            self.state = TreeState::Fencing(Box::new(Fencing { ended: cooling.ended.clone(), attempt: 1, why }));
        }
    }

    /// Nothing is left to wait for.
    pub(super) fn free_unclean(&mut self) {
        debug_assert!(self.ended().is_some());
        self.state = TreeState::Free;
        self.last_end = End::Unclean;
    }

    /// An event about this tree as it is now: its lease, or the one whose end is being waited out.
    pub(super) fn event(&self, kind: EventKind, context: &Context) -> Event {
        let (side, session) = match (&self.state, self.ended()) {
            (TreeState::Held(held), _) => (Some(held.side.clone()), Some(held.session.clone())),
            (_, Some(ended)) => (ended.side.clone(), ended.session.clone()),
            _ => (None, None),
        };
        Event {
            revision: 0,
            at: context.at,
            tree: self.id.clone(),
            name: self.name.clone(),
            kind,
            side,
            session,
            epoch: self.last_epoch,
            run_start: self.run_start(),
            actor: context.actor.clone(),
            reason: String::new(),
            end: End::None,
            files: 0,
            bytes: 0,
            count: 0,
        }
    }
}
