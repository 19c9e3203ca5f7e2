//! The servers: the session and its renewals, the table of trees, and the commands about one tree in their order.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use treelease_client::rpc::{CallError, Done as Answered, Servers, WatchItem};
use treelease_client::session::{Action, Answered as Renewed, SessionCore, Warning};
use treelease_client::words::command::{Answer, Command, OpenSession, Resume};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{ClusterId, RequestKey, SessionId, TreeId};
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::{BootTime, Ttl};
use treelease_client::words::tree::ClusterStatus;

use super::effects::Done;
use super::{Daemon, Msg};

/// The pause before a session is opened again after a try that failed, or while the side's old session has not ended.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// The table is read anew at least so often, in case an event was missed.
const TABLE_EVERY: Duration = Duration::from_secs(5);
/// The pause before the table is read again after a try that failed: the first, doubled up to [`TABLE_EVERY`] while nobody asks. A
/// renewal that is answered ends it.
const TABLE_PAUSE: Duration = Duration::from_millis(500);
/// The most commands about one tree that wait for the one before them.
const WIRE_MAX: usize = 256;

/// What a command about one tree is for; comes back with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An answer to acquire, sent in the session of that number.
    Acquire(u64),
    /// An answer to release or surrender, for the end of that number.
    End(u64),
    /// An end that is owed for a lease whose gate did not open: sent until it is answered.
    Owed(Epoch),
    /// Leaving the queue.
    Cancel,
    /// An answer to a witness's word about that fence.
    Witness(super::tree::Attempt),
    /// An answer to the rest or active of that number.
    Rest(u64),
    /// An answer to the word that this side's guard obeys the mode of that number.
    Obeys(u64),
    /// Sent until it is answered; the answer changes nothing here.
    Tell,
}

/// One command about one tree, on its way.
#[derive(Debug)]
pub(crate) struct Job {
    pub key: RequestKey,
    /// Let go of before it is sent.
    pub unlock: Option<std::sync::Arc<crate::lower::witness::Lock>>,
    pub command: Command,
    pub purpose: Purpose,
    /// As they were when it was sent: the first commands may be older than the configuration's servers.
    pub servers: Option<std::sync::Arc<Servers>>,
    pub cluster: Option<ClusterId>,
}

/// Where commands about one tree are put.
pub(crate) type Wire = mpsc::Sender<Job>;

/// What the servers said.
#[derive(Debug)]
pub(crate) enum FromServer {
    /// A session, or why there is none. The secret is the one that was sent along.
    Opened(Result<Answered, CallError>),
    /// A renewal's answer, and which it was for.
    Renewed(u64, SessionId, Result<Renewed, CallError>),
    /// The table.
    Table(Result<ClusterStatus, CallError>),
    /// Something has happened: the table is out of date.
    Stir,
    /// No more events come.
    WatchEnded,
    /// The session is closed, or could not be.
    Closed,
}

/// How the daemon stands with the servers.
#[derive(Debug, Default)]
pub(crate) struct Link {
    opening: bool,
    open_at: Option<BootTime>,
    reading: bool,
    read_again: bool,
    read_at: Option<BootTime>,
    /// How many reads have failed, one after the other.
    failed_reads: u32,
    /// How many reads of the table have ended well.
    pub reads: u64,
    watching: bool,
    pub reachable: bool,
    /// Why there is no session, for people.
    pub trouble: String,
    /// After a resume on another boot: no gate opens before the old incarnation's last deadline.
    pub gate_not_before: Option<BootTime>,
    pub closing: bool,
    resuming: Option<SessionId>,
    /// The session is one that an earlier run of the daemon opened.
    resumed: bool,
    /// What the first answer of a resumed session listed; `None`: it has not come yet. Kept for trees whose name is heard later.
    inherited: Option<BTreeMap<TreeId, Epoch>>,
    tried_next: bool,
}

impl Link {
    pub fn next_deadline(&self) -> Option<BootTime> {
        let open = if self.opening { None } else { self.open_at };
        let read = if self.reading { None } else { self.read_at };
        [open, read].into_iter().flatten().min()
    }

    /// The pause after one more read that failed.
    fn pause_reading(&mut self) -> Duration {
        let pause = TABLE_PAUSE.saturating_mul(1 << self.failed_reads.min(8)).min(TABLE_EVERY);
        self.failed_reads += 1;
        pause
    }
}

fn secret() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

impl Daemon {
    /// Takes the servers from the configuration. Nothing is connected yet.
    pub(super) fn connect(&mut self) {
        match self.config.servers() {
            Ok(servers) => {
                self.servers = servers.map(std::sync::Arc::new);
                if self.servers.is_none() {
                    self.link.trouble = "no lease server is configured".into();
                }
            }
            Err(failure) => self.link.trouble = failure.message,
        }
        self.link.open_at = Some(self.clock.now());
        self.link.read_at = Some(self.clock.now());
    }

    /// Opens, renews, reads, as it is due.
    pub(super) fn drive_session(&mut self, now: BootTime) {
        if self.servers.is_none() && self.link.open_at.is_some_and(|at| now >= at) {
            self.connect();
            self.link.open_at = Some(now.after(OPEN_PAUSE));
        }
        let Some(servers) = self.servers.clone() else { return };
        if self.session.is_none() && !self.link.opening && self.ending.is_none() && self.link.open_at.is_none_or(|at| now >= at) {
            self.open_session();
        }
        let mut disagreed = None;
        if let Some(session) = &mut self.session {
            session.handle_timeout(now);
            while let Some(action) = session.poll_action(now) {
                match action {
                    Action::Renew(renewal) => {
                        let (servers, mail, cluster) = (servers.clone(), self.mail.clone(), self.file.cluster.clone());
                        tokio::spawn(async move {
                            let result = servers.renew(&renewal, cluster.as_ref()).await;
                            let from = FromServer::Renewed(renewal.number, renewal.session.clone(), result);
                            let _ = mail.send(Msg::Server(from)).await;
                        });
                    }
                    Action::Warn(warning) => warn(&warning),
                    Action::ClockDisagrees { own, server } => disagreed = Some((own, server)),
                }
            }
        }
        if let Some((own, server)) = disagreed {
            self.clock_disagrees(own, server, now);
        }
        if !self.link.reading && self.link.read_at.is_some_and(|at| now >= at) {
            self.link.reading = true;
            self.link.read_again = false;
            let mail = self.mail.clone();
            tokio::spawn(async move {
                let table = servers.status().await;
                let _ = mail.send(Msg::Server(FromServer::Table(table))).await;
            });
        }
    }

    fn open_session(&mut self) {
        let Some(servers) = self.servers.clone() else { return };
        // The secret of the next incarnation is on disk before the server hears of it. A daemon killed before it noted the
        // server's answer left both: the server knows one of them, and the second try proves itself with the other.
        if self.file.next_secret.is_empty() {
            self.file.next_secret = secret();
        }
        let proof = if self.link.tried_next { &self.file.next_secret } else { &self.file.secret }.clone();
        if let Err(failure) = self.state.save(&self.file) {
            self.link.trouble = failure.message;
            self.link.open_at = Some(self.clock.now().after(OPEN_PAUSE));
            return;
        }
        let resume = self.file.session.clone().filter(|_| !proof.is_empty());
        self.link.resuming = resume.clone();
        self.link.opening = true;
        let command = Command::OpenSession(OpenSession {
            side: self.side.clone(),
            host: self.host.clone(),
            ttl: self.config.ttl,
            new_session: SessionId::random(),
            new_secret_digest: sha256(self.file.next_secret.as_bytes()),
            resume: resume.map(|session| Resume { session, secret: proof.into_bytes() }),
            boot: self.boot.clone(),
            machine: self.machine.clone(),
        });
        let (mail, cluster, actor) = (self.mail.clone(), self.file.cluster.clone(), self.actor());
        tokio::spawn(async move {
            let opened = servers.do_command(&actor, cluster.as_ref(), command).await;
            let _ = mail.send(Msg::Server(FromServer::Opened(opened))).await;
        });
    }

    pub(super) fn handle_server(&mut self, from: FromServer, now: BootTime) {
        match from {
            FromServer::Opened(result) => self.handle_opened(result, now),
            FromServer::Renewed(number, session, result) => self.handle_renewed(number, &session, result, now),
            FromServer::Table(result) => self.handle_table(result, now),
            FromServer::WatchEnded => self.link.watching = false,
            FromServer::Stir => {
                self.read_table_soon(now);
            }
            FromServer::Closed => self.link.closing = false,
        }
    }

    /// The number of the read that will have begun after this moment.
    pub(super) fn read_table_soon(&mut self, now: BootTime) -> u64 {
        if self.link.reading {
            self.link.read_again = true;
            self.link.reads + 2
        } else {
            self.link.read_at = Some(now);
            self.link.reads + 1
        }
    }

    fn handle_opened(&mut self, result: Result<Answered, CallError>, now: BootTime) {
        self.link.opening = false;
        match result {
            Ok(Answered { answer: Answer::Opened { session, incarnation, ttl, resumed }, cluster, .. }) => {
                self.session_is_open(session, incarnation, ttl, resumed, cluster, now);
            }
            Ok(Answered { answer: Answer::Refused(refusal), .. }) => {
                // The secret of an interrupted start may be the one that the server knows: tried once, before waiting.
                if refusal.code == Code::Held && self.link.resuming.is_some() && !self.link.tried_next {
                    self.link.tried_next = true;
                    self.link.open_at = Some(now);
                    return;
                }
                self.link.tried_next = false;
                tracing::warn!(why = %refusal.message, "no session yet");
                self.link.trouble = refusal.message;
                self.link.reachable = true;
                self.link.open_at = Some(now.after(OPEN_PAUSE));
            }
            Ok(other) => {
                self.link.trouble = format!("unexpected answer to opening a session: {:?}", other.answer);
                self.link.open_at = Some(now.after(OPEN_PAUSE));
            }
            Err(error) => {
                if self.link.trouble != error.to_string() {
                    tracing::warn!(%error, "no session yet");
                }
                self.link.trouble = error.to_string();
                self.link.reachable = false;
                self.link.open_at = Some(now.after(OPEN_PAUSE));
            }
        }
    }

    fn session_is_open(
        &mut self,
        session: SessionId,
        incarnation: u64,
        ttl: Ttl,
        resumed: bool,
        cluster: ClusterId,
        now: BootTime,
    ) {
        tracing::info!(%session, incarnation, resumed, ttl_ms = ttl.as_millis(), "session open");
        // On the same boot this process holds the daemon's lock, so the old incarnation's gates are gone. From another boot its
        // state directory may have been copied: nothing opens before its last deadline can have passed.
        if resumed && self.file.boot != self.boot {
            self.link.gate_not_before = Some(now.after(ttl.get()));
        }
        self.file.secret = std::mem::take(&mut self.file.next_secret);
        self.file.cluster = Some(cluster);
        self.file.session = Some(session.clone());
        self.file.boot = self.boot.clone();
        self.link.tried_next = false;
        if let Err(failure) = self.state.save(&self.file) {
            tracing::error!(why = %failure.message, "the session could not be noted: a restart will have to wait for its end");
        }
        self.link.trouble.clear();
        self.link.open_at = None;
        self.link.reachable = true;
        self.link.resumed = resumed;
        self.link.inherited = None;
        if !resumed {
            self.file.leases.clear();
        }
        self.session = Some(SessionCore::new(session, incarnation, ttl, now));
        for tree in self.trees.values_mut() {
            tree.side.set_incarnation(incarnation);
        }
        self.read_table_soon(now);
        for tree in self.trees.values_mut() {
            if resumed && !self.faults.resume_awake {
                tree.side.handle_session_resumed();
            }
            tree.side.handle_session_opened(now);
        }
        if !self.link.watching {
            self.watch();
        }
    }

    /// Events are a stir to read the table: what they say is read there, whole.
    fn watch(&mut self) {
        let Some(servers) = self.servers.clone() else { return };
        if self.faults.hold_back_events {
            return;
        }
        self.link.watching = true;
        let mail = self.mail.clone();
        tokio::spawn(async move {
            let mut events = servers.watch(0, Vec::new());
            while let Some(item) = events.next().await {
                match item {
                    Ok(WatchItem::Event(_) | WatchItem::Lagged(_) | WatchItem::Watching(_)) => {
                        if mail.send(Msg::Server(FromServer::Stir)).await.is_err() {
                            return;
                        }
                    }
                    // The stream connects again by itself; it is not to spin.
                    Err(_) => tokio::time::sleep(TABLE_PAUSE).await,
                }
            }
            // The servers' door refused it: tried again with the next session, or when the table is read next.
            let _ = mail.send(Msg::Server(FromServer::WatchEnded)).await;
        });
    }

    fn handle_renewed(&mut self, number: u64, of: &SessionId, result: Result<Renewed, CallError>, now: BootTime) {
        let Some(session) = self.session.as_mut().filter(|s| s.session() == of) else { return };
        match result {
            Ok(mut answer) => {
                if self.faults.clock_believed {
                    answer.server_elapsed = None;
                }
                self.link.reachable = true;
                let first = session.listed_by() == 0;
                session.handle_answer(answer, now);
                if std::mem::take(&mut self.link.failed_reads) > 0 && !self.link.reading {
                    self.link.read_at = Some(now);
                }
                if let Some(why) = session.ended().map(str::to_owned) {
                    self.session_lost(&why, now);
                    return;
                }
                let first = first && session.listed_by() > 0;
                let listed: Vec<_> = session.listed().values().cloned().collect();
                self.refresh_rights(now);
                if first && self.link.resumed {
                    self.link.inherited = Some(listed.iter().map(|grant| (grant.tree.clone(), grant.epoch)).collect());
                    for id in self.trees.keys().cloned().collect::<Vec<_>>() {
                        self.tell_left_behind(&id);
                    }
                }
                // A grant that no answer and no event has told of: a handoff to this side, or a resumed session.
                for grant in listed {
                    let name = self.name_of(&grant.tree);
                    let (id, epoch) = (grant.tree.clone(), grant.epoch);
                    let Some(name) = name else { continue };
                    let tree = self.tree_entry(&id, &name);
                    let before = tree.side.grant().map(|g| g.epoch);
                    tree.side.handle_grant(grant, now);
                    if before != Some(epoch)
                        && tree.side.grant().is_some_and(|g| g.epoch == epoch)
                        && let Some(session) = &mut self.session
                    {
                        session.note_grant(&id, epoch, now);
                    }
                }
            }
            Err(error) => {
                session.handle_failure(number, now);
                if let CallError::Unreachable { .. } | CallError::Unknown { .. } = error {
                    self.link.reachable = false;
                }
                tracing::debug!(%error, number, "a renewal got no answer");
                self.link.trouble = error.to_string();
            }
        }
    }

    /// Tells a tree what an earlier run of the daemon has left of it: also one that was not known when the session was resumed.
    pub(super) fn tell_left_behind(&mut self, id: &TreeId) {
        if !self.link.resumed || self.session.is_none() || self.faults.resume_awake {
            return;
        }
        let left = self.link.inherited.as_ref().map(|all| all.get(id).map(|epoch| (*epoch, self.past_of(id, *epoch))));
        let Some(tree) = self.trees.get_mut(id) else { return };
        match left {
            Some(left) => tree.side.handle_left_behind(left),
            None => tree.side.handle_session_resumed(),
        }
    }

    fn name_of(&self, id: &TreeId) -> Option<treelease_client::words::id::TreeName> {
        self.trees
            .get(id)
            .map(|t| t.side.name.clone())
            .or_else(|| self.table.as_ref()?.0.trees.iter().find(|t| t.id == *id).map(|t| t.name.clone()))
    }

    pub(super) fn session_lost(&mut self, why: &str, now: BootTime) {
        tracing::warn!(why, "the session has ended at the server");
        self.session = None;
        self.file.session = None;
        self.file.next_secret.clear();
        self.link.open_at = Some(now);
        for tree in self.trees.values_mut() {
            tree.side.handle_session_lost(why, now);
        }
    }

    fn handle_table(&mut self, result: Result<ClusterStatus, CallError>, now: BootTime) {
        self.link.reading = false;
        self.link.read_at = Some(now.after(TABLE_EVERY));
        match result {
            Ok(table) => {
                self.link.failed_reads = 0;
                // Whoever answers a question answers a renewal.
                if let Some(session) = self.session.as_mut().filter(|session| session.late(now).is_some()) {
                    session.renew_now(now);
                }
                if self.cluster().is_some_and(|ours| *ours != table.cluster) {
                    // Read it was: who waits for a look has an answer.
                    self.link.reads += 1;
                    self.met(&table);
                    return;
                }
                self.link.reachable = true;
                self.stranger = None;
                self.learn_nodes(&table);
                self.link.reads += 1;
                if !self.link.watching && self.session.is_some() {
                    self.watch();
                }
                let mine = self.file.session.clone();
                if !self.faults.hold_back_events {
                    let mut unheard = false;
                    for status in &table.trees {
                        if let Some(tree) = self.trees.get_mut(&status.id) {
                            tree.side.handle_table(status.clone(), mine.as_ref(), now);
                            unheard |= tree.side.was_granted_unheard(status, mine.as_ref());
                        }
                    }
                    if let Some(session) = self.session.as_mut().filter(|_| unheard) {
                        session.renew_now(now);
                    }
                }
                self.table = Some((table, now));
                if self.link.read_again {
                    self.link.read_again = false;
                    self.link.read_at = Some(now);
                }
            }
            Err(error) => {
                self.link.reachable = false;
                self.link.trouble = error.to_string();
                self.link.read_at = Some(now.after(self.link.pause_reading()));
            }
        }
    }

    /// Ends the session in order, so that the side's name is free at once.
    pub(super) fn close_session(&mut self) {
        let (Some(servers), Some(session)) = (self.servers.clone(), self.file.session.clone().filter(|_| self.session.is_some()))
        else {
            return;
        };
        self.link.closing = true;
        let (mail, cluster, actor) = (self.mail.clone(), self.file.cluster.clone(), self.actor());
        tokio::spawn(async move {
            let closed = servers.do_command(&actor, cluster.as_ref(), Command::CloseSession { session }).await;
            match closed {
                Ok(Answered { answer: Answer::Refused(refusal), .. }) => {
                    tracing::warn!(why = %refusal.message, "the session could not be closed: it ends by itself");
                }
                Err(error) => tracing::warn!(%error, "the session could not be closed: it ends by itself"),
                Ok(_) => {}
            }
            let _ = mail.send(Msg::Server(FromServer::Closed)).await;
        });
    }

    /// Commands about one tree go out one after the other, each until it is answered or its call's limit has passed.
    pub(super) fn start_wire(&self, id: &TreeId) -> Wire {
        let (wire, mut jobs) = mpsc::channel::<Job>(WIRE_MAX);
        let (mail, id, actor) = (self.mail.clone(), id.clone(), self.actor());
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                if let Some(lock) = job.unlock.clone() {
                    let gone = tokio::task::spawn_blocking(move || lock.let_go(lock.turn()));
                    let _hangs = tokio::time::timeout(super::locks::UNLOCK_LIMIT, gone).await;
                }
                let result = match &job.servers {
                    Some(servers) => servers.do_keyed(&job.key, &actor, job.cluster.as_ref(), &job.command).await,
                    None => Err(CallError::Unreachable { tried: vec![], waited: Duration::ZERO, last: "no lease server".into() }),
                };
                if matches!(job.purpose, Purpose::Tell | Purpose::Owed(_) | Purpose::Cancel) {
                    match &result {
                        Ok(done) => tracing::debug!(tree = %id, answer = ?done.answer, "told the servers"),
                        Err(error) => tracing::warn!(tree = %id, %error, command = ?job.command, "the servers could not be told"),
                    }
                }
                let answer = result.map(|done| done.answer).map_err(refusal_of);
                if mail.send(Msg::Tree(id.clone(), Done::Answer(job.purpose, answer))).await.is_err() {
                    return;
                }
            }
        });
        wire
    }
}

fn refusal_of(error: CallError) -> Refusal {
    treelease_client::error::Failure::from(error).into()
}

fn warn(warning: &Warning) {
    match warning {
        Warning::Late { by } => tracing::warn!(late_ms = by.as_millis() as u64, "renewal late"),
        Warning::WritesStopIn(left) => tracing::warn!("writes stop in {} ms unless a lease server answers", left.as_millis()),
        Warning::Back { after } => tracing::info!(after_ms = after.as_millis() as u64, "renewals are back"),
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}
