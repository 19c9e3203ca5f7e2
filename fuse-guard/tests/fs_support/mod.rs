//! A guarded tree in a temporary directory, without a daemon: the test plays it. Unmounted whatever happens.
#![allow(dead_code)] // not every test file uses all of it

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode as Bits, OFlags};
use tempfile::TempDir;
use treelease_client::words::clock::{Clock, ManualClock};
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::policy::{Mode, OnClose};
use treelease_guard::fs::faults::Faults;
use treelease_guard::fuse::{Mount, MountError, MountOptions};
use treelease_guard::gate::{Hooks, LateWrite, Outcome, Refused, Right, Standing};

/// Hears what the daemon would.
#[derive(Default)]
pub struct Ears {
    pub wanted: AtomicUsize,
    pub late: Mutex<Vec<LateWrite>>,
    pub refused: Mutex<Vec<Refused>>,
}

impl Hooks for Ears {
    fn wants_lease(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }
    fn late_write(&self, what: LateWrite) {
        self.late.lock().unwrap().push(what);
    }
    fn refused(&self, what: Refused) {
        self.refused.lock().unwrap().push(what);
    }
}

/// One tree, one mount.
pub struct Tree {
    pub mount: Arc<Mount>,
    pub ears: Arc<Ears>,
    pub clock: Arc<ManualClock>,
    /// The raw tree, below the mount's feet.
    pub lower: PathBuf,
    /// The guarded path.
    pub at: PathBuf,
    /// For a control: the kernel is not told to forget anything.
    pub keeps_caches: bool,
    _dir: TempDir,
}

pub const HOUR: Duration = Duration::from_secs(3600);
pub const LIMIT: Duration = Duration::from_secs(10);

pub fn reader() -> Standing {
    Standing { epoch: Epoch::from_raw(1), on_close: OnClose::Refuse, ..Standing::unknown(Mode::Enforce) }
}

pub fn open_root(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Bits::empty()).unwrap()
}

impl Tree {
    /// Without the lease.
    pub fn new() -> Self {
        Self::mounted(true, |_| {})
    }

    /// With the lease, epoch 1.
    pub fn held() -> Self {
        let tree = Self::new();
        tree.hold(1, 1);
        tree
    }

    pub fn mounted(allow_other: bool, prepare: impl FnOnce(&Path)) -> Self {
        Self::with(Faults::default(), None, allow_other, prepare)
    }

    /// With rules switched off, and after an earlier mount that wrote in that epoch.
    pub fn with(faults: Faults, earlier: Option<u64>, allow_other: bool, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (lower, at) = (dir.path().join("lower"), dir.path().join("at"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::create_dir(&at).unwrap();
        prepare(&lower);
        let (ears, clock) = (Arc::new(Ears::default()), Arc::new(ManualClock::new()));
        // Other users must be able to reach it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mount = start_with(&lower, &at, allow_other, &ears, &clock, faults, earlier).unwrap();
        Tree { mount: Arc::new(mount), ears, clock, lower, at, keeps_caches: false, _dir: dir }
    }

    /// One side's mount of a raw tree that lies anywhere, without the lease.
    pub fn over(lower: &Path) -> Self {
        Self::over_with(lower, Faults::default())
    }

    /// The same, with rules switched off.
    pub fn over_with(lower: &Path, faults: Faults) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("at");
        std::fs::create_dir(&at).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (ears, clock) = (Arc::new(Ears::default()), Arc::new(ManualClock::new()));
        let mount = start_with(lower, &at, true, &ears, &clock, faults, None).unwrap();
        Tree { mount: Arc::new(mount), ears, clock, lower: lower.into(), at, keeps_caches: false, _dir: dir }
    }

    fn drop_caches(&self) {
        assert!(self.keeps_caches || self.mount.drop_caches(LIMIT), "stuck at {:?}", self.mount.dropping());
    }

    /// Granted epoch `epoch` of the run that began at `start`, by the daemon's order.
    pub fn hold(&self, epoch: u64, start: u64) {
        let (epoch, start) = (Epoch::from_raw(epoch), Epoch::from_raw(start));
        let until = self.clock.now().after(HOUR);
        let before = self.mount.standing();
        let serial = before.serial + 1;
        let opening = Standing { serial, epoch, stale_below: start, right: Right::Opening { until }, may_wait: false, ..before };
        self.mount.begin_epoch(epoch).unwrap();
        self.mount.publish(opening);
        if !self.keeps_caches {
            self.mount.forget_attributes();
        }
        self.mount.answer_waiters(Outcome::Granted { run_start: RunStart(start), epoch });
        self.drop_caches();
        self.mount.publish(Standing { serial: serial + 1, right: Right::Write { until }, ..opening });
    }

    /// The lease goes, clean. `epoch`: the latest that is known then.
    pub fn release(&self) {
        let before = self.mount.standing();
        self.mount.push_mapped(LIMIT).unwrap();
        self.mount.publish(Standing { serial: before.serial + 1, right: Right::Read, ..before });
        assert!(self.mount.drain(LIMIT));
        self.mount.flush(LIMIT).unwrap();
        self.drop_caches();
    }

    /// Another side has the tree in `epoch`.
    pub fn elsewhere(&self, epoch: u64) {
        let before = self.mount.standing();
        let epoch = Epoch::from_raw(epoch);
        self.mount.publish(Standing { serial: before.serial + 1, epoch, stale_below: epoch, right: Right::Read, ..before });
        self.drop_caches();
    }

    /// Without the lease, and nothing waits for it, nor is waiting still.
    pub fn free_for_nobody(&self) {
        let before = self.mount.standing();
        self.mount.publish(Standing { serial: before.serial + 1, right: Right::Read, may_wait: false, ..before });
        self.mount.answer_waiters(Outcome::Refused);
    }

    /// Without the lease; a first write may wait.
    pub fn free(&self) {
        let before = self.mount.standing();
        self.mount.publish(Standing { serial: before.serial + 1, right: Right::Read, may_wait: true, free: true, ..before });
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.mount.unmount(true).is_err() {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

pub fn start(
    lower: &Path,
    at: &Path,
    allow_other: bool,
    ears: &Arc<Ears>,
    clock: &Arc<ManualClock>,
) -> Result<Mount, MountError> {
    start_with(lower, at, allow_other, ears, clock, Faults::default(), None)
}

fn start_with(
    lower: &Path,
    at: &Path,
    allow_other: bool,
    ears: &Arc<Ears>,
    clock: &Arc<ManualClock>,
    faults: Faults,
    earlier: Option<u64>,
) -> Result<Mount, MountError> {
    let options = MountOptions {
        lower: open_root(lower),
        lower_path: lower.into(),
        at: at.into(),
        tree_name: "dev".into(),
        threads: 4,
        allow_other: allow_other && rustix::process::geteuid().is_root(),
        standing: reader(),
        earlier: earlier.map(Epoch::from_raw),
        faults,
    };
    Mount::start(options, ears.clone(), clock.clone() as Arc<dyn Clock>)
}

/// A small filesystem in memory below a tree; taken away with it.
pub struct Small(PathBuf);

impl Small {
    pub fn over(lower: &Path) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), lower, Some("tmpfs"), flags, Some("size=32k"))
            .expect("this test mounts a small tmpfs: it needs root");
        Small(lower.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Waits for another thread or process, with a limit.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("never: {what}");
}

/// The error number of a failure.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(why) => why.raw_os_error().unwrap_or(-1),
    }
}

/// A shared, writable mapping of a file's first bytes.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn of(file: &std::fs::File, len: usize) -> Self {
        Self::with(file, len, nix::libc::PROT_READ | nix::libc::PROT_WRITE)
    }
    /// One that can only be read.
    pub fn to_read(file: &std::fs::File, len: usize) -> Self {
        Self::with(file, len, nix::libc::PROT_READ)
    }
    fn with(file: &std::fs::File, len: usize, may: i32) -> Self {
        use nix::libc::{MAP_FAILED, MAP_SHARED};
        let fd = std::os::fd::AsRawFd::as_raw_fd(file);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { nix::libc::mmap(std::ptr::null_mut(), len, may, MAP_SHARED, fd, 0) };
        assert_ne!(at, MAP_FAILED);
        Mapping { at: at.cast(), len }
    }
    pub fn get(&self, n: usize) -> u8 {
        assert!(n < self.len);
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { self.at.add(n).read_volatile() }
    }
    pub fn put(&self, n: usize, byte: u8) {
        assert!(n < self.len);
        // SAFETY: within the mapping, which lives as long as `self`; nobody else uses its address.
        unsafe { self.at.add(n).write_volatile(byte) }
    }
    /// msync; the error number.
    pub fn sync(&self) -> i32 {
        // SAFETY: the mapping made above.
        match unsafe { nix::libc::msync(self.at.cast(), self.len, nix::libc::MS_SYNC) } {
            0 => 0,
            _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, unmapped once.
        unsafe { nix::libc::munmap(self.at.cast(), self.len) };
    }
}
