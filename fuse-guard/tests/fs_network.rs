//! Storage whose client keeps what it has read, as NFS's does: what this side's kernel forgets, the client below still has. Needs
//! /dev/fuse.
//!
//! The client is a second guard that believes to hold the storage for ever: its kernel's pages and attributes stay, whatever another
//! host writes, until somebody asks the storage itself (`AT_STATX_FORCE_SYNC`).

mod fs_support;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use fs_support::{Mapping, Tree};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tempfile::TempDir;
use treelease_guard::fs::faults::Faults;

const SIZE: usize = 4096;

/// The guard, over a client, over the storage.
struct Scene {
    // The upper one goes first.
    t: Tree,
    _client: Tree,
    storage: TempDir,
}

impl Scene {
    fn new(faults: Faults) -> Scene {
        let storage = tempfile::tempdir().unwrap();
        write(storage.path(), 1, &[b'1'; SIZE]);
        let client = Tree::over(storage.path());
        client.hold(1, 1);
        let t = Tree::over_with(&client.at, faults);
        Scene { t, _client: client, storage }
    }

    /// What another side leaves when it has had its turn.
    fn theirs(&self) {
        write(self.storage.path(), 2, &[b'2'; SIZE]);
    }
}

/// Writes as another host does, at a time of its own.
fn write(dir: &Path, time: i64, data: &[u8]) {
    let path = dir.join("data");
    fs::write(&path, data).unwrap();
    let time = Timespec { tv_sec: 1_700_000_000 + time, tv_nsec: 0 };
    rustix::fs::utimensat(CWD, &path, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty()).unwrap();
}

/// What the new holder reads of a file that the other side has written at the time, and with the length, that it had before.
fn read_again(faults: Faults) -> u8 {
    let s = Scene::new(faults);
    let read = || fs::read(s.t.at.join("data")).unwrap()[0];
    s.t.hold(1, 1);
    assert_eq!(read(), b'1');
    s.t.release();
    s.t.elsewhere(2);
    write(s.storage.path(), 1, &[b'2'; SIZE]);
    s.t.hold(3, 3);
    let first = read();
    // Once in a run: from now on what the client has is as good as the storage.
    write(s.storage.path(), 1, &[b'3'; SIZE]);
    assert_eq!(read(), first);
    first
}

/// On NFSv3, and on every network storage that is not known to tell each change, the first open or read of a file in a run drops what the
/// storage's client has kept of it: two writes at one time and of one length look the same there. (Seen with a client that keeps
/// pages as NFS's does; a real NFSv3 server has not been tried.)
#[test]
fn where_times_do_not_tell_a_change_the_first_open_in_a_run_drops_what_the_storages_client_has_kept() {
    assert_eq!(read_again(Faults::default()), b'2');
}

#[test]
fn control_without_dropping_them_the_new_holder_reads_what_the_storages_client_has_kept() {
    assert_eq!(read_again(Faults { no_first_drop: true, ..Faults::default() }), b'1');
}

/// What a mapping from before another side's turn shows after it: to the reader, and to the new holder.
fn mapped(faults: Faults) -> (u8, u8) {
    let s = Scene::new(faults);
    s.t.hold(1, 1);
    let file = File::open(s.t.at.join("data")).unwrap();
    let map = Mapping::to_read(&file, SIZE);
    assert_eq!(map.get(0), b'1');
    s.t.release();
    s.t.elsewhere(2);
    s.theirs();
    let as_reader = map.get(0);
    // The client has them once more: as they are now.
    write(s.storage.path(), 3, &[b'3'; SIZE]);
    s.t.hold(3, 3);
    (as_reader, map.get(0))
}

/// On network storage what is open or mapped is asked for at the storage before a page of it is read anew: at its first touch in a run,
/// and without the lease every half second.
#[test]
fn a_mapping_from_before_another_sides_turn_shows_what_is_on_the_storage_not_what_its_client_has() {
    assert_eq!(mapped(Faults::default()), (b'2', b'3'));
}

#[test]
fn control_without_a_look_at_first_touch_a_mapping_shows_what_the_storages_client_has_kept() {
    assert_eq!(mapped(Faults { no_first_touch: true, no_first_drop: true, ..Faults::default() }), (b'1', b'1'));
}

/// What a reader's mapping shows of a storage that has changed, once its kernel has let go of the page and half a second has passed.
fn mapped_again(faults: Faults) -> u8 {
    let s = Scene::new(faults);
    let file = File::open(s.t.at.join("data")).unwrap();
    assert_eq!(Mapping::to_read(&file, SIZE).get(0), b'1');
    s.theirs();
    s.t.clock.advance(Duration::from_millis(501));
    // As a kernel does that is short of memory.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    Mapping::to_read(&file, SIZE).get(0)
}

#[test]
fn without_the_lease_the_storage_is_asked_again_after_half_a_second() {
    assert_eq!(mapped_again(Faults::default()), b'2');
}

#[test]
fn control_without_a_look_at_first_touch_a_reader_sees_what_the_storages_client_has_kept() {
    assert_eq!(mapped_again(Faults { no_first_touch: true, ..Faults::default() }), b'1');
}
