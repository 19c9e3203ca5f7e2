//! What the state answers: grants, refusals, places in the queue.

use super::{BadMessage, Out, SENTENCE_MAX, cut, end, id, optional_id, or_empty, present, sentence, ttl};
use crate::command::{Answer, Grant};
use crate::epoch::{Epoch, RunStart};
use crate::refusal::{Code, Refusal};
use crate::wire;
use crate::wire::answer::Kind;

impl From<&Grant> for wire::Granted {
    fn from(g: &Grant) -> Self {
        Self {
            tree: g.tree.to_string(),
            epoch: g.epoch.get(),
            run_start: g.run_start.0.get(),
            root: or_empty(g.root.as_ref()),
            last_end: g.last_end.as_str().into(),
        }
    }
}

impl TryFrom<wire::Granted> for Grant {
    type Error = BadMessage;
    fn try_from(g: wire::Granted) -> Out<Self> {
        Ok(Self {
            tree: id("granted.tree", &g.tree)?,
            epoch: Epoch::from_raw(g.epoch),
            run_start: RunStart(Epoch::from_raw(g.run_start)),
            root: optional_id("granted.root", &g.root)?,
            last_end: end("granted.last_end", &g.last_end)?,
        })
    }
}

impl From<&Grant> for wire::HeldPair {
    fn from(g: &Grant) -> Self {
        let wire::Granted { tree, epoch, run_start, root, last_end } = g.into();
        Self { tree, epoch, run_start, root, last_end }
    }
}

impl TryFrom<wire::HeldPair> for Grant {
    type Error = BadMessage;
    fn try_from(p: wire::HeldPair) -> Out<Self> {
        let wire::HeldPair { tree, epoch, run_start, root, last_end } = p;
        wire::Granted { tree, epoch, run_start, root, last_end }.try_into()
    }
}

impl From<&Refusal> for wire::Refused {
    fn from(r: &Refusal) -> Self {
        Self { code: r.code.as_str().into(), message: cut(&r.message, SENTENCE_MAX), holder: r.holder.as_ref().map(Into::into) }
    }
}

impl TryFrom<wire::Refused> for Refusal {
    type Error = BadMessage;
    fn try_from(r: wire::Refused) -> Out<Self> {
        Ok(Self {
            code: Code::parse(&r.code).ok_or_else(|| BadMessage::new("refused.code", "it is no code of this version"))?,
            message: sentence("refused.message", r.message)?,
            holder: r.holder.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&Answer> for wire::Answer {
    fn from(answer: &Answer) -> Self {
        let kind = match answer {
            Answer::Done => Kind::Done(wire::Done {}),
            Answer::Ignored { why } => Kind::Ignored(wire::Ignored { why: cut(why, SENTENCE_MAX) }),
            Answer::Refused(refusal) => Kind::Refused(refusal.into()),
            Answer::Opened { session, incarnation, ttl, resumed } => Kind::Opened(wire::Opened {
                session: session.to_string(),
                incarnation: *incarnation,
                ttl_ms: ttl.as_millis(),
                resumed: *resumed,
                // The cluster stands in the message around the answer.
                cluster: String::new(),
            }),
            Answer::Granted(grant) => Kind::Granted(grant.into()),
            Answer::Queued { place, holder } => {
                Kind::Queued(wire::Queued { tree: String::new(), place: *place, holder: holder.as_ref().map(Into::into) })
            }
            Answer::TreeAdded { tree, root } => {
                Kind::TreeAdded(wire::TreeAdded { tree: tree.to_string(), root: or_empty(root.as_ref()) })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Answer> for Answer {
    type Error = BadMessage;
    fn try_from(answer: wire::Answer) -> Out<Self> {
        Ok(match present("answer.kind", answer.kind)? {
            Kind::Done(wire::Done {}) => Answer::Done,
            Kind::Ignored(i) => Answer::Ignored { why: sentence("ignored.why", i.why)? },
            Kind::Refused(r) => Answer::Refused(r.try_into()?),
            Kind::Opened(o) => Answer::Opened {
                session: id("opened.session", &o.session)?,
                incarnation: o.incarnation,
                ttl: ttl(o.ttl_ms),
                resumed: o.resumed,
            },
            Kind::Granted(g) => Answer::Granted(g.try_into()?),
            Kind::Queued(q) => Answer::Queued { place: q.place, holder: q.holder.map(TryInto::try_into).transpose()? },
            Kind::TreeAdded(t) => {
                Answer::TreeAdded { tree: id("tree_added.tree", &t.tree)?, root: optional_id("tree_added.root", &t.root)? }
            }
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
        fn an_answer_comes_back_as_it_went(answer in arbitrary::answer()) {
            prop_assert_eq!(Answer::try_from(wire::Answer::from(&answer)).unwrap(), answer);
        }
        #[test]
        fn a_held_pair_comes_back_as_it_went(pair in arbitrary::grant()) {
            prop_assert_eq!(Grant::try_from(wire::HeldPair::from(&pair)).unwrap(), pair);
        }
    }

    #[test]
    fn an_answer_without_a_kind_is_refused() {
        assert_eq!(Answer::try_from(wire::Answer { kind: None }).unwrap_err().field, "answer.kind");
    }
}
