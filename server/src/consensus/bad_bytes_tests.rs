//! Every decoder of what is read from disk or from another node, on bytes that nobody wrote: an error that says so, never a panic;
//! and what is taken reads back as what it was taken for.

use proptest::prelude::*;
use prost::Message;
use treelease_proto::command::{Command, Proposal};
use treelease_proto::id::{RequestKey, TreeId};
use treelease_proto::time::WallTime;
use treelease_proto::wire;

use super::codec::{self, COUNT_MAX};
use super::log::Recovered;
use super::machine::Machine;
use super::messages;
use super::types::{Batch, Entry, SnapshotMeta, Vote};
use crate::failure::FailStop;
use crate::lease::State;
use crate::store::identity::Identity;
use crate::store::snapshot::SnapshotDir;
use crate::store::{Loaded, Meta, record};

#[path = "../../../proto/src/convert/damage.rs"]
mod damage;
use damage::{damaged, damages};

fn entry(index: u64) -> Entry {
    let policy = vec![("idle".to_owned(), "9s".to_owned())];
    let command = Command::AddTree { name: "dev".parse().unwrap(), tree: TreeId::random(), policy, root: None };
    let proposal = Proposal { request_key: RequestKey::random(), actor: "a test".into(), at: WallTime::UNKNOWN, command };
    let log_id = openraft::testing::log_id(3, 1, index);
    Entry { log_id, payload: openraft::EntryPayload::Normal(Batch(vec![proposal; 2])) }
}

fn membership(index: u64) -> Entry {
    let ids = [1u64, 2, 3];
    let member = |id: u64| (id, crate::store::identity::Member { addr: format!("host:{id}"), disk: format!("disk-{id}") });
    let nodes: std::collections::BTreeMap<_, _> = ids.into_iter().map(member).collect();
    let members = openraft::Membership::new(vec![ids.into_iter().collect(), [1u64, 2].into_iter().collect()], nodes);
    Entry { log_id: openraft::testing::log_id(3, 1, index), payload: openraft::EntryPayload::Membership(members) }
}

fn read_all(bytes: &[u8]) {
    if let Ok(read) = codec::entry_from_bytes(bytes) {
        assert_eq!(codec::entry_from_bytes(&codec::entry_to_bytes(&read)).unwrap(), read);
        assert!(read.log_id.index <= COUNT_MAX && read.log_id.leader_id.term <= COUNT_MAX);
    }
    if let Ok(read) = codec::batch_from_bytes(bytes) {
        assert_eq!(codec::batch_from_bytes(&codec::batch_to_bytes(&read)).unwrap(), read);
    }
    if let Ok(read) = codec::vote_from_bytes(bytes) {
        assert_eq!(codec::vote_from_bytes(&codec::vote_to_bytes(&read)).unwrap(), read);
        assert!(read.leader_id().term <= COUNT_MAX);
    }
    if let Ok(read) = codec::log_id_from_bytes(bytes) {
        assert_eq!(codec::log_id_from_bytes(&codec::log_id_to_bytes(&read)).unwrap(), read);
    }
    let _ = codec::snapshot_from_bytes(bytes);
    let _ = record::open(b"vote", bytes);
    // What other nodes say.
    let _ = wire::AppendRequest::decode(bytes).map(messages::append_from_wire);
    let _ = wire::AppendAnswer::decode(bytes).map(messages::append_answer_from_wire);
    let _ = wire::VoteRequest::decode(bytes).map(messages::vote_request_from_wire);
    let _ = wire::VoteAnswer::decode(bytes).map(messages::vote_answer_from_wire);
    let _ = wire::SnapshotRequest::decode(bytes).map(messages::snapshot_from_wire);
    let _ = wire::SnapshotAnswer::decode(bytes).map(messages::snapshot_answer_from_wire);
}

fn messages_of(entry: &Entry) -> Vec<Vec<u8>> {
    let log_id = Some(wire::LogId { term: 3, node: 1, index: 4 });
    let vote = Some(wire::Vote { term: 3, node: 1, committed: true });
    let entries = vec![codec::entry_to_wire(entry); 2];
    let append = wire::AppendRequest { vote, prev: log_id, entries, commit: log_id, ..Default::default() };
    let asked = wire::VoteRequest { vote, last: log_id, ..Default::default() };
    let piece =
        wire::SnapshotRequest { vote, meta: Some(Default::default()), data: vec![1, 2], done: true, ..Default::default() };
    vec![append.encode_to_vec(), asked.encode_to_vec(), piece.encode_to_vec()]
}

/// One more could not be counted.
#[test]
fn a_term_or_an_index_that_nobody_can_have_counted_is_damage() {
    for (term, index) in [(u64::MAX, 1), (1, u64::MAX), (COUNT_MAX + 1, 1), (1, COUNT_MAX + 1)] {
        codec::entry_from_bytes(&codec::entry_to_bytes(&Entry { log_id: openraft::testing::log_id(term, 1, index), ..entry(5) }))
            .unwrap_err();
        codec::log_id_from_bytes(&codec::log_id_to_bytes(&openraft::testing::log_id(term, 1, index))).unwrap_err();
    }
    codec::vote_from_bytes(&codec::vote_to_bytes(&Vote::new(u64::MAX, 1))).unwrap_err();
    codec::vote_from_bytes(&codec::vote_to_bytes(&Vote::new(COUNT_MAX, 1))).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_anything_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    #[test]
    fn what_was_damaged_on_its_way_is_an_error_or_reads_back_as_what_it_was_taken_for((at, cut) in damages()) {
        for entry in [entry(5), membership(5)] {
            read_all(&damaged(&codec::entry_to_bytes(&entry), &at, cut));
            messages_of(&entry).iter().for_each(|message| read_all(&damaged(message, &at, cut)));
        }
        read_all(&damaged(&codec::vote_to_bytes(&Vote::new_committed(3, 1)), &at, cut));
    }

    /// Records whose checksums are right, as if a version had written them that this one does not know.
    #[test]
    fn a_log_of_damaged_records_is_an_error_and_no_panic(which in 0..7u64, (at, cut) in damages()) {
        let mut loaded = Loaded::default();
        for index in 0..4 {
            let entry = if index == 0 { membership(0) } else { entry(index) };
            loaded.log.insert(index, codec::entry_to_bytes(&entry));
        }
        loaded.meta.insert(Meta::Vote, codec::vote_to_bytes(&Vote::new_committed(3, 1)));
        loaded.meta.insert(Meta::Committed, codec::log_id_to_bytes(&entry(3).log_id));
        let record = match which {
            0..=3 => loaded.log.get_mut(&which).unwrap(),
            4 => loaded.meta.get_mut(&Meta::Vote).unwrap(),
            5 => loaded.meta.get_mut(&Meta::Committed).unwrap(),
            _ => loaded.meta.entry(Meta::Purged).or_insert_with(|| codec::log_id_to_bytes(&entry(0).log_id)),
        };
        *record = damaged(record, &at, cut);
        if let Ok(recovered) = Recovered::read(loaded) {
            let _ = (recovered.is_complete(), recovered.purged());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_snapshot_is_an_error_and_no_panic((at, cut) in damages(), below in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        let whole = codec::snapshot_to_bytes(&SnapshotMeta::default(), &State::new()).unwrap();
        if below {
            // In the file itself, below the checksum.
            snapshots.save(1, "a", &whole).unwrap();
            let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
            let before = std::fs::read(&file).unwrap();
            let after = damaged(&before, &at, cut);
            std::fs::write(&file, &after).unwrap();
            prop_assert_eq!(Machine::open(snapshots, FailStop::new()).is_ok(), before == after);
        } else {
            snapshots.save(1, "a", &damaged(&whole, &at, cut)).unwrap();
            let _ = Machine::open(snapshots, FailStop::new());
        }
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_no_panic((at, cut) in damages(), below in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::open(dir.path(), 1, &[]).unwrap();
        let file = dir.path().join("identity");
        let before = std::fs::read(&file).unwrap();
        let after = match below {
            true => damaged(&before, &at, cut),
            false => record::seal(b"identity", &damaged(&record::open(b"identity", &before).unwrap(), &at, cut)),
        };
        std::fs::write(&file, &after).unwrap();
        let read = Identity::open(dir.path(), 1, &[]);
        prop_assert!(!below || before == after || read.is_err());
        prop_assert!(before != after || read.unwrap() == made);
    }
}
