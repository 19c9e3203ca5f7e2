//! Little is ever unconfirmed (DESIGN 3), on a disk whose syncs take their time, hang or fail, and that counts by itself what it has
//! not confirmed (`tests/src/disk/pace.rs`). Needs root and /dev/fuse.
//!
//! The guard's clock is the test's own, where a rule is about time: it stands still between two steps, whatever the machine does.
//! A file whose sync hangs is not touched meanwhile: on a FUSE filesystem the kernel would wait for that sync.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc::{EIO, EROFS};
use rustix::fs::{Mode as Bits, OFlags};
use tempfile::TempDir;
use treelease_client::words::clock::{Clock, ManualClock, SideClock};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_guard::fs::faults::Faults;
use treelease_guard::fuse::{Mount, MountOptions};
use treelease_guard::gate::{Hooks, LateWrite, Refused, Right, Standing};
use treelease_tests::disk::{Disk, Model, Pace};
use treelease_tests::hosts::{Server, Side, World, holds_within, quick, wait_for};

/// Longer than anything takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DIRTY_MAX: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
/// DESIGN 3.
const LIMIT_BYTES: u64 = 64 * MIB;
/// Files of a MiB each.
const FILES: u64 = 100;

/// Nobody listens.
struct Deaf;

impl Hooks for Deaf {
    fn wants_lease(&self) {}
    fn late_write(&self, _: LateWrite) {}
    fn refused(&self, _: Refused) {}
}

/// A guard that holds the lease, over a far disk.
struct Far {
    // The guard goes first.
    mount: Mount,
    clock: Arc<ManualClock>,
    pace: Arc<Pace>,
    at: PathBuf,
    _disk: Disk,
    _dir: TempDir,
}

impl Far {
    fn new(pace: Pace, faults: Faults) -> Far {
        let clock = Arc::new(ManualClock::new());
        let told = clock.clone();
        Self::with(pace, faults, clock, told)
    }

    fn with(pace: Pace, faults: Faults, manual: Arc<ManualClock>, clock: Arc<dyn Clock>) -> Far {
        let dir = tempfile::tempdir().unwrap();
        let (lower, at, pace) = (dir.path().join("lower"), dir.path().join("at"), Arc::new(pace));
        fs::create_dir(&at).unwrap();
        let disk = Disk::mount_paced(Model::new(), &pace, &lower);
        let root = rustix::fs::open(&lower, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Bits::empty()).unwrap();
        let until = clock.now().after(HOUR);
        let epoch = Epoch::from_raw(1);
        let standing = Standing { serial: 1, epoch, right: Right::Write { until }, ..Standing::unknown(Mode::Enforce) };
        let options = MountOptions {
            lower: root,
            lower_path: lower,
            at: at.clone(),
            tree_name: "dev".into(),
            threads: 4,
            allow_other: false,
            standing,
            earlier: None,
            faults,
        };
        let mount = Mount::start(options, Arc::new(Deaf), clock).unwrap();
        mount.begin_epoch(epoch).unwrap();
        mount.write_back(Some(DIRTY_MAX));
        Far { mount, clock: manual, pace, at, _disk: disk, _dir: dir }
    }

    /// Makes a file of a MiB.
    fn fill(&self, name: &str) -> std::io::Result<()> {
        fs::write(self.at.join(name), vec![7; MIB as usize])
    }

    fn file(&self, name: &str) -> File {
        File::create(self.at.join(name)).unwrap()
    }

    /// Makes many files, one after the other.
    fn fill_many(&self) -> std::io::Result<()> {
        (0..FILES).try_for_each(|n| self.fill(&format!("file-{n}")))
    }
}

fn no_write_back() -> Faults {
    Faults { no_write_back: true, ..Faults::default() }
}

/// On network storage what was written is asked to be durable when half of `dirty_max` has passed, though nobody syncs it and the
/// stream of writes does not end. A `dirty_max` that changes counts at once.
#[test]
fn what_is_written_is_on_the_storage_within_dirty_max_though_nobody_syncs_it() {
    let far = Far::new(Pace::default(), Faults::default());
    let mut file = far.file("stream");
    for _ in 0..3 {
        file.write_all(&[7; 5000]).unwrap();
        far.clock.advance(DIRTY_MAX / 2 - Duration::from_millis(1));
        file.write_all(&[7; 1000]).unwrap();
        assert_eq!(far.pace.unconfirmed(), 6000, "not before it is due");
        far.clock.advance(Duration::from_millis(1));
        wait_for(LIMIT, "all of it is confirmed", || far.pace.unconfirmed() == 0);
        wait_for(LIMIT, "and the guard knows", || far.mount.unconfirmed() == (0, Duration::ZERO));
    }
    far.mount.write_back(Some(HOUR));
    file.write_all(&[7; 5000]).unwrap();
    far.clock.advance(DIRTY_MAX);
    assert_eq!((far.pace.unconfirmed(), far.mount.unconfirmed()), (5000, (5000, DIRTY_MAX)));
    far.mount.write_back(Some(DIRTY_MAX));
    wait_for(LIMIT, "the policy has changed", || far.pace.unconfirmed() == 0);
}

#[test]
fn control_without_writing_back_it_lies_in_this_machines_memory() {
    let far = Far::new(Pace::default(), no_write_back());
    far.file("stream").write_all(&[7; 5000]).unwrap();
    far.clock.advance(HOUR / 2);
    assert!(!holds_within(Duration::from_secs(1), || far.pace.unconfirmed() == 0));
}

/// At most 64 MiB are unconfirmed: who writes faster than the storage confirms waits, and nobody else does. The wait ends when the
/// storage has confirmed enough.
#[test]
fn who_writes_faster_than_the_storage_confirms_waits_before_more_than_64_mib_are_unconfirmed() {
    let far = Far::new(Pace::default(), Faults::default());
    far.fill("readme").unwrap();
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| far.fill_many());
        // After the threads: the end of a test that fails lets them go.
        let hung = far.pace.hang();
        wait_for(LIMIT, "the writer waits", || far.mount.waiting_for_room() == 1);
        assert!(far.pace.unconfirmed() > LIMIT_BYTES - 2 * MIB, "and not before it must");
        assert_eq!(fs::read(far.at.join("readme")).unwrap().len() as u64, MIB, "others are served");
        assert!(!writer.is_finished());
        drop(hung);
        wait_for(LIMIT, "it goes on", || writer.is_finished());
        writer.join().unwrap().unwrap();
    });
    let most = far.pace.seen().most;
    assert!(most <= LIMIT_BYTES, "{most}");
}

#[test]
fn control_without_a_limit_as_much_is_unconfirmed_as_a_program_likes() {
    let far = Far::new(Pace::default(), no_write_back());
    let hung = far.pace.hang();
    far.fill_many().unwrap();
    assert_eq!(far.pace.unconfirmed(), FILES * MIB);
    drop(hung);
}

/// Who waits for the storage is refused at the deadline (EROFS), also when the storage never answers again.
#[test]
fn who_waits_for_the_storage_is_refused_at_the_deadline() {
    let far = Far::new(Pace::default(), Faults::default());
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| far.fill_many());
        let hung = far.pace.hang();
        wait_for(LIMIT, "the writer waits", || far.mount.waiting_for_room() == 1);
        // Sooner than a wait ends by itself.
        let until = far.clock.now().after(Duration::from_secs(10));
        far.mount.publish(Standing { right: Right::Write { until }, ..far.mount.standing() });
        far.clock.advance(Duration::from_secs(11));
        wait_for(LIMIT, "it is refused", || writer.is_finished());
        assert_eq!(writer.join().unwrap().unwrap_err().raw_os_error(), Some(EROFS));
        drop(hung);
    });
}

/// What was admitted before a deadline is asked to be durable at once when it has passed.
#[test]
fn past_a_deadline_what_is_unconfirmed_is_written_back_at_once() {
    let far = Far::new(Pace::default(), Faults::default());
    far.mount.write_back(Some(10 * HOUR));
    far.file("f").write_all(&[7; 5000]).unwrap();
    assert_eq!(far.pace.unconfirmed(), 5000);
    far.clock.advance(HOUR);
    wait_for(LIMIT, "it is confirmed", || far.pace.unconfirmed() == 0);
}

/// On a storage that confirms slowly, a stream of writes, on this machine's own clock.
#[test]
fn a_slow_storage_has_few_bytes_to_confirm_and_none_is_old() {
    let (manual, clock) = (Arc::new(ManualClock::new()), Arc::new(SideClock::new()));
    let far = Far::with(Pace::of(24 * MIB), Faults::default(), manual, clock);
    far.fill_many().unwrap();
    let seen = far.pace.seen();
    println!("{seen:?}");
    assert!(seen.most <= LIMIT_BYTES && seen.syncs > 0, "{seen:?}");
    wait_for(LIMIT, "the rest", || far.pace.unconfirmed() == 0);
    let (seen, loaded_machine) = (far.pace.seen(), Duration::from_secs(20));
    assert!(seen.oldest <= DIRTY_MAX + 2 * seen.longest_sync + loaded_machine, "{seen:?}");
}

/// A write that the storage acknowledged and then could not keep is an error of every later fsync of that file, though the storage
/// says it once, and to the guard; and the tree does not go over clean.
#[test]
fn an_error_that_only_writing_back_was_told_is_not_forgotten() {
    let far = Far::new(Pace::default(), Faults::default());
    let (lost, other) = (far.file("lost"), far.file("other"));
    far.pace.fail_next();
    lost.write_all_at(b"gone", 0).unwrap();
    far.clock.advance(DIRTY_MAX);
    wait_for(LIMIT, "it is told", || far.mount.take_failed());
    assert!(!far.mount.take_failed(), "once");
    let errno = |done: std::io::Result<()>| done.map_or_else(|e| e.raw_os_error().unwrap(), |()| 0);
    for _ in 0..2 {
        assert_eq!(errno(lost.sync_all()), EIO);
        assert_eq!(errno(other.sync_all()), 0);
    }
    let files = far.mount.flush(LIMIT).unwrap_err().files;
    assert!(files.iter().any(|file| file.starts_with("lost:")), "{files:?}");
    far.mount.begin_epoch(Epoch::from_raw(2)).unwrap();
    assert_eq!(errno(lost.sync_all()), EIO, "of this handle");
    assert!(far.mount.flush(LIMIT).is_ok(), "and not of the next epoch");
}

/// A real side over such a disk.
struct Scene {
    side: Side,
    _server: Server,
    // The disk goes last: the world ends who uses it.
    world: World,
    pace: Arc<Pace>,
    _disk: Disk,
}

impl Scene {
    fn new(policy: &[&str], fault: Option<&str>) -> Scene {
        let (world, pace) = (World::new(), Arc::new(Pace::default()));
        let disk = Disk::mount_paced(Model::new(), &pace, &world.lower("dev"));
        let server = world.server();
        let mut side = world.side("workstation", &server);
        if let Some(fault) = fault {
            side = side.fault(fault);
        }
        world.tree(&side, "dev", &quick(policy));
        side.mount("dev", &world.lower("dev"));
        side.ok(&["acquire", "dev"]);
        Scene { side, _server: server, world, pace, _disk: disk }
    }

    fn notes(&self) -> String {
        self.side.tree_status("dev")["notes"].to_string()
    }

    /// Below the guard.
    fn is_below(&self, name: &str) -> bool {
        self.world.lower("dev").join(name).exists()
    }
}

/// While the storage has confirmed nothing at all for half a TTL, mutations wait, and no longer than to the deadline; they go on as
/// soon as it confirms something.
#[test]
fn a_storage_that_confirms_nothing_for_half_a_ttl_shuts_the_gate_until_it_does() {
    let scene = Scene::new(&[], None);
    let mut file = File::create(scene.side.at("dev").join("one")).unwrap();
    std::thread::scope(|threads| {
        let hung = scene.pace.hang();
        file.write_all(b"unconfirmed").unwrap();
        wait_for(LIMIT, "it is said", || scene.notes().contains("confirms nothing"));
        let writer = threads.spawn(|| fs::write(scene.side.at("dev").join("two"), b"x"));
        let wrote = holds_within(Duration::from_secs(3), || scene.is_below("two"));
        drop(hung);
        assert!(!wrote, "no mutation is admitted");
        wait_for(LIMIT, "it goes on", || writer.is_finished());
        writer.join().unwrap().unwrap();
    });
    assert!(scene.is_below("two") && scene.side.holds("dev"));
    assert!(scene.notes().contains("confirms again"));
}

#[test]
fn control_without_writing_back_acknowledged_bytes_pile_up_before_a_storage_that_hangs() {
    let scene = Scene::new(&[], Some("no_write_back"));
    let mut file = File::create(scene.side.at("dev").join("one")).unwrap();
    let hung = scene.pace.hang();
    file.write_all(b"unconfirmed").unwrap();
    wait_for(LIMIT, "its own flush before rest hangs", || scene.pace.seen().hanging > 0);
    fs::write(scene.side.at("dev").join("two"), b"x").unwrap();
    assert!(scene.pace.unconfirmed() > 0);
    drop(hung);
}

/// `dirty_max` is obeyed as it is set, without a new mount.
#[test]
fn dirty_max_changes_while_the_tree_is_mounted() {
    let scene = Scene::new(&["dirty_max=24h"], None);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let (end, stop) = (Stop(&stop), &stop);
        let mut file = File::create(scene.side.at("dev").join("stream")).unwrap();
        let stream = threads.spawn(move || {
            // Never a second of quiet: it does not come to rest.
            while !stop.load(Ordering::SeqCst) {
                file.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        scene.side.run(&["tree", "set", "dev", "dirty_max=1ms"]).refused(2, &["dirty_max", "100ms"]);
        scene.side.ok(&["tree", "set", "dev", "dirty_max=200ms"]);
        let before = scene.pace.seen().syncs;
        wait_for(LIMIT, "it is written back", || scene.pace.seen().syncs > before + 5);
        drop(end);
        stream.join().unwrap();
    });
}

/// Ends a stream, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
