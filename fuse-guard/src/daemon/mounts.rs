//! Adding and removing guarded mounts: every check of DESIGN 4 before anything is admitted.
//!
//! The checks touch the lower filesystem, so they run on a thread that may be lost. What is mounted is handed to the loop,
//! which alone owns it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use treelease_client::config::MountConfig;
use treelease_client::error::Failure;
use treelease_client::local::lingering::Connection;
use treelease_client::local::to_local;
use treelease_client::marker::{self, Expected, Marker};
use treelease_client::place;
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{ClusterId, Place, TreeId, TreeName};
use treelease_client::words::policy::Mode;
use treelease_client::words::refusal::Code;
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::RootState;
use treelease_client::words::wire::{AddMountAnswer, AddMountRequest};

use super::effects::{Done, keep_note};
use super::{Daemon, Mounted, Msg};
use crate::fs::faults::Faults;
use crate::fuse::{Mount, MountError, MountOptions};
use crate::gate::{Hooks, LateWrite, Refused, Standing};
use crate::lower::{fstype, inside};

/// Threads that serve the kernel, for each mount.
const THREADS: usize = 4;

/// A mount that was asked for: what became of it.
pub(crate) struct Mounting {
    tree: Option<(TreeId, TreeName)>,
    result: Result<(Option<Mounted>, Vec<String>), Failure>,
    answer: Option<oneshot::Sender<AddMountAnswer>>,
}

impl std::fmt::Debug for Mounting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mounting({:?})", self.tree)
    }
}

/// Process ids and commands, for people.
pub(super) fn pids(busy: &[(u32, String)]) -> String {
    busy.iter().map(|(pid, command)| format!("{command} (pid {pid})")).collect::<Vec<_>>().join(", ")
}

/// What the mount tells the loop.
struct Ears {
    tree: TreeId,
    mail: tokio::sync::mpsc::Sender<Msg>,
}

impl Hooks for Ears {
    fn wants_lease(&self) {
        // A full mailbox means that the loop is busy; the waiting operation is refused at its limit then.
        let _ = self.mail.try_send(Msg::Tree(self.tree.clone(), Done::FirstWrite));
    }
    fn late_write(&self, what: LateWrite) {
        tracing::warn!(tree = %self.tree, pid = what.pid, op = what.op, late_ms = what.by.as_millis() as u64, "a write ended after the deadline");
        let text = format!("{} by pid {} ended {} ms after the deadline: {}", what.op, what.pid, what.by.as_millis(), what.path);
        let _ = self.mail.try_send(Msg::Tree(self.tree.clone(), Done::LateWrite(text)));
    }
    fn refused(&self, what: Refused) {
        tracing::debug!(tree = %self.tree, pid = what.pid, op = what.op, errno = what.errno, enforced = what.enforced, "refused");
    }
}

/// What a mount is made of, before it is one.
struct Plan {
    name: Option<TreeName>,
    lower: PathBuf,
    at: PathBuf,
    adopt: bool,
    force: bool,
    check_only: bool,
    /// What the servers know of the name: id and live root.
    known: Option<(TreeId, Option<treelease_client::words::id::RootId>)>,
    cluster: Option<ClusterId>,
    /// Clusters whose markers count as this one's, by the user's word.
    accepted: std::collections::BTreeSet<ClusterId>,
    /// The last epochs that were written through mounts.
    written: BTreeMap<TreeId, Epoch>,
    endpoints: Vec<String>,
    clock: Arc<dyn Clock>,
    faults: Faults,
    mail: tokio::sync::mpsc::Sender<Msg>,
}

/// The tree and its mount, where there is one (a mere check makes none), and notes for people.
type Made = (Option<(TreeId, TreeName)>, Option<Mounted>, Vec<String>);

fn config_error(message: String) -> Failure {
    Failure::new(Code::Config, message)
}

impl Plan {
    fn make(&self) -> Result<Made, Failure> {
        let lower = &self.lower;
        if !Path::new("/dev/fuse").exists() {
            return Err(failed(MountError::NoFuse("/dev/fuse is not there: this kernel or container has no FUSE".into())));
        }
        let (root, whereabouts) = self.open_lower()?;
        if self.at != *lower {
            self.look_at_mount_point()?;
        }
        let found = marker::read(root.as_fd()).map_err(|e| Failure::new(Code::Storage, format!("{}: {e}", lower.display())))?;
        let marker = match (&found, self.check_only) {
            (None, true) => None,
            (None, false) => Some(self.adopt(&root)?),
            (Some(found), _) => {
                self.check(found)?;
                Some(found.marker.clone())
            }
        };
        marker::overlap(lower, marker.as_ref().map(|m| &m.tree))?;
        let mut notes = self.look_inside(&whereabouts)?;
        let Some(marker) = marker.filter(|_| !self.check_only) else { return Ok((None, None, notes)) };
        let place = place::of(root.as_fd()).ok();
        let mounted = self.mount(root, marker, place)?;
        let tree = (mounted.marker.tree.clone(), self.name.clone().unwrap_or_else(|| mounted.marker.name.clone()));
        // Who came in between the look and the mount goes past the guard as well.
        match self.look_inside(&whereabouts) {
            Ok(again) => notes = again,
            Err(failure) => {
                let _ = mounted.mount.unmount(true);
                return Err(failure);
            }
        }
        Ok((Some(tree), Some(mounted), notes))
    }

    /// The lower root, opened, and where it lies. Also where a dead mount of ours covers it: that stays until the new one stands.
    fn open_lower(&self) -> Result<(OwnedFd, inside::Place), Failure> {
        let lower = self.lower.clone();
        let look = move |root: OwnedFd| {
            fstype::look(root.as_fd(), &lower)
                .map_err(|unfit| Failure::from(treelease_client::words::refusal::Refusal::from(unfit)))?;
            let place = inside::Place::of(root.as_fd()).map_err(|e| Failure::io("cannot tell where the root lies", &e))?;
            Ok((root, place))
        };
        let lower = &self.lower;
        if !crate::fuse::lies_dead(lower).map_err(failed)? {
            if !lower.is_dir() {
                return Err(Failure::new(Code::NotFound, format!("{}: there is no such directory", lower.display()))
                    .hint("name the directory on the shared storage; is the storage mounted?"));
            }
            return look(marker::open_root(lower)?);
        }
        if let Some(found) = self.below_dead(lower, look.clone()) {
            return found;
        }
        crate::fuse::clear_dead(lower).map_err(failed)?;
        look(marker::open_root(lower)?)
    }

    /// A mount point other than the root itself is empty.
    fn look_at_mount_point(&self) -> Result<(), Failure> {
        if crate::fuse::lies_dead(&self.at).map_err(failed)? {
            let at = self.at.clone();
            if let Some(empty) = self.below_dead(&self.at, move |_| empty_directory(&at)) {
                return empty;
            }
            crate::fuse::clear_dead(&self.at).map_err(failed)?;
        }
        empty_directory(&self.at)
    }

    fn below_dead<T: Send + 'static>(&self, path: &Path, look: impl FnOnce(OwnedFd) -> T + Send + 'static) -> Option<T> {
        if self.faults.clear_first { None } else { crate::fuse::below_dead(path, look) }
    }

    fn adopt(&self, root: &OwnedFd) -> Result<Marker, Failure> {
        let lower = self.lower.display();
        let Some(name) = &self.name else {
            return Err(config_error(format!("{lower}: no marker says which tree this is"))
                .hint("name it with --tree, or register it with `treelease up`"));
        };
        let (Some((tree, live)), Some(cluster)) = (&self.known, &self.cluster) else {
            return Err(Failure::new(Code::NotFound, format!("there is no tree \"{name}\"")).hint("`treelease up DIR` makes one"));
        };
        if !self.adopt {
            return Err(config_error(format!(
                "{lower}: \"{name}\" is registered, but its marker {} is not here: an empty volume, or the storage is not mounted",
                marker::MARKER
            ))
            .hint("mount the storage first; if this directory surely is that tree's root: `treelease mount --adopt`"));
        }
        let marker = Marker {
            format: 1,
            cluster: cluster.clone(),
            tree: tree.clone(),
            name: name.clone(),
            root: live.clone().unwrap_or_else(treelease_client::words::id::RootId::random),
            endpoints: self.endpoints.clone(),
            inode: 0,
        };
        marker::create(root.as_fd(), &marker).map_err(|e| Failure::new(Code::Storage, format!("{lower}: {e}")))
    }

    fn check(&self, found: &marker::Found) -> Result<(), Failure> {
        // The cluster is not known before the first session: then the gate's own check (I8) follows at the grant.
        let cluster = self.cluster.as_ref().unwrap_or(&found.marker.cluster);
        let tree = self.known.as_ref().map_or(&found.marker.tree, |(id, _)| id);
        let root = self.known.as_ref().and_then(|(_, root)| root.as_ref());
        let expected = Expected { cluster, tree, root };
        marker::check_following(found, expected, &self.accepted)
            .map_err(|mismatch| marker::mismatch_failure(&self.lower, found, &mismatch))
    }

    /// One process that is stuck on a dead mount (its memory map is locked while it waits) can keep a reader of /proc for ever.
    fn look_at_processes(&self, root: &inside::Place) -> Result<inside::Look, Failure> {
        let cannot = |e: std::io::Error| Failure::io("cannot look at who is inside", &e);
        let root = root.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let looking = std::thread::Builder::new().name("look-inside".into());
        looking.spawn(move || tell.send(inside::look(&root, &[]))).map_err(cannot)?;
        match told.recv_timeout(LOOK_LIMIT) {
            Ok(look) => look.map_err(cannot),
            Err(_) if self.force => Ok(inside::Look::default()),
            Err(_) => Err(Failure::new(
                Code::Busy,
                format!("who is inside {} cannot be told: reading /proc does not return", self.lower.display()),
            )
            .hint("a process is stuck on a dead mount, so `ps` hangs too; end that mount, or go on with --force")),
        }
    }

    fn look_inside(&self, root: &inside::Place) -> Result<Vec<String>, Failure> {
        let look = self.look_at_processes(root)?;
        let refusing: Vec<String> = look.refusing().map(ToString::to_string).collect();
        if !refusing.is_empty() && !self.force {
            return Err(Failure::new(
                Code::Busy,
                format!("{} is in use, and these would go past the guard: {}", self.lower.display(), refusing.join("; ")),
            )
            .hint("end them and try again, or go on with --force"));
        }
        let mut notes: Vec<String> = look.inside.iter().map(|i| format!("{i}, past the guard")).collect();
        if look.inside.iter().any(|i| !i.refuses()) && self.at == self.lower {
            notes.push("in those shells: `cd \"$PWD\"`".into());
        }
        if look.unseen > 0 {
            notes.push(format!("{} processes of other users could not be looked into", look.unseen));
        }
        Ok(notes)
    }

    fn mount(&self, root: OwnedFd, marker: Marker, place: Option<Place>) -> Result<Mounted, Failure> {
        let name = self.name.clone().unwrap_or_else(|| marker.name.clone());
        let lower = root.try_clone().map_err(|e| Failure::io("cannot keep the root open", &e))?;
        let options = MountOptions {
            lower,
            lower_path: self.lower.clone(),
            at: self.at.clone(),
            tree_name: name.to_string(),
            threads: THREADS,
            allow_other: rustix::process::geteuid().is_root(),
            standing: Standing::unknown(Mode::Enforce),
            earlier: self.written.get(&marker.tree).copied(),
            faults: self.faults,
        };
        let ears = Arc::new(Ears { tree: marker.tree.clone(), mail: self.mail.clone() });
        let mount = Mount::start(options, ears, self.clock.clone()).map_err(failed)?;
        Ok(Mounted {
            mount: Arc::new(mount),
            root: Arc::new(root),
            lower: self.lower.clone(),
            at: self.at.clone(),
            marker,
            place,
            watcher: None,
        })
    }
}

fn failed(error: MountError) -> Failure {
    let code = match &error {
        MountError::NoFuse(_) | MountError::NoFusermount(_) | MountError::InTheWay(_) => Code::CannotCreate,
        MountError::BadPath(_) => Code::NotFound,
        MountError::System(_) => Code::CannotCreate,
    };
    let failure = Failure::new(code, error.to_string());
    match error {
        MountError::NoFuse(_) => failure.hint("load the module (`modprobe fuse`), or give the container /dev/fuse"),
        MountError::NoFusermount(_) => failure.hint("install it: `apt-get install fuse3`"),
        _ => failure,
    }
}

fn empty_directory(at: &Path) -> Result<(), Failure> {
    let mut entries = match std::fs::read_dir(at) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::new(Code::NotFound, format!("{}: there is no such directory", at.display()))
                .hint(format!("make it first: `mkdir -p {}`", at.display())));
        }
        Err(e) => return Err(Failure::io(format!("cannot read {}", at.display()), &e)),
    };
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Code::CannotCreate,
            format!("{} is not empty, and is not the lower directory itself: its files would be covered", at.display()),
        )
        .hint("mount at an empty directory, or over the lower directory itself")),
    }
}

impl Daemon {
    fn plan(&self, name: Option<TreeName>, lower: PathBuf, at: PathBuf, request: &AddMountRequest) -> Plan {
        let known = name.as_ref().and_then(|name| {
            let status = self.table.as_ref()?.0.trees.iter().find(|t| t.name == *name)?;
            let live = status.roots.iter().find(|r| r.state == RootState::Live).map(|r| r.id.clone());
            Some((status.id.clone(), live))
        });
        Plan {
            name,
            lower,
            at,
            adopt: request.adopt,
            force: request.force,
            check_only: request.check_only,
            known,
            cluster: self.file.cluster.clone(),
            accepted: self.file.accepted.clone(),
            written: self.file.written.clone(),
            endpoints: self.servers.as_ref().map(|s| s.endpoints()).unwrap_or_default(),
            clock: self.clock.clone(),
            faults: Faults::from_env(),
            mail: self.mail.clone(),
        }
    }

    pub(super) fn add_mount(&mut self, request: AddMountRequest, answer: oneshot::Sender<AddMountAnswer>) {
        match self.prepare(&request) {
            Ok(Some(plan)) => {
                let mail = self.mail.clone();
                tokio::task::spawn_blocking(move || {
                    let mounting = match plan.make() {
                        Ok((tree, mounted, notes)) => Mounting { tree, result: Ok((mounted, notes)), answer: Some(answer) },
                        Err(failure) => Mounting { tree: None, result: Err(failure), answer: Some(answer) },
                    };
                    let _ = mail.blocking_send(Msg::Mounted(mounting));
                });
            }
            Ok(None) => {
                let at = if request.at.is_empty() { request.lower } else { request.at };
                let _ = answer.send(AddMountAnswer { tree_name: request.tree, at, already: true, ..Default::default() });
            }
            Err(failure) => {
                let _ = answer.send(AddMountAnswer { refused: Some(to_local(&failure)), ..Default::default() });
            }
        }
    }

    /// `None`: it is mounted there already.
    fn prepare(&self, request: &AddMountRequest) -> Result<Option<Plan>, Failure> {
        if self.ending.is_some() {
            return Err(Failure::new(Code::Unreachable, "the side daemon is ending"));
        }
        if self.file.cluster.is_none() {
            let why = if self.link.trouble.is_empty() { "no lease server has answered yet" } else { &self.link.trouble };
            return Err(Failure::new(Code::Unreachable, format!("this side follows no cluster yet: {why}")));
        }
        let name: Option<TreeName> = if request.tree.is_empty() { None } else { Some(request.tree.parse()?) };
        let absolute = |text: &str| {
            let path = PathBuf::from(text);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(Failure::new(Code::Usage, format!("`{text}` is not an absolute path")))
            }
        };
        let lower = absolute(&request.lower)?;
        let at = if request.at.is_empty() { lower.clone() } else { absolute(&request.at)? };
        for tree in self.trees.values() {
            let Some(mounted) = &tree.mounted else { continue };
            if mounted.at == at && mounted.mount.alive() && name.as_ref().is_none_or(|n| *n == tree.side.name) {
                return Ok(None);
            }
            if name.as_ref() == Some(&tree.side.name) {
                return Err(Failure::new(
                    Code::Config,
                    format!("\"{}\" is guarded at {} already", tree.side.name, mounted.at.display()),
                )
                .hint(format!("`treelease umount {}` first", tree.side.name)));
            }
        }
        Ok(Some(self.plan(name, lower, at, request)))
    }

    pub(super) fn handle_mounted(&mut self, mounting: Mounting, now: BootTime) {
        let answer = match mounting.result {
            Err(failure) => {
                tracing::warn!(why = %failure.message, "not mounted");
                AddMountAnswer { refused: Some(to_local(&failure)), ..Default::default() }
            }
            Ok((None, notes)) => AddMountAnswer { notes, ..Default::default() },
            Ok((Some(mounted), notes)) => {
                let (id, name) = mounting.tree.expect("a mount has a tree");
                let at = mounted.at.display().to_string();
                tracing::info!(tree = %id, at, "guarded");
                self.tree_entry(&id, &name);
                let status = self.table.as_ref().and_then(|(t, _)| t.trees.iter().find(|t| t.id == id).cloned());
                let mine = self.file.session.clone();
                if let Some(tree) = self.trees.get_mut(&id) {
                    tree.mounted = Some(mounted);
                    tree.side.handle_mounted(now);
                    for note in &notes {
                        keep_note(tree, note.clone());
                    }
                    if let Some(status) = status {
                        tree.side.handle_table(status, mine.as_ref(), now);
                    }
                }
                self.note_connections();
                self.watch_lower(&id);
                self.publish(&id);
                self.read_table_soon(now);
                AddMountAnswer { tree_name: name.to_string(), at, notes, refused: None, already: false }
            }
        };
        if let Some(who) = mounting.answer {
            let _ = who.send(answer);
        }
    }

    /// Notes the mounts for whoever finds this daemon killed and still there.
    fn note_connections(&self) {
        let mounted = self.trees.values().filter_map(|tree| tree.mounted.as_ref());
        let connections = mounted.map(|m| Connection { at: m.at.clone(), number: m.mount.connection() });
        self.state.note_connections(connections.collect());
    }

    /// Mounts what the configuration lists, before the socket answers. What cannot be mounted is said and left.
    pub(super) async fn restore_mounts(&mut self) {
        let mounts: Vec<MountConfig> = self.config.mounts.clone();
        for mount in mounts {
            let request = AddMountRequest::default();
            let plan = self.plan(Some(mount.tree.clone()), mount.lower, mount.at.clone(), &request);
            let made = tokio::task::spawn_blocking(move || plan.make());
            // The storage may hang: the other mounts and the socket do not wait for it for ever.
            let result = tokio::time::timeout(RESTORE_LIMIT, made).await;
            let mounting = match result {
                Ok(Ok(Ok((tree, mounted, notes)))) => Mounting { tree, result: Ok((mounted, notes)), answer: None },
                Ok(Ok(Err(failure))) => Mounting { tree: None, result: Err(failure), answer: None },
                Ok(Err(panic)) => {
                    let failure = Failure::new(Code::Internal, format!("mounting \"{}\" failed: {panic}", mount.tree));
                    Mounting { tree: None, result: Err(failure), answer: None }
                }
                Err(_) => {
                    let failure = Failure::new(Code::Storage, format!("{}: the storage does not answer", mount.at.display()));
                    Mounting { tree: None, result: Err(failure), answer: None }
                }
            };
            let now = self.clock.now();
            self.handle_mounted(mounting, now);
            self.carry_out(now);
        }
    }
}

/// How long a look at all processes may take: it is a few milliseconds where nothing hangs.
const LOOK_LIMIT: std::time::Duration = std::time::Duration::from_secs(7);

/// How long one configured mount may take at the daemon's start.
const RESTORE_LIMIT: std::time::Duration = std::time::Duration::from_secs(8);
