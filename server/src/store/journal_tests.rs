//! The journal over a store in memory: what is read back, through restarts at any moment; and what is damage.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::VALUE_MAX;
use super::*;

/// What a store keeps; clones are the same one.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<(Loaded, u64)>>);

impl Memory {
    fn commits(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

impl Backend for Memory {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        let (kept, commits) = &mut *self.0.lock().unwrap();
        kept.change(change);
        *commits += 1;
        Ok(())
    }
    fn load(&mut self) -> io::Result<Loaded> {
        Ok(self.0.lock().unwrap().0.clone())
    }
    fn counts(&self) -> Arc<Counts> {
        Arc::default()
    }
}

/// A directory, and the store that is behind its journal.
struct Place {
    dir: TempDir,
    behind: Memory,
    blocks: usize,
}

impl Place {
    fn new(blocks: usize) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), behind: Memory::default(), blocks }
    }
    fn open(&self) -> io::Result<Journaled<Memory>> {
        Journaled::open_with(self.dir.path(), self.behind.clone(), Faults::default(), self.blocks * BLOCK)
    }
    fn file(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }
    /// Something happens to one block.
    fn spoil(&self, block: usize) {
        let mut bytes = fs::read(self.file()).unwrap();
        bytes[block * BLOCK + LENGTH_OF + SALT + ORDER + 5] ^= 1;
        fs::write(self.file(), bytes).unwrap();
    }
    fn refused(&self) -> String {
        let why = self.open().and_then(|mut journal| journal.load()).expect_err("it is damaged");
        assert_eq!(why.kind(), io::ErrorKind::InvalidData);
        why.to_string()
    }
}

fn put(index: u64, content: &str) -> WriteSet {
    WriteSet { puts: vec![(index, content.into())], ..WriteSet::default() }
}

fn contents(journal: &mut Journaled<Memory>) -> Vec<String> {
    journal.load().unwrap().log.into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize, usize),
    Truncate(u64),
    Purge(u64),
    Vote(u8),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1usize..4, 0usize..9_000).prop_map(|(entries, length)| Step::Append(entries, length)),
        1 => (0u64..4).prop_map(Step::Truncate),
        1 => (0u64..6).prop_map(Step::Purge),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn i7_what_was_committed_is_read_back_whichever_part_of_it_the_store_behind_has(steps in steps(), blocks in 1usize..9) {
        let place = Place::new(blocks);
        let (mut journal, mut expected, mut next) = (place.open().unwrap(), Loaded::default(), 0u64);
        for (n, step) in steps.into_iter().enumerate() {
            let change = match step {
                Step::Append(entries, length) => {
                    let puts: Vec<_> = (next..next + entries as u64).map(|index| (index, vec![n as u8; length])).collect();
                    next += entries as u64;
                    WriteSet { puts, ..WriteSet::default() }
                }
                Step::Truncate(by) => {
                    let first = expected.log.keys().next().copied().unwrap_or(next);
                    next = next.saturating_sub(by).max(first);
                    WriteSet { truncate_from: Some(next), ..WriteSet::default() }
                }
                Step::Purge(by) => {
                    let first = expected.log.keys().next().copied().unwrap_or(next);
                    let Some(to) = (first + by).min(next).checked_sub(1) else { continue };
                    WriteSet { purge_to: Some(to), meta: vec![(Meta::Purged, vec![n as u8])], ..WriteSet::default() }
                }
                Step::Vote(vote) => WriteSet { meta: vec![(Meta::Vote, vec![vote])], ..WriteSet::default() },
                Step::Restart => {
                    journal = place.open().unwrap();
                    prop_assert!(journal.load().unwrap() == expected, "after step {n}");
                    continue;
                }
            };
            journal.commit(&change).unwrap();
            expected.change(&change);
        }
        prop_assert!(journal.load().unwrap() == expected, "at the end");
        prop_assert!(place.open().unwrap().load().unwrap() == expected, "after the end");
    }
}

#[test]
fn the_store_behind_gets_what_has_gathered_in_one_commit() {
    let place = Place::new(10);
    let mut journal = place.open().unwrap();
    for index in 0..33 {
        journal.commit(&put(index, "x")).unwrap();
    }
    // The first of all tells it of the journal; each tenth record fills the file, so the next change goes with all of them.
    assert_eq!(place.behind.commits(), 1 + 3);
    assert_eq!(journal.counts().read(), (33, 33));
    assert_eq!(contents(&mut place.open().unwrap()).len(), 33);
}

#[test]
fn a_change_that_is_larger_than_the_journal_goes_to_the_store_behind() {
    let place = Place::new(2);
    let mut journal = place.open().unwrap();
    journal.commit(&put(0, "small")).unwrap();
    let large = "x".repeat(VALUE_MAX);
    journal.commit(&put(1, &large)).unwrap();
    assert_eq!(contents(&mut place.open().unwrap()), ["small", &large]);
    assert!(journal.commit(&put(2, &"x".repeat(VALUE_MAX + 1))).is_err(), "no backend would take it");
}

#[test]
fn i7_a_record_that_is_half_written_is_the_end_and_its_place_is_used_again() {
    let place = Place::new(10);
    let mut journal = place.open().unwrap();
    for content in ["one", "two", "cut off"] {
        journal.commit(&put(journal.number, content)).unwrap();
    }
    place.spoil(2);
    let mut again = place.open().unwrap();
    assert_eq!(contents(&mut again), ["one", "two"]);
    again.commit(&put(2, "three")).unwrap();
    assert_eq!(contents(&mut place.open().unwrap()), ["one", "two", "three"]);
}

#[test]
fn i7_a_lost_record_before_a_later_one_is_damage() {
    for lost in [0, 1] {
        let place = Place::new(10);
        let mut journal = place.open().unwrap();
        for index in 0..3 {
            journal.commit(&put(index, "x")).unwrap();
        }
        place.spoil(lost);
        assert!(place.refused().contains(&format!("record {lost} is lost")));
    }
}

#[test]
fn i7_a_journal_that_is_missing_or_whose_store_went_back_is_damage() {
    let place = Place::new(4);
    let mut journal = place.open().unwrap();
    let before = place.behind.0.lock().unwrap().clone();
    for index in 0..6 {
        journal.commit(&put(index, "x")).unwrap();
    }
    let after = std::mem::replace(&mut *place.behind.0.lock().unwrap(), before);
    assert!(place.refused().contains("has lost what it was given"));
    *place.behind.0.lock().unwrap() = Default::default();
    assert!(place.refused().contains("has lost its own"));
    *place.behind.0.lock().unwrap() = after;
    assert_eq!(contents(&mut place.open().unwrap()).len(), 6);
    fs::remove_file(place.file()).unwrap();
    assert!(place.refused().contains("is missing"));
}

#[test]
fn i7_a_hole_between_the_store_behind_and_the_journal_is_damage() {
    let place = Place::new(4);
    let mut journal = place.open().unwrap();
    journal.commit(&put(1, "x")).unwrap();
    journal.commit(&put(3, "x")).unwrap();
    assert!(place.refused().contains("hole between 1 and 3"));
}

#[test]
fn i7_what_a_start_reads_is_made_durable_anew_by_the_store_behind() {
    let place = Place::new(10);
    let mut journal = place.open().unwrap();
    for index in 0..3 {
        journal.commit(&put(index, "x")).unwrap();
    }
    assert!(place.behind.0.lock().unwrap().0.log.is_empty());
    drop(place.open().unwrap());
    assert_eq!(place.behind.0.lock().unwrap().0.log.len(), 3);
}

#[test]
fn a_commit_whose_sync_fails_is_no_commit() {
    let place = Place::new(4);
    let mut journal = place.open().unwrap();
    // It takes every write, and fdatasync on it is EINVAL.
    journal.file = File::options().write(true).open("/dev/null").unwrap();
    assert!(journal.commit(&put(0, "x")).is_err());
    assert_eq!(journal.counts().read(), (0, 0));
}

/// A text whose record goes over four blocks, and has that one at the begin of its second.
fn text_with_inside(forged: &[u8]) -> Vec<u8> {
    let text = vec![b'x'; 3 * BLOCK];
    let own = frame(&name(Some([0; SALT]), 1, 0), &WriteSet { puts: vec![(1, text.clone())], ..WriteSet::default() });
    let begin = own.windows(BLOCK / 2).position(|part| part.iter().all(|byte| *byte == b'x')).unwrap();
    [&text[..BLOCK - begin], forged, &text[BLOCK - begin + forged.len()..]].concat()
}

/// What a client may guess, and that which it cannot know.
fn salts(journal: &Journaled<Memory>) -> [(Option<Salt>, bool); 4] {
    [(None, false), (Some([0; SALT]), false), (Some(draw()), false), (Some(journal.salt), true)]
}

#[test]
fn i7_a_record_in_a_clients_text_is_none_where_a_later_generation_goes_over_it() {
    for which in 0..4 {
        let place = Place::new(10);
        let mut journal = place.open().unwrap();
        let (salt, known) = salts(&journal)[which];
        // The second record of the next generation.
        let forged = frame(&name(salt, 2, 1), &put(9, "forged"));
        journal.commit(&put(0, "zero")).unwrap();
        journal.commit(&WriteSet { puts: vec![(1, text_with_inside(&forged))], ..WriteSet::default() }).unwrap();
        (2..8).for_each(|index| journal.commit(&put(index, "x")).unwrap());
        assert_eq!((journal.generation, journal.at), (2, 0), "the file was full");
        // So long that the next one would begin where that text's second block lies.
        journal.commit(&put(8, &"y".repeat(BLOCK))).unwrap();
        assert_eq!(fs::read(place.file()).unwrap()[journal.at..][..BLOCK], forged, "it lies where the reader goes on");
        let read = place.open().unwrap().load().unwrap().log;
        assert_eq!(read.contains_key(&9), known, "{salt:?}; the control: who knew the salt could do it");
        assert!(read.contains_key(&8), "what is the journal's own is there");
    }
}

#[test]
fn i7_a_record_in_a_clients_text_is_none_where_the_record_around_it_was_not_written_to_its_end() {
    for which in 0..4 {
        let place = Place::new(10);
        let mut journal = place.open().unwrap();
        let (salt, known) = salts(&journal)[which];
        journal.commit(&put(0, "zero")).unwrap();
        // Taken for a record, it would say that the one before it is lost.
        let forged = frame(&name(salt, 1, 7), &put(9, "forged"));
        journal.commit(&WriteSet { puts: vec![(1, text_with_inside(&forged))], ..WriteSet::default() }).unwrap();
        place.spoil(1);
        match place.open() {
            Ok(mut again) => assert_eq!(contents(&mut again), ["zero"], "{salt:?}"),
            Err(why) => assert!(known, "{salt:?}: {why}"),
        }
        assert_eq!(place.open().is_err(), known, "the control: who knew the salt could keep the node from starting");
    }
}

#[test]
fn i7_a_journal_without_a_salt_is_read_and_from_then_on_it_has_one() {
    let place = Place::new(10);
    place.behind.0.lock().unwrap().0.meta.insert(Meta::Journal, 3_u64.to_be_bytes().to_vec());
    let earlier = |number, content| frame(&name(None, 3, number), &put(number, content));
    let mut bytes = [earlier(0, "zero"), earlier(1, "one"), frame(&name(None, 2, 2), &put(9, "stale"))].concat();
    bytes.resize(10 * BLOCK, 0);
    fs::write(place.file(), &bytes).unwrap();
    let before = place.behind.0.lock().unwrap().clone();
    let mut journal = place.open().unwrap();
    assert_eq!(contents(&mut journal), ["zero", "one"]);
    journal.commit(&put(2, "two")).unwrap();
    assert_eq!(contents(&mut place.open().unwrap()), ["zero", "one", "two"]);
    let told = place.behind.0.lock().unwrap().0.meta[&Meta::Journal].clone();
    assert_eq!(Begun::read(&told).unwrap(), Begun { generation: 5, salt: Some(journal.salt) });
    // An earlier record of the same name lies in the first block of an empty generation: it is none.
    bytes[..BLOCK].copy_from_slice(&frame(&name(None, 5, 0), &put(3, "forged")));
    fs::write(place.file(), &bytes).unwrap();
    assert_eq!(contents(&mut place.open().unwrap()), ["zero", "one", "two"]);
    let mut journal = place.open().unwrap();
    journal.commit(&put(3, "three")).unwrap();
    *place.behind.0.lock().unwrap() = before;
    assert!(place.refused().contains("has lost what it was given"));
}

#[test]
fn what_is_no_word_about_a_generation_is_damage() {
    for told in [&[][..], &[1; 7], &[1; 9], &[1; 23], &[1; 25]] {
        assert!(Begun::read(told).is_err(), "{told:?}");
    }
    for begun in [Begun { generation: 7, salt: None }, Begun { generation: 8, salt: Some(draw()) }] {
        assert_eq!(Begun::read(&begun.told().1).unwrap(), begun);
    }
}
