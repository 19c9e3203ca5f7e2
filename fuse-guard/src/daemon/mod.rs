//! The side daemon's loop: it owns the session, the trees and the mounts, and is the only one that changes them.
//!
//! Everything that can take time (calls to servers, every call on the lower filesystem) runs elsewhere and comes back as a
//! [`Msg`]: renewals, deadline, local socket and status never wait for the storage, which may hang for ever (DESIGN 4).
//! What is to be done is decided by pure parts: the session core says when to renew and until when may be written,
//! [`tree::TreeSide`] what this side wants with a tree, [`crate::handoff`] how a lease ends. The loop reads the clock, feeds
//! them, and carries out their effects.
//!
//! | file | is |
//! |---|---|
//! | [`tree`] | one tree as this side has it, pure |
//! | `effects` | carrying out what it asks for |
//! | `storage` | what of that concerns its gate and its storage |
//! | `restart` | what of that a restarted daemon must know |
//! | `hearers` | who waits at the local socket hears of it |
//! | `flushes` | what a flush that was no end of a lease says about it |
//! | `following` | another cluster at the servers' addresses, and going over to it by the user's word |
//! | `servers` | session, renewals, the servers' table, the ordered commands of one tree |
//! | `alarm` | when the loop looks next |
//! | `bypass` | who writes to the storage past the mount |
//! | `calls` | what local commands ask |
//! | `mounts`, `unmounts` | adding and removing guarded mounts; the daemon's end |
//! | `clock` | what follows when this machine's clock was wrong |
//! | `late` | pages of mappings that a shut gate refused: told |
//! | `locks` | the marker's lock: taken, looked after, let go of; and the ended lease's, asked for |
//! | `modes` | what follows when the policy's mode changes |
//! | `root` | marker, stamp and left-overs at a grant (I8) |
//! | `report` | how things stand, as JSON |
//! | `write_back` | what the policy asks of each mount, and what follows when the storage is silent |
//! | [`socket`], [`state_dir`] | the local socket; what survives a restart |

mod alarm;
mod bypass;
mod calls;
mod clock;
mod effects;
mod flushes;
mod following;
mod hearers;
mod late;
mod locks;
mod machine;
mod modes;
mod mounts;
mod nodes;
mod report;
mod restart;
mod root;
mod servers;
pub mod socket;
pub mod state_dir;
mod storage;
pub mod tree;
mod unmounts;
mod write_back;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use treelease_client::config::Config;
use treelease_client::error::Failure;
use treelease_client::marker::Marker;
use treelease_client::rpc::Servers;
use treelease_client::session::SessionCore;
use treelease_client::words::clock::Clock;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{ClusterId, HoldId, Place, RequestKey, SideName, TreeId};
use treelease_client::words::refusal::Code;
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::ClusterStatus;
use treelease_client::words::wire::{HoldAnswer, Progress};

use crate::fuse::Mount;
use socket::Call;
use state_dir::{SessionFile, StateDir};
use tree::TreeSide;

/// The most messages that the loop has not seen to yet; who sends more waits.
const MAIL_MAX: usize = 4096;
/// The loop looks at the clock at least so often while something goes on: what a mount or its storage has come to is only seen so.
const TICK: Duration = Duration::from_millis(200);
/// The same while nothing does: every tree that is held is at rest, and what is due has its deadline. So often it is noticed that the
/// machine has slept for a moment.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How often it looks whether to give way while somebody waits for a tree that is held here.
const GIVE_WAY_TICK: Duration = Duration::from_millis(20);
/// The state file and the virtual files follow a change within this time.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
/// How long the daemon's end takes at most: then the process goes, and what was not handed over ends unclean.
const DOWN_LIMIT: Duration = Duration::from_secs(20);

/// Something that the loop is to see to.
#[derive(Debug)]
pub(crate) enum Msg {
    /// From the local socket.
    Call(Call),
    /// From the servers.
    Server(servers::FromServer),
    /// Something about one tree has come to its end elsewhere.
    Tree(TreeId, effects::Done),
    /// A mount that a local command asked for has come to its end.
    Mounted(mounts::Mounting),
    /// A mount was taken away, or could not be.
    Unmounted(unmounts::Unmounted),
    /// SIGTERM: hand over and end.
    Terminate,
}

/// A guarded mount.
pub(crate) struct Mounted {
    mount: Arc<Mount>,
    root: Arc<OwnedFd>,
    lower: PathBuf,
    at: PathBuf,
    marker: Marker,
    place: Option<Place>,
    /// Looks for writes past the mount, as long as it is kept.
    watcher: Option<bypass::Watcher>,
}

/// One tree with what belongs to it.
pub(crate) struct Tree {
    side: TreeSide,
    mounted: Option<Mounted>,
    /// It is being taken away: nothing new begins on it.
    unmounting: bool,
    /// It was taken away; it goes from here once no lease stands on it.
    unmounted: bool,
    /// Commands about this tree, one after the other: an acquire never overtakes the cancel before it.
    wire: servers::Wire,
    locks: locks::Locks,
    hold_streams: BTreeMap<HoldId, mpsc::Sender<HoldAnswer>>,
    /// Who waits for the end of the lease.
    enders: Vec<mpsc::Sender<Progress>>,
    notes: Vec<String>,
    alarms: bypass::Alarms,
    late: late::Late,
    /// What the person who hands over wants to be read in the history.
    end_note: String,
    /// Something was written under a lease that has not ended clean.
    unflushed: bool,
    /// The request key of the release or surrender under way: epoch, request number, key.
    end_key: Option<(Epoch, u32, RequestKey)>,
}

/// The daemon.
pub struct Daemon {
    config: Config,
    clock: Arc<dyn Clock>,
    side: SideName,
    host: String,
    servers: Option<Arc<Servers>>,
    state: StateDir,
    file: SessionFile,
    session: Option<SessionCore>,
    link: servers::Link,
    trees: BTreeMap<TreeId, Tree>,
    table: Option<(ClusterStatus, BootTime)>,
    /// Of another cluster than the one that this side follows, where the servers are of one.
    stranger: Option<following::Stranger>,
    mail: mpsc::Sender<Msg>,
    mailbox: Option<mpsc::Receiver<Msg>>,
    ending: Option<Ending>,
    report_due: Option<BootTime>,
    boot: String,
    machine: String,
    faults: Faults,
    parked: Vec<calls::Parked>,
}

/// The daemon ends when this is through.
struct Ending {
    until: BootTime,
    who: Vec<mpsc::Sender<Progress>>,
    notes: Vec<String>,
    /// What did not end clean: the daemon's end is no success then.
    unclean: Vec<String>,
    /// When unmounting began, and how many mounts are still to go.
    unmounting: Option<(BootTime, usize)>,
}

/// Faults that tests put back in, to see that they are caught: `TREELEASE_TEST_FAULT`, debug builds only.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Old handles are never stale, nodes never replaced (I6 off).
    no_stale: bool,
    /// The servers' events and table are not followed.
    hold_back_events: bool,
    /// A gate that has opened once never closes, neither by its deadline nor by anybody's word (I4 off).
    gate_open: bool,
    /// Not a fault of ours: the machine's clock can be paused (`crate::failpoint`).
    paused_clock: bool,
    /// What the server says about time is not listened to.
    clock_believed: bool,
    /// The marker's lock is not taken, or only said to be.
    lock: crate::lower::witness::Fault,
    /// A resumed lease's gate opens without an `active`.
    resume_awake: bool,
    /// What a guard writes is told as written past the mount.
    guards_told: bool,
    /// Only the configured servers are ever asked.
    seeds_only: bool,
}

impl Faults {
    fn from_env() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        let named = std::env::var("TREELEASE_TEST_FAULT").unwrap_or_default();
        let has = |name: &str| named.split(',').any(|n| n == name);
        let lock = match () {
            () if has("no_lock") => crate::lower::witness::Fault::NoLock,
            () if has("only_says_locked") => crate::lower::witness::Fault::OnlySays,
            () => crate::lower::witness::Fault::None,
        };
        let resume_awake = has("resume_awake");
        Self {
            no_stale: has("no_stale"),
            hold_back_events: has("hold_back_events"),
            gate_open: has("gate_open"),
            paused_clock: has("paused_clock"),
            clock_believed: has("clock_believed"),
            lock,
            resume_awake,
            guards_told: has("guards_told"),
            seeds_only: has("seeds_only"),
        }
    }
}

impl Daemon {
    /// Takes the state directory's lock and reads what the last run has left.
    pub fn new(config: Config) -> Result<Self, Failure> {
        let side = config.side()?;
        let clock = clock::clock(Faults::from_env());
        let machine::Machine { machine, boot } = machine::Machine::this(config.env.container)?;
        let state = StateDir::open(&config.state_dir)?;
        let file = match state.session()? {
            Some(file) if file.side == side => file,
            _ => SessionFile {
                side: side.clone(),
                cluster: None,
                session: None,
                secret: String::new(),
                next_secret: String::new(),
                boot: boot.clone(),
                leases: BTreeMap::new(),
                written: BTreeMap::new(),
                accepted: BTreeSet::new(),
            },
        };
        let (mail, mailbox) = mpsc::channel(MAIL_MAX);
        let host = config.env.hostname.clone().unwrap_or_default();
        Ok(Self {
            config,
            clock,
            side,
            host,
            servers: None,
            state,
            file,
            session: None,
            link: servers::Link::default(),
            trees: BTreeMap::new(),
            table: None,
            stranger: None,
            mail,
            mailbox: Some(mailbox),
            ending: None,
            report_due: None,
            boot,
            machine,
            faults: Faults::from_env(),
            parked: Vec::new(),
        })
    }

    /// Runs until SIGTERM or `treelease down`. The socket answers once the configured mounts have been tried.
    pub async fn run(mut self) -> Result<(), Failure> {
        let Some(mut mailbox) = self.mailbox.take() else { return Ok(()) };
        self.terminate_on_signals()?;
        self.connect();
        self.restore_mounts().await;
        let stop = CancellationToken::new();
        let (calls, mut called) = mpsc::channel(socket::CALLS_MAX);
        let socket = socket::serve(&self.config.runtime_dir.join("socket"), calls, stop.clone())?;
        let mail = self.mail.clone();
        tokio::spawn(async move {
            while let Some(call) = called.recv().await {
                if mail.send(Msg::Call(call)).await.is_err() {
                    return;
                }
            }
        });
        tracing::info!(side = %self.side, pid = std::process::id(), "side daemon started");
        sd_notify("READY=1");
        let alarm = alarm::Alarm::new().map_err(|e| Failure::io("cannot make a timer", &e))?;
        while !self.is_over() {
            let now = self.clock.now();
            self.turn(now);
            let tick = self.tick();
            let wait = self.next_deadline().map_or(tick, |at| at.since(self.clock.now()).min(tick)).max(Duration::from_millis(1));
            tokio::select! {
                msg = mailbox.recv() => {
                    let Some(msg) = msg else { break };
                    self.handle(msg);
                    // What has piled up is one turn.
                    while let Ok(msg) = mailbox.try_recv() {
                        self.handle(msg);
                    }
                }
                () = alarm.sleep(wait) => {}
            }
        }
        sd_notify("STOPPING=1");
        self.say_goodbye();
        // The answers on their way to `treelease down` go out before the socket closes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), socket).await;
        let _ = std::fs::remove_file(self.config.runtime_dir.join("socket"));
        tracing::info!(side = %self.side, "side daemon ended");
        Ok(())
    }

    fn terminate_on_signals(&self) -> Result<(), Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind).map_err(|e| Failure::io("cannot listen for signals", &e))?;
            let mail = self.mail.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if mail.send(Msg::Terminate).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(())
    }

    fn handle(&mut self, msg: Msg) {
        let now = self.clock.now();
        // A storage that answers through its lock is no news.
        let news = !matches!(msg, Msg::Tree(_, effects::Done::LookedAfter(_, Ok(()))));
        match msg {
            Msg::Call(call) => self.handle_call(call, now),
            Msg::Server(from) => self.handle_server(from, now),
            Msg::Tree(id, done) => self.handle_done(&id, done, now),
            Msg::Mounted(mounting) => self.handle_mounted(mounting, now),
            Msg::Unmounted(unmounted) => self.handle_unmounted(unmounted, now),
            Msg::Terminate => self.begin_down(DOWN_LIMIT, None, now),
        }
        self.carry_out(now);
        if news {
            self.report_due.get_or_insert(now.after(REPORT_PAUSE));
        }
    }

    /// Sees to everything that is due.
    fn turn(&mut self, now: BootTime) {
        self.drive_session(now);
        self.unpark(now);
        self.refresh_rights(now);
        self.look_at_write_back(now);
        self.look_at_late_pages(now);
        for tree in self.trees.values_mut() {
            if let Some(mounted) = &tree.mounted {
                // What is in flight on slow storage, or waits for it, is a mutation of now: the tree is not at rest.
                let in_flight = mounted.mount.in_flight() > 0 || mounted.mount.waiting_for_room() > 0;
                tree.side.note_mutation(if in_flight { Some(now) } else { mounted.mount.last_mutation() });
                // Word of the first one that waits may have been lost in a full mailbox.
                if tree.side.is_open() && mounted.mount.waiting() > 0 {
                    tree.side.handle_first_write(now);
                }
            }
            tree.side.handle_timeout(now);
        }
        self.drop_unmounted(now);
        self.look_after_locks(now);
        self.carry_out(now);
        self.drive_ending(now);
        if self.report_due.is_some_and(|at| now >= at) {
            self.report_due = None;
            self.write_reports();
        }
    }

    /// Until when each lease may be written, by the session core (I4); fed to the trees.
    fn refresh_rights(&mut self, now: BootTime) {
        let held_off = self.link.gate_not_before.is_some_and(|at| now < at);
        for tree in self.trees.values_mut() {
            let (right, listed) = match (&self.session, tree.side.grant()) {
                (Some(session), Some(grant)) if !held_off => {
                    let listed = (session.listed_by() > 0)
                        .then(|| session.listed().get(&grant.tree).is_some_and(|p| p.epoch == grant.epoch));
                    (session.right(&grant.tree, grant.epoch, now), listed)
                }
                _ => (None, None),
            };
            tree.side.handle_right(right, listed, now);
        }
    }

    /// How long the loop sleeps at most.
    fn tick(&self) -> Duration {
        let quiet = |tree: &Tree| {
            let still = |mount: &Mount| mount.in_flight() == 0 && mount.waiting() == 0 && mount.waiting_for_room() == 0;
            (tree.side.grant().is_none() || tree.side.is_at_rest()) && tree.mounted.as_ref().is_none_or(|m| still(&m.mount))
        };
        if self.ending.is_none() && self.trees.values().all(quiet) { IDLE_TICK } else { TICK }
    }

    fn next_deadline(&self) -> Option<BootTime> {
        let now = self.clock.now();
        let trees = self.trees.values().filter_map(|tree| {
            let look = tree.side.somebody_waits().then(|| now.after(GIVE_WAY_TICK));
            [tree.side.next_deadline(), look, self.silence_deadline(tree)].into_iter().flatten().min()
        });
        let session = self.session.as_ref().and_then(SessionCore::next_deadline);
        let held_off = self.link.gate_not_before.filter(|at| now < *at);
        let link = [session, self.link.next_deadline(), held_off];
        let own = [self.report_due, self.ending_deadline(), self.parked_deadline(), self.locks_deadline()];
        trees.chain(link.into_iter().chain(own).flatten()).min()
    }

    // ---- small things that several files use ----

    fn actor(&self) -> String {
        format!("{} (host {})", self.side, self.host)
    }

    fn cluster(&self) -> Option<&ClusterId> {
        self.file.cluster.as_ref()
    }

    fn tree_named(&self, name: &str) -> Option<&TreeId> {
        self.trees.iter().find(|(id, t)| t.side.name.as_str() == name || id.as_str() == name).map(|(id, _)| id)
    }

    /// The tree of that name, made known to this side if the servers know it.
    fn find_tree(&mut self, name: &str) -> Result<TreeId, Failure> {
        if let Some(id) = self.tree_named(name) {
            return Ok(id.clone());
        }
        let Some((table, _)) = &self.table else {
            return Err(Failure::new(Code::Unreachable, format!("no lease server has answered yet about \"{name}\"")));
        };
        let Some(status) = table.trees.iter().find(|t| t.name.as_str() == name) else {
            return Err(Failure::new(Code::NotFound, format!("there is no tree \"{name}\""))
                .hint("`treelease tree list` shows the trees; `treelease up DIR` makes one"));
        };
        let status = status.clone();
        let (id, now) = (status.id.clone(), self.clock.now());
        let mine = self.file.session.clone();
        let tree = self.tree_entry(&id, &status.name);
        tree.side.handle_table(status, mine.as_ref(), now);
        Ok(id)
    }

    fn tree_entry(&mut self, id: &TreeId, name: &treelease_client::words::id::TreeName) -> &mut Tree {
        if !self.trees.contains_key(id) {
            let wire = self.start_wire(id);
            let mut tree = Tree {
                side: TreeSide::new(id.clone(), name.clone(), self.side.clone()),
                mounted: None,
                unmounting: false,
                unmounted: false,
                wire,
                locks: locks::Locks::default(),
                hold_streams: BTreeMap::new(),
                enders: Vec::new(),
                notes: Vec::new(),
                alarms: bypass::Alarms::default(),
                late: late::Late::default(),
                end_note: String::new(),
                unflushed: false,
                end_key: None,
            };
            if let Some(session) = &self.session {
                tree.side.set_incarnation(session.incarnation());
            }
            self.trees.insert(id.clone(), tree);
            self.tell_left_behind(id);
        }
        self.trees.get_mut(id).expect("it was just put in")
    }
}

/// Tells a supervisor how things stand, by the protocol of `sd_notify`: a datagram to `$NOTIFY_SOCKET`.
fn sd_notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        let text = path.to_string_lossy();
        match text.strip_prefix('@') {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(state.as_bytes(), &address)
            }
            None => socket.send_to(state.as_bytes(), &path),
        }
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "the supervisor could not be told");
    }
}
