//! Roots, holders, waiters and whole trees, as status shows them.

use std::time::Duration;

use super::policy::{policy_from_wire, policy_to_wire};
use super::{
    BadMessage, Out, SENTENCE_MAX, cut, each, end, id, marker_lock, optional_id, or_empty, path, say, say_path, sentence, text,
    ttl,
};
use crate::epoch::{Epoch, RunStart};
use crate::time::WallTime;
use crate::tree::{FencedSide, GuardOf, Holder, Root, RootState, StateName, TreeStatus, Waiter};
use crate::wire;

pub(super) fn root_state(field: &'static str, s: &str) -> Out<RootState> {
    RootState::parse(s).ok_or_else(|| BadMessage::new(field, "use one of live, sealed"))
}

impl From<&Root> for wire::Root {
    fn from(r: &Root) -> Self {
        Self { id: r.id.to_string(), path: say_path(&r.path), state: r.state.as_str().into() }
    }
}

impl TryFrom<wire::Root> for Root {
    type Error = BadMessage;
    fn try_from(r: wire::Root) -> Out<Self> {
        Ok(Self { id: id("root.id", &r.id)?, path: path("root.path", r.path)?, state: root_state("root.state", &r.state)? })
    }
}

impl From<&Holder> for wire::Holder {
    fn from(h: &Holder) -> Self {
        Self {
            side: h.side.to_string(),
            host: say(&h.host),
            epoch: h.epoch.get(),
            since: h.since.to_string(),
            note: say(&h.note),
            session: h.session.to_string(),
        }
    }
}

impl TryFrom<wire::Holder> for Holder {
    type Error = BadMessage;
    fn try_from(h: wire::Holder) -> Out<Self> {
        Ok(Self {
            side: id("holder.side", &h.side)?,
            host: text("holder.host", h.host)?,
            session: id("holder.session", &h.session)?,
            epoch: Epoch::from_raw(h.epoch),
            since: WallTime::parse(&h.since),
            note: text("holder.note", h.note)?,
        })
    }
}

impl From<&Waiter> for wire::Waiter {
    fn from(w: &Waiter) -> Self {
        Self {
            side: w.side.to_string(),
            host: say(&w.host),
            since: w.since.to_string(),
            asked: w.asked,
            note: say(&w.note),
            session: w.session.to_string(),
            first_write: w.first_write,
        }
    }
}

impl TryFrom<wire::Waiter> for Waiter {
    type Error = BadMessage;
    fn try_from(w: wire::Waiter) -> Out<Self> {
        Ok(Self {
            side: id("waiter.side", &w.side)?,
            host: text("waiter.host", w.host)?,
            session: id("waiter.session", &w.session)?,
            since: WallTime::parse(&w.since),
            asked: w.asked,
            first_write: w.first_write,
            note: text("waiter.note", w.note)?,
        })
    }
}

impl From<&FencedSide> for wire::FencedSide {
    fn from(f: &FencedSide) -> Self {
        Self { side: f.side.to_string(), epoch: f.epoch.get(), agent: say(&f.agent), acting: f.acting, unfencing: f.unfencing }
    }
}

impl TryFrom<wire::FencedSide> for FencedSide {
    type Error = BadMessage;
    fn try_from(f: wire::FencedSide) -> Out<Self> {
        Ok(Self {
            side: id("fenced.side", &f.side)?,
            epoch: Epoch::from_raw(f.epoch),
            agent: text("fenced.agent", f.agent)?,
            acting: f.acting,
            unfencing: f.unfencing,
        })
    }
}

impl From<&GuardOf> for wire::GuardOf {
    fn from(g: &GuardOf) -> Self {
        Self { side: g.side.to_string(), obeys: g.obeys }
    }
}

impl TryFrom<wire::GuardOf> for GuardOf {
    type Error = BadMessage;
    fn try_from(g: wire::GuardOf) -> Out<Self> {
        Ok(Self { side: id("guard.side", &g.side)?, obeys: g.obeys })
    }
}

impl From<&TreeStatus> for wire::Tree {
    fn from(t: &TreeStatus) -> Self {
        Self {
            id: t.id.to_string(),
            name: t.name.to_string(),
            policy: policy_to_wire(&t.policy),
            roots: t.roots.iter().map(Into::into).collect(),
            state: t.state.as_str().into(),
            holder: t.holder.as_ref().map(Into::into),
            at_rest: t.at_rest,
            epoch: t.epoch.get(),
            run_start: t.run_start.0.get(),
            last_end: t.last_end.as_str().into(),
            waiters: t.waiters.iter().map(Into::into).collect(),
            attempt: t.attempt,
            why: cut(&t.why, SENTENCE_MAX),
            ttl_ms: t.ttl.map_or(0, |ttl| ttl.as_millis()),
            remaining_ms: t.remaining.map(|d| d.as_millis() as u64),
            // An epoch that ended is never 0: the first grant is 1.
            ended_epoch: t.ended_epoch.unwrap_or(Epoch::ZERO).get(),
            ended_side: or_empty(t.ended_side.as_ref()),
            declined: cut(&t.declined, SENTENCE_MAX),
            run_side: or_empty(t.run_side.as_ref()),
            witness: t.witness.as_ref().map(Into::into),
            fenced: t.fenced.iter().map(Into::into).collect(),
            mode_no: t.mode_no,
            guards: t.guards.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Tree> for TreeStatus {
    type Error = BadMessage;
    fn try_from(t: wire::Tree) -> Out<Self> {
        Ok(Self {
            id: id("tree.id", &t.id)?,
            name: id("tree.name", &t.name)?,
            policy: policy_from_wire(t.policy)?,
            roots: each("tree.roots", t.roots)?,
            state: StateName::parse(&t.state)
                .ok_or_else(|| BadMessage::new("tree.state", "use one of free, held, cooling, fencing, retired"))?,
            holder: t.holder.map(TryInto::try_into).transpose()?,
            at_rest: t.at_rest,
            epoch: Epoch::from_raw(t.epoch),
            run_start: RunStart(Epoch::from_raw(t.run_start)),
            run_side: optional_id("tree.run_side", &t.run_side)?,
            last_end: end("tree.last_end", &t.last_end)?,
            waiters: each("tree.waiters", t.waiters)?,
            attempt: t.attempt,
            why: sentence("tree.why", t.why)?,
            ttl: (t.ttl_ms > 0).then(|| ttl(t.ttl_ms)),
            remaining: t.remaining_ms.map(Duration::from_millis),
            ended_epoch: (t.ended_epoch > 0).then(|| Epoch::from_raw(t.ended_epoch)),
            ended_side: optional_id("tree.ended_side", &t.ended_side)?,
            declined: sentence("tree.declined", t.declined)?,
            witness: marker_lock(t.witness)?,
            fenced: each("tree.fenced", t.fenced)?,
            mode_no: t.mode_no,
            guards: each("tree.guards", t.guards)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tree_comes_back_as_it_went(tree in arbitrary::tree_status()) {
            prop_assert_eq!(TreeStatus::try_from(wire::Tree::from(&tree)).unwrap(), tree);
        }
        #[test]
        fn a_root_comes_back_as_it_went(root in arbitrary::root()) {
            prop_assert_eq!(Root::try_from(wire::Root::from(&root)).unwrap(), root);
        }
    }

    #[test]
    fn a_root_in_no_known_state_is_refused() {
        let root = wire::Root { id: crate::id::RootId::random().to_string(), path: "/x".into(), state: "open".into() };
        assert_eq!(Root::try_from(root).unwrap_err().field, "root.state");
    }
}
