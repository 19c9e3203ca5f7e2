//! Standing in the queue: when this side asks for the lease, asks again, and leaves.

use treelease_client::words::command::Answer;
use treelease_client::words::id::SessionId;
use treelease_client::words::policy::Fence;
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::{Holder, StateName, TreeStatus};

use super::{Effect, Phase, RETRY_PAUSE, TreeSide};

/// Where this side stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Not in it.
    Out,
    /// The request is on its way.
    Asking {
        /// With an ask to hand over.
        ask: bool,
        /// For a first write only.
        first_write: bool,
    },
    /// In it.
    In {
        /// With an ask to hand over.
        asked: bool,
        /// For a first write only.
        first_write: bool,
        /// 1: next.
        place: u32,
    },
    /// It has left, or is leaving; a grant that comes now is not wanted.
    Left,
}

/// What a tree's state says to somebody who wants the lease and does not get it.
pub fn why_not(table: &TreeStatus) -> Refusal {
    let name = &table.name;
    match (table.state, &table.holder) {
        (_, Some(holder)) => held(name.as_str(), holder),
        (StateName::Cooling, _) => Refusal::new(
            Code::Held,
            format!("\"{name}\" waits for its grace after an unclean end{}: {}", ended(table), table.why),
        ),
        (StateName::Fencing, _) => Refusal::new(
            Code::Held,
            format!(
                "\"{name}\" waits for a fence after an unclean end{}: {} that the old holder cannot write any more",
                ended(table),
                match &table.policy.fence {
                    Fence::Exec(agent) => format!("the fence agent `{agent}` must succeed, or somebody must vouch"),
                    _ => "somebody must vouch".to_owned(),
                }
            ),
        ),
        (StateName::Retired, _) => Refusal::new(Code::NotFound, format!("\"{name}\" is retired")),
        _ => {
            let fenced: Vec<&str> = table.fenced.iter().map(|fenced| fenced.side.as_str()).collect();
            let why = match fenced.is_empty() {
                true => String::new(),
                false => format!("; fenced there, until `treelease fence unfence`: {}", fenced.join(", ")),
            };
            Refusal::new(Code::Held, format!("\"{name}\" was not granted in time{why}"))
        }
    }
}

fn ended(table: &TreeStatus) -> String {
    match (&table.ended_side, table.ended_epoch) {
        (Some(side), Some(epoch)) => format!(" of {side} (epoch {epoch})"),
        _ => String::new(),
    }
}

/// "Held by", with what a person needs to know.
pub fn held(name: &str, holder: &Holder) -> Refusal {
    let host = if holder.host.is_empty() { String::new() } else { format!(" (host {})", holder.host) };
    let note = if holder.note.is_empty() { String::new() } else { format!(", for {}", holder.note) };
    Refusal::new(
        Code::Held,
        format!("\"{name}\" is held by {}{host} since {}, epoch {}{note}", holder.side, holder.since, holder.epoch),
    )
    .held_by(holder.clone())
}

impl TreeSide {
    /// Brings the place in the queue in line with what is wanted here.
    pub(super) fn pump(&mut self, now: BootTime) {
        // While an end is owed the server would answer with the very lease that is to end; and before it is known what an earlier
        // run of the daemon left, with that.
        let waits = self.owed.is_some() || self.left_behind_is_unknown();
        if !matches!(self.phase, Phase::Reader) || waits || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let first = self.first_write_until.is_some_and(|until| now < until);
        let pending = || self.holds.values().filter(|h| h.pending());
        let people = pending().count() > 0;
        let ask = pending().any(|h| h.ask && !h.no_wait);
        let no_wait = people && !first && pending().all(|h| h.no_wait);
        let note =
            pending().next().map(|h| if h.note.is_empty() { h.command.clone() } else { h.note.clone() }).unwrap_or_default();
        let acquire = Effect::Acquire { ask, first_write: !people, no_wait, note };
        match self.line {
            Line::Out | Line::Left if people || first => {
                self.line = Line::Asking { ask, first_write: !people };
                self.effects.push_back(acquire);
            }
            Line::In { asked, first_write, .. } if (ask && !asked) || (people && first_write) => {
                self.line = Line::Asking { ask, first_write: !people };
                self.effects.push_back(acquire);
            }
            Line::In { .. } if !people && !first => {
                self.line = Line::Left;
                self.effects.push_back(Effect::Cancel);
            }
            _ => {}
        }
    }

    /// Whether the table says that this session was granted the tree and no grant of it has come: a renewal lists it (I4), and is to be
    /// sent now. *Why it matters:* whoever waits in the queue is granted when the holder lets go, and no answer of ours tells of that.
    pub fn was_granted_unheard(&self, status: &TreeStatus, my_session: Option<&SessionId>) -> bool {
        let mine = status.holder.as_ref().is_some_and(|holder| Some(&holder.session) == my_session);
        mine && status.epoch > self.closed_upto && self.grant().is_none_or(|grant| grant.epoch < status.epoch)
    }

    /// The number of the present session, or of the next one: what is asked for in one comes back with it.
    pub fn session_no(&self) -> u64 {
        self.session_no
    }

    /// The servers' answer to [`Effect::Acquire`], which was sent in the session of that number. An earlier session's says nothing:
    /// what it granted or queued went with it, and the present one may have asked meanwhile.
    pub fn handle_acquire_answer(&mut self, session_no: u64, answer: Result<Answer, Refusal>, now: BootTime) {
        if session_no != self.session_no {
            return;
        }
        let Line::Asking { ask, first_write } = self.line else {
            if let Ok(Answer::Granted(grant)) = answer {
                self.handle_grant(grant, now);
            }
            return;
        };
        match answer {
            Ok(Answer::Granted(grant)) => {
                self.handle_grant(grant, now);
                // A lease whose gate never opens again: its end is under way, and then it is asked for anew.
                if matches!(self.line, Line::Asking { .. }) {
                    self.line = Line::Out;
                    self.retry_at = Some(now.after(RETRY_PAUSE));
                }
            }
            Ok(Answer::Queued { place, .. }) => {
                self.line = Line::In { asked: ask, first_write, place };
                let waiting: Vec<_> = self.holds.values().filter(|h| h.pending()).map(|h| h.id.clone()).collect();
                self.effects.extend(waiting.into_iter().map(Effect::HoldWaits));
                let held = self.why_not();
                self.refuse_pending_if(&held, |h| h.no_wait);
                self.pump(now);
            }
            // Not the tree is unknown but the session: the next renewal says so too, and who waits goes on waiting in the next one.
            Ok(Answer::Refused(refusal)) if refusal.code == Code::NotFound && self.is_in_the_table() => {
                self.ask_again(&refusal, first_write, now);
            }
            Ok(Answer::Refused(refusal)) => {
                self.line = Line::Out;
                let no_wait_only = refusal.code == Code::Held;
                self.refuse_pending_if(&refusal, |h| h.no_wait || !no_wait_only);
                if !no_wait_only {
                    self.first_write_until = None;
                    self.effects.push_back(Effect::RefuseWaiters);
                }
                self.pump(now);
            }
            Ok(other) => {
                self.line = Line::Out;
                self.retry_at = Some(now.after(RETRY_PAUSE));
                self.effects.push_back(Effect::Note(format!("unexpected answer to acquire: {other:?}")));
            }
            // Unreachable or unknown: asked again while somebody wants it; who does not wait is told.
            Err(refusal) => self.ask_again(&refusal, first_write, now),
        }
    }

    fn is_in_the_table(&self) -> bool {
        self.table.as_ref().is_some_and(|t| t.state != StateName::Retired)
    }

    fn ask_again(&mut self, why: &Refusal, first_write: bool, now: BootTime) {
        self.line = Line::Out;
        self.retry_at = Some(now.after(RETRY_PAUSE));
        self.refuse_pending_if(why, |h| h.no_wait);
        if first_write {
            self.first_write_until = None;
            self.effects.push_back(Effect::RefuseWaiters);
        }
    }

    /// The queue entry is gone: a grant that comes from now on was meant (a handoff to this side).
    pub fn handle_cancelled(&mut self) {
        if self.line == Line::Left {
            self.line = Line::Out;
        }
    }

    /// The holder has said "not now" to those who asked.
    pub(super) fn handle_declined(&mut self, note: &str) {
        let holder = self.holder().cloned();
        let by = holder.as_ref().map_or_else(|| "the holder".to_string(), |h| h.side.to_string());
        let mut refusal = Refusal::new(Code::Declined, format!("{by} declined to hand over \"{}\": {note}", self.name));
        refusal.holder = holder;
        self.refuse_pending_if(&refusal, |h| h.ask);
        if let Line::In { asked, .. } = &mut self.line {
            *asked = false;
        }
    }
}
