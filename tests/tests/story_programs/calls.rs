//! System calls that programs use seldom, and sizes that they reach seldom.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom, XattrFlags, renameat_with};
use treelease_tests::twin::Twin;

fn code<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|why| why.raw_os_error().unwrap_or(-1), |_| 0)
}

fn error<T>(result: rustix::io::Result<T>) -> Result<T, i32> {
    result.map_err(|why| why.raw_os_error())
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Names of 255 bytes, of any bytes, and paths of 4,000 bytes can be made, moved, listed and removed; longer ones are refused.
#[test]
fn the_longest_names_and_paths_are_as_long_as_below() {
    let twin = Twin::new();
    twin.same("long names", |place| {
        let dir = place.join("names");
        fs::create_dir(&dir).unwrap();
        let said: Vec<i32> = [255, 256].map(|len| code(fs::write(dir.join("n".repeat(len)), "x"))).to_vec();
        let odd = std::ffi::OsStr::from_bytes(b"\xff \n\x01");
        fs::write(dir.join(odd), "odd").unwrap();
        let listed: BTreeSet<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        (said, listed, fs::read(dir.join(odd)).unwrap())
    });
    twin.same("long paths", |place| {
        // The prefixes differ: what is counted is below them.
        let mut below = PathBuf::from("path");
        while below.as_os_str().len() + 201 < 3900 {
            below.push("d".repeat(200));
        }
        let (dir, top) = (place.join(&below), place.join("path"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "deep").unwrap();
        fs::rename(&top, place.join("moved")).unwrap();
        let moved = place.join("moved").join(below.strip_prefix("path").unwrap());
        let text = fs::read(moved.join("file")).unwrap();
        let too_long = code(fs::metadata(moved.join("x".repeat(200)).join("y".repeat(200))));
        fs::remove_dir_all(place.join("moved")).unwrap();
        (text, too_long, fs::read_dir(place).unwrap().count())
    });
}

/// Where a file has data and where holes, what is allocated, punched out and zeroed.
#[test]
fn holes_are_where_they_are_below() {
    let twin = Twin::new();
    twin.same("holes", |place| {
        let file = open(&place.join("sparse"));
        file.set_len(8 << 20).unwrap();
        for at in [1 << 20, 5 << 20] {
            file.write_all_at(&[7; 10_000], at).unwrap();
        }
        let seeks = |file: &File| {
            let mut found = Vec::new();
            let mut at = 0;
            while let Ok(data) = error(rustix::fs::seek(file, SeekFrom::Data(at))) {
                at = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap();
                found.push((data, at));
            }
            found
        };
        file.sync_all().unwrap();
        let before = (seeks(&file), file.metadata().unwrap().blocks());
        let change = |flags, at, len| error(rustix::fs::fallocate(&file, flags, at, len));
        let said = [
            change(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5 << 20, 8192),
            change(FallocateFlags::ZERO_RANGE, 1 << 20, 4096),
            change(FallocateFlags::KEEP_SIZE, 8 << 20, 1 << 20),
            change(FallocateFlags::PUNCH_HOLE, 0, 4096),
        ];
        file.sync_all().unwrap();
        let mut data = vec![0; 10_000];
        file.read_exact_at(&mut data, 1 << 20).unwrap();
        (before, said, seeks(&file), file.metadata().unwrap().len(), file.metadata().unwrap().blocks(), data)
    });
    twin.same_below();
}

/// A file without a name is read, written, cut and counted as below; nothing is left of it.
#[test]
fn open_files_whose_names_are_gone_live_on() {
    let twin = Twin::new();
    twin.same("unlinked", |place| {
        let path = place.join("gone");
        let file = open(&path);
        file.write_all_at(b"before", 0).unwrap();
        let reader = File::open(&path).unwrap();
        fs::write(place.join("other"), "other").unwrap();
        fs::rename(place.join("other"), &path).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all_at(b"after", 6).unwrap();
        file.set_len(9).unwrap();
        let mut text = [0; 20];
        let n = reader.read_at(&mut text, 0).unwrap();
        let link = error(rustix::fs::linkat(
            CWD,
            format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)),
            CWD,
            place.join("again"),
            AtFlags::SYMLINK_FOLLOW,
        ));
        let dir = place.join("dir");
        fs::create_dir(&dir).unwrap();
        let inside = rustix::fs::open(&dir, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
        fs::remove_dir(&dir).unwrap();
        let make = error(rustix::fs::mkdirat(&inside, "x", 0o755.into()));
        let meta = file.metadata().unwrap();
        (text[..n].to_vec(), meta.nlink(), meta.len(), link, make, fs::read_dir(place).unwrap().count())
    });
}

/// renameat2 takes the same flags as below, a whiteout too, and refuses what is refused there.
#[test]
fn renames_with_flags_do_what_they_do_below() {
    let twin = Twin::new();
    twin.same("renameat2", |place| {
        let path = |name: &str| place.join(name);
        for name in ["a", "b", "w"] {
            fs::write(path(name), name).unwrap();
        }
        fs::create_dir_all(path("d/e")).unwrap();
        let rename = |from: &str, to: &str, flags| error(renameat_with(CWD, path(from), CWD, path(to), flags));
        let said = [
            rename("a", "b", RenameFlags::NOREPLACE),
            rename("a", "c", RenameFlags::NOREPLACE),
            rename("b", "c", RenameFlags::EXCHANGE),
            rename("b", "d", RenameFlags::EXCHANGE),
            rename("c", "none", RenameFlags::EXCHANGE),
            rename("w", "white", RenameFlags::WHITEOUT),
            rename("d", "b", RenameFlags::empty()),
            rename("b", "b/e/f", RenameFlags::empty()),
            rename("c", "white", RenameFlags::EXCHANGE | RenameFlags::NOREPLACE),
        ];
        let left: Vec<_> = ["a", "b", "c", "d", "w", "white"]
            .map(|name| fs::symlink_metadata(path(name)).map(|meta| (meta.mode(), meta.len() % 4096, meta.rdev())).ok())
            .to_vec();
        (said, left)
    });
    twin.same_below();
}

/// Extended attributes of every namespace are set, created, replaced, listed and removed as below, with the same errors.
#[test]
fn extended_attributes_are_what_they_are_below() {
    let twin = Twin::new();
    twin.same("attributes", |place| {
        let path = place.join("file");
        fs::write(&path, "x").unwrap();
        let set = |name: &str, len: usize, flags| error(rustix::fs::setxattr(&path, name, &vec![b'v'; len], flags));
        let said = [
            set("user.note", 5, XattrFlags::empty()),
            set("user.note", 9, XattrFlags::CREATE),
            set("user.none", 9, XattrFlags::REPLACE),
            set("user.note", 700, XattrFlags::REPLACE),
            set("user.empty", 0, XattrFlags::CREATE),
            set("trusted.note", 3, XattrFlags::empty()),
            set("security.note", 3, XattrFlags::empty()),
            set("nonsense.note", 3, XattrFlags::empty()),
            set("user.long", 70_000, XattrFlags::empty()),
        ];
        let get = |name: &str, room: usize| error(rustix::fs::getxattr(&path, name, &mut vec![0u8; room][..]));
        let got =
            [get("user.note", 1000), get("user.note", 10), get("user.none", 10), get("user.empty", 10), get("trusted.note", 9)];
        let mut list = vec![0u8; 4096];
        let n = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
        let names: BTreeSet<Vec<u8>> = list[..n].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let removed = ["user.note", "user.none"].map(|name| error(rustix::fs::removexattr(&path, name)));
        (said, got, names, removed)
    });
}

/// What is not as below: a file without a name cannot be made by O_TMPFILE, and ranges of a file cannot be cut out or put in
/// (fallocate COLLAPSE_RANGE, INSERT_RANGE): EOPNOTSUPP. Programs have other ways for both.
#[test]
fn what_fuse_does_not_offer_is_refused_with_the_error_that_programs_expect() {
    let twin = Twin::new();
    let file = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(twin.guarded());
    assert_eq!(code(file), libc::EOPNOTSUPP);
    // Who asks for that first goes another way then.
    twin.script(
        "python3 -c 'import tempfile; f = tempfile.TemporaryFile(dir=\".\"); f.write(b\"x\"); f.seek(0); print(f.read())'",
    );
    let file = open(&twin.guarded().join("file"));
    file.set_len(1 << 20).unwrap();
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(error(rustix::fs::fallocate(&file, flags, 0, 65536)), Err(libc::EOPNOTSUPP));
    }
}

/// A mapping of 64 MiB, stored into all over, is below when msync has said so.
#[test]
fn a_mapping_of_64_mib_reaches_the_storage() {
    const SIZE: usize = 64 << 20;
    let twin = Twin::new();
    twin.same("a large mapping", |place| {
        let file = open(&place.join("large"));
        file.set_len(SIZE as u64).unwrap();
        let flags = rustix::mm::MapFlags::SHARED;
        let prot = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping of a file of that size, used within it, and unmapped once.
        unsafe {
            let map = rustix::mm::mmap(std::ptr::null_mut(), SIZE, prot, flags, &file, 0).unwrap().cast::<u8>();
            for at in (0..SIZE).step_by(4096) {
                map.add(at).write_volatile((at >> 12) as u8);
            }
            rustix::mm::msync(map.cast(), SIZE, rustix::mm::MsyncFlags::SYNC).unwrap();
            let sum: u64 = (0..SIZE).step_by(4096).map(|at| u64::from(map.add(at).read_volatile())).sum();
            rustix::mm::munmap(map.cast(), SIZE).unwrap();
            sum
        }
    });
    twin.same_below();
}

/// A watcher (inotify) hears of what programs on the same mount do, in the same order. It does not hear of what the other side
/// does.
#[test]
fn watchers_hear_of_local_changes() {
    let twin = Twin::new();
    let heard = twin.both("inotify", |place| {
        let dir = place.join("watched");
        fs::create_dir(&dir).unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        let all = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB;
        inotify::add_watch(&watch, &dir, all).unwrap();
        let script = "echo one > a; chmod 600 a; mv a b; ln b c; echo two >> c; mkdir d; rmdir d; rm b c";
        let done = twin.run(&dir, script);
        assert_eq!(done.code, 0, "{done}");
        let mut buf = [std::mem::MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&watch, &mut buf);
        let mut heard = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            heard.push((name, event.events().bits() & !ReadFlags::ISDIR.bits()));
        }
        heard
    });
    assert!(heard.len() >= 12, "{heard:?}");
}

/// A directory may have more entries than the guard may have descriptors (one for each file that the kernel knows): each is
/// listed once.
#[test]
fn a_directory_of_very_many_entries_lists_each_once() {
    let many = if std::env::var_os("TREELEASE_LONG").is_some() { 100_000 } else { 25_000 };
    let twin = Twin::new();
    twin.same("many entries", |place| {
        let dir = place.join("many");
        let below = if place == twin.guarded() { twin.world.lower("dev").join("many") } else { dir.clone() };
        fs::create_dir(&dir).unwrap();
        for n in 0..many {
            File::create(below.join(format!("{n}"))).unwrap();
        }
        let list = || fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let names = list();
        let distinct: BTreeSet<_> = names.iter().collect();
        let found = names.iter().step_by(997).all(|name| dir.join(name).exists());
        for name in names.iter().step_by(10) {
            fs::remove_file(dir.join(name)).unwrap();
        }
        (names.len(), distinct.len(), found, list().len())
    });
}

/// Control: what differs, in words or in what is left, is seen.
#[test]
fn control_a_program_that_says_or_leaves_something_else_is_found() {
    let twin = Twin::new();
    twin.script("echo the same; echo same > file");
    twin.same_below();
    let seen = |work: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
    assert!(seen(&|| twin.same("paths", Path::to_owned)));
    fs::write(twin.bare().join("more"), "").unwrap();
    assert!(seen(&|| twin.same_below()));
    assert!(seen(&|| _ = twin.script("ls")));
}
