//! Single calls on a filesystem over a directory of its own, without a mount: what each does when time has passed, or another side
//! has had a turn, since it was admitted. Each with its control.

use std::ffi::OsStr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use rustix::fs::{Mode as Bits, OFlags};
use tempfile::TempDir;
use treelease_client::words::clock::{Clock, ManualClock};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;

use super::caller::Caller;
use super::error::{Errno, reason};
use super::faults::Faults;
use super::handle::Open;
use super::inode::{ROOT, stat_fd};
use super::names::Making;
use super::{Entry, Fs};
use crate::gate::{Gate, Hooks, LateWrite, Refused, Right, Standing};
use crate::sync::Arc;

const MAKING: Making = Making { mode: 0o700, umask: 0, rdev: 0 };
const SETFLAGS: u32 = 0x4008_6602;

struct Nobody;

impl Hooks for Nobody {
    fn wants_lease(&self) {}
    fn late_write(&self, _: LateWrite) {}
    fn refused(&self, _: Refused) {}
}

/// A tree with the file `a`, held for ten seconds in epoch 2.
struct Scene {
    fs: Fs,
    clock: Arc<ManualClock>,
    /// As it stood at first: what an operation that was admitted then has seen.
    seen: Standing,
    dir: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        let clock = Arc::new(ManualClock::new());
        let until = clock.now().after(Duration::from_secs(10));
        let seen = Standing { epoch: Epoch::from_raw(2), right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) };
        let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Bits::empty()).unwrap();
        let fs = Fs::new(root, Gate::new(seen, clock.clone() as Arc<dyn Clock>, Arc::new(Nobody))).unwrap();
        Scene { fs, clock, seen, dir }
    }

    fn me(&self) -> Caller {
        Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), pid: 0 }
    }

    fn lookup(&self, name: &str) -> Entry {
        self.fs.lookup(self.me(), ROOT, OsStr::new(name)).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// What was admitted before the deadline goes on after it: the looks at the storage came back late.
    fn too_late(&self) {
        self.clock.advance(Duration::from_secs(11));
    }

    /// Without the last look: the control.
    fn careless(&mut self) {
        self.fs.faults = Faults { no_last_look: true, ..Faults::default() };
    }

    /// As the daemon publishes: who could write is replaced first.
    fn publish(&self, standing: Standing) {
        self.fs.nodes.replace_written(standing.stale_below);
        self.fs.gate.publish(standing);
    }

    /// Another side has its turn in epoch 3, then this one is granted epoch 4.
    fn another_sides_turn(&self) -> Standing {
        let three =
            Standing { serial: 1, stale_below: Epoch::from_raw(3), epoch: Epoch::from_raw(3), right: Right::Read, ..self.seen };
        self.publish(three);
        let four = Standing { serial: 2, stale_below: Epoch::from_raw(4), epoch: Epoch::from_raw(4), ..self.seen };
        self.publish(four);
        four
    }
}

#[test]
fn i4_a_name_whose_preparing_looks_took_longer_than_the_right_is_not_moved_made_or_removed() {
    let mut s = Scene::new();
    let (who, seen) = (s.me(), s.seen);
    let (a, b, c) = (OsStr::new("a"), OsStr::new("b"), OsStr::new("c"));
    s.fs.rename(who, &seen, (ROOT, a), (ROOT, b), 0).unwrap();
    s.too_late();
    assert_eq!(s.fs.rename(who, &seen, (ROOT, b), (ROOT, c), 0).unwrap_err(), reason::READ_ONLY);
    assert_eq!(s.fs.mkdir(who, &seen, ROOT, a, MAKING).err(), Some(reason::READ_ONLY));
    assert_eq!(s.fs.remove(who, &seen, ROOT, b, false), Err(reason::READ_ONLY));
    assert!(s.path("b").exists() && !s.path("a").exists() && !s.path("c").exists());
    s.careless();
    s.fs.rename(who, &seen, (ROOT, b), (ROOT, c), 0).unwrap();
    assert!(s.path("c").exists(), "control: without the last look it moves");
}

#[test]
fn i4_pages_whose_file_took_longer_to_open_than_the_right_lasts_are_not_written() {
    let mut s = Scene::new();
    let node = s.lookup("a").node;
    s.too_late();
    assert_eq!(s.fs.write_pages(&s.seen, node.id, 0, b"y"), Err(reason::READ_ONLY));
    assert_eq!(s.fs.gate.counts().pages_refused, 1, "its process learns nothing of it");
    assert!(node.unspoil(), "the kernel has a page that is not on the storage");
    assert_eq!(std::fs::read(s.path("a")).unwrap(), b"x");
    s.careless();
    assert_eq!(s.fs.write_pages(&s.seen, node.id, 0, b"y"), Ok(1));
    assert_eq!(std::fs::read(s.path("a")).unwrap(), b"y", "control: without the last look they are");
}

#[test]
fn i4_flags_and_attributes_and_copies_have_a_last_look_too() {
    let mut s = Scene::new();
    let (who, node, seen) = (s.me(), s.lookup("a").node, s.seen);
    let name = OsStr::new("user.note");
    let fh = s.fs.open(who, &seen, node.id, OFlags::RDWR.bits() as i32).unwrap();
    s.too_late();
    let all = |fs: &Fs| {
        [
            fs.ioctl(who, &seen, (node.id, fh), SETFLAGS, &[0; 4]).err(),
            fs.setxattr(who, &seen, node.id, name, b"v", 0).err(),
            fs.removexattr(who, &seen, node.id, name).err(),
            fs.copy_range(who, &seen, (fh, 0), (fh, 8), 1).err(),
        ]
    };
    assert_eq!(all(&s.fs), [Some(reason::READ_ONLY); 4]);
    assert_eq!(std::fs::metadata(s.path("a")).unwrap().len(), 1);
    s.careless();
    assert!(all(&s.fs).iter().all(|why| *why != Some(reason::READ_ONLY)), "control");
}

/// Where the daemon's own mask cannot be taken off its threads, what was made gets its permissions by a second call.
#[test]
fn i4_the_second_mask_is_not_undone_after_the_deadline() {
    const MASK: u32 = 0o022;
    let mut s = Scene::new();
    let root = s.fs.nodes.root().clone();
    std::fs::set_permissions(s.path("a"), PermissionsExt::from_mode(0o755)).unwrap();
    let mode = |s: &Scene| std::fs::metadata(s.path("a")).unwrap().mode() & 0o777;
    s.fs.made(&root, OsStr::new("a"), 0o777, MASK, &s.seen).unwrap();
    assert_eq!(mode(&s), 0o777);
    std::fs::set_permissions(s.path("a"), PermissionsExt::from_mode(0o755)).unwrap();
    s.too_late();
    // Made it was, in time or not: its program is told by the permit, which ends late.
    s.fs.made(&root, OsStr::new("a"), 0o777, MASK, &s.seen).unwrap();
    assert_eq!(mode(&s), 0o755);
    s.careless();
    s.fs.made(&root, OsStr::new("a"), 0o777, MASK, &s.seen).unwrap();
    assert_eq!(mode(&s), 0o777, "control");
}

#[test]
fn i6_an_open_that_hung_over_another_sides_turn_gives_no_handle_by_which_pages_could_be_written() {
    let s = Scene::new();
    let (who, node) = (s.me(), s.lookup("a").node);
    let present = s.another_sides_turn();
    // Admitted in epoch 2; it comes back in epoch 4.
    let hung = s.fs.open(who, &s.seen, node.id, OFlags::RDWR.bits() as i32);
    assert_eq!(hung, Err(reason::STALE), "the kernel opens once more, by itself");
    assert!(!node.has_writers() && !node.is_replaced(), "nobody is hindered by it");
    assert_eq!(s.fs.handles.len(), 0);
    let fh = s.fs.open(who, &present, node.id, OFlags::RDWR.bits() as i32).unwrap();
    assert_eq!(s.fs.write_pages(&present, node.id, 0, b"y"), Ok(1));
    s.fs.release(fh);
}

#[test]
fn i6_whichever_comes_first_of_an_open_and_another_sides_turn_no_old_handle_shares_a_file_with_new_ones() {
    let s = Scene::new();
    let node = s.lookup("a").node;
    s.fs.nodes.note_writable(&node, Epoch::from_raw(2)).unwrap();
    s.another_sides_turn();
    assert!(node.is_replaced(), "the open came first");
    let new = s.lookup("a").node;
    assert_eq!(s.fs.nodes.note_writable(&new, Epoch::from_raw(2)), Err(reason::STALE), "the turn came first");
    assert!(!new.is_replaced());
}

#[test]
fn i6_a_file_whose_making_hung_over_another_sides_turn_is_an_io_error_and_leaves_nothing_behind() {
    let s = Scene::new();
    s.another_sides_turn();
    let made = s.fs.create(s.me(), &s.seen, (ROOT, OsStr::new("new")), MAKING, OFlags::RDWR.bits() as i32);
    assert_eq!(made.err(), Some(reason::LATE));
    assert_eq!((s.fs.nodes.len(), s.fs.handles.len()), (1, 0), "the root alone: the kernel was told of nothing");
}

#[test]
fn an_open_of_what_exists_that_fails_leaves_no_node_behind() {
    let s = Scene::new();
    nix::unistd::mkfifo(&s.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let create = |name: &str, flags: OFlags| {
        s.fs.open_existing(s.me(), &s.seen, (ROOT, OsStr::new(name)), flags.bits() as i32).map(|opened| opened.err())
    };
    assert_eq!(create("fifo", OFlags::CREATE), Some(Some(Errno::NXIO)));
    assert_eq!(create("a", OFlags::CREATE | OFlags::EXCL), Some(Some(Errno::EXIST)));
    assert_eq!(create("new", OFlags::CREATE), None);
    assert_eq!(s.fs.nodes.len(), 1, "the root alone");
    assert_eq!(create("a", OFlags::CREATE), Some(None));
    assert_eq!((s.fs.nodes.len(), s.fs.handles.len()), (2, 1));
}

#[test]
fn a_listing_by_its_handle_that_goes_on_after_a_grant_looks_at_the_storage_anew() {
    let s = Scene::new();
    for n in 0..3 {
        std::fs::write(s.path(&n.to_string()), "").unwrap();
    }
    let reader = Standing { serial: 1, right: Right::Read, ..s.seen };
    s.publish(reader);
    let fh = s.fs.opendir(s.me(), &reader, ROOT).unwrap();
    let mut cookie = 0;
    let first = |item: &super::dir::Item| {
        let taken = cookie == 0;
        if taken {
            cookie = item.cookie;
        }
        !taken
    };
    s.fs.readdir(s.me(), (ROOT, fh), 0, first).unwrap();
    let held = Standing { serial: 2, ..s.seen };
    s.publish(held);
    let open = s.fs.handles.get(fh).unwrap();
    let Open::Dir(node, _) = &*open else { panic!("a directory") };
    assert!(cookie != 0 && !node.is_fresh(held.serial));
    s.fs.readdir(s.me(), (ROOT, fh), cookie, |_| true).unwrap();
    assert!(node.is_fresh(held.serial), "the kernel keeps what this shows, under the licence");
}

#[test]
fn a_name_that_is_not_there_is_known_for_as_long_as_the_kernel_believes_it_after_a_renewal_too() {
    let s = Scene::new();
    let name = OsStr::new("nothing");
    let now = s.clock.now();
    // Looked up under the deadline of before; meanwhile a renewal has moved it.
    let until = now.after(Duration::from_secs(60));
    s.fs.gate.publish(Standing { right: Right::Write { until }, ..s.seen });
    let told = s.fs.absent_for(ROOT, name, &s.seen).expect("it is licensed");
    let last = now.after(told - Duration::from_millis(1));
    assert_eq!(s.fs.absent.all(last), [(ROOT, name.to_owned())], "the kernel believes it until then");
}

#[test]
fn a_removed_file_needs_no_flush_when_it_has_lost_its_last_name_and_not_before() {
    let scene = Scene::new();
    let (fs, me, seen) = (&scene.fs, scene.me(), &scene.seen);
    let make = |name: &str| {
        let (entry, fh) = fs.create(me, seen, (ROOT, OsStr::new(name)), MAKING, nix::libc::O_WRONLY).unwrap();
        fs.release(fh);
        entry.node.id
    };
    let remove = |name: &str| fs.remove(me, seen, ROOT, OsStr::new(name), false).unwrap();
    let unconfirmed = || fs.dirty.names(|node| node.id.to_string()).len();
    let (two_names, one) = (make("b"), make("d"));
    fs.link(me, seen, two_names, ROOT, OsStr::new("c")).unwrap();
    assert_eq!(unconfirmed(), 2);
    remove("b");
    fs.forget(two_names, 2);
    assert_eq!(unconfirmed(), 2, "it has another name");
    remove("d");
    fs.forget(one, 1);
    assert_eq!(unconfirmed(), 1);
}

#[test]
fn a_copy_is_a_first_read_of_its_source_too() {
    let mut s = Scene::new();
    s.fs.first_reads.matter = true;
    let (who, node) = (s.me(), s.lookup("a").node);
    let reader = Standing { serial: 1, right: Right::Read, ..s.seen };
    let from = s.fs.open(who, &reader, node.id, 0).unwrap();
    let run = s.fs.run_of(&s.seen);
    assert!(!s.fs.first_reads.was_dropped(run, node.generation), "open since before the run");
    let (_, to) = s.fs.create(who, &s.seen, (ROOT, OsStr::new("b")), MAKING, OFlags::RDWR.bits() as i32).unwrap();
    assert_eq!(s.fs.copy_range(who, &s.seen, (from, 0), (to, 0), 1), Ok(1));
    assert!(s.fs.first_reads.was_dropped(run, node.generation));
}

/// The client's count of names is an old one if nobody has asked the storage in this run; the descriptor tells of another file here, which
/// has a name.
#[test]
fn a_file_is_known_to_have_lost_its_last_name_only_if_the_storage_was_asked_in_this_run() {
    let nameless = |fresh: bool| {
        let mut s = Scene::new();
        s.fs.network = true;
        std::fs::write(s.path("b"), "").unwrap();
        let open = |name: &str| rustix::fs::open(s.path(name), OFlags::PATH, Bits::empty()).unwrap();
        let (root, name, run) = (s.fs.nodes.root().clone(), OsStr::new("b"), s.fs.run_of(&s.seen));
        let node = s.fs.nodes.enter(open("a"), &stat_fd(&open("b"), true).unwrap(), &root, name, run);
        node.set_fresh(if fresh { s.seen.serial } else { s.seen.serial + 1 });
        s.fs.remove(s.me(), &s.seen, ROOT, name, false).unwrap();
        let nameless = node.is_nameless();
        node.add_name(ROOT, OsStr::new("c"), run);
        assert!(!node.is_nameless(), "it has a name after all");
        nameless
    };
    assert!(nameless(true));
    assert!(!nameless(false), "its descriptor is asked");
}

/// As on network storage: the kernel knows a file whose descriptor answers ESTALE (here: EBADF), and this side has removed it in this run.
#[test]
fn a_removed_files_number_that_was_given_to_a_new_one_leads_to_a_new_node() {
    let node_of_the_new_one = |network: bool| {
        let mut s = Scene::new();
        s.fs.network = network;
        let root = s.fs.nodes.root().clone();
        let new = rustix::fs::open(s.path("a"), OFlags::PATH, Bits::empty()).unwrap();
        // SAFETY: no descriptor has this number, and nobody closes it, for the node is never dropped.
        let gone = unsafe { OwnedFd::from_raw_fd(i32::MAX) };
        let dead = s.fs.nodes.enter(gone, &stat_fd(&new, true).unwrap(), &root, OsStr::new("old"), s.fs.run_of(&s.seen));
        std::mem::forget(dead.clone());
        dead.set_fresh(s.seen.serial);
        assert!(s.fs.believes_found(&dead, &s.seen), "it has a name");
        dead.drop_name(ROOT, OsStr::new("old"));
        (dead.generation, s.lookup("a").node.generation)
    };
    let (dead, found) = node_of_the_new_one(true);
    assert_ne!(dead, found);
    let (dead, found) = node_of_the_new_one(false);
    assert_eq!(dead, found, "control: on this machine a descriptor keeps the number, and nobody asks");
}
