//! What each backend keeps to, tried with all of them. What is one's own (its pages, how it syncs) is tried beside it.

use std::io;
use std::path::Path;

use super::{Backend, Kind, Meta, VALUE_MAX, WriteSet};
use crate::fault::Faults;

fn with_each(test: impl Fn(Kind, &Path)) {
    for kind in Kind::ALL {
        let dir = tempfile::tempdir().unwrap();
        test(kind, dir.path());
    }
}

fn open(kind: Kind, dir: &Path) -> Box<dyn Backend> {
    kind.open(dir, Faults::default()).unwrap()
}

pub(super) fn put(index: u64, content: &str) -> WriteSet {
    WriteSet { puts: vec![(index, content.into())], ..WriteSet::default() }
}

pub(super) fn indexes(backend: &mut impl Backend) -> Vec<u64> {
    backend.load().unwrap().log.into_keys().collect()
}

#[test]
fn what_was_committed_is_there_after_a_reopen() {
    with_each(|kind, dir| {
        let mut backend = open(kind, dir);
        for index in 0..20 {
            backend.commit(&put(index, "x")).unwrap();
        }
        backend.commit(&WriteSet { truncate_from: Some(15), ..WriteSet::default() }).unwrap();
        backend.commit(&WriteSet { purge_to: Some(4), meta: vec![(Meta::Purged, b"4".into())], ..WriteSet::default() }).unwrap();
        backend.commit(&put(15, "y")).unwrap();
        drop(backend);
        let mut again = open(kind, dir);
        assert_eq!(indexes(&mut again), (5..=15).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!(again.load().unwrap().log[&15], b"y");
        assert_eq!(again.load().unwrap().meta[&Meta::Purged], b"4");
    });
}

#[test]
fn each_commit_and_each_sync_is_counted_once() {
    with_each(|kind, dir| {
        let mut backend = open(kind, dir);
        (0..10).for_each(|index| backend.commit(&put(index, "x")).unwrap());
        assert_eq!(backend.counts().read(), (10, 10), "{kind:?}");
    });
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_largest_is_taken() {
    with_each(|kind, dir| {
        let mut backend = open(kind, dir);
        assert!(backend.commit(&put(0, &"x".repeat(VALUE_MAX + 1))).is_err(), "{kind:?}");
        backend.commit(&put(0, &"x".repeat(VALUE_MAX))).unwrap();
    });
}

#[test]
fn a_hole_in_the_log_is_damage() {
    with_each(|kind, dir| {
        let mut backend = open(kind, dir);
        backend.commit(&put(1, "x")).unwrap();
        backend.commit(&put(3, "x")).unwrap();
        assert_eq!(backend.load().unwrap_err().kind(), io::ErrorKind::InvalidData, "{kind:?}");
    });
}
