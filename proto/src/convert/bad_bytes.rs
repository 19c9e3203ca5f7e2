//! Words whose bytes were damaged on their way: an error that names a field, or another word that is as good as any; never a panic.

use proptest::prelude::*;
use prost::Message;

use super::damage::{damaged, damages};
use super::{BadMessage, arbitrary};
use crate::command::{Answer, Command, Event, Proposal};
use crate::tree::{ClusterStatus, TreeStatus};
use crate::wire;

/// Reads it. What is taken for a word goes out and comes back as the same one: a node can always read what it has accepted.
fn read<W, T>(bytes: &[u8])
where
    W: Message + Default + for<'a> From<&'a T>,
    T: TryFrom<W, Error = BadMessage> + PartialEq + std::fmt::Debug,
{
    let Ok(message) = W::decode(bytes) else { return };
    match T::try_from(message) {
        Ok(word) => assert_eq!(T::try_from(W::decode(&*W::from(&word).encode_to_vec()).unwrap()).unwrap(), word),
        Err(bad) => assert!(!bad.field.is_empty() && !bad.why.is_empty()),
    }
}

fn read_all(bytes: &[u8]) {
    read::<wire::Command, Command>(bytes);
    read::<wire::Proposal, Proposal>(bytes);
    read::<wire::Answer, Answer>(bytes);
    read::<wire::Event, Event>(bytes);
    read::<wire::Tree, TreeStatus>(bytes);
    read::<wire::StatusAnswer, ClusterStatus>(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_anything_make_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
    }

    #[test]
    fn a_damaged_proposal_is_named_or_is_another_one(proposal in arbitrary::proposal(), (at, cut) in damages()) {
        read_all(&damaged(&wire::Proposal::from(&proposal).encode_to_vec(), &at, cut));
        read_all(&damaged(&wire::Command::from(&proposal.command).encode_to_vec(), &at, cut));
    }

    #[test]
    fn a_damaged_answer_is_named_or_is_another_one(answer in arbitrary::answer(), (at, cut) in damages()) {
        read_all(&damaged(&wire::Answer::from(&answer).encode_to_vec(), &at, cut));
    }

    #[test]
    fn a_damaged_event_is_named_or_is_another_one(event in arbitrary::event(), (at, cut) in damages()) {
        read_all(&damaged(&wire::Event::from(&event).encode_to_vec(), &at, cut));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_status_is_named_or_is_another_one(
        tree in arbitrary::tree_status(), status in arbitrary::cluster_status(), (at, cut) in damages()
    ) {
        read_all(&damaged(&wire::Tree::from(&tree).encode_to_vec(), &at, cut));
        read_all(&damaged(&wire::StatusAnswer::from(&status).encode_to_vec(), &at, cut));
    }

    /// A backup: of a person's disk.
    #[test]
    fn a_text_of_anything_is_no_backup(text in ".{0,400}", (at, cut) in damages()) {
        let _ = crate::backup::open(&text);
        let about = crate::backup::About {
            cluster: crate::id::ClusterId::random(),
            revision: 1,
            at: crate::time::WallTime::UNKNOWN,
            trees: 1,
            history: None,
            version: "0.1.0".into(),
        };
        let whole = crate::backup::seal(&about, "{}");
        let bytes = damaged(whole.as_bytes(), &at, cut);
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert_eq!(crate::backup::open(&text).is_ok(), text == whole);
        }
    }
}
