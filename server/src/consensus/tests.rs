//! openraft's own storage suite against our log and state machine, and what it does not ask: what is read back from disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::timeout;
use treelease_proto::command::{Command, Proposal};
use treelease_proto::id::{ClusterId, RequestKey};
use treelease_proto::time::{Ttl, WallTime};

use super::ahead::Ahead;
use super::codec;
use super::log::{LogStore, Recovered};
use super::machine::Machine;
use super::published::Published;
use super::types::{Batch, Entry, LogId, Membership, StorageError, TypeConfig, Vote};
use crate::failure::FailStop;
use crate::fault::Faults;
use crate::lease::State;
use crate::store::identity::{Formation, Member};
use crate::store::snapshot::SnapshotDir;
use crate::store::writer::Writer;
use crate::store::{Backend, Counts, Kind, Loaded, WriteSet};

const LIMIT: Duration = Duration::from_secs(60);
/// What waits for something that does not come waits longer than this.
const MOMENT: Duration = Duration::from_millis(50);

struct InTemporaryDirectories(Kind);

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for InTemporaryDirectories {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, machine, _) = open(self.0, dir.path());
        Ok((dir, log, machine))
    }
}

#[test]
fn log_and_state_machine_pass_openrafts_storage_suite() {
    for kind in Kind::ALL {
        Suite::test_all(InTemporaryDirectories(kind)).unwrap();
    }
}

#[tokio::test]
async fn log_vote_and_purge_are_read_back_after_a_restart() {
    for kind in Kind::ALL {
        read_back(kind).await;
    }
}

async fn read_back(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _, writer) = open(kind, dir.path());
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    log.blocking_append((0..10).map(|i| blank_ent(3, 1, i))).await.unwrap();
    log.save_committed(Some(log_id(3, 1, 8))).await.unwrap();
    log.blocking_append([batch_entry(10)]).await.unwrap();
    log.truncate(log_id(3, 1, 10)).await.unwrap();
    log.blocking_append([batch_entry(10)]).await.unwrap();
    log.purge(log_id(3, 1, 4)).await.unwrap();
    log.blocking_append([blank_ent(3, 1, 11)]).await.unwrap();
    writer.stop();

    let loaded = load(kind, dir.path());
    assert_eq!(loaded.log.keys().copied().collect::<Vec<_>>(), (5..=11).collect::<Vec<_>>());
    let (mut again, _, _) = open(kind, dir.path());
    assert_eq!(again.read_vote().await.unwrap(), Some(Vote::new_committed(3, 1)));
    assert_eq!(again.read_committed().await.unwrap(), Some(log_id(3, 1, 8)));
    let state = again.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(3, 1, 4)), Some(log_id(3, 1, 11))));
}

/// Somebody came and went: while this node was away, or between its last snapshot and its restart.
#[tokio::test]
async fn i7_a_number_that_any_entry_of_the_log_names_is_not_believed_as_new_also_after_a_restart() {
    use super::peers::tests::{formation, peers};
    let formed = formation();
    let named = BTreeMap::from([(7, Member { addr: "host:7".into(), disk: "disk-7".into() })]);
    let stamp = peers(7, Some(Formation { members: named, ..formed.clone() })).stamp(3, "disk-3").unwrap();
    let door = || Arc::new(peers(3, Some(formed.clone())));
    let entry = |index, ids: &[u64]| Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Membership(members(ids.iter().copied().collect())),
    };
    let dir = tempfile::tempdir().unwrap();
    let (log, _, writer) = open(Kind::default(), dir.path());
    let before = door();
    assert_eq!(before.check(Some(&stamp)), Ok(7), "it hears no leader");
    let mut log = log.telling(before.clone());
    log.blocking_append([entry(0, &[1, 2, 3]), entry(1, &[1, 2, 3, 7]), entry(2, &[1, 2, 3])]).await.unwrap();
    assert!(before.check(Some(&stamp)).unwrap_err().contains("was removed"));
    // Not if it never was agreed upon: another leader cuts it off.
    log.truncate(log_id(1, 1, 1)).await.unwrap();
    assert_eq!(before.check(Some(&stamp)), Ok(7));
    log.blocking_append([entry(1, &[1, 2, 3, 7]), entry(2, &[1, 2, 3])]).await.unwrap();
    writer.stop();

    let (log, _, _) = open(Kind::default(), dir.path());
    let after = door();
    let mut log = log.telling(after.clone());
    assert!(after.check(Some(&stamp)).unwrap_err().contains("was removed"));
    log.purge(log_id(1, 1, 1)).await.unwrap();
    log.truncate(log_id(1, 1, 2)).await.unwrap();
    assert!(after.check(Some(&stamp)).unwrap_err().contains("was removed"), "what a snapshot covers was agreed upon");

    // Or it was told by a snapshot, whose members are those that it knows.
    let (_, mut told, _) = open(Kind::default(), &dir.path().join("told"));
    told.apply([entry(0, &[1, 2, 3]), entry(1, &[1, 2, 3, 7]), entry(2, &[1, 2, 3])]).await.unwrap();
    let snapshot = told.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let (_, behind, _) = open(Kind::default(), &dir.path().join("behind"));
    let third = door();
    behind.telling(third.clone()).install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert!(third.check(Some(&stamp)).unwrap_err().contains("was removed"));
}

/// openraft purges as soon as a snapshot has been received; saving it takes longer. A node that is killed in between has
/// its log, or it could never start again.
#[tokio::test]
async fn i7_a_purge_is_not_on_disk_before_the_next_append() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _, writer) = open(Kind::default(), dir.path());
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    log.blocking_append((0..5).map(|i| blank_ent(3, 1, i))).await.unwrap();
    log.purge(log_id(3, 1, 100)).await.unwrap();
    log.save_vote(&Vote::new_committed(4, 1)).await.unwrap();
    writer.stop();
    let loaded = load(Kind::default(), dir.path());
    assert_eq!(loaded.log.keys().copied().collect::<Vec<_>>(), (0..5).collect::<Vec<_>>());
    assert_eq!(Recovered::read(loaded).unwrap().purged(), None);

    let (mut log, _, writer) = open(Kind::default(), dir.path());
    log.purge(log_id(3, 1, 100)).await.unwrap();
    log.blocking_append([blank_ent(4, 1, 101)]).await.unwrap();
    writer.stop();
    let loaded = load(Kind::default(), dir.path());
    assert_eq!(loaded.log.keys().copied().collect::<Vec<_>>(), [101]);
    assert_eq!(Recovered::read(loaded).unwrap().purged(), Some(100));
}

/// A node that joined by a snapshot calls its directory complete: then it must be, also when it is killed before the next append.
#[tokio::test]
async fn i7_what_a_saved_snapshot_covers_is_settled_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _, writer) = open(Kind::Sled, dir.path());
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    log.purge(log_id(3, 1, 100)).await.unwrap();
    log.settle(99).await.unwrap();
    assert_eq!(Recovered::read(load_of(&dir, writer)).unwrap().purged(), None, "that snapshot may not be saved yet");

    let (mut log, _, writer) = open(Kind::Sled, dir.path());
    log.purge(log_id(3, 1, 100)).await.unwrap();
    log.settle(100).await.unwrap();
    let settled = Recovered::read(load_of(&dir, writer)).unwrap();
    assert_eq!((settled.purged(), settled.is_complete()), (Some(100), true));
}

fn load_of(dir: &TempDir, writer: Arc<Writer>) -> Loaded {
    writer.stop();
    load(Kind::Sled, dir.path())
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_or_committed_entries_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _, writer) = open(Kind::default(), dir.path());
    log.blocking_append((0..4).map(|i| blank_ent(1, 1, i))).await.unwrap();
    log.save_committed(Some(log_id(1, 1, 3))).await.unwrap();
    log.blocking_append([blank_ent(1, 1, 4)]).await.unwrap();
    writer.stop();
    let whole = load(Kind::default(), dir.path());
    Recovered::read(whole.clone()).unwrap();

    let mut no_beginning = whole.clone();
    no_beginning.log.remove(&0);
    Recovered::read(no_beginning).unwrap_err();
    let mut no_end = whole.clone();
    no_end.log.retain(|index, _| *index < 2);
    Recovered::read(no_end).unwrap_err();
    let mut misplaced = whole;
    misplaced.log.insert(5, misplaced.log[&4].clone());
    Recovered::read(misplaced).unwrap_err();
}

#[tokio::test]
async fn a_snapshot_brings_the_state_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine, _) = open(Kind::default(), dir.path());
    machine.apply([blank_ent(1, 1, 0), batch_entry(1)]).await.unwrap();
    let before = machine.published().state().clone();
    assert!(before.cluster().is_some());
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let (_, mut again, _) = open(Kind::default(), &dir.path().join("elsewhere"));
    assert!(again.published().state().cluster().is_none());
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    again.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(*again.published().state(), before);

    let restarted = Machine::open(SnapshotDir::open(&dir.path().join("snapshots")).unwrap(), FailStop::new()).unwrap();
    assert_eq!(*restarted.published().state(), before);
    assert_eq!(restarted.last_applied(), Some(1));
}

/// A disk that writes when it is told to.
struct Slow(std::sync::mpsc::Receiver<()>);

impl Backend for Slow {
    fn commit(&mut self, _: &WriteSet) -> std::io::Result<()> {
        self.0.recv().map_err(std::io::Error::other)
    }
    fn load(&mut self) -> std::io::Result<Loaded> {
        Ok(Loaded::default())
    }
    fn counts(&self) -> Arc<Counts> {
        Arc::default()
    }
}

/// A directory that is called complete has what its log owes: the append that has the purge may be with the writer, and not on the disk.
#[tokio::test]
async fn i7_a_purge_that_an_append_has_is_settled_when_that_is_written_and_not_before() {
    let (write, slow) = std::sync::mpsc::channel();
    let writer = Arc::new(Writer::start(Slow(slow), FailStop::new()).unwrap());
    let mut log = LogStore::new(Recovered::read(Loaded::default()).unwrap(), writer);
    log.purge(log_id(3, 1, 100)).await.unwrap();
    let mut appending = log.clone();
    let append = tokio::spawn(async move { appending.blocking_append([blank_ent(3, 1, 101)]).await });
    // It hands the entry over before it waits.
    tokio::task::yield_now().await;
    assert!(timeout(MOMENT, log.settle(100)).await.is_err(), "the disk does not have it");
    // The append, the settling that was given up, and this one.
    (0..3).for_each(|_| write.send(()).unwrap());
    timeout(LIMIT, log.settle(100)).await.expect("now it has").unwrap();
    append.await.unwrap().unwrap();
}

#[tokio::test]
async fn i7_a_leaders_entry_goes_out_while_its_disk_writes_and_no_followers_answer_counts_before_it_has() {
    let (write, slow) = std::sync::mpsc::channel();
    let writer = Arc::new(Writer::start(Slow(slow), FailStop::new()).unwrap());
    let published = Arc::new(Published::new(State::new(), 0));
    published.set_voters(vec![BTreeSet::from([1, 2, 3])]);
    let ahead = Ahead::new(LIMIT);
    let log = LogStore::new(Recovered::read(Loaded::default()).unwrap(), writer);
    let mut log = log.running_ahead(1, published.clone(), ahead.clone());

    write.send(()).unwrap();
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    timeout(LIMIT, log.blocking_append([blank_ent(3, 1, 1)])).await.expect("it does not wait for the disk").unwrap();
    assert!(timeout(MOMENT, ahead.has(1)).await.is_err(), "the disk does not have it");
    write.send(()).unwrap();
    timeout(LIMIT, ahead.has(1)).await.expect("now it has");

    // A change of members waits, and so does what follows before it is applied here.
    for entry in [Entry { log_id: log_id(3, 1, 2), payload: EntryPayload::Membership(members([1].into())) }, blank_ent(3, 1, 3)] {
        waits_for_the_disk(&mut log, entry, &write).await;
    }
    published.set_voters(vec![BTreeSet::from([1])]);
    published.set_applied(3);
    waits_for_the_disk(&mut log, blank_ent(3, 1, 4), &write).await;
    published.set_voters(vec![BTreeSet::from([1, 2, 3])]);
    write.send(()).unwrap();
    log.save_vote(&Vote::new_committed(4, 2)).await.unwrap();
    waits_for_the_disk(&mut log, blank_ent(4, 2, 5), &write).await;
    waits_for_the_disk(&mut log, blank_ent(3, 1, 6), &write).await;
}

async fn waits_for_the_disk(log: &mut LogStore, entry: Entry, write: &std::sync::mpsc::Sender<()>) {
    let what = entry.to_string();
    let mut append = std::pin::pin!(log.blocking_append([entry]));
    assert!(timeout(MOMENT, &mut append).await.is_err(), "{what} is answered before the disk has it");
    write.send(()).unwrap();
    timeout(LIMIT, append).await.expect("the disk has it").unwrap();
}

#[tokio::test]
async fn i7_a_restarted_leader_of_three_does_not_go_on_in_its_term_and_a_single_one_does() {
    for (ids, committed) in [(vec![1, 2, 3], false), (vec![1], true)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _, writer) = open(Kind::default(), dir.path());
        log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
        let payload = EntryPayload::Membership(members(ids.into_iter().collect()));
        log.blocking_append([Entry { log_id: log_id(3, 1, 0), payload }, blank_ent(3, 1, 1)]).await.unwrap();
        writer.stop();
        let recovered = Recovered::read(load(Kind::default(), dir.path())).unwrap();
        let voters = recovered.members().unwrap().get_joint_config().clone();
        let (_, _, writer) = open(Kind::default(), &dir.path().join("elsewhere"));
        let vote = LogStore::new(recovered.stepped_back(1, &voters), writer).read_vote().await.unwrap();
        assert_eq!(vote.unwrap().committed, committed);
    }
}

proptest! {
    #[test]
    fn entries_read_back_as_they_were_written(term in 0..=codec::COUNT_MAX, node in 0u64.., index in 0..=codec::COUNT_MAX, kind in 0..3, ids in prop::collection::btree_set(0u64..9, 0..5)) {
        let payload = match kind {
            0 => EntryPayload::Blank,
            1 => batch_entry(0).payload,
            _ => EntryPayload::Membership(members(ids)),
        };
        let entry = Entry { log_id: log_id(term, node, index), payload };
        prop_assert_eq!(codec::entry_from_bytes(&codec::entry_to_bytes(&entry)).unwrap(), entry);
    }

    #[test]
    fn votes_read_back_as_they_were_written(term in 0..=codec::COUNT_MAX, node in 0u64.., committed in any::<bool>()) {
        let vote = if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) };
        prop_assert_eq!(codec::vote_from_bytes(&codec::vote_to_bytes(&vote)).unwrap(), vote);
    }

    #[test]
    fn bytes_that_are_no_entry_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = codec::entry_from_bytes(&bytes);
        let _ = codec::vote_from_bytes(&bytes);
        let _ = codec::snapshot_from_bytes(&bytes);
    }
}

fn open(kind: Kind, dir: &Path) -> (LogStore, Machine, Arc<Writer>) {
    let mut backend = kind.open(&dir.join("log"), Faults::default()).unwrap();
    let recovered = Recovered::read(backend.load().unwrap()).unwrap();
    let writer = Arc::new(Writer::start(backend, FailStop::new()).unwrap());
    let machine = Machine::open(SnapshotDir::open(&dir.join("snapshots")).unwrap(), FailStop::new()).unwrap();
    (LogStore::new(recovered, writer.clone()), machine, writer)
}

fn load(kind: Kind, dir: &Path) -> Loaded {
    kind.open(&dir.join("log"), Faults::default()).unwrap().load().unwrap()
}

fn batch_entry(index: u64) -> Entry {
    let command = Command::Found { cluster: ClusterId::random(), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX };
    let proposal = Proposal { request_key: RequestKey::random(), actor: "test".into(), at: WallTime::UNKNOWN, command };
    let log_id: LogId = log_id(3, 1, index);
    Entry { log_id, payload: EntryPayload::Normal(Batch(vec![proposal])) }
}

fn members(ids: BTreeSet<u64>) -> Membership {
    let member = |id: &u64| Member { addr: format!("host:{id}"), disk: format!("disk-{id}") };
    let nodes: BTreeMap<u64, Member> = ids.iter().map(|id| (*id, member(id))).collect();
    Membership::new(vec![ids], nodes)
}
