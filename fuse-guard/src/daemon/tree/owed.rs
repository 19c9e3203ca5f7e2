//! Ends that this side owes the server, and the daemon's own end.
//!
//! # Promises
//!
//! A grant whose gate cannot or may not open ends at the server too: the command is sent until it is answered or the session
//! has ended, and nothing else is asked about the tree before. *Why:* the gate never opens under that epoch again
//! ([`TreeSide::closed_upto`]), but renewals would go on holding it, and the tree would be with a side that cannot write. To
//! send one again is safe: it names its epoch, and is ignored when that is not current.

use std::time::Duration;

use treelease_client::words::command::Grant;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;

use super::{Effect, EndRequest, GateStage, Line, Phase, RETRY_PAUSE, TreeSide};

/// How long a person's claim waits for the lease when its session has ended.
const WAIT_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// An end that the server has not answered yet.
#[derive(Debug)]
pub(super) struct Owed {
    epoch: Epoch,
    effect: Effect,
    /// When it is sent again; `None` while an answer is awaited.
    again_at: Option<BootTime>,
}

/// What an earlier run of the daemon did with the lease that it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// It may have written under it.
    Wrote,
    /// It had flushed and asked for the release.
    Released,
    /// It had given it back: its gate had not opened.
    GivenBack,
    /// It had surrendered it.
    Surrendered,
}

/// What is known of the lease that an earlier run of the daemon had of this tree, in this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LeftBehind {
    /// There is none.
    #[default]
    Nothing,
    /// No answer of the resumed session has come yet.
    Unknown,
    /// This one.
    Lease(Epoch, Past),
}

impl TreeSide {
    /// The session is one that an earlier run of the daemon opened. Until [`TreeSide::handle_left_behind`] has said what that run
    /// left, nothing is asked for: the server would answer with the very lease, as if it were new.
    pub fn handle_session_resumed(&mut self) {
        self.left_behind = LeftBehind::Unknown;
    }

    /// The first answer of a resumed session lists what the earlier run held: this lease of this tree, or none. Whichever way
    /// its grant comes from now on, it is taken for what it is ([`TreeSide::handle_resumed`]).
    pub fn handle_left_behind(&mut self, left: Option<(Epoch, Past)>) {
        self.left_behind = left.map_or(LeftBehind::Nothing, |(epoch, past)| LeftBehind::Lease(epoch, past));
    }

    /// Whether nobody knows yet what the earlier run has left.
    pub(super) fn left_behind_is_unknown(&self) -> bool {
        self.left_behind == LeftBehind::Unknown
    }

    /// What the earlier run did with the lease of that epoch, if it had it.
    pub(super) fn past_of(&self, epoch: Epoch) -> Option<Past> {
        match self.left_behind {
            LeftBehind::Lease(of, past) if of == epoch => Some(past),
            _ => None,
        }
    }

    /// A lease that an earlier run of the daemon had. If that may have written under it and the gate does not open, that is no
    /// clean end, since nobody knows what was flushed (I2). If a release had left that daemon, the gate never opens under this
    /// epoch, here neither, not even if its grant was taken for a new one: the same is asked again.
    pub fn handle_resumed(&mut self, grant: Grant, past: Past, now: BootTime) {
        let epoch = grant.epoch;
        let reason = || "an earlier run of the daemon had ended it".to_owned();
        let effect = match past {
            Past::Wrote => {
                self.written_before = epoch;
                return self.take_grant(grant, now);
            }
            Past::Released => Effect::ReleaseAgain { epoch },
            Past::GivenBack => Effect::GiveBack { epoch, reason: reason() },
            Past::Surrendered => Effect::SurrenderUnopened { epoch, reason: reason() },
        };
        let taken_for_new =
            matches!(&self.phase, Phase::Granted { grant, .. } | Phase::Opening { grant, .. } if grant.epoch == epoch);
        if epoch > self.closed_upto && (self.grant().is_none() || taken_for_new) {
            self.closed_upto = epoch;
            self.latest = self.latest.max(epoch);
            if taken_for_new {
                self.right = None;
                self.lock_gone();
                self.set_phase(Phase::Reader);
            }
            self.raise_stale_below(grant.run_start.0);
            self.owe(epoch, effect);
        }
    }

    pub(super) fn owe(&mut self, epoch: Epoch, effect: Effect) {
        self.owed = Some(Owed { epoch, effect: effect.clone(), again_at: None });
        self.effects.push_back(effect);
    }

    /// Whether an end has not been answered yet.
    pub fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// The servers' answer to an end that is owed; not `known`: it is sent again.
    pub fn handle_owed_answer(&mut self, epoch: Epoch, known: bool, now: BootTime) {
        match &mut self.owed {
            Some(owed) if owed.epoch == epoch && known => {
                self.owed = None;
                self.pump(now);
            }
            Some(owed) if owed.epoch == epoch => owed.again_at = Some(now.after(RETRY_PAUSE)),
            _ => {}
        }
    }

    pub(super) fn timeout_owed(&mut self, now: BootTime) {
        if let Some(owed) = &mut self.owed
            && owed.again_at.is_some_and(|at| now >= at)
        {
            owed.again_at = None;
            self.effects.push_back(owed.effect.clone());
        }
    }

    pub(super) fn owed_at(&self) -> Option<BootTime> {
        self.owed.as_ref().and_then(|owed| owed.again_at)
    }

    /// The session has ended: a person's claim waits for the lease like a new one.
    pub(super) fn wait_again(&mut self, now: BootTime) {
        for hold in self.holds.values_mut().filter(|h| !h.pending()) {
            let until = hold.until.unwrap_or_else(|| now.after(WAIT_AGAIN));
            hold.state = super::HoldState::Pending { until };
        }
    }

    /// The daemon ends: nothing is taken any more, and what is held is handed over.
    pub fn handle_down(&mut self, now: BootTime) {
        self.down = true;
        self.come_back = false;
        self.first_write_until = None;
        self.refuse_pending(&Refusal::new(Code::Unreachable, "the side daemon is ending"));
        self.drop_acquired();
        match &self.phase {
            Phase::Granted { grant, .. } | Phase::Opening { grant, .. } if self.written_before != grant.epoch => {
                let epoch = grant.epoch;
                self.give_back(epoch, "the side daemon is ending".into());
            }
            // It only waits for a good moment yet: from now on it goes on at the limit.
            Phase::Ending { grant, opened, stage: GateStage::Open, .. } if grant.epoch > self.closed_upto => {
                self.phase = Phase::Open { grant: grant.clone(), opened: *opened };
                self.begin_end(EndRequest::Down, now);
            }
            Phase::Reader => self.effects.push_back(Effect::RefuseWaiters),
            _ => {}
        }
        self.give_way(now);
        self.pump(now);
        self.effects.push_back(Effect::Publish);
    }

    /// Whether nothing of this tree is under way at the servers any more.
    pub fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Reader) && self.owed.is_none() && !matches!(self.line, Line::Asking { .. })
    }
}
