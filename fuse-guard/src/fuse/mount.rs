//! One guarded tree, mounted: what the daemon holds of it.
//!
//! # Promises
//!
//! - The lower root is open before anything is mounted, so the mount may cover that very path.
//! - Nothing here holds a lock while it tells the kernel to forget or touches the lower tree for long; what may hang does so
//!   on a thread that may be lost ([`super::notify`]).
//!
//! # The order on a grant (DESIGN 5; the daemon's duty)
//!
//! [`Mount::begin_epoch`] → `publish(Opening)`, which replaces what was written before another side's turn →
//! [`Mount::answer_waiters`] → [`Mount::drop_caches`] → `publish(Write)`. The waiters first: they hold kernel locks that the
//! caches need.
//!
//! # And at the end of a lease
//!
//! [`Mount::push_mapped`] → `publish(Closing)` → `push_mapped` → `publish(Read)` → [`Mount::drain`] → [`Mount::flush`] → release →
//! [`Mount::drop_caches`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fuser::{BackgroundSession, Config, Session, SessionACL};
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::keeper::Keeper;
use super::locks;
use super::mounting::{self, FSTYPE};
use super::notify::Notify;
use super::{Face, Shared, beneath, pushing};
use crate::fs::Fs;
use crate::fs::authors::Authors;
use crate::fs::faults::Faults;
use crate::fs::inode::{Node, ROOT, stat_fd};
pub use crate::fs::writers::Writer;
use crate::fs::writers::command_of;
use crate::gate::{Counts, Gate, Hooks, Outcome, Right, Standing};
use crate::lower::below::filesystems_below;
use crate::lower::fstype;
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, lock};

/// How long a path may take to say whether its guard is dead.
const DEAD_LOOK: Duration = Duration::from_secs(2);
/// How long the kernel may take to answer a new mount's first message.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What to mount where.
pub struct MountOptions {
    /// The tree's root, opened (`O_DIRECTORY|O_RDONLY`) before anything is mounted.
    pub lower: OwnedFd,
    /// Where it was opened; for people.
    pub lower_path: PathBuf,
    /// The mount point; the lower root itself, or an empty directory.
    pub at: PathBuf,
    /// For the mount table.
    pub tree_name: String,
    /// Threads that serve the kernel.
    pub threads: usize,
    /// Whether other users may enter (root only): each operation is then carried out as its caller.
    pub allow_other: bool,
    /// How the side stands at first.
    pub standing: Standing,
    /// The last epoch that was written through an earlier mount of this tree, by this daemon or one before it.
    pub earlier: Option<Epoch>,
    /// Rules that a test has switched off.
    pub faults: Faults,
}

/// Why a mount could not be made. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No /dev/fuse.
    #[error("{0}")]
    NoFuse(String),
    /// No fusermount3, and this user may not mount without.
    #[error("{0}")]
    NoFusermount(String),
    /// Something else is mounted there, or files are in the way.
    #[error("{0}")]
    InTheWay(String),
    /// The mount point or the lower root.
    #[error("{0}")]
    BadPath(String),
    /// Whatever else the system said.
    #[error("{0}")]
    System(String),
}

/// Who keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Process ids and commands.
    pub pids: Vec<(u32, String)>,
    /// What the system said.
    pub why: String,
}

/// What a flush has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// Files written in this epoch.
    pub files: u64,
    /// Bytes written in this epoch.
    pub bytes: u64,
}

/// A flush that failed or took too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushFailed {
    /// Files whose writes may be lost.
    pub files: Vec<String>,
    /// What the system said.
    pub why: String,
    /// Nothing has failed that is known: it only took too long. What it meets later counts for the epoch's next flush.
    pub timed_out: bool,
}

/// A mounted tree. Dropped, it is unmounted lazily.
pub struct Mount {
    shared: Arc<Shared>,
    session: Mutex<Option<BackgroundSession>>,
    notify: Notify,
    at: PathBuf,
    device: (u32, u32),
    /// Unmounted. Under its lock the standing is published, so that none follows the last one.
    gone: Mutex<bool>,
    /// One unmount at a time.
    leaving: Mutex<()>,
    /// The node or name that the kernel is being told to forget, in [`Mount::drop_caches`].
    dropping: Arc<AtomicU64>,
    /// The standing that was published last is a licence to cache.
    licensed: AtomicBool,
}

pub(super) fn absolute(at: &Path) -> Result<PathBuf, MountError> {
    // The last part is not followed: it may be a dead mount, which answers nothing.
    let bad = |why: &dyn std::fmt::Display| MountError::BadPath(format!("{}: {why}", at.display()));
    let (above, name) = match (at.parent(), at.file_name()) {
        (Some(above), Some(name)) if above.as_os_str().is_empty() => (Path::new("."), name),
        (Some(above), Some(name)) => (above, name),
        _ => return at.canonicalize().map_err(|why| bad(&why)),
    };
    let whole = above.canonicalize().map_err(|why| bad(&why))?.join(name);
    match std::fs::symlink_metadata(&whole) {
        Ok(meta) if meta.is_symlink() => whole.canonicalize().map_err(|why| bad(&why)),
        _ => Ok(whole),
    }
}

/// Whether a dead mount of ours (its guard is gone: ENOTCONN) lies at a path.
pub fn lies_dead(at: &Path) -> Result<bool, MountError> {
    let at = absolute(at)?;
    let (tell, told) = std::sync::mpsc::channel();
    let path = at.clone();
    let looking = move || {
        let _gave_up = tell.send(mounting::is_dead(&path));
    };
    let thread = std::thread::Builder::new().name("dead-look".into()).spawn(looking);
    thread.map_err(|why| MountError::System(why.to_string()))?;
    let dead = told.recv_timeout(DEAD_LOOK).map_err(|_| {
        MountError::InTheWay(format!("{} does not answer: what is mounted there hangs; `umount -l` it first", at.display()))
    })?;
    if dead && mounting::top_at(&at).is_none_or(|top| top.fstype != FSTYPE) {
        return Err(MountError::InTheWay(format!("a dead mount that is not ours is at {}: unmount it first", at.display())));
    }
    Ok(dead)
}

/// Takes away a dead mount of ours from a path, if there is one: for who cannot do better ([`super::beneath`]).
pub fn clear_dead(at: &Path) -> Result<(), MountError> {
    while lies_dead(at)? {
        mounting::unmount(&absolute(at)?, true)
            .map_err(|busy| MountError::System(format!("a dead mount at {}: {}", at.display(), busy.why)))?;
    }
    Ok(())
}

/// Whether the mount can be made at the path; true: in the place of a dead one.
fn look_at_the_way(at: &Path, lower: &OwnedFd) -> Result<bool, MountError> {
    if lies_dead(at)? {
        return Ok(true);
    }
    if mounting::top_at(at).is_some_and(|top| top.fstype == FSTYPE) {
        return Err(MountError::InTheWay(format!("{} is guarded already: `treelease status` says by whom", at.display())));
    }
    let bad = |why: &dyn std::fmt::Display| MountError::BadPath(format!("{}: {why}", at.display()));
    let point = rustix::fs::open(
        at,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|why| bad(&std::io::Error::from(why)))?;
    let key = |fd: &OwnedFd| stat_fd(fd, false).map(|stat| crate::fs::inode::Key::of(&stat));
    if key(&point).map_err(|why| bad(&why))? == key(lower).map_err(|why| bad(&why))? {
        return Ok(false);
    }
    match std::fs::read_dir(at).map_err(|why| bad(&why))?.next() {
        None => Ok(false),
        Some(_) => Err(MountError::InTheWay(format!(
            "{} is not empty and is not the tree's own directory: choose an empty one, or the tree itself",
            at.display()
        ))),
    }
}

/// A mount that is nowhere yet, and its device; None: this user or kernel cannot.
fn make_detached(name: &str, allow_other: bool) -> Option<(std::fs::File, OwnedFd)> {
    let device = mounting::open_device().ok()?;
    match beneath::detached(&device, name, allow_other) {
        Ok(tree) => Some((device, tree)),
        Err(why) => {
            tracing::info!(%why, "a mount cannot be made aside here: the dead one is taken away first");
            None
        }
    }
}

impl Mount {
    /// Mounts a tree. Blocks.
    pub fn start(options: MountOptions, hooks: Arc<dyn Hooks>, clock: Arc<dyn Clock>) -> Result<Mount, MountError> {
        let MountOptions { lower, lower_path, at, tree_name, threads, allow_other, standing, earlier, faults } = options;
        let threads = threads.max(1);
        let at = absolute(&at)?;
        let mut over_dead = look_at_the_way(&at, &lower)?;
        let descriptors = mounting::raise_descriptors();
        let lower_bad = |why| MountError::BadPath(format!("{}: {}", lower_path.display(), std::io::Error::from(why)));
        let gate = Gate::new(standing, clock, hooks.clone());
        let mut fs = Fs::new(lower, gate).map_err(lower_bad)?;
        fs.faults = faults;
        fs.first_reads.matter = fstype::keeps_old_pages(fs.nodes.root().fd.as_fd());
        fs.nodes.descriptors.allow(descriptors);
        fs.authors = Authors::after(earlier.filter(|_| !faults.no_earlier_mount));
        if allow_other && !fs.can_act() {
            let says = "it needs CAP_SETUID and CAP_SETGID; or mount for this user alone";
            return Err(MountError::System(format!("this daemon cannot act as its callers: {says}")));
        }
        let root = &fs.nodes.root().fd;
        fs.dirty.begin(root, filesystems_below(root), Epoch::ZERO).map_err(lower_bad)?;
        let shared = Arc::new(Shared::new(fs, hooks, allow_other, threads));
        let (device, detached) =
            match (over_dead && !faults.clear_first).then(|| make_detached(&tree_name, allow_other)).flatten() {
                Some((device, tree)) => (device, Some(tree)),
                None => {
                    clear_dead(&at)?;
                    over_dead = false;
                    (mounting::mount(&at, &tree_name, allow_other)?, None)
                }
            };
        // From here on a failure must not leave a mount behind that nobody serves.
        let undo = |what: &str, why: String| {
            if !over_dead {
                let _left = mounting::unmount(&at, true);
            }
            MountError::System(format!("{}: {what}: {why}", at.display()))
        };
        let notify = Notify::new(device.try_clone().map_err(|why| undo("/dev/fuse", why.to_string()))?);
        let face = Face(shared.clone());
        let started = notify.within(HANDSHAKE, "fuse-handshake", move || {
            let mut config = Config::default();
            config.n_threads = Some(threads);
            config.clone_fd = true;
            let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
            Session::from_fd(face, OwnedFd::from(device), acl, config).and_then(Session::spawn)
        });
        let session = started
            .ok_or_else(|| undo("the kernel's first message", "did not come in time".into()))?
            .map_err(|why| undo("the kernel's first message", why.to_string()))?;
        if let Some(tree) = detached {
            beneath::take_over(&tree, &at)?;
        }
        let device = mounting::top_at(&at).map(|top| top.device).unwrap_or_default();
        let _once = shared.device.set(device);
        mounting::read_further_ahead(device);
        let (keeping, telling) = (shared.clone(), notify.clone());
        let keeper = std::thread::Builder::new().name("keeper".into()).spawn(move || Keeper::run(&keeping, &telling));
        keeper.map_err(|why| undo("a thread", why.to_string()))?;
        Ok(Mount {
            shared,
            session: Mutex::new(Some(session)),
            notify,
            at,
            device,
            gone: Mutex::new(false),
            leaving: Mutex::new(()),
            dropping: Arc::default(),
            licensed: AtomicBool::new(false),
        })
    }

    fn fs(&self) -> &Fs {
        &self.shared.fs
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Replaces the standing; see [`Gate::publish`]. A moved deadline keeps the serial.
    ///
    /// I6: where `stale_below` grows, the files that could be written before it are replaced first; where nothing is refused, nothing
    /// is stale either, and that is made good when it begins to be. *Why first:* the new standing may admit page-cache writes,
    /// which are judged by their inode; whoever looked at the node before it was replaced looks again after the gate has admitted it.
    pub fn publish(&self, standing: Standing) {
        let gone = lock(&self.gone);
        if *gone {
            return;
        }
        let begins = standing.mode == Mode::Enforce && self.standing().mode != Mode::Enforce;
        if begins || standing.mode == Mode::Enforce && standing.stale_below > self.standing().stale_below {
            let replaced = self.fs().nodes.replace_written(standing.stale_below);
            tracing::debug!(replaced, "files that could be written before another side's turn have other nodes now");
        }
        if begins {
            // What the kernel read while nobody was refused is no licence's: whoever opens it next reads it anew.
            self.fs().nodes.all().iter().for_each(|node| node.spoil());
        }
        self.fs().gate.publish(standing);
        let licensed = standing.caches(self.fs().gate.now());
        if self.licensed.swap(licensed, Ordering::SeqCst) && !licensed {
            self.shared.keeper.licence_ends();
        }
        drop(gone);
    }

    /// How this side stands.
    pub fn standing(&self) -> Standing {
        self.fs().gate.standing()
    }

    /// Operations that wait, or are being carried out after a wait.
    pub fn waiting(&self) -> usize {
        self.fs().gate.waiting()
    }

    /// Makes the kernel ask for every file's size and times anew. *Why before the waiting operations are answered:* an open that
    /// waited was looked up before it waited, with the attributes of that moment; a program that asks for the size next, and
    /// writes at the end, would write over what the other side wrote last.
    pub fn forget_attributes(&self) {
        if self.shared.fs.faults.no_forgetting {
            return;
        }
        for node in self.shared.fs.nodes.all() {
            self.notify.attributes(node.id);
        }
    }

    /// Answers all operations that wait. Does not block: granted ones are carried out on threads of their own.
    pub fn answer_waiters(&self, outcome: Outcome) {
        self.fs().gate.answer(outcome);
    }

    /// Waits until no mutation that an earlier standing admitted is in flight; false at the limit. Blocks.
    pub fn drain(&self, limit: Duration) -> bool {
        self.fs().gate.drain(limit)
    }

    /// Mutations in flight.
    pub fn in_flight(&self) -> usize {
        self.fs().gate.in_flight()
    }

    /// Makes the kernel write back and unmap the pages of every file that somebody may write (DESIGN 5, steps 2 and 3).
    /// Needs no path. Blocks.
    pub fn push_mapped(&self, limit: Duration) -> Result<(), String> {
        let files: Vec<u64> = self.fs().nodes.all().iter().filter(|node| node.has_writers()).map(|node| node.id).collect();
        let (notify, many, waiting) = (self.notify.clone(), files.len(), self.waiting());
        let pushed = self.notify.within(limit, "push-mapped", move || pushing::push(&notify, files, waiting));
        pushed.ok_or_else(|| format!("mapped pages of {many} files could not be written back within {limit:?}"))
    }

    /// I6: every file that could be written before `stale_below` gets another node. [`Mount::publish`] has done that already;
    /// what was opened in the present run is not touched. Returns how many.
    pub fn replace_written_nodes(&self) -> usize {
        self.fs().nodes.replace_written(self.standing().stale_below)
    }

    /// Makes the kernel forget everything: attributes, pages, names. Operations that wait must have been answered before: an
    /// invalidation blocks on them; those that come meanwhile are carried out by the gate at once. False at the limit;
    /// [`Mount::dropping`] then names where it is stuck. Blocks.
    pub fn drop_caches(&self, limit: Duration) -> bool {
        let (shared, notify) = (self.shared.clone(), self.notify.clone());
        let dropping = self.dropping.clone();
        let dropped = self.notify.within(limit, "drop-caches", move || {
            if shared.fs.faults.no_forgetting {
                return;
            }
            shared.forget_absent(&notify);
            for node in shared.fs.nodes.all() {
                dropping.store(node.id, Ordering::Relaxed);
                shared.forget_names(&node, &notify);
                notify.inode(node.id);
            }
            dropping.store(0, Ordering::Relaxed);
        });
        dropped.is_some()
    }

    /// The file that the kernel is being told to forget now, if any.
    pub fn dropping(&self) -> Option<String> {
        match self.dropping.load(Ordering::Relaxed) {
            0 => None,
            id => Some(self.fs().describe(id, None)),
        }
    }

    /// Threads that are lost in the kernel or on the lower tree.
    pub fn lost_threads(&self) -> usize {
        self.notify.lost()
    }

    /// An epoch of ours begins: nothing is dirty yet. Before the gate opens.
    pub fn begin_epoch(&self, epoch: Epoch) -> std::io::Result<()> {
        let root = &self.fs().nodes.root().fd;
        if self.fs().dirty.begin(root, filesystems_below(root), epoch).map_err(std::io::Error::from)? {
            self.fs().write_back.begin();
        }
        Ok(())
    }

    /// Makes durable what was written in this epoch. Blocks, on a thread that may be lost.
    pub fn flush(&self, limit: Duration) -> Result<Flushed, FlushFailed> {
        let shared = self.shared.clone();
        let path_of = |shared: &Shared, node: &Node| shared.fs.nodes.path_of(node);
        let flushed = self.notify.within(limit, "flush", move || {
            let shut = || shared.fs.gate.is_shut();
            shared.fs.dirty.flush(|node| path_of(&shared, node), shut)
        });
        match flushed {
            Some(Ok((files, bytes))) => Ok(Flushed { files, bytes }),
            Some(Err(files)) => Err(FlushFailed { files, why: "the storage reported write errors".into(), timed_out: false }),
            None => {
                let files = self.fs().dirty.names(|node| path_of(&self.shared, node));
                let why = format!("the storage did not confirm within {limit:?}");
                Err(FlushFailed { files, why, timed_out: true })
            }
        }
    }

    /// Nodes that the kernel knows, and handles that are open.
    pub fn known(&self) -> (usize, usize) {
        (self.fs().nodes.len(), self.fs().handles.len())
    }

    /// The number of its connection to the kernel, as `fusectl` shows it.
    pub fn connection(&self) -> u32 {
        self.device.1
    }

    /// Unfinished work, for people: git locks, hot journals, exclusive locks (DESIGN 5, step 1). Touches the lower tree: may
    /// block as long as that does.
    pub fn unfinished(&self) -> Vec<String> {
        let nodes = &self.fs().nodes;
        let mut found = self.fs().unfinished.report(|node| nodes.path_of(node));
        let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        for held in locks::exclusive(&text, self.device) {
            let path = nodes.get(held.ino).map(|node| nodes.path_of(&node)).unwrap_or_else(|_| format!("inode {}", held.ino));
            match u32::try_from(held.pid) {
                Ok(pid) => found.push(format!("exclusive lock on {path} by pid {pid} ({})", command_of(pid))),
                Err(_) => found.push(format!("exclusive lock on {path}")),
            }
        }
        found
    }

    /// When the last mutation finished.
    pub fn last_mutation(&self) -> Option<BootTime> {
        self.fs().gate.last_mutation()
    }

    /// Requests that the kernel has sent, by the protocol's names.
    pub fn requests(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.shared.requests.all()
    }

    /// How often one of the threads that serve was not needed for a while.
    pub fn rests(&self) -> u64 {
        self.shared.crew.rests()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.fs().gate.counts()
    }

    /// Files of which pages were refused since this was asked last, some of them.
    pub fn take_late_files(&self) -> Vec<String> {
        self.fs().late.take()
    }

    /// Who wrote lately, or was (would have been) refused, the latest first.
    pub fn writers(&self) -> Vec<Writer> {
        let nodes = &self.fs().nodes;
        let named = |id| nodes.get(id).ok().filter(|node| node.id == ROOT || !node.known_names().is_empty());
        self.fs().writers.report(|id| named(id).map(|node| nodes.path_of(&node)))
    }

    /// Sets files of the virtual `.treelease/`.
    pub fn set_status_files(&self, files: Vec<(String, Vec<u8>)>) {
        self.fs().status.set(files);
    }

    /// The mount point.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Whether the kernel still sends requests.
    pub fn alive(&self) -> bool {
        !*lock(&self.gone) && lock(&self.session).as_ref().is_some_and(|session| !session.guard.is_finished())
    }

    /// Takes the mount away. Blocks. Busy: names who is inside; nothing has changed then. What stays inside after a lazy one
    /// can read, and never writes again.
    pub fn unmount(&self, lazy: bool) -> Result<(), Busy> {
        // Not under `gone`: unmounting may hang with the storage, and the standing must be published all the same.
        let _one = lock(&self.leaving);
        if *lock(&self.gone) {
            return Ok(());
        }
        // Somebody else may have unmounted it, and mounted another thing there: that is not ours to take away.
        let ours = mounting::top_at(&self.at).is_some_and(|top| top.fstype == FSTYPE && top.device == self.device);
        if ours {
            mounting::unmount(&self.at, lazy)?;
        }
        let mut gone = lock(&self.gone);
        *gone = true;
        let present = self.standing();
        let (serial, mode) = (present.serial + 1, Mode::Enforce);
        self.fs().gate.publish(Standing { serial, mode, right: Right::Read, may_wait: false, ..present });
        drop(gone);
        self.shared.keeper.end();
        self.fs().write_back.end();
        self.fs().gate.answer(Outcome::Refused);
        // Not joined: a thread may be lost on the lower tree.
        drop(lock(&self.session).take());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(busy) = self.unmount(true) {
            tracing::warn!(at = %self.at.display(), why = busy.why, "the mount stays behind");
        }
        self.shared.keeper.end();
        self.fs().write_back.end();
    }
}
