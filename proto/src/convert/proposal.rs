//! What the log keeps: proposals, and batches of them that one sync makes durable together.

use super::{BATCH_MAX, BadMessage, Out, few, id, present, say, text};
use crate::command::Proposal;
use crate::time::WallTime;
use crate::wire;

impl From<&Proposal> for wire::Proposal {
    fn from(p: &Proposal) -> Self {
        Self {
            request_key: p.request_key.to_string(),
            actor: say(&p.actor),
            at: p.at.to_string(),
            command: Some((&p.command).into()),
        }
    }
}

impl TryFrom<wire::Proposal> for Proposal {
    type Error = BadMessage;
    fn try_from(p: wire::Proposal) -> Out<Self> {
        Ok(Self {
            request_key: id("proposal.request_key", &p.request_key)?,
            actor: text("proposal.actor", p.actor)?,
            at: WallTime::parse(&p.at),
            command: present("proposal.command", p.command)?.try_into()?,
        })
    }
}

impl From<&[Proposal]> for wire::Batch {
    fn from(batch: &[Proposal]) -> Self {
        debug_assert!(batch.len() <= BATCH_MAX, "the proposer bounds its batches");
        Self { proposals: batch.iter().map(Into::into).collect() }
    }
}

impl TryFrom<wire::Batch> for Vec<Proposal> {
    type Error = BadMessage;
    fn try_from(batch: wire::Batch) -> Out<Self> {
        few("batch.proposals", batch.proposals, BATCH_MAX)?.into_iter().map(TryInto::try_into).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TEXT_MAX, arbitrary};
    use super::*;
    use crate::command::Command;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_went_through_its_bytes(batch in proptest::collection::vec(arbitrary::proposal(), 0..8)) {
            let bytes = wire::Batch::from(batch.as_slice()).encode_to_vec();
            let back: Vec<Proposal> = wire::Batch::decode(bytes.as_slice()).unwrap().try_into().unwrap();
            prop_assert_eq!(back, batch);
        }
        #[test]
        fn bytes_of_anything_make_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = wire::Batch::decode(bytes.as_slice()) {
                let _ = Vec::<Proposal>::try_from(batch);
            }
        }
    }

    #[test]
    fn what_is_put_into_the_log_can_be_read_again_however_long_its_texts() {
        let tree = crate::id::TreeId::random();
        let long = "é".repeat(TEXT_MAX * 3);
        let p = Proposal {
            request_key: crate::id::RequestKey::random(),
            actor: long.clone(),
            at: WallTime::UNKNOWN,
            command: Command::Break { tree, epoch: crate::epoch::Epoch::from_raw(1), reason: long },
        };
        let back = Proposal::try_from(wire::Proposal::from(&p)).unwrap();
        assert_eq!(back.actor.chars().count(), TEXT_MAX);
    }
}
