//! What works on the lower filesystem works through the guard (DESIGN 4, "POSIX first"), for the holder. Needs /dev/fuse.

mod fs_support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use fs_support::{Mapping, Tree, errno, eventually};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// create, write, append, truncate, O_TRUNC, fsync, unlink: the holder's reach the storage at the call. An open file whose name
/// is gone lives on.
#[test]
fn files_are_made_written_read_appended_cut_and_removed() {
    let t = Tree::held();
    let (a, low) = (t.at.join("a"), t.lower.join("a"));
    fs::write(&a, b"hello").unwrap();
    assert_eq!(fs::read(&low).unwrap(), b"hello");
    assert_eq!(fs::read(&a).unwrap(), b"hello");
    OpenOptions::new().append(true).open(&a).unwrap().write_all(b" there").unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"hello there");
    let f = OpenOptions::new().read(true).write(true).open(&a).unwrap();
    f.write_all_at(b"J", 0).unwrap();
    f.set_len(4).unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"Jell");
    fs::write(&a, b"x").unwrap();
    assert_eq!(fs::read(&low).unwrap(), b"x", "O_TRUNC");
    f.sync_all().unwrap();
    fs::remove_file(&a).unwrap();
    assert!(!low.exists());
    f.write_all_at(b"still open", 0).unwrap();
    let mut rest = [0; 10];
    f.read_exact_at(&mut rest, 0).unwrap();
    assert_eq!(&rest, b"still open");
}

#[test]
fn a_large_file_comes_back_as_it_was_written() {
    let t = Tree::held();
    let data: Vec<u8> = (0..5_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(t.at.join("big"), &data).unwrap();
    assert!(fs::read(t.lower.join("big")).unwrap() == data);
    assert!(fs::read(t.at.join("big")).unwrap() == data);
}

/// mkdir and rmdir: as below; a directory with something in it is ENOTEMPTY.
#[test]
fn directories_are_made_and_removed_and_a_full_one_is_not() {
    let t = Tree::held();
    fs::create_dir_all(t.at.join("d/e/f")).unwrap();
    fs::write(t.at.join("d/e/x"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(t.at.join("d/e"))), nix::libc::ENOTEMPTY);
    assert_eq!(errno(fs::create_dir(t.at.join("d"))), nix::libc::EEXIST);
    fs::remove_dir_all(t.at.join("d")).unwrap();
    assert!(!t.lower.join("d").exists());
}

/// readdir lists each name that is there all the time exactly once, also while others are made and removed. Offsets are the lower
/// filesystem's own.
#[test]
fn a_directory_of_five_thousand_names_lists_each_once_also_while_they_are_removed() {
    let t = Tree::held();
    let big = t.at.join("big");
    fs::create_dir(&big).unwrap();
    for n in 0..5000 {
        File::create(t.lower.join(format!("big/file-{n:05}"))).unwrap();
    }
    let names: Vec<_> = fs::read_dir(&big).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5000);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 5000);
    let mut seen = 0;
    for entry in fs::read_dir(&big).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 5000);
    fs::remove_dir(&big).unwrap();
}

/// rename replaces, exchanges (RENAME_EXCHANGE) and refuses to replace (RENAME_NOREPLACE), within directories and between them.
#[test]
fn rename_replaces_exchanges_and_refuses_to_replace() {
    let t = Tree::held();
    let path = |n: &str| t.at.join(n);
    for n in ["a", "b", "c"] {
        fs::write(path(n), n).unwrap();
    }
    fs::rename(path("a"), path("b")).unwrap();
    assert_eq!(fs::read(path("b")).unwrap(), b"a");
    assert!(!path("a").exists());
    let refused = renameat_with(CWD, path("b"), CWD, path("c"), RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    renameat_with(CWD, path("b"), CWD, path("c"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(path("b")).unwrap(), fs::read(path("c")).unwrap()), (b"c".to_vec(), b"a".to_vec()));
    fs::create_dir_all(path("d/sub")).unwrap();
    fs::rename(path("d"), path("e")).unwrap();
    assert!(path("e/sub").is_dir() && !path("d").exists());
    fs::rename(path("c"), path("e/sub/c")).unwrap();
    assert_eq!(fs::read(t.lower.join("e/sub/c")).unwrap(), b"a");
}

/// Hard links are one file, and symlinks lead where they say. Inode numbers are the lower ones wherever they are free: programs
/// compare them.
#[test]
fn hard_links_are_one_file_and_symlinks_lead_where_they_say() {
    let t = Tree::held();
    let (a, b, s) = (t.at.join("a"), t.at.join("b"), t.at.join("s"));
    fs::write(&a, b"one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let (ma, mb) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
    assert_eq!((ma.ino(), ma.nlink()), (mb.ino(), 2));
    assert_eq!(ma.ino(), fs::metadata(t.lower.join("a")).unwrap().ino(), "programs compare inode numbers");
    fs::write(&b, b"two").unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"two");
    symlink("a", &s).unwrap();
    assert_eq!(fs::read_link(&s).unwrap().to_str(), Some("a"));
    assert_eq!(fs::read(&s).unwrap(), b"two");
    fs::hard_link(&s, t.at.join("s2")).unwrap();
    assert!(fs::symlink_metadata(t.at.join("s2")).unwrap().is_symlink());
}

/// The guard follows no symlink: the kernel does, outside the mount.
#[test]
fn a_symlink_out_of_the_tree_is_never_followed_by_the_guard() {
    let t = Tree::held();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"s").unwrap();
    symlink(outside.path(), t.lower.join("out")).unwrap();
    assert!(fs::symlink_metadata(t.at.join("out")).unwrap().is_symlink());
    // The kernel follows it, outside the mount: the guard is not asked.
    assert_eq!(fs::read(t.at.join("out/secret")).unwrap(), b"s");
}

/// FIFOs, sockets and devices are the kernel's own, with the lease or without. Devices cannot be opened (nodev), set-user-id
/// programs do not change the user (nosuid).
#[test]
fn fifos_are_the_kernels_own() {
    let t = Tree::held();
    let fifo = t.at.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    t.release();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || OpenOptions::new().write(true).open(fifo).unwrap().write_all(b"through").unwrap()
    });
    let mut text = String::new();
    File::open(&fifo).unwrap().read_to_string(&mut text).unwrap();
    writer.join().unwrap();
    assert_eq!(text, "through");
}

/// chmod, chown, utimensat, setxattr and removexattr are carried out below; statfs is the storage's.
#[test]
fn modes_times_owners_and_attributes_are_set_below() {
    let t = Tree::held();
    let (a, low) = (t.at.join("a"), t.lower.join("a"));
    fs::write(&a, b"").unwrap();
    fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(&low).unwrap().mode() & 0o7777, 0o640);
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_007);
    File::options().write(true).open(&a).unwrap().set_modified(then).unwrap();
    assert_eq!(fs::metadata(&low).unwrap().modified().unwrap(), then);
    assert_eq!(fs::metadata(&a).unwrap().modified().unwrap(), then);
    let set = rustix::fs::setxattr(&a, "user.note", b"hi", rustix::fs::XattrFlags::empty());
    if set != Err(rustix::io::Errno::NOTSUP) {
        let mut value = [0; 8];
        let n = rustix::fs::getxattr(&low, "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"hi");
        assert!(rustix::fs::listxattr(&a, &mut [0u8; 256][..]).unwrap() >= 10);
        rustix::fs::removexattr(&a, "user.note").unwrap();
        assert!(rustix::fs::getxattr(&low, "user.note", &mut value[..]).is_err());
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&a, Some(1234), Some(1235)).unwrap();
        let meta = fs::metadata(&low).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235));
    }
    assert!(rustix::fs::statvfs(&t.at).unwrap().f_blocks > 0);
}

/// The caller's umask counts once, and the guard's own not at all.
#[test]
fn the_callers_umask_counts_once() {
    let t = Tree::held();
    let made = |mask: &str, name: &str| {
        let ok =
            Command::new("sh").arg("-c").arg(format!("umask {mask}; : > {name}; mkdir {name}.d")).current_dir(&t.at).status();
        assert!(ok.unwrap().success());
        let mode = |n: String| fs::metadata(t.lower.join(n)).unwrap().mode() & 0o777;
        (mode(name.into()), mode(format!("{name}.d")))
    };
    assert_eq!(made("000", "open"), (0o666, 0o777));
    assert_eq!(made("027", "shut"), (0o640, 0o750));
}

/// What an ordinary user makes through root's guard is that user's, and what that user may not do below is refused.
#[test]
fn as_root_every_operation_is_its_callers() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let t = Tree::held();
    fs::set_permissions(&t.at, fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(t.at.join("private")).unwrap();
    fs::set_permissions(t.at.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let at = t.at.clone();
    let run = move |script: &str| {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).current_dir(&at).uid(1234).gid(1235);
        shell.stderr(std::process::Stdio::null()).status().unwrap().success()
    };
    assert!(run("echo mine > mine && mkdir dir && ln -s mine link"));
    for name in ["mine", "dir", "link"] {
        let meta = fs::symlink_metadata(t.lower.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235), "{name}");
    }
    assert!(!run("ls private"));
    assert!(!run("echo x > private/x"));
    assert!(!run("chown 0 mine"));
    fs::write(t.at.join("theirs"), b"x").unwrap();
    assert!(!run("echo y > theirs"));
    assert!(!run("chmod 777 theirs"));
}

/// Stores through a shared mapping are below when msync says so.
#[test]
fn mapped_pages_reach_the_storage() {
    let t = Tree::held();
    let a = t.at.join("a");
    fs::write(&a, vec![b'.'; 8192]).unwrap();
    let f = OpenOptions::new().read(true).write(true).open(&a).unwrap();
    let map = Mapping::of(&f, 8192);
    map.put(5000, b'!');
    assert_eq!(map.sync(), 0);
    assert_eq!(fs::read(t.lower.join("a")).unwrap()[5000], b'!');
}

/// fallocate, SEEK_DATA, SEEK_HOLE and copy_file_range work on the lower file.
#[test]
fn holes_allocation_and_copies_work() {
    let t = Tree::held();
    let a = t.at.join("a");
    let mut f = OpenOptions::new().read(true).write(true).create_new(true).open(&a).unwrap();
    f.write_all_at(b"data", 1 << 20).unwrap();
    let data = rustix::fs::seek(&f, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, 1 << 20);
    rustix::fs::fallocate(&f, rustix::fs::FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(f.seek(SeekFrom::End(0)).unwrap(), 2 << 20);
    let b = OpenOptions::new().write(true).create_new(true).open(t.at.join("b")).unwrap();
    let n = rustix::fs::copy_file_range(&f, Some(&mut (1u64 << 20)), &b, None, 4).unwrap();
    assert_eq!((n, fs::read(t.lower.join("b")).unwrap()), (4, b"data".to_vec()));
}

/// O_EXCL creates a name that is not there, or is EEXIST.
#[test]
fn creation_is_exclusive_where_it_is_asked_for() {
    let t = Tree::held();
    let a = t.at.join("a");
    let exclusive = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&a);
    exclusive().unwrap();
    assert_eq!(errno(exclusive()), nix::libc::EEXIST);
    fs::remove_file(&a).unwrap();
    exclusive().unwrap();
}

/// flock and POSIX locks are the kernel's, of this one mount.
#[test]
fn locks_are_the_kernels_of_this_mount() {
    let t = Tree::held();
    let a = t.at.join("a");
    let f = File::create(&a).unwrap();
    f.lock().unwrap();
    assert!(File::open(&a).unwrap().try_lock().is_err());
    drop(f);
    eventually("the lock goes with its file", || File::open(&a).unwrap().try_lock().is_ok());
}

#[test]
fn git_works_on_the_guard() {
    let t = Tree::held();
    let git = |dir: &str, args: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main", "-c", "safe.directory=*"])
            .args(args)
            .current_dir(t.at.join(dir))
            .output();
        let Ok(done) = done else { return };
        assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    git(".", &["init", "repo"]);
    for n in 0..50 {
        fs::create_dir_all(t.at.join("repo/src")).unwrap();
        fs::write(t.at.join(format!("repo/src/{n}")), format!("file {n}\n")).unwrap();
    }
    git("repo", &["add", "-A"]);
    git("repo", &["commit", "-m", "one"]);
    git(".", &["clone", "repo", "twin"]);
    git("twin", &["worktree", "add", "../tree", "-b", "topic"]);
    git("repo", &["gc"]);
    git("twin", &["fsck", "--strict"]);
    t.release();
    git("twin", &["status"]);
    git("twin", &["log", "--stat"]);
    git("twin", &["diff"]);
}
