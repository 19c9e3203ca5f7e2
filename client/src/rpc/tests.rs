//! Calls against a server of this test's own: what is retried under which key, and what is told as unknown.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use super::*;
use crate::session::Renewal;
use crate::words::id::SessionId;
use wire::lease_server::{Lease, LeaseServer};

/// A server that says what the test wants.
#[derive(Clone)]
pub(super) struct Fake(Arc<State>);

/// What becomes of a call that stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StaysOpen {
    Yes,
    /// It fails at once, like this.
    No(tonic::Code),
    /// It is taken, and nothing comes of it.
    Silent,
    /// It ends after one answer.
    Breaks,
    /// Every other renewal fails, and there are answers that nobody asked for.
    Noisy,
}

struct State {
    cluster: ClusterId,
    /// The first so many calls of `Do` are carried out and their answers are lost.
    lose: AtomicUsize,
    hang: bool,
    /// Calls of `Do` beyond so many are refused at the door.
    welcome: AtomicUsize,
    /// Keys of `Do`, in order.
    keys: Mutex<Vec<String>>,
    renewals: AtomicUsize,
    /// How it takes calls for renewals that stay open; and how many there were, and renewals by calls of their own.
    stays_open: StaysOpen,
    open_calls: AtomicUsize,
    own_calls: AtomicUsize,
    /// The same of commands.
    command_calls: AtomicUsize,
    own_commands: AtomicUsize,
    /// Whom its answers call the leader.
    leader_at: Mutex<String>,
    watches: Mutex<Vec<u64>>,
    /// What its status says; none: it has no status.
    quorum: Option<bool>,
    /// How many large trees its status in pieces has; none: it knows no pieces.
    pieces: Option<usize>,
    /// The first so many of those end before their last piece.
    breaks: AtomicUsize,
}

/// Some 600 KiB.
fn large_tree(n: usize) -> wire::Tree {
    let waiter = wire::Waiter {
        side: "pod".into(),
        session: SessionId::random().to_string(),
        note: "x".repeat(500),
        ..Default::default()
    };
    wire::Tree {
        id: TreeId::random().to_string(),
        name: format!("tree-{n}"),
        state: "free".into(),
        last_end: "none".into(),
        waiters: vec![waiter; 1_100],
        ..Default::default()
    }
}

/// Of this cluster, with a status that is marked or not.
fn fake_status(cluster: &ClusterId, quorum: bool) -> Fake {
    let state = Arc::into_inner(fake(0, false).0).unwrap();
    Fake(Arc::new(State { cluster: cluster.clone(), quorum: Some(quorum), ..state }))
}

/// That takes calls which stay open like this.
pub(super) fn fake_line(stays_open: StaysOpen) -> Fake {
    Fake(Arc::new(State { stays_open, ..Arc::into_inner(fake(0, false).0).unwrap() }))
}

fn fake(lose: usize, hang: bool) -> Fake {
    Fake(Arc::new(State {
        stays_open: StaysOpen::Yes,
        open_calls: AtomicUsize::new(0),
        own_calls: AtomicUsize::new(0),
        command_calls: AtomicUsize::new(0),
        own_commands: AtomicUsize::new(0),
        cluster: ClusterId::random(),
        lose: lose.into(),
        hang,
        welcome: usize::MAX.into(),
        keys: Mutex::default(),
        renewals: AtomicUsize::new(0),
        leader_at: Mutex::default(),
        watches: Mutex::default(),
        quorum: None,
        pieces: None,
        breaks: 0.into(),
    }))
}

impl Fake {
    /// Open calls, and renewals by calls of their own.
    pub(super) fn calls(&self) -> (usize, usize) {
        (self.0.open_calls.load(Ordering::SeqCst), self.0.own_calls.load(Ordering::SeqCst))
    }

    /// Open calls for commands, and commands by calls of their own.
    pub(super) fn command_calls(&self) -> (usize, usize) {
        (self.0.command_calls.load(Ordering::SeqCst), self.0.own_commands.load(Ordering::SeqCst))
    }

    /// Commands that came, whichever way.
    pub(super) fn commands(&self) -> usize {
        self.0.keys.lock().unwrap().len()
    }

    /// Renewals that came, whichever way.
    pub(super) fn renewals(&self) -> usize {
        self.0.renewals.load(Ordering::SeqCst)
    }

    async fn done(&self, request: wire::DoRequest) -> Result<wire::DoAnswer, Status> {
        self.0.keys.lock().unwrap().push(request.request_key);
        if self.0.hang {
            std::future::pending::<()>().await;
        }
        if self.0.keys.lock().unwrap().len() > self.0.welcome.load(Ordering::SeqCst) {
            return Err(Status::resource_exhausted("too many"));
        }
        if self.0.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Status::unavailable("the leader changed"));
        }
        let answer = Some((&Answer::Done).into());
        let leader_at = self.0.leader_at.lock().unwrap().clone();
        Ok(wire::DoAnswer { answer, cluster: self.0.cluster.to_string(), revision: 7, leader_at })
    }

    async fn answered(&self, asked: wire::RenewalAsked) -> Vec<wire::RenewalAnswered> {
        use wire::renewal_answered::Word;
        let answer = self.renewed(asked.renewal.unwrap_or_default()).await;
        let mut answered = vec![wire::RenewalAnswered { tag: asked.tag, word: Some(Word::Renewed(answer.clone())) }];
        if self.0.stays_open == StaysOpen::Noisy {
            let stranger = wire::RenewAnswer { number: 77, ..answer };
            answered.insert(0, wire::RenewalAnswered { tag: asked.tag + 1_000, word: Some(Word::Renewed(stranger)) });
            if self.renewals().is_multiple_of(2) {
                let no = wire::CallFailed { code: tonic::Code::Unavailable as u32, message: "no quorum".into() };
                answered.insert(1, wire::RenewalAnswered { tag: asked.tag, word: Some(Word::Failed(no)) });
            }
        }
        answered
    }

    async fn renewed(&self, request: wire::RenewRequest) -> wire::RenewAnswer {
        self.0.renewals.fetch_add(1, Ordering::SeqCst);
        if self.0.hang {
            std::future::pending::<()>().await;
        }
        let (number, cluster) = (request.number, self.0.cluster.to_string());
        let leader_at = self.0.leader_at.lock().unwrap().clone();
        wire::RenewAnswer { number, nonce: 5, ttl_ms: 4_000, cluster, alive: true, leader_at, ..Default::default() }
    }
}

fn authorised<T>(request: &Request<T>) -> Result<(), Status> {
    let token = request.metadata().get("authorization");
    token
        .filter(|token| *token == "Bearer good")
        .map(drop)
        .ok_or_else(|| Status::unauthenticated("the token is not this server's"))
}

#[tonic::async_trait]
impl Lease for Fake {
    async fn r#do(&self, request: Request<wire::DoRequest>) -> Result<Response<wire::DoAnswer>, Status> {
        authorised(&request)?;
        self.0.own_commands.fetch_add(1, Ordering::SeqCst);
        self.done(request.into_inner()).await.map(Response::new)
    }

    type CommandsStream = BoxStream<'static, Result<wire::CommandsAnswered, Status>>;

    async fn commands(
        &self,
        request: Request<tonic::Streaming<wire::CommandsAsked>>,
    ) -> Result<Response<Self::CommandsStream>, Status> {
        authorised(&request)?;
        self.0.command_calls.fetch_add(1, Ordering::SeqCst);
        let (fake, how) = (self.clone(), self.0.stays_open);
        let answers = request.into_inner().then(move |asked| {
            let fake = fake.clone();
            async move {
                let mut answered = Vec::new();
                for wire::CommandAsked { tag, command, .. } in asked?.asked {
                    let word = match fake.done(command.unwrap_or_default()).await {
                        Ok(done) => wire::command_answered::Word::Done(done),
                        Err(no) => {
                            let failed = wire::CallFailed { code: no.code() as u32, message: no.message().into() };
                            wire::command_answered::Word::Failed(failed)
                        }
                    };
                    answered.push(wire::CommandAnswered { tag, word: Some(word) });
                }
                Ok(wire::CommandsAnswered { answered })
            }
        });
        match how {
            StaysOpen::No(code) => Err(Status::new(code, "not this one")),
            StaysOpen::Silent => Ok(Response::new(futures::stream::pending().boxed())),
            // It ends with a no that is meant for none of them, after what came on it was read.
            StaysOpen::Breaks => {
                let end = |_| Err(Status::permission_denied("the token was taken out"));
                Ok(Response::new(answers.map(end).take(1).boxed()))
            }
            StaysOpen::Yes | StaysOpen::Noisy => Ok(Response::new(answers.boxed())),
        }
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewAnswer>, Status> {
        self.0.own_calls.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(self.renewed(request.into_inner()).await))
    }

    type RenewalsStream = BoxStream<'static, Result<wire::RenewalsAnswered, Status>>;

    async fn renewals(
        &self,
        request: Request<tonic::Streaming<wire::RenewalsAsked>>,
    ) -> Result<Response<Self::RenewalsStream>, Status> {
        self.0.open_calls.fetch_add(1, Ordering::SeqCst);
        let (fake, how) = (self.clone(), self.0.stays_open);
        let answers = request.into_inner().then(move |asked| {
            let fake = fake.clone();
            async move {
                let mut answered = Vec::new();
                for one in asked?.asked {
                    answered.extend(fake.answered(one).await);
                }
                Ok(wire::RenewalsAnswered { answered })
            }
        });
        match how {
            StaysOpen::No(code) => Err(Status::new(code, "not this one")),
            StaysOpen::Silent => Ok(Response::new(futures::stream::pending().boxed())),
            StaysOpen::Breaks => Ok(Response::new(answers.take(1).boxed())),
            StaysOpen::Yes | StaysOpen::Noisy => Ok(Response::new(answers.boxed())),
        }
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusAnswer>, Status> {
        let Some(quorum) = self.0.quorum else { return Err(Status::unavailable("no quorum")) };
        let (cluster, revision) = (self.0.cluster.to_string(), if quorum { 2 } else { 1 });
        Ok(Response::new(wire::StatusAnswer { cluster, revision, quorum, ..Default::default() }))
    }

    type StatusInPiecesStream = ReceiverStream<Result<wire::StatusPiece, Status>>;

    /// As a server of the first version, where it is to be one; else as many pieces as it has trees, or one less.
    async fn status_in_pieces(
        &self,
        _: Request<wire::StatusPiecesRequest>,
    ) -> Result<Response<Self::StatusInPiecesStream>, Status> {
        let Some(trees) = self.0.pieces else { return Err(Status::unimplemented("it is of an earlier version")) };
        let broken = self.0.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let (tx, rx) = tokio::sync::mpsc::channel(trees + 1);
        let cluster = self.0.cluster.to_string();
        let head = wire::StatusAnswer { cluster, revision: 9, quorum: true, ..Default::default() };
        let mut parts = vec![head];
        parts.extend((0..trees).map(|n| wire::StatusAnswer { trees: vec![large_tree(n)], ..Default::default() }));
        for (n, part) in parts.into_iter().enumerate() {
            if broken && n == trees {
                break;
            }
            tx.try_send(Ok(wire::StatusPiece { part: Some(part), more: n < trees })).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn history(&self, _: Request<wire::HistoryRequest>) -> Result<Response<wire::HistoryAnswer>, Status> {
        Err(Status::not_found("no such tree"))
    }

    async fn change_members(&self, _: Request<wire::MembersRequest>) -> Result<Response<wire::MembersAnswer>, Status> {
        Err(Status::unavailable("no leader"))
    }

    type WatchStream = ReceiverStream<Result<wire::WatchAnswer, Status>>;

    /// Each watch tells two things and breaks.
    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use wire::watch_answer::Kind;
        let since = request.into_inner().since;
        self.0.watches.lock().unwrap().push(since);
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let say = |kind| Ok(wire::WatchAnswer { kind: Some(kind) });
        tx.try_send(say(Kind::Watching(wire::Watching { revision: 100 }))).unwrap();
        tx.try_send(say(Kind::Lagged(wire::Lagged { revision: since + 10 }))).unwrap();
        tx.try_send(Err(Status::unavailable("going down"))).unwrap();
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    type BackupStream = ReceiverStream<Result<wire::BackupAnswer, Status>>;

    /// Whole, if it has a quorum; else its last piece is missing.
    async fn backup(&self, _: Request<wire::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        use crate::words::backup::{About, pieces, seal};
        use crate::words::time::WallTime;
        let cluster = self.0.cluster.clone();
        let about = About { cluster, revision: 3, at: WallTime::UNKNOWN, trees: 0, history: None, version: "0".into() };
        let text = seal(&about, &"x".repeat(70_000));
        let pieces = pieces(&text);
        let (tx, rx) = tokio::sync::mpsc::channel(8);
        for piece in &pieces[..pieces.len() - usize::from(self.0.quorum != Some(true))] {
            tx.try_send(Ok(wire::BackupAnswer { text: (*piece).into() })).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

#[tokio::test]
async fn a_backup_that_ends_too_soon_is_no_backup() {
    let cluster = ClusterId::random();
    for whole in [true, false] {
        let servers = Servers::new(vec![serve(&fake_status(&cluster, whole)).await], None, Duration::from_secs(5));
        let backup = servers.backup().await;
        assert_eq!(backup.is_ok(), whole, "{backup:?}");
    }
}

pub(super) async fn serve(fake: &Fake) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = LeaseServer::new(fake.clone());
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await
    });
    at(address)
}

fn at(address: SocketAddr) -> Endpoint {
    Endpoint::from_address(&address.to_string()).unwrap()
}

/// Nobody listens there.
async fn nobody() -> Endpoint {
    at(TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap())
}

pub(super) fn servers(endpoints: Vec<Endpoint>, millis: u64) -> Servers {
    Servers::new(endpoints, Some("good".into()), Duration::from_millis(millis))
}

pub(super) fn command() -> Command {
    Command::CloseSession { session: SessionId::random() }
}

#[tokio::test]
async fn a_change_is_retried_under_one_key_until_it_is_answered() {
    let fake = fake(2, false);
    let servers = servers(vec![nobody().await, serve(&fake).await], 5_000);
    let done = servers.do_command("test", None, command()).await.unwrap();
    assert_eq!((done.answer, done.cluster, done.revision), (Answer::Done, fake.0.cluster.clone(), 7));
    let keys = fake.0.keys.lock().unwrap().clone();
    assert_eq!(keys.len(), 3);
    assert!(keys.windows(2).all(|two| two[0] == two[1]), "{keys:?}");
    assert_eq!(servers.targets().unwrap()[0].address, servers.endpoints()[1], "who answered is asked first");
}

#[tokio::test]
async fn a_change_that_may_have_arrived_has_an_unknown_outcome() {
    for fake in [fake(usize::MAX, false), fake(0, true)] {
        let servers = servers(vec![serve(&fake).await], 400);
        let e = servers.do_command("test", None, command()).await.unwrap_err();
        assert!(matches!(e, CallError::Unknown { .. }), "{e:?}");
    }
}

#[tokio::test]
async fn a_refusal_after_a_try_that_may_have_arrived_leaves_the_outcome_unknown() {
    let fake = fake(1, false);
    fake.0.welcome.store(1, Ordering::SeqCst);
    let servers = servers(vec![serve(&fake).await], 400);
    let e = servers.do_command("test", None, command()).await.unwrap_err();
    assert!(matches!(&e, CallError::Unknown { last, .. } if last == "too many"), "{e:?}");
    assert!(fake.0.keys.lock().unwrap().len() > 2, "it is asked again, under the same key");
    // Without an earlier try it is a refusal, at once.
    let e = servers.do_command("test", None, command()).await.unwrap_err();
    assert!(matches!(&e, CallError::Refused(refusal) if refusal.code == Code::Limit), "{e:?}");
}

#[tokio::test]
async fn a_change_that_never_left_is_unreachable_and_names_whom_it_tried() {
    let endpoint = nobody().await;
    let e = servers(vec![endpoint.clone()], 400).do_command("test", None, command()).await.unwrap_err();
    assert!(matches!(e, CallError::Unreachable { .. }), "{e:?}");
    assert!(e.to_string().contains(endpoint.as_str()), "{e}");
    let e = Servers::embedded("/nonexistent".into(), Duration::from_millis(200)).status().await.unwrap_err();
    assert!(e.to_string().contains("embedded server does not run"), "{e}");
}

#[tokio::test]
async fn a_wrong_token_and_another_cluster_are_refusals_at_once() {
    let fake = fake(0, false);
    let endpoint = serve(&fake).await;
    let wrong = Servers::new(vec![endpoint.clone()], Some("bad".into()), Duration::from_secs(5));
    let Err(CallError::Refused(refusal)) = wrong.do_command("test", None, command()).await else { panic!("taken") };
    assert_eq!(refusal.code, Code::Denied);
    let other = ClusterId::random();
    let Err(CallError::Refused(refusal)) = servers(vec![endpoint], 5_000).do_command("test", Some(&other), command()).await
    else {
        panic!("taken")
    };
    assert_eq!(refusal.code, Code::Config);
    assert!(refusal.message.contains(other.as_str()) && refusal.message.contains(fake.0.cluster.as_str()), "{refusal}");
}

pub(super) fn renewal() -> Renewal {
    Renewal { session: SessionId::random(), incarnation: 1, number: 9, nonce: 0, can_wait: true }
}

#[tokio::test]
async fn a_renewal_is_hedged_and_never_sent_twice_to_one_server() {
    let (slow, good) = (fake(0, true), fake(0, false));
    let servers = servers(vec![serve(&slow).await, serve(&good).await], 5_000);
    let answered = servers.renew(&renewal(), Some(&good.0.cluster)).await.unwrap();
    assert_eq!((answered.number, answered.nonce, answered.server_elapsed), (9, 5, None));
    assert_eq!(slow.0.renewals.load(Ordering::SeqCst), 1);
    assert_eq!(good.0.renewals.load(Ordering::SeqCst), 1);
    let e = servers.renew(&renewal(), Some(&ClusterId::random())).await.unwrap_err();
    assert!(matches!(e, CallError::Refused(_)), "{e:?}");
}

#[tokio::test]
async fn one_node_that_refuses_does_not_end_a_renewal_that_another_one_answers() {
    let (stranger, good) = (fake(0, false), fake(0, false));
    let both = servers(vec![serve(&stranger).await, serve(&good).await], 60_000);
    let answered = both.renew(&renewal(), Some(&good.0.cluster)).await.unwrap();
    assert_eq!(answered.number, 9);
    assert_eq!(stranger.0.renewals.load(Ordering::SeqCst), 1, "it was asked first");
    let again = both.targets().unwrap()[0].address.clone();
    assert_eq!(again, both.endpoints()[1], "who refused is not preferred");
}

#[tokio::test]
async fn a_renewal_that_is_late_goes_to_all_others_and_one_that_failed_to_the_next_at_once() {
    // The first two take it and say nothing, as stopped processes do.
    let (one, two, good) = (fake(0, true), fake(0, true), fake(0, false));
    let all = vec![serve(&one).await, serve(&two).await, serve(&good).await];
    let silent = servers(all, 60_000);
    assert_eq!(silent.renew(&renewal(), None).await.unwrap().number, 9);
    for fake in [&one, &two, &good] {
        assert_eq!(fake.0.renewals.load(Ordering::SeqCst), 1);
    }
    // Nobody listens at the first two: each failure sends it on, without the wait for a late answer.
    let away = servers(vec![nobody().await, nobody().await, serve(&good).await], 60_000);
    assert_eq!(away.renew(&renewal(), None).await.unwrap().number, 9);
    // Nobody at all is an error, with all who were tried.
    let nowhere = servers(vec![nobody().await, nobody().await], 60_000).renew(&renewal(), None).await.unwrap_err();
    assert!(matches!(&nowhere, CallError::Unreachable { tried, .. } if tried.len() == 2), "{nowhere:?}");
}

#[tokio::test]
async fn the_leaders_node_is_asked_first_and_one_that_is_no_endpoint_of_ours_is_not() {
    let (follower, leader) = (fake(0, false), fake(0, false));
    let endpoints = vec![serve(&follower).await, serve(&leader).await];
    let servers = servers(endpoints.clone(), 60_000);
    let address = endpoints[1].as_str().trim_start_matches("http://").to_owned();
    *follower.0.leader_at.lock().unwrap() = address.clone();
    *leader.0.leader_at.lock().unwrap() = address;
    for _ in 0..5 {
        servers.renew(&renewal(), None).await.unwrap();
    }
    let asked = [&follower, &leader].map(|fake| fake.0.renewals.load(Ordering::SeqCst));
    assert_eq!(asked, [1, 4], "the follower's answer names the leader");
    *leader.0.leader_at.lock().unwrap() = "elsewhere:1".into();
    servers.renew(&renewal(), None).await.unwrap();
    assert_eq!(servers.targets().unwrap()[0].address, endpoints[1].as_str());
}

#[tokio::test]
async fn a_change_goes_to_the_leaders_node_once_an_answer_has_named_it() {
    let (follower, leader) = (fake(0, false), fake(0, false));
    let endpoints = vec![serve(&follower).await, serve(&leader).await];
    let servers = servers(endpoints.clone(), 60_000);
    let address = endpoints[1].as_str().trim_start_matches("http://").to_owned();
    for fake in [&follower, &leader] {
        *fake.0.leader_at.lock().unwrap() = address.clone();
    }
    for _ in 0..5 {
        servers.do_command("test", None, command()).await.unwrap();
    }
    let asked = [&follower, &leader].map(|fake| fake.0.keys.lock().unwrap().len());
    assert_eq!(asked, [1, 4], "the follower's answer names the leader");
}

#[tokio::test]
async fn a_named_leader_that_is_not_there_costs_one_try_and_no_call() {
    let (good, away) = (fake(0, false), nobody().await);
    let servers = servers(vec![serve(&good).await, away.clone()], 60_000);
    *good.0.leader_at.lock().unwrap() = away.as_str().trim_start_matches("http://").to_owned();
    for first in [1, 0, 0, 0] {
        servers.do_command("test", None, command()).await.unwrap();
        assert_eq!(servers.targets().unwrap()[0].address, servers.endpoints()[first]);
    }
    assert_eq!(good.0.keys.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_read_gives_up_soon_and_says_why() {
    let fake = fake(0, false);
    let servers = servers(vec![serve(&fake).await], 60_000);
    let e = servers.status().await.unwrap_err();
    assert!(matches!(&e, CallError::Unreachable { last, .. } if last == "no quorum"), "{e:?}");
    let e = servers.history(&TreeId::random(), 5).await.unwrap_err();
    assert!(matches!(&e, CallError::Refused(refusal) if refusal.code == Code::NotFound), "{e:?}");
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_broken() {
    let fake = fake(0, false);
    let mut watch = servers(vec![serve(&fake).await], 5_000).watch(3, vec![]);
    for since in [3, 13, 23] {
        assert_eq!(watch.next().await.unwrap(), Ok(WatchItem::Watching(100)));
        assert_eq!(watch.next().await.unwrap(), Ok(WatchItem::Lagged(since + 10)));
        assert!(matches!(watch.next().await.unwrap(), Err(CallError::Unreachable { .. })));
    }
    assert_eq!(*fake.0.watches.lock().unwrap(), [3, 13, 23]);
}

#[tokio::test]
async fn a_status_without_a_quorum_is_taken_only_if_no_server_has_one() {
    let (ours, other) = (ClusterId::random(), ClusterId::random());
    let marked = serve(&fake_status(&ours, false)).await;
    let stranger = serve(&fake_status(&other, true)).await;
    let alone = servers(vec![marked.clone(), nobody().await, stranger], 2_000).status().await.unwrap();
    assert_eq!((alone.quorum, alone.revision), (false, 1));
    let whole = serve(&fake_status(&ours, true)).await;
    let better = servers(vec![marked, nobody().await, whole], 2_000).status().await.unwrap();
    assert_eq!((better.quorum, better.revision, better.cluster), (true, 2, ours));
}

/// A status in pieces, larger in all than one message may be.
fn fake_pieces(trees: usize, breaks: usize) -> Fake {
    let state = Arc::into_inner(fake(0, false).0).unwrap();
    Fake(Arc::new(State { pieces: Some(trees), breaks: breaks.into(), ..state }))
}

#[tokio::test]
async fn a_status_is_read_in_pieces_whatever_its_length_and_once_more_if_it_breaks() {
    let trees = ANSWER_MAX / (512 << 10);
    for breaks in [0, 1] {
        let fake = fake_pieces(trees, breaks);
        let status = servers(vec![serve(&fake).await], 30_000).status().await.unwrap();
        let names: Vec<String> = status.trees.iter().map(|tree| tree.name.to_string()).collect();
        assert_eq!(names, (0..trees).map(|n| format!("tree-{n}")).collect::<Vec<_>>());
        assert!((status.revision, status.quorum) == (9, true) && status.cluster == fake.0.cluster);
    }
    // As a server of an earlier version does, it does not look at which trees are named: whoever asked finds his among all.
    let named = servers(vec![serve(&fake_pieces(3, 0)).await], 30_000).status_of(&["tree-1".parse().unwrap()]).await.unwrap();
    assert_eq!(named.trees.len(), 3);
    let broken = servers(vec![serve(&fake_pieces(3, 9)).await], 30_000).status().await.unwrap_err();
    assert!(
        matches!(&broken, CallError::Unreachable { last, .. } if last.contains("half-way")),
        "never a part of it: {broken:?}"
    );
}
