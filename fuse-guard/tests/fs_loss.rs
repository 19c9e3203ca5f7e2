//! Losing the lease at a random instant (I4): no byte reaches the storage later than the deadline that is not an error to its program
//! and counted. Needs /dev/fuse.
//!
//! The recorder is a filesystem below the guard: a second guard in `observe`, with the same deadline on the same clock. It lets
//! everything through and writes down what comes after the deadline. The instant is one of the clock's own readings: right after
//! the n-th from now the time is up, so that every gap between two looks at the clock is hit, the one between the gate's word and
//! the system call too.

mod fs_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use fs_support::{Ears, HOUR, Mapping, errno, eventually, open_root};
use nix::libc::{EIO, ENOENT, EROFS};
use rustix::fs::{FallocateFlags, XattrFlags};
use tempfile::TempDir;
use treelease_client::words::clock::{Clock, Machine, SideClock};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::{BootTime, WallTime};
use treelease_guard::fs::faults::Faults;
use treelease_guard::fuse::{Mount, MountOptions};
use treelease_guard::gate::{Right, Standing};

/// A side's clock, on a machine whose time jumps past every deadline right after one of its readings.
struct Jumping {
    machine: Arc<Machine>,
    clock: SideClock<Arc<Machine>>,
    /// Readings until then; none while it is not above zero.
    left: AtomicI64,
}

impl Default for Jumping {
    fn default() -> Self {
        let machine = Arc::new(Machine::default());
        Jumping { clock: SideClock::on(machine.clone()), machine, left: AtomicI64::new(0) }
    }
}

impl Jumping {
    fn read(&self, by: fn(&SideClock<Arc<Machine>>) -> BootTime) -> BootTime {
        let time = by(&self.clock);
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.machine.pass(2 * HOUR, 0);
        }
        time
    }
}

impl Clock for Jumping {
    fn now(&self) -> BootTime {
        self.read(Clock::now)
    }
    fn at_latest(&self) -> BootTime {
        self.read(Clock::at_latest)
    }
    fn wall(&self) -> WallTime {
        WallTime::UNKNOWN
    }
}

/// One mount, and what it tells.
struct Layer {
    mount: Mount,
    ears: Arc<Ears>,
}

impl Layer {
    fn over(lower: &Path, at: &Path, mode: Mode, clock: &Arc<Jumping>) -> Layer {
        let ears = Arc::new(Ears::default());
        let options = MountOptions {
            lower: open_root(lower),
            lower_path: lower.into(),
            at: at.into(),
            tree_name: "dev".into(),
            threads: 4,
            allow_other: false,
            standing: Standing::unknown(mode),
            earlier: None,
            faults: Faults::default(),
        };
        let mount = Mount::start(options, ears.clone(), clock.clone() as Arc<dyn Clock>).unwrap();
        Layer { mount, ears }
    }

    fn publish(&self, right: Right) {
        let before = self.mount.standing();
        let epoch = Epoch::from_raw(before.epoch.get() + 1);
        self.mount.publish(Standing { serial: before.serial + 1, epoch, right, ..before });
    }
}

/// The guard, the recorder below it, and the storage below that.
struct Scene {
    // The upper one goes first.
    guard: Layer,
    recorder: Layer,
    clock: Arc<Jumping>,
    at: PathBuf,
    _dir: TempDir,
}

impl Scene {
    /// `mode`: the guard's; the control has one that refuses nothing.
    fn new(mode: Mode) -> Scene {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let [storage, middle, at] = ["storage", "middle", "at"].map(|name| dir.path().join(name));
        for path in [&storage, &middle, &at] {
            fs::create_dir(path).unwrap();
        }
        let clock = Arc::new(Jumping::default());
        let recorder = Layer::over(&storage, &middle, Mode::Observe, &clock);
        let guard = Layer::over(&middle, &at, mode, &clock);
        Scene { guard, recorder, clock, at, _dir: dir }
    }

    /// A lease, with one deadline for both layers.
    fn hold(&self) {
        self.clock.left.store(0, Ordering::SeqCst);
        let until = self.clock.clock.now().after(HOUR);
        self.recorder.publish(Right::Write { until });
        self.guard.publish(Right::Write { until });
    }

    /// What has reached the storage after the deadline. Opening a file for writing changes nothing there.
    fn recorded(&self) -> usize {
        let refused = self.recorder.ears.refused.lock().unwrap();
        refused.iter().filter(|what| !["open for writing", "access(W_OK)"].contains(&what.op)).count()
    }

    /// Late writes that were reported. Counted are those too that had failed by themselves, and changed nothing.
    fn late(&self) -> usize {
        let reported = self.guard.ears.late.lock().unwrap().len();
        assert!(self.guard.mount.counts().late as usize >= reported, "each is counted");
        reported
    }

    /// Whether the time is up.
    fn is_over(&self) -> bool {
        self.clock.left.load(Ordering::SeqCst) <= 0
    }
}

/// A call's name, and the call: its error number.
type Call = (&'static str, Box<dyn Fn() -> i32>);

/// What one program does in a round, call by call, in a directory of its own; most of it once.
fn calls(dir: &Path) -> Vec<Call> {
    let path = |name: &str| dir.join(name);
    let file = Arc::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path("open")).unwrap());
    for name in ["old", "cut", "gone", "mode"] {
        fs::write(path(name), "text").unwrap();
    }
    let (a, b, c, d) = (file.clone(), file.clone(), file.clone(), file);
    let (dir, name) = (dir.to_owned(), move |name: &str| path(name));
    let [made, old, new, cut, gone, mode, linked, led] =
        ["made", "old", "new", "cut", "gone", "mode", "linked", "led"].map(&name);
    let (new_too, subdir) = (new.clone(), dir.join("sub"));
    vec![
        ("write", Box::new(move || errno(a.write_all_at(b"bytes", 0)))),
        ("create", Box::new(move || errno(File::create_new(&made)))),
        // From a page's beginning: the kernel sends the rest of a page by itself, and of two requests the program hears of the first.
        ("write beyond the end", Box::new(move || errno(b.write_all_at(&[1; 5000], 4096)))),
        ("mkdir", Box::new(move || errno(fs::create_dir(&subdir)))),
        ("rename", Box::new(move || errno(fs::rename(&old, &new)))),
        ("truncate", Box::new(move || errno(nix::unistd::truncate(&cut, 1).map_err(Into::into)))),
        ("link", Box::new(move || errno(fs::hard_link(&mode, &linked)))),
        ("fallocate", Box::new(move || errno(rustix::fs::fallocate(&*c, FallocateFlags::empty(), 0, 9000).map_err(Into::into)))),
        ("symlink", Box::new(move || errno(symlink("f", &led)))),
        ("unlink", Box::new(move || errno(fs::remove_file(&gone)))),
        (
            "setxattr",
            Box::new(move || errno(rustix::fs::setxattr(&new_too, "user.note", b"x", XattrFlags::empty()).map_err(Into::into))),
        ),
        ("ftruncate", Box::new(move || errno(d.set_len(7)))),
        ("chmod", Box::new(move || errno(fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))))),
    ]
}

/// What broke the rule in so many rounds, and how many late ones there were.
fn lose_it_at_every_reading(mode: Mode, rounds: i64) -> (Vec<String>, usize) {
    let scene = Scene::new(mode);
    let mut broken = Vec::new();
    for round in 1..=rounds {
        scene.hold();
        let dir = scene.at.join(format!("{round}"));
        fs::create_dir(&dir).unwrap();
        let calls = calls(&dir);
        let map_file = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("mapped")).unwrap();
        map_file.set_len(4096).unwrap();
        let map = Mapping::of(&map_file, 4096);
        map.put(0, b'x');
        scene.clock.left.store(round, Ordering::SeqCst);
        let mut call = |what: &str, call: &dyn Fn() -> i32| {
            let (over, recorded, late) = (scene.is_over(), scene.recorded(), scene.late());
            let said = call();
            let (came, counted) = (scene.recorded() - recorded, scene.late() - late);
            let after = || format!("round {round}: {what} said {said}, {came} reached the storage late, {counted} were counted");
            // What came after the deadline is an error to its program, and counted; and whoever came after it is refused.
            if (came > 0 && (said != EIO || counted == 0)) || (counted > 0) != (said == EIO) || (over && (came > 0 || said == 0))
            {
                broken.push(after());
            }
        };
        for (what, work) in &calls {
            call(what, work);
        }
        // Every reading is used up: from here on the time is over in every round.
        while !scene.is_over() {
            scene.clock.now();
        }
        let before = scene.recorded();
        map.put(1, b'y');
        let synced = map.sync();
        if synced == 0 || scene.recorded() > before {
            broken.push(format!("round {round}: msync of a page stored too late said {synced}"));
        }
    }
    // Also those of files that were made, or opened and cut, too late: of them the kernel knows nothing.
    eventually("every handle is let go of", || scene.guard.mount.known().1 == 0);
    let late = scene.late();
    (broken, late)
}

/// How many readings of the clock one round of calls takes, and some more.
const READINGS: i64 = 90;

/// At whichever instant the time is up, whatever reaches the storage after it was an error (EIO) to its program, is counted and
/// reported; and mapped pages stored too late are an error of msync.
#[test]
fn i4_at_whichever_instant_the_time_is_up_nothing_reaches_the_storage_unnoticed() {
    let rounds = if std::env::var_os("TREELEASE_LONG").is_some() { 40 * READINGS } else { READINGS };
    let (broken, late) = lose_it_at_every_reading(Mode::Enforce, rounds);
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(late > 0, "no round hit the gap between the gate's word and the call: it proves nothing");
}

#[test]
fn control_without_the_gate_bytes_reach_the_storage_after_the_deadline_and_nobody_is_told() {
    let (broken, _) = lose_it_at_every_reading(Mode::Off, 20);
    assert!(broken.iter().any(|what| what.contains("write said 0, 1 reached")), "{broken:#?}");
    assert!(broken.iter().any(|what| what.contains("msync of a page stored too late said 0")), "{broken:#?}");
}

/// Ends the writers, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How the lease goes while many write.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// By its deadline.
    Deadline,
    /// By the daemon's word, as at a surrender or a break.
    Word,
    /// The machine sleeps.
    Suspend,
}

#[test]
fn i4_with_many_writers_nothing_comes_after_the_last_permit_and_each_late_one_is_counted() {
    const WRITERS: usize = 4;
    let scene = Scene::new(Mode::Enforce);
    // Each leaves nine nodes in two guards: many more would be out of descriptors.
    let rounds = if std::env::var_os("TREELEASE_LONG").is_some() { 900 } else { 60 };
    for round in 0..rounds {
        scene.hold();
        let dir = scene.at.join(format!("{round}"));
        fs::create_dir(&dir).unwrap();
        let (recorded, late) = (scene.recorded(), scene.late());
        let (stop, written, told) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|threads| {
            let end = Stop(&stop);
            for writer in 0..WRITERS {
                let (dir, stop, written, told) = (&dir, &stop, &written, &told);
                let file = File::create(dir.join(format!("file-{writer}"))).unwrap();
                let mut names = ["a", "b"].map(|name| dir.join(format!("{name}-{writer}")));
                fs::write(&names[0], "moved").unwrap();
                threads.spawn(move || {
                    for n in 0u64.. {
                        // Each is one call on the storage.
                        let said = match n % 3 {
                            0 => errno(fs::rename(&names[0], &names[1])),
                            _ => errno(file.write_all_at(&n.to_le_bytes(), n % 512 * 8)),
                        };
                        if n % 3 == 0 && said == 0 {
                            names.swap(0, 1);
                        }
                        match said {
                            0 => _ = written.fetch_add(1, Ordering::SeqCst),
                            EIO => _ = told.fetch_add(1, Ordering::SeqCst),
                            // Its rename was late: it is told so, and it has happened.
                            ENOENT => names.swap(0, 1),
                            EROFS => {}
                            other => panic!("error {other}"),
                        }
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            let enough = 4 + (round as u64 * 7) % 90;
            eventually("they write", || written.load(Ordering::SeqCst) >= enough);
            let loss = [Loss::Deadline, Loss::Word, Loss::Suspend][round % 3];
            match loss {
                Loss::Deadline => scene.clock.machine.pass(2 * HOUR, 0),
                Loss::Suspend => scene.clock.machine.sleep(std::time::Duration::from_secs(1)),
                Loss::Word => scene.guard.publish(Right::Read),
            }
            eventually("permits have ended", || scene.guard.mount.in_flight() == 0);
            if matches!(loss, Loss::Word) {
                // From here on whatever comes is too late.
                scene.recorder.publish(Right::Read);
            }
            let at_rest = scene.recorded();
            let refused = scene.guard.mount.counts().refused;
            eventually("they are refused", || scene.guard.mount.counts().refused >= refused + 20);
            assert_eq!(scene.recorded(), at_rest, "round {round}: after the last permit");
            drop(end);
        });
        let (came, counted) = (scene.recorded() - recorded, scene.late() - late);
        assert_eq!(counted as u64, told.load(Ordering::SeqCst), "round {round}: each late one was an error to its program");
        assert!(came <= counted, "round {round}: {came} reached the storage late, {counted} programs were told");
    }
}
