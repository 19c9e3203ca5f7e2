//! What the lease changes: who is refused what, who waits, what becomes stale, what is forgotten (DESIGN 4). Needs /dev/fuse.

mod fs_support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fs_support::{HOUR, LIMIT, Mapping, Tree, errno, eventually, open_root, reader, start};
use nix::libc::{ENOENT, EPERM, EROFS, ESTALE};
use rustix::fs::{Access, AtFlags, CWD};
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::policy::Mode;
use treelease_guard::fuse::MountError;
use treelease_guard::gate::{Outcome, Right, Standing};

/// Without the lease lookup, stat, readdir, open for reading, read, readlink, getxattr, statfs and lseek are as the holder's.
/// Every mutation is EROFS: an open for writing or with O_TRUNC at the open, and create, mkdir, mknod, symlink, link, unlink,
/// rmdir, rename, chmod, chown, utimensat, truncate, setxattr, removexattr at the call. `open(O_CREAT)` of a file that exists,
/// for reading, is an open for reading. `access(W_OK)` is EROFS; on a mount for many users the kernel answers it by the mode
/// alone.
#[test]
fn without_the_lease_everything_can_be_read_and_nothing_changed() {
    let t = Tree::mounted(false, |lower| {
        fs::write(lower.join("f"), b"text").unwrap();
        fs::create_dir(lower.join("d")).unwrap();
        symlink("f", lower.join("s")).unwrap();
    });
    let p = |n: &str| t.at.join(n);
    assert_eq!(fs::read(p("f")).unwrap(), b"text");
    assert_eq!(fs::read_dir(&t.at).unwrap().count(), 3);
    assert_eq!(fs::read_link(p("s")).unwrap().to_str(), Some("f"));
    assert_eq!(errno(OpenOptions::new().read(true).append(true).open(p("f"))), EROFS);
    File::options().read(true).open(p("f")).unwrap();
    let rows: Vec<(&str, i32)> = vec![
        ("open for writing", errno(OpenOptions::new().write(true).open(p("f")))),
        ("open with truncation", errno(OpenOptions::new().write(true).truncate(true).open(p("f")))),
        ("create", errno(File::create_new(p("new")))),
        ("mkdir", errno(fs::create_dir(p("new")))),
        ("mknod", errno(rustix::fs::mknodat(CWD, p("new"), rustix::fs::FileType::Fifo, 0o600.into(), 0).map_err(Into::into))),
        ("symlink", errno(symlink("f", p("new")))),
        ("link", errno(fs::hard_link(p("f"), p("new")))),
        ("unlink", errno(fs::remove_file(p("f")))),
        ("rmdir", errno(fs::remove_dir(p("d")))),
        ("rename", errno(fs::rename(p("f"), p("new")))),
        ("chmod", errno(fs::set_permissions(p("f"), fs::Permissions::from_mode_of(0o600)))),
        ("chown", errno(std::os::unix::fs::chown(p("f"), Some(7), None))),
        ("truncate", errno(nix::unistd::truncate(&p("f"), 0).map_err(Into::into))),
        ("setxattr", errno(rustix::fs::setxattr(p("f"), "user.a", b"", rustix::fs::XattrFlags::empty()).map_err(Into::into))),
        ("removexattr", errno(rustix::fs::removexattr(p("f"), "user.a").map_err(Into::into))),
        ("access(W_OK)", errno(rustix::fs::access(p("f"), Access::WRITE_OK).map_err(Into::into))),
    ];
    for (row, got) in rows {
        assert_eq!(got, EROFS, "{row}");
    }
    rustix::fs::accessat(CWD, p("f"), Access::READ_OK, AtFlags::empty()).unwrap();
    // O_CREAT of a file that exists, for reading, is an open for reading.
    let both = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CREATE;
    rustix::fs::open(p("f"), both, 0o600.into()).unwrap();
    assert_eq!(errno(File::create_new(p("f"))), nix::libc::EEXIST);
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"text");
    assert!(t.mount.counts().refused >= 15);
    assert!(t.ears.refused.lock().unwrap().iter().any(|r| r.path == "new" && r.op == "mkdir" && r.pid != 0));
}

trait ModeOf {
    fn from_mode_of(mode: u32) -> Self;
}
impl ModeOf for fs::Permissions {
    fn from_mode_of(mode: u32) -> Self {
        std::os::unix::fs::PermissionsExt::from_mode(mode)
    }
}

/// A handle that was opened for writing goes on in its own run, and after another side's turn it is stale for ever: write,
/// truncate, fallocate and copies are ESTALE, whatever came since. fsync, close and reads pass.
#[test]
fn a_handle_goes_on_in_its_own_run_and_is_stale_for_ever_after_another_sides_turn() {
    let t = Tree::held();
    let f = File::create(t.at.join("f")).unwrap();
    f.write_all_at(b"1", 0).unwrap();
    t.release();
    assert_eq!(errno(f.write_all_at(b"2", 0)), EROFS);
    t.hold(2, 1);
    f.write_all_at(b"3", 0).unwrap();
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"3");
    t.release();
    t.elsewhere(3);
    fs::write(t.lower.join("f"), b"theirs").unwrap();
    assert_eq!(errno(f.write_all_at(b"4", 0)), ESTALE);
    t.hold(4, 4);
    assert_eq!(errno(f.write_all_at(b"5", 0)), ESTALE);
    assert_eq!(errno(f.set_len(0)), ESTALE);
    f.sync_all().unwrap();
    assert_eq!(fs::read(t.at.join("f")).unwrap(), b"theirs");
    OpenOptions::new().append(true).open(t.at.join("f")).unwrap().write_all(b"+").unwrap();
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"theirs+");
}

/// What was mapped before the turn shares no page with what is opened now and reaches nothing: msync fails; a process that never
/// asks learns nothing, the guard counts it.
#[test]
fn what_was_mapped_in_an_earlier_run_never_reaches_the_storage_nor_the_new_file() {
    let t = Tree::held();
    fs::write(t.at.join("m"), vec![b'1'; 4096]).unwrap();
    let f = OpenOptions::new().read(true).write(true).open(t.at.join("m")).unwrap();
    let map = Mapping::of(&f, 4096);
    map.put(0, b'a');
    t.release();
    assert_eq!(fs::read(t.lower.join("m")).unwrap()[0], b'a', "pushed before the end");
    t.elsewhere(2);
    fs::write(t.lower.join("m"), vec![b'2'; 4096]).unwrap();
    t.hold(3, 3);
    map.put(1, b'b');
    assert_ne!(map.sync(), 0, "a stale page was taken");
    assert_eq!(fs::read(t.lower.join("m")).unwrap(), vec![b'2'; 4096]);
    assert_eq!(fs::read(t.at.join("m")).unwrap(), vec![b'2'; 4096], "no page is shared with the old mapping");
    assert!(t.mount.counts().pages_refused > 0);
}

/// At the deadline, and after any suspend, writes are EROFS by themselves.
#[test]
fn the_deadline_stops_writes_by_itself_and_a_suspend_does_too() {
    let t = Tree::held();
    let f = File::create(t.at.join("f")).unwrap();
    f.write_all_at(b"1", 0).unwrap();
    t.clock.advance(HOUR);
    assert_eq!(errno(f.write_all_at(b"2", 0)), EROFS);
    assert_eq!(errno(fs::create_dir(t.at.join("d"))), EROFS);
    assert_eq!(fs::read(t.at.join("f")).unwrap(), b"1");
    t.hold(2, 1);
    f.write_all_at(b"3", 0).unwrap();
    t.clock.suspend(Duration::from_secs(1));
    assert_eq!(errno(f.write_all_at(b"4", 0)), EROFS);
}

/// A first write on a free tree waits up to 2 s for the lease and goes on.
#[test]
fn a_first_write_waits_for_the_lease_and_goes_on() {
    let t = Tree::new();
    t.free();
    let at = t.at.clone();
    let maker = std::thread::spawn(move || fs::create_dir(at.join("made")));
    eventually("the daemon is asked", || t.ears.wanted.load(Ordering::SeqCst) == 1);
    assert_eq!(t.mount.waiting(), 1);
    // The lower tree changed while the kernel believed to know it.
    fs::write(t.lower.join("theirs"), b"x").unwrap();
    t.hold(2, 2);
    maker.join().unwrap().unwrap();
    assert!(t.lower.join("made").is_dir() && t.at.join("theirs").exists());
}

#[test]
fn what_comes_while_the_gate_opens_is_carried_out_and_hinders_no_invalidation() {
    let t = Tree::held();
    fs::create_dir(t.at.join("d")).unwrap();
    fs::write(t.at.join("d/f"), b"x").unwrap();
    let before = t.mount.standing();
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: before.serial + 1, right: Right::Opening { until }, ..before });
    let path = t.at.join("d");
    let busy = std::thread::spawn(move || {
        for n in 0..200 {
            fs::create_dir(path.join(format!("{n}"))).unwrap();
        }
    });
    for _ in 0..20 {
        assert!(t.mount.drop_caches(LIMIT), "stuck at {:?}", t.mount.dropping());
    }
    busy.join().unwrap();
    // The answer is sent before the carrier counts itself out.
    eventually("nobody waits", || t.mount.waiting() == 0);
}

#[test]
fn a_file_opened_in_the_new_run_is_not_replaced_with_the_old_ones() {
    let t = Tree::held();
    fs::write(t.at.join("old"), b"1").unwrap();
    t.release();
    t.hold(3, 3);
    let new = OpenOptions::new().write(true).open(t.at.join("old")).unwrap();
    assert_eq!(t.mount.replace_written_nodes(), 0);
    new.write_all_at(b"2", 0).unwrap();
    assert_eq!(fs::read(t.lower.join("old")).unwrap(), b"2");
}

/// A first write whose lease is refused is EROFS, and others after it are at once, for 10 s or until the tree's state changes.
/// One that has waited through another side's turn is EROFS too.
#[test]
fn a_first_write_is_refused_with_the_lease_or_after_another_sides_turn() {
    let t = Tree::new();
    t.free();
    let make = |name: &str| {
        let path = t.at.join(name);
        std::thread::spawn(move || errno(fs::create_dir(path)))
    };
    let refused = make("a");
    eventually("it waits", || t.mount.waiting() == 1);
    t.mount.answer_waiters(Outcome::Refused);
    assert_eq!(refused.join().unwrap(), EROFS);
    assert_eq!(errno(fs::create_dir(t.at.join("b"))), EROFS, "at once");
    t.free();
    let late = make("c");
    eventually("it waits", || t.mount.waiting() == 1);
    // It came under epoch 1; epoch 2 was another's turn, 3 is ours.
    t.mount.answer_waiters(Outcome::Granted { run_start: RunStart(Epoch::from_raw(3)), epoch: Epoch::from_raw(3) });
    assert_eq!(late.join().unwrap(), EROFS);
}

/// On a free tree `access(W_OK)` says yes where a first write would take it, and the editor's save does.
#[test]
fn an_editors_save_takes_the_free_tree() {
    let t = Tree::mounted(false, |lower| fs::write(lower.join("f"), b"old").unwrap());
    t.free();
    rustix::fs::access(t.at.join("f"), Access::WRITE_OK).unwrap();
    let path = t.at.join("f");
    let save = std::thread::spawn(move || fs::write(path, b"new"));
    eventually("the daemon is asked", || t.ears.wanted.load(Ordering::SeqCst) == 1);
    t.hold(2, 2);
    save.join().unwrap().unwrap();
    assert_eq!(fs::read(t.lower.join("f")).unwrap(), b"new");
}

/// git's `index.lock`, as a prompt's `git status` makes it, takes a free tree and never waits on a held one.
#[test]
fn gits_index_lock_never_waits_on_a_held_tree() {
    let t = Tree::mounted(true, |lower| fs::create_dir_all(lower.join("repo/.git")).unwrap());
    t.mount.publish(Standing { serial: 5, may_wait: true, free: false, ..reader() });
    assert_eq!(errno(File::create_new(t.at.join("repo/.git/index.lock"))), EROFS);
    assert_eq!((t.mount.waiting(), t.ears.wanted.load(Ordering::SeqCst)), (0, 0));
}

/// The kernel forgets names, attributes and pages when the lease comes or goes; working directories stay (kernels before 6.2
/// cannot let names expire: there `cd "$PWD"`).
#[test]
fn a_grant_drops_what_the_kernel_believed_and_keeps_working_directories() {
    let t = Tree::held();
    let p = |n: &str| t.at.join(n);
    fs::create_dir_all(p("d/e")).unwrap();
    fs::write(p("d/f"), b"one").unwrap();
    let inside = Command::new("sh")
        .arg("-c")
        .arg("read x; pwd -P; cat f")
        .current_dir(p("d"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(fs::metadata(p("d/f")).unwrap().len(), 3);
    t.release();
    t.elsewhere(2);
    fs::write(t.lower.join("d/f"), b"three").unwrap();
    fs::rename(t.lower.join("d/e"), t.lower.join("d/g")).unwrap();
    t.hold(3, 3);
    assert_eq!(fs::metadata(p("d/f")).unwrap().len(), 5);
    assert!(!p("d/e").exists() && p("d/g").is_dir());
    let mut inside = inside;
    inside.stdin.take().unwrap().write_all(b"\n").unwrap();
    let out = inside.wait_with_output().unwrap();
    let want = format!("{}\nthree", t.at.join("d").canonicalize().unwrap().display());
    assert_eq!(String::from_utf8_lossy(&out.stdout), want);
}

/// Files that could be written before the turn have another inode number after it, all their names together.
#[test]
fn a_replaced_file_gets_another_inode_and_all_its_names_move_together() {
    let t = Tree::held();
    fs::write(t.at.join("a"), b"x").unwrap();
    fs::hard_link(t.at.join("a"), t.at.join("b")).unwrap();
    let held = OpenOptions::new().write(true).open(t.at.join("a")).unwrap();
    let before = fs::metadata(t.at.join("a")).unwrap().ino();
    t.release();
    t.elsewhere(2);
    let (a, b) = (fs::metadata(t.at.join("a")).unwrap().ino(), fs::metadata(t.at.join("b")).unwrap().ino());
    assert_eq!(a, b);
    assert_ne!(a, before);
    assert_eq!(held.metadata().unwrap().len(), 1, "the old node still answers");
}

/// The marker and its stamps are not listed, ENOENT by name, EPERM to create. Below a directory with another tree's marker
/// mutations are EROFS. `.nfs*` names are not listed.
#[test]
fn marker_and_stamps_are_not_there_and_another_trees_directory_is_not_ours() {
    let t = Tree::mounted(true, |lower| {
        fs::write(lower.join(".treelease-tree"), b"{}").unwrap();
        fs::write(lower.join(".treelease-tree.7"), b"{}").unwrap();
        fs::write(lower.join(".nfs0001"), b"").unwrap();
        fs::create_dir_all(lower.join("other/deep")).unwrap();
        fs::write(lower.join("other/.treelease-tree"), b"{}").unwrap();
        fs::write(lower.join("other/deep/f"), b"x").unwrap();
    });
    t.hold(1, 1);
    let p = |n: &str| t.at.join(n);
    let names: Vec<_> = fs::read_dir(&t.at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["other"]);
    assert_eq!(errno(fs::read(p(".treelease-tree"))), ENOENT);
    assert_eq!(errno(File::create_new(p(".treelease-tree"))), EPERM);
    assert_eq!(errno(fs::create_dir(p(".treelease-tree.9"))), EPERM);
    fs::write(p("mine"), b"").unwrap();
    assert_eq!(errno(fs::rename(p("mine"), p(".treelease-tree"))), EPERM);
    assert_eq!(errno(fs::write(p("other/deep/f"), b"y")), EROFS);
    assert_eq!(errno(fs::create_dir(p("other/deep/g"))), EROFS);
    assert_eq!(fs::read(p("other/deep/f")).unwrap(), b"x");
    assert!(t.lower.join(".treelease-tree").exists());
}

/// A stranger who lists what lies above a private directory may not look for a marker in it. That says nothing: its owner's writes
/// below another tree's marker are EROFS all the same.
#[test]
fn a_marker_that_a_stranger_may_not_look_for_still_keeps_the_owner_out() {
    let t = Tree::mounted(true, |lower| {
        fs::create_dir_all(lower.join("other/deep")).unwrap();
        fs::write(lower.join("other/.treelease-tree"), b"{}").unwrap();
        for path in ["other", "other/deep"] {
            std::os::unix::fs::chown(lower.join(path), Some(1234), Some(1234)).unwrap();
            fs::set_permissions(lower.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
    });
    t.hold(1, 1);
    let run = |uid: u32, script: &str| {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).current_dir(&t.at).uid(uid).gid(uid).stderr(std::process::Stdio::null());
        shell.status().unwrap().success()
    };
    assert!(run(4321, "ls -l"), "it may be listed");
    assert!(!run(4321, "ls other"));
    assert!(!run(1234, "echo x > other/deep/f"));
    assert!(!t.lower.join("other/deep/f").exists(), "another tree's holder writes there");
}

/// `.treelease/` in the root is found by name and listed by nobody; its files are read as they are now, and never written.
#[test]
fn the_status_directory_is_found_by_name_and_listed_by_nobody() {
    let t = Tree::new();
    t.mount.set_status_files(vec![("status.json".into(), b"{\"a\":1}".to_vec()), ("epoch".into(), b"7\n".to_vec())]);
    let p = |n: &str| t.at.join(".treelease").join(n);
    assert_eq!(fs::read_dir(&t.at).unwrap().count(), 0);
    assert_eq!(fs::read(p("status.json")).unwrap(), b"{\"a\":1}");
    t.mount.set_status_files(vec![("status.json".into(), b"{\"a\":12345}".to_vec())]);
    assert_eq!(fs::read(p("status.json")).unwrap(), b"{\"a\":12345}");
    assert_eq!(fs::read(p("epoch")).unwrap(), b"7\n");
    assert_eq!(fs::read_dir(t.at.join(".treelease")).unwrap().count(), 2);
    t.hold(1, 1);
    assert_eq!(errno(fs::write(p("epoch"), b"8")), EROFS);
    assert_eq!(errno(fs::remove_file(p("epoch"))), EROFS);
}

/// A mount may cover the tree itself; unmounting shows it again, and names who is inside where it cannot.
#[test]
fn a_mount_covers_the_tree_itself_and_unmounting_shows_it_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"x").unwrap();
    let (ears, clock) = Default::default();
    let mount = start(dir.path(), dir.path(), true, &ears, &clock).unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"x");
    assert_eq!(errno(fs::write(dir.path().join("f"), b"y")), EROFS);
    assert!(mount.alive());
    assert!(matches!(start(dir.path(), dir.path(), true, &ears, &clock), Err(MountError::InTheWay(_))));
    let mut child = Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
    let busy = mount.unmount(false).unwrap_err();
    assert!(busy.pids.iter().any(|(pid, command)| *pid == child.id() && command == "sleep"), "{busy:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the mount is free", || mount.unmount(false).is_ok());
    assert!(!mount.alive());
    fs::write(dir.path().join("f"), b"raw").unwrap();
}

/// What stays inside after a lazy unmount reads and never writes again.
#[test]
fn what_stays_inside_after_a_lazy_unmount_reads_and_never_writes_again() {
    let t = Tree::held();
    let f = OpenOptions::new().read(true).write(true).create_new(true).open(t.at.join("f")).unwrap();
    f.write_all_at(b"in", 0).unwrap();
    t.mount.unmount(true).unwrap();
    assert_eq!(errno(f.write_all_at(b"out", 0)), EROFS);
    t.mount.publish(Standing { right: Right::Write { until: t.clock.now().after(HOUR) }, ..t.mount.standing() });
    assert_eq!(errno(f.write_all_at(b"out", 0)), EROFS);
    let mut text = [0; 2];
    f.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"in");
}

#[test]
fn a_mount_point_with_files_in_it_is_refused() {
    let (lower, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(at.path().join("mine"), b"").unwrap();
    let (ears, clock) = Default::default();
    assert!(matches!(start(lower.path(), at.path(), true, &ears, &clock), Err(MountError::InTheWay(_))));
    assert!(matches!(start(lower.path(), &at.path().join("none"), true, &ears, &clock), Err(MountError::BadPath(_))));
    drop(open_root(lower.path()));
}

#[test]
fn unfinished_work_is_named_and_forgotten_when_it_is_done() {
    let t = Tree::held();
    let p = |n: &str| t.at.join(n);
    fs::create_dir_all(p("repo/.git")).unwrap();
    fs::write(p("repo/.git/index.lock"), b"").unwrap();
    let hot = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0];
    fs::write(p("x.db-journal"), hot).unwrap();
    fs::write(p("persist.db-journal"), [0; 512]).unwrap();
    fs::write(p("other.lock"), b"").unwrap();
    let db = File::create(p("notes.db")).unwrap();
    db.lock().unwrap();
    let found = t.mount.unfinished();
    let lock = format!("exclusive lock on notes.db by pid {}", std::process::id());
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.contains(&"git lock repo/.git/index.lock".into()) && found.contains(&"SQLite journal x.db-journal".into()));
    assert!(found[2].starts_with(&lock), "{found:?}");
    db.unlock().unwrap();
    fs::rename(p("repo/.git/index.lock"), p("repo/.git/index")).unwrap();
    fs::remove_file(p("x.db-journal")).unwrap();
    assert_eq!(t.mount.unfinished(), Vec::<String>::new());
}

#[test]
fn a_flush_counts_what_this_epoch_wrote() {
    let t = Tree::held();
    fs::write(t.at.join("a"), vec![0; 1000]).unwrap();
    fs::write(t.at.join("b"), vec![0; 500]).unwrap();
    fs::write(t.at.join("gone"), vec![0; 10]).unwrap();
    fs::remove_file(t.at.join("gone")).unwrap();
    eventually("the kernel forgets the removed file", || t.mount.flush(LIMIT).unwrap().files == 2);
    assert_eq!(t.mount.flush(LIMIT).unwrap().bytes, 1510);
    assert!(t.mount.last_mutation().is_some());
    let writers = t.mount.writers();
    assert!(writers.iter().any(|w| w.path == "a" || w.count > 1), "{writers:?}");
    t.mount.begin_epoch(treelease_client::words::epoch::Epoch::from_raw(1 << 32)).unwrap();
    assert_eq!(t.mount.flush(LIMIT).unwrap().files, 0);
}

/// With `mode=observe` nothing is refused, and what would have been is recorded.
#[test]
fn observe_refuses_nothing_and_says_what_it_would_have_refused() {
    let t = Tree::new();
    t.mount.publish(Standing { serial: 9, mode: Mode::Observe, ..reader() });
    fs::write(t.at.join("f"), b"x").unwrap();
    assert_eq!(t.mount.counts().refused, 0);
    assert!(t.mount.counts().would_refuse > 0);
    assert!(t.ears.refused.lock().unwrap().iter().all(|r| !r.enforced));
    t.mount.publish(Standing { serial: 10, mode: Mode::Off, ..reader() });
    fs::write(t.at.join("g"), b"x").unwrap();
    assert!(t.lower.join("g").exists());
}

/// Where nothing is refused nothing is stale: what was opened before another side's turn, or before this side's own grant, is written
/// on. When `enforce` begins it is ESTALE (I6), and its file has another node.
#[test]
fn where_nothing_is_refused_nothing_is_stale_until_enforce_begins() {
    for mode in [Mode::Off, Mode::Observe] {
        let t = Tree::held();
        let before = t.mount.standing();
        let epoch = |more: u64| Epoch::from_raw(before.epoch.get() + more);
        t.mount.publish(Standing { serial: 50, mode, ..before });
        let f = File::create(t.at.join("f")).unwrap();
        t.mount.publish(Standing { serial: 51, mode, epoch: epoch(1), stale_below: epoch(1), right: Right::Read, ..before });
        f.write_all_at(b"ours", 0).unwrap();
        t.mount.publish(Standing { serial: 52, mode, epoch: epoch(2), stale_below: epoch(2), ..before });
        f.write_all_at(b"on", 4).unwrap();
        let again = || OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", f.as_raw_fd()));
        again().unwrap().write_all_at(b"!", 6).unwrap();
        fs::rename(t.at.join("f"), t.at.join("g")).unwrap();
        t.mount.publish(Standing { serial: 53, mode: Mode::Enforce, epoch: epoch(2), stale_below: epoch(2), ..before });
        assert_eq!(errno(f.write_all_at(b"late", 0)), ESTALE, "{mode:?}");
        assert_eq!(errno(again()), ESTALE, "{mode:?}: the node is another run's");
        assert_eq!(fs::read(t.lower.join("g")).unwrap(), b"ourson!");
    }
}

/// While the gate closes for a handoff calls are EROFS, and mapped pages are still taken.
#[test]
fn a_closing_gate_refuses_calls_and_still_takes_mapped_pages() {
    let t = Tree::held();
    fs::write(t.at.join("m"), vec![b'1'; 4096]).unwrap();
    let f = OpenOptions::new().read(true).write(true).open(t.at.join("m")).unwrap();
    let map = Mapping::of(&f, 4096);
    let until = t.clock.now().after(HOUR);
    let before = t.mount.standing();
    t.mount.publish(Standing { serial: 50, right: Right::Closing { until }, ..before });
    map.put(0, b'z');
    assert_eq!(errno(f.write_all_at(b"y", 10)), EROFS);
    t.mount.push_mapped(LIMIT).unwrap();
    assert_eq!(fs::read(t.lower.join("m")).unwrap()[0], b'z');
    assert_eq!(t.mount.counts().pages_refused, 0);
}
