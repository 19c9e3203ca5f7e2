//! What the kernel keeps: under the lease nearly everything, counted in requests; when a lease comes or goes, nothing that may be
//! wrong (DESIGN 4: the lease is a licence to cache). Each with its control. Needs /dev/fuse.

mod fs_support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::Duration;

use fs_support::{HOUR, Mapping, Small, Tree, eventually};
use nix::libc::ENOSPC;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use treelease_client::words::clock::Clock;
use treelease_client::words::policy::Mode;
use treelease_guard::fs::faults::Faults;
use treelease_guard::gate::{Right, Standing};

/// Requests by kind while the work is done.
fn requests(t: &Tree, work: impl FnOnce()) -> BTreeMap<&'static str, u64> {
    let before = t.mount.requests();
    work();
    let after = t.mount.requests();
    let more = |kind: &&'static str, n: u64| n - before.get(kind).copied().unwrap_or(0);
    // The kernel sends those when it likes.
    let later = ["RELEASE", "RELEASEDIR"];
    after.iter().map(|(kind, n)| (*kind, more(kind, *n))).filter(|(kind, n)| *n > 0 && !later.contains(kind)).collect()
}

fn none() -> BTreeMap<&'static str, u64> {
    BTreeMap::new()
}

fn forgetting_off() -> Faults {
    Faults { no_forgetting: true, ..Faults::default() }
}

/// Names and sizes below a directory.
fn walk(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        found.push((entry.file_name().into_string().unwrap(), if meta.is_dir() { 0 } else { meta.len() }));
        if meta.is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found.sort();
    found
}

/// Sets the time of last change, as a storage with coarse time stamps would leave it.
fn set_time(path: &Path) {
    let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn furnished(allow_other: bool) -> Tree {
    Tree::mounted(allow_other, |lower| {
        for dir in 0..10 {
            fs::create_dir(lower.join(format!("d{dir}"))).unwrap();
            for file in 0..20 {
                fs::write(lower.join(format!("d{dir}/f{file}")), b"text").unwrap();
            }
        }
        fs::write(lower.join("big"), vec![7; 1 << 20]).unwrap();
        symlink("big", lower.join("link")).unwrap();
    })
}

/// Under the lease the pages of a file stay from one open to the next; without it an open drops them. Times of last access are
/// those of reads that reached the storage.
#[test]
fn the_holder_reads_a_file_again_with_no_request_but_the_open() {
    let t = furnished(true);
    t.hold(1, 1);
    let read = || assert_eq!(fs::read(t.at.join("big")).unwrap().len(), 1 << 20);
    // The second asks for the time of last access that the first has changed.
    read();
    read();
    assert_eq!(requests(&t, read), BTreeMap::from([("OPEN", 1)]), "no READ, and no FLUSH of what was only read");
    t.release();
    read();
    assert!(requests(&t, read).contains_key("READ"), "without the lease an open drops what the kernel has");
}

#[test]
fn a_large_file_is_read_in_pieces_that_stay_in_the_processors_cache() {
    const MIB: usize = 1 << 20;
    let t = Tree::mounted(true, |lower| fs::write(lower.join("large"), vec![7; 4 * MIB]).unwrap());
    t.hold(1, 1);
    let asked = requests(&t, || assert_eq!(fs::read(t.at.join("large")).unwrap().len(), 4 * MIB));
    assert!((16..=64).contains(&asked["READ"]), "{asked:?}");
}

/// Under the lease, up to its deadline, the kernel keeps names, names that are not there, attributes, listings and what
/// symlinks lead to: looking at them again is no request. Without the lease it keeps them half a second, and asks for what is
/// not there each time.
#[test]
fn the_holders_look_at_what_it_knows_is_no_request() {
    let t = furnished(true);
    t.hold(1, 1);
    let look = || {
        assert_eq!(walk(&t.at).len(), 10 + 200 + 2);
        assert_eq!(fs::read_link(t.at.join("link")).unwrap(), Path::new("big"));
        for n in 0..10 {
            assert!(!t.at.join(format!("d{n}/.gitignore")).exists());
        }
    };
    // The second asks for the times of last access that the first has changed.
    look();
    look();
    assert_eq!(requests(&t, look), none());
}

/// Directories are opened by the kernel itself where it checks permissions (a root daemon's mount); on an ordinary user's mount
/// each open of one comes to the guard.
#[test]
fn without_permission_checks_in_the_kernel_a_directory_is_opened_at_the_guard_and_read_in_the_kernel() {
    let t = furnished(false);
    t.hold(1, 1);
    walk(&t.at);
    walk(&t.at);
    let again = requests(&t, || assert_eq!(walk(&t.at).len(), 212));
    assert_eq!(again, BTreeMap::from([("OPENDIR", 11)]));
}

/// close(2) comes to the guard only where there is something to say: files open for writing on network storage, which it
/// flushes, and reports. On a filesystem of this machine it says nothing, as there.
#[test]
fn a_file_that_is_made_and_written_costs_what_the_protocol_asks_for() {
    let t = furnished(true);
    t.hold(1, 1);
    let made = requests(&t, || {
        for n in 0..100 {
            fs::write(t.at.join(format!("d0/new{n}")), b"text").unwrap();
        }
    });
    let per_file: u64 = made.values().sum::<u64>() / 100;
    assert!(per_file <= 5, "{made:?}");
    assert!(!made.contains_key("FLUSH"), "there is nothing to say at close: {made:?}");
    assert_eq!(made["WRITE"], 100);
}

#[test]
fn a_listing_that_does_not_fit_into_one_answer_shows_each_name_once() {
    const MANY: usize = 3000;
    let t = Tree::mounted(true, |lower| {
        for n in 0..MANY {
            fs::write(lower.join(format!("a file with a name that is not short {n}")), b"").unwrap();
        }
    });
    for held in [false, true] {
        if held {
            t.hold(1, 1);
        }
        for _ in 0..2 {
            let mut names: Vec<_> = fs::read_dir(&t.at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), MANY);
        }
    }
    // Removing while it is listed, as `rm -r` does.
    fs::read_dir(&t.at).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
    assert_eq!(fs::read_dir(&t.lower).unwrap().count(), 0);
    fs::remove_dir(t.at.join("nothing")).unwrap_err();
}

#[test]
fn a_directory_that_the_kernel_opens_by_itself_can_be_synced_and_has_flags() {
    let t = furnished(true);
    t.hold(1, 1);
    let dir = File::open(t.at.join("d0")).unwrap();
    dir.sync_all().unwrap();
    let flags = rustix::fs::ioctl_getflags(&dir).map_err(|why| why.raw_os_error());
    let below = rustix::fs::ioctl_getflags(File::open(t.lower.join("d0")).unwrap()).map_err(|why| why.raw_os_error());
    assert_eq!(flags, below);
    assert!(!t.mount.requests().contains_key("RELEASEDIR"));
}

/// Everything that a kernel keeps of a tree, seen through it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    gone: bool,
    new: bool,
    names: Vec<(String, u64)>,
    link: Option<std::path::PathBuf>,
    opened: Vec<u8>,
    held: Vec<u8>,
    mapped: u8,
}

struct Eyes {
    held: File,
    map: Mapping,
}

impl Eyes {
    fn on(t: &Tree) -> Eyes {
        let held = File::open(t.at.join("data")).unwrap();
        let map = Mapping::to_read(&held, 4096);
        Eyes { held, map }
    }

    fn look(&self, t: &Tree) -> Seen {
        let p = |name: &str| t.at.join(name);
        let mut held = vec![0; 4096];
        self.held.read_exact_at(&mut held, 0).unwrap();
        Seen {
            size: fs::metadata(p("grows")).unwrap().len(),
            gone: p("goes").exists(),
            new: p("comes").exists(),
            names: walk(&t.at),
            link: fs::read_link(p("link")).ok(),
            opened: fs::read(p("data")).unwrap(),
            held,
            mapped: self.map.get(0),
        }
    }
}

fn small_tree(faults: Faults) -> Tree {
    Tree::with(faults, None, true, |lower| {
        fs::write(lower.join("grows"), b"1").unwrap();
        fs::write(lower.join("goes"), b"1").unwrap();
        fs::write(lower.join("data"), vec![b'1'; 4096]).unwrap();
        fs::create_dir(lower.join("d")).unwrap();
        symlink("one", lower.join("link")).unwrap();
        [lower.join("data"), lower.join("d"), lower.to_owned()].iter().for_each(|path| set_time(path));
    })
}

/// What another side does, on a storage whose time stamps are too coarse to tell.
fn change(lower: &Path) {
    fs::write(lower.join("grows"), b"22").unwrap();
    fs::remove_file(lower.join("goes")).unwrap();
    fs::write(lower.join("comes"), b"2").unwrap();
    fs::write(lower.join("d/inside"), b"2").unwrap();
    fs::remove_file(lower.join("link")).unwrap();
    symlink("two", lower.join("link")).unwrap();
    fs::write(lower.join("data"), vec![b'2'; 4096]).unwrap();
    [lower.join("data"), lower.join("d"), lower.to_owned()].iter().for_each(|path| set_time(path));
}

fn after_the_change() -> Seen {
    let names = [("comes", 1), ("d", 0), ("data", 4096), ("grows", 2), ("inside", 1), ("link", 3)];
    Seen {
        size: 2,
        gone: false,
        new: true,
        names: names.map(|(name, size)| (name.to_owned(), size)).to_vec(),
        link: Some("two".into()),
        opened: vec![b'2'; 4096],
        held: vec![b'2'; 4096],
        mapped: b'2',
    }
}

/// Looks as the holder, whose kernel may keep it for an hour; then another side has its turn.
fn another_sides_turn(faults: Faults) -> (Seen, Seen) {
    let t = small_tree(faults);
    t.hold(1, 1);
    let eyes = Eyes::on(&t);
    eyes.look(&t);
    eyes.look(&t);
    t.release();
    t.elsewhere(2);
    change(&t.lower);
    let as_reader = eyes.look(&t);
    t.hold(3, 3);
    (as_reader, eyes.look(&t))
}

/// At a grant all that the kernel keeps is dropped before the gate opens, whatever a file's times say.
#[test]
fn after_another_sides_turn_nothing_is_read_that_was_there_before_through_no_cache() {
    let (as_reader, as_holder) = another_sides_turn(Faults::default());
    assert_eq!(as_reader, after_the_change());
    assert_eq!(as_holder, after_the_change());
}

#[test]
fn control_if_the_kernel_is_not_told_to_forget_all_of_it_is_stale() {
    let (as_reader, as_holder) = another_sides_turn(Faults { keep_always: true, ..forgetting_off() });
    let new = after_the_change();
    for seen in [as_reader, as_holder] {
        assert_eq!((seen.size, seen.gone, seen.new), (1, true, false), "attributes and names");
        assert_ne!(seen.names, new.names, "listings");
        assert_ne!(seen.link, new.link, "what a symlink leads to");
        assert_ne!(seen.opened, new.opened, "pages, through a new open");
        assert_ne!(seen.held, new.held, "pages, through an old handle");
        assert_ne!(seen.mapped, new.mapped, "pages, through a mapping");
    }
}

/// What was read without the lease, and is opened with it.
fn read_before_the_grant(faults: Faults) -> Vec<u8> {
    let t = small_tree(faults);
    let read = || fs::read(t.at.join("data")).unwrap();
    read();
    change(&t.lower);
    t.hold(3, 3);
    read()
}

/// That is so, too, for what this side itself read without the lease.
#[test]
fn what_was_read_without_the_lease_is_read_anew_with_it_though_its_times_say_that_it_is_the_same() {
    assert_eq!(read_before_the_grant(Faults::default()), vec![b'2'; 4096]);
}

#[test]
fn control_if_the_grant_drops_nothing_the_holder_keeps_what_it_read_before() {
    assert_eq!(read_before_the_grant(forgetting_off()), vec![b'1'; 4096]);
}

/// When the lease ends, or its deadline passes, the kernel is told to forget at once and a second later again, and waits for
/// nobody.
#[test]
fn when_the_deadline_has_passed_the_kernel_forgets_without_a_word_of_the_server() {
    let t = small_tree(Faults::default());
    t.hold(1, 1);
    let eyes = Eyes::on(&t);
    eyes.look(&t);
    eyes.look(&t);
    t.clock.advance(HOUR);
    // As the daemon does when it reads the clock.
    let lapsed = t.mount.standing();
    t.mount.publish(Standing { serial: lapsed.serial + 1, ..lapsed });
    change(&t.lower);
    eventually("what the other side wrote is seen", || eyes.look(&t) == after_the_change());
}

/// At a deadline the pages of files that somebody may write are left until the lease is gone for good: they may still have to
/// be written.
#[test]
fn what_is_stored_through_a_mapping_at_the_deadline_is_written_if_the_lease_goes_on() {
    let t = Tree::held();
    fs::write(t.at.join("m"), vec![b'1'; 4096]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(t.at.join("m")).unwrap();
    // The kernel knows the time of the write: else it would take it for another's, and drop the pages.
    file.metadata().unwrap();
    let map = Mapping::of(&file, 4096);
    map.put(0, b'a');
    t.clock.advance(HOUR);
    let lapsed = t.mount.standing();
    let looks = || t.mount.requests().get("LOOKUP").copied().unwrap_or(0);
    t.mount.publish(Standing { serial: lapsed.serial + 1, ..lapsed });
    let before = looks();
    // The second round of forgetting is over when its name is asked for twice.
    for round in 1..=2 {
        t.clock.advance(Duration::from_secs(1));
        eventually("the kernel is told to forget", || {
            fs::metadata(t.at.join("m")).unwrap();
            looks() >= before + round
        });
    }
    let until = t.clock.now().after(HOUR);
    t.mount.publish(Standing { serial: lapsed.serial + 2, right: Right::Write { until }, ..lapsed });
    assert_eq!(map.sync(), 0);
    assert_eq!(fs::read(t.lower.join("m")).unwrap()[0], b'a');
}

/// A reader lists a directory; another side adds a file, and the time of last change does not tell. How often the listing was
/// read before it was right, or None: never, though the kernel has asked for the directory's attributes several times since.
fn listed_by_a_reader(faults: Faults) -> bool {
    let t = Tree::with(faults, None, true, set_time);
    let count = || fs::read_dir(&t.at).unwrap().count();
    assert_eq!(count(), 0);
    fs::write(t.lower.join("new"), b"").unwrap();
    set_time(&t.lower);
    t.clock.advance(Duration::from_secs(1));
    let asked = || t.mount.requests().get("GETATTR").copied().unwrap_or(0);
    let before = asked();
    let mut seen = false;
    eventually("it is seen, or the kernel has looked three times and believes its listing", || {
        seen = count() == 1;
        seen || asked() >= before + 3
    });
    seen
}

/// A kept listing is dropped when the names in it are believed no more, without the lease half a second after it was read: the
/// directory's time of change, which the kernel compares, may be too coarse.
#[test]
fn a_reader_sees_a_new_name_though_the_directorys_time_does_not_tell() {
    assert!(listed_by_a_reader(Faults::default()));
}

#[test]
fn control_if_old_listings_are_not_forgotten_a_reader_never_sees_the_name() {
    assert!(!listed_by_a_reader(forgetting_off()));
}

/// A tree with a directory of its own and one that is another tree's; and what is seen of either.
fn two_directories() -> Tree {
    let t = Tree::mounted(true, |lower| {
        for dir in ["ours", "theirs"] {
            fs::create_dir(lower.join(dir)).unwrap();
            fs::write(lower.join(dir).join("f"), b"text").unwrap();
        }
        fs::write(lower.join("theirs/.treelease-tree"), b"{}").unwrap();
    });
    t.hold(1, 1);
    t
}

fn seen_in(dir: &Path) -> (Vec<u8>, u64, usize, bool) {
    let file = dir.join("f");
    (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().len(), walk(dir).len(), dir.join("new").exists())
}

/// Changes a directory past the guard, after it was looked at.
fn changed(t: &Tree, dir: &str) {
    seen_in(&t.at.join(dir));
    seen_in(&t.at.join(dir));
    fs::write(t.lower.join(dir).join("f"), b"longer").unwrap();
    fs::write(t.lower.join(dir).join("new"), b"").unwrap();
}

/// In `off` and `observe`, where nobody is refused, and below another tree's marker, what the kernel keeps is as without the
/// lease.
#[test]
fn where_the_lease_keeps_nobody_out_the_holder_believes_no_longer_than_a_reader() {
    let t = two_directories();
    let new = (b"longer".to_vec(), 6, 2, true);
    changed(&t, "theirs");
    eventually("it is seen in another tree's directory", || seen_in(&t.at.join("theirs")) == new);
    let before = t.mount.standing();
    t.mount.publish(Standing { serial: before.serial + 1, mode: Mode::Observe, ..before });
    changed(&t, "ours");
    eventually("it is seen where nobody is refused", || seen_in(&t.at.join("ours")) == new);
}

#[test]
fn control_in_its_own_tree_the_holder_believes_what_it_has() {
    let t = two_directories();
    changed(&t, "ours");
    // As a clock: there the kernel asks every half second.
    let asked = || t.mount.requests().values().sum::<u64>();
    let before = asked();
    eventually("a reader would have asked twice", || fs::metadata(t.at.join("theirs/f")).is_ok() && asked() >= before + 3);
    assert_eq!(seen_in(&t.at.join("ours")), (b"text".to_vec(), 4, 1, false));
}

/// Pages that the storage did not take are dropped by the next open.
#[test]
fn pages_that_the_storage_did_not_take_are_dropped_by_the_next_open() {
    const SIZE: usize = 64 << 10;
    let mut small = None;
    let t = Tree::with(Faults::default(), None, true, |lower| small = Some(Small::over(lower)));
    t.hold(1, 1);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(t.at.join("sparse")).unwrap();
    file.set_len(SIZE as u64).unwrap();
    let map = Mapping::of(&file, SIZE);
    (0..SIZE / 4096).for_each(|page| map.put(page * 4096, b'x'));
    assert_eq!(map.sync(), ENOSPC);
    drop(map);
    let mut below = Vec::new();
    File::open(t.lower.join("sparse")).unwrap().read_to_end(&mut below).unwrap();
    assert!(fs::read(t.at.join("sparse")).unwrap() == below, "what is not on the storage is read");
}
