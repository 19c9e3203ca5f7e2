//! `run`, `acquire` and their neighbours against a daemon that a test plays: what reaches the command, what its end is told as,
//! and that nothing is added to its output.

mod common;

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Side, Went, has_line, wait_for};
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};
use treelease_client::words::wire::side_server::{Side as SideService, SideServer};
use treelease_client::words::wire::{self, hold_answer, progress};

const HOLD: &str = "7d1d5c8e-0000-4000-8000-000000000001";

/// What the test's daemon has seen, and what it is to do.
struct Played {
    holds_taken: AtomicUsize,
    live: Mutex<Vec<String>>,
    gone: AtomicUsize,
    last: Mutex<Option<wire::HoldRequest>>,
    lose: watch::Sender<bool>,
    long_report: AtomicBool,
}

#[derive(Clone)]
struct Daemon(Arc<Played>);

struct HoldStream(ReceiverStream<Result<wire::HoldAnswer, Status>>, Arc<Played>);

impl Stream for HoldStream {
    type Item = Result<wire::HoldAnswer, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

impl Drop for HoldStream {
    fn drop(&mut self) {
        self.1.gone.fetch_add(1, Ordering::SeqCst);
    }
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<wire::Progress, Status>> + Send>>;

fn refused(code: &str, exit: u32, message: &str) -> wire::LocalRefusal {
    wire::LocalRefusal { code: code.into(), exit, message: message.into(), hint: String::new(), holder_json: String::new() }
}

fn finished(message: &str) -> Result<Response<ProgressStream>, Status> {
    let done = wire::Finished { message: message.into(), notes: Vec::new() };
    let end = wire::Progress { kind: Some(progress::Kind::Finished(done)) };
    Ok(Response::new(Box::pin(tokio_stream::iter([Ok(end)]))))
}

fn status() -> String {
    let tree = |name: &str, state: &str, holder: &str, mine: bool| {
        format!(
            r#"{{"name":"{name}","id":"x","state":"{state}","mode":"enforce","mounted_at":null,"holder":{holder},"mine":{mine},
            "at_rest":false,"epoch":42,"run_start":40,"ttl_ms":15000,"expires_in_ms":9120,"writes_until":null,"last_end":"clean",
            "waiters":[],"requests":[],"holds":[],"not_enforced_by":[],"fence":null,"roots":[],"a_later_key":1}}"#
        )
    };
    let pod = r#"{"side":"pod","host":"dev-0","since":"2026-01-01T00:00:00Z","note":"a build"}"#;
    let trees = [tree("busy", "held", pod, false), tree("free", "free", "null", false)].join(",");
    format!(
        r#"{{"schema":1,"side":"here","server":{{"reachable":true,"leader":"1","nodes":1,"quorum":true,"secure":false,"revision":8}},
        "trees":[{trees}]}}"#
    )
}

#[tonic::async_trait]
impl SideService for Daemon {
    type HoldStream = HoldStream;
    type GiveUpStream = ProgressStream;
    type HandOverStream = ProgressStream;
    type DownStream = ProgressStream;

    async fn report(&self, _: Request<wire::ReportRequest>) -> Result<Response<wire::ReportAnswer>, Status> {
        let (json, daemon_version) = (status(), env!("CARGO_PKG_VERSION").into());
        Ok(Response::new(wire::ReportAnswer { json, server_reachable: true, daemon_version, pid: 0 }))
    }

    type ReportInPiecesStream = Pin<Box<dyn Stream<Item = Result<wire::ReportAnswer, Status>> + Send>>;

    /// With more text in all than a message may have, if the test wants that.
    async fn report_in_pieces(&self, _: Request<wire::ReportRequest>) -> Result<Response<Self::ReportInPiecesStream>, Status> {
        let (json, daemon_version) = (status(), env!("CARGO_PKG_VERSION").into());
        let (begin, rest) = json.split_at(json.len() / 2);
        let mut pieces = vec![wire::ReportAnswer { json: begin.into(), server_reachable: true, daemon_version, pid: 0 }];
        pieces.push(wire::ReportAnswer { json: rest.into(), ..Default::default() });
        // After its end JSON may have as many spaces as one likes.
        let more = if self.0.long_report.load(Ordering::SeqCst) { 40 } else { 0 };
        pieces.extend((0..more).map(|_| wire::ReportAnswer { json: " ".repeat(1 << 20), ..Default::default() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces.into_iter().map(Ok)))))
    }

    /// The tree's name says what happens: `free`, `busy`, `slow` (granted after a while), `mortal` (lost when the test says so).
    async fn hold(&self, request: Request<wire::HoldRequest>) -> Result<Response<HoldStream>, Status> {
        let request = request.into_inner();
        self.0.holds_taken.fetch_add(1, Ordering::SeqCst);
        *self.0.last.lock().unwrap() = Some(request.clone());
        let (tell, told) = mpsc::channel(8);
        let mut lose = self.0.lose.subscribe();
        self.0.live.lock().unwrap().push(HOLD.into());
        tokio::spawn(async move {
            let say = |kind| tell.send(Ok(wire::HoldAnswer { kind: Some(kind) }));
            let waiting =
                wire::Waiting { place: 2, holder_side: "pod".into(), holder_host: "dev-0".into(), ..Default::default() };
            if request.tree != "free" && request.tree != "mortal" {
                let _ = say(hold_answer::Kind::Waiting(waiting)).await;
            }
            if request.tree == "busy" {
                let _ = say(hold_answer::Kind::Refused(refused("held", 75, "\"busy\" is held by pod"))).await;
                return;
            }
            if request.tree == "slow" {
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            let held = wire::HeldNow {
                hold: HOLD.into(),
                tree: "x".into(),
                epoch: 42,
                side: "here".into(),
                tree_name: request.tree.clone(),
                ..Default::default()
            };
            let _ = say(hold_answer::Kind::Held(held)).await;
            if request.tree == "mortal" && lose.wait_for(|lose| *lose).await.is_ok() {
                let _ = say(hold_answer::Kind::Lost(wire::Lost { reason: "broken by an operator".into() })).await;
            }
            tell.closed().await;
        });
        Ok(Response::new(HoldStream(ReceiverStream::new(told), self.0.clone())))
    }

    async fn give_up(&self, _: Request<wire::GiveUpRequest>) -> Result<Response<ProgressStream>, Status> {
        finished("\"free\" was not held here")
    }

    async fn hand_over(&self, _: Request<wire::HandOverRequest>) -> Result<Response<ProgressStream>, Status> {
        let no = wire::Progress { kind: Some(progress::Kind::Refused(refused("held", 75, "not the holder"))) };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(no)]))))
    }

    async fn add_mount(&self, _: Request<wire::AddMountRequest>) -> Result<Response<wire::AddMountAnswer>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn remove_mount(&self, _: Request<wire::RemoveMountRequest>) -> Result<Response<wire::RemoveMountAnswer>, Status> {
        let refused = refused("busy", 75, "/x is in use by sh (pid 7)");
        Ok(Response::new(wire::RemoveMountAnswer { refused: Some(refused), ..Default::default() }))
    }

    async fn follow(&self, _: Request<wire::FollowRequest>) -> Result<Response<wire::FollowAnswer>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn down(&self, _: Request<wire::DownRequest>) -> Result<Response<ProgressStream>, Status> {
        finished("ended")
    }

    async fn holds(&self, _: Request<wire::HoldsRequest>) -> Result<Response<wire::HoldsAnswer>, Status> {
        let hold = |id: &String| {
            format!(
                r#"{{"id":"{id}","tree":"free","kind":"run","pid":1,"command":"x","tty":null,"since":"2026-01-01T00:00:00Z","note":""}}"#
            )
        };
        let holds: Vec<String> = self.0.live.lock().unwrap().iter().map(hold).collect();
        Ok(Response::new(wire::HoldsAnswer { json: format!(r#"{{"schema":1,"holds":[{}]}}"#, holds.join(",")) }))
    }

    async fn writers(&self, request: Request<wire::WritersRequest>) -> Result<Response<wire::WritersAnswer>, Status> {
        if request.into_inner().tree == "gone" {
            let refusal = wire::LocalRefusal {
                code: "not_found".into(),
                message: "there is no tree \"gone\"".into(),
                ..Default::default()
            };
            return Ok(Response::new(wire::WritersAnswer { json: String::new(), refused: Some(refusal) }));
        }
        let json = r#"{"schema":1,"writers":[{"tree":"free","pid":812,"uid":1000,"command":"gsd","path":"notes.db","count":9,
            "refused":3,"first":"2026-01-01T00:00:00Z","last":"2026-01-01T00:00:05Z","a_later_key":1}]}"#;
        Ok(Response::new(wire::WritersAnswer { json: json.into(), refused: None }))
    }
}

/// A side with a played daemon.
struct World {
    side: Side,
    played: Arc<Played>,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let side = Side::new();
        side.configure("endpoints = [\"http://127.0.0.1:1\"]\n");
        let socket: PathBuf = side.runtime().join("socket");
        let played = Arc::new(Played {
            holds_taken: AtomicUsize::new(0),
            live: Mutex::default(),
            gone: AtomicUsize::new(0),
            last: Mutex::default(),
            lose: watch::channel(false).0,
            long_report: false.into(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let daemon = Daemon(played.clone());
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket).unwrap() });
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(SideServer::new(daemon))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { side, played, _runtime: runtime }
    }

    fn run(&self, args: &[&str]) -> Went {
        self.side.run(args)
    }
}

#[test]
fn a_commands_code_and_output_are_its_own() {
    let world = World::new();
    let went = world.run(&["run", "--tree", "free", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((went.code, went.out.as_str(), went.err.as_str()), (Some(7), "out\n", "err\n"));
    let went = world.run(&["run", "--tree", "free", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!((went.code, went.out.as_str(), went.err.as_str()), (Some(137), "", ""));
}

#[test]
fn a_report_that_is_longer_than_a_message_is_shown_as_any_other() {
    let world = World::new();
    let short = world.run(&["status", "-o", "json"]);
    world.played.long_report.store(true, Ordering::SeqCst);
    let long = world.run(&["status", "-o", "json"]);
    assert_eq!((long.code, long.out.as_str(), long.err.as_str()), (Some(0), short.out.as_str(), ""));
    assert!(long.out.contains("\"busy\""), "{long:?}");
}

#[test]
fn who_wrote_lately_is_a_table_or_the_daemons_json() {
    let world = World::new();
    let went = world.run(&["writers"]);
    let row = |word: &str| went.out.lines().nth(1).is_some_and(|line| line.split_whitespace().any(|cell| cell == word));
    assert_eq!((went.code, went.out.lines().count()), (Some(0), 2), "{went:?}");
    assert!(["free", "812", "1000", "gsd", "9", "3", "notes.db"].into_iter().all(row), "{went:?}");
    let went = world.run(&["writers", "free", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&went.out).unwrap();
    assert_eq!((&json["writers"][0]["refused"], &json["writers"][0]["a_later_key"]), (&3.into(), &1.into()));
    let went = world.run(&["writers", "gone"]);
    assert_eq!((went.code, went.out.as_str()), (Some(66), ""), "{went:?}");
}

#[test]
fn a_command_under_the_lease_knows_what_it_holds() {
    let world = World::new();
    let show = "echo $TREELEASE_HELD_TREE $TREELEASE_EPOCH $TREELEASE_SIDE $TREELEASE_HOLD";
    let went = world.run(&["run", "--tree", "free", "--", "sh", "-c", show]);
    assert_eq!(went.out.trim(), format!("free 42 here {HOLD}"));
    let asked = world.played.last.lock().unwrap().clone().unwrap();
    assert_eq!((asked.kind.as_str(), asked.wait_ms, asked.ask), ("run", 300_000, false));
    assert!(asked.command.starts_with("sh -c"), "{asked:?}");
}

#[test]
fn the_hold_goes_with_the_command() {
    let world = World::new();
    world.run(&["run", "--tree", "free", "--", "true"]);
    wait_for("the hold's stream is dropped", || world.played.gone.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_tree_that_is_held_is_75_or_the_code_that_was_asked_for() {
    let world = World::new();
    let went = world.run(&["run", "-n", "--tree", "busy", "--", "echo", "ran"]);
    assert_eq!((went.code, went.out.as_str()), (Some(75), ""), "{went:?}");
    for part in ["held by pod (host dev-0)", "epoch 42", "expires in 9 s", "hint: ask for it with `treelease acquire busy --ask`"]
    {
        assert!(went.err.contains(part), "{part}: {went:?}");
    }
    assert_eq!(world.played.last.lock().unwrap().as_ref().unwrap().wait_ms, 0);
    assert_eq!(world.run(&["run", "-E", "9", "-n", "--tree", "busy", "--", "true"]).code, Some(9));
    let went = world.run(&["acquire", "busy", "-n", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&went.err).unwrap();
    assert_eq!((error["code"].as_str(), error["next"].as_str()), (Some("held"), Some("treelease acquire busy --ask")));
}

#[test]
fn who_has_to_wait_is_told_so_once_off_a_terminal() {
    let world = World::new();
    let went = world.run(&["run", "--tree", "slow", "--wait", "9s", "--", "echo", "ran"]);
    assert_eq!((went.code, went.out.as_str()), (Some(0), "ran\n"), "{went:?}");
    let lines: Vec<&str> = went.err.lines().collect();
    assert_eq!(lines.len(), 2, "{went:?}");
    assert!(lines[0].starts_with("Waiting, for at most 9s: \"slow\" is held by pod (host dev-0)"), "{went:?}");
    assert!(lines[0].ends_with("place 2 in the queue") && lines[1].starts_with("Granted after"), "{went:?}");
}

#[test]
fn a_lost_lease_ends_the_command_with_79() {
    let world = World::new();
    let (started, ended) = (world.side.path("started"), world.side.path("ended"));
    let script = format!(
        "trap 'echo term > {}; exit 0' TERM; echo > {}; while :; do sleep 0.05; done",
        ended.display(),
        started.display()
    );
    let mut command = world.side.command(&["run", "--tree", "mortal", "--", "sh", "-c", &script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the command runs", || has_line(&started));
    world.played.lose.send(true).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(79), 0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("broken by an operator"), "{output:?}");
    assert!(has_line(&ended), "it was not asked to end");
}

#[test]
fn a_signal_to_us_reaches_the_command() {
    let world = World::new();
    let started = world.side.path("started");
    let script = format!("trap 'exit 5' TERM; echo > {}; while :; do sleep 0.05; done", started.display());
    let child = world.side.command(&["run", "--tree", "free", "--", "sh", "-c", &script]).spawn().unwrap();
    wait_for("the command runs", || has_line(&started));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(5));
}

#[test]
fn on_a_terminal_the_command_has_it_and_its_keys() {
    use std::io::{Read, Write};
    let world = World::new();
    let started = world.side.path("started");
    let pty = nix::pty::openpty(None, None).unwrap();
    let script =
        format!("trap 'exit 9' INT; read line; echo got $line; echo > {}; while :; do sleep 0.05; done", started.display());
    let mut command = world.side.command(&["run", "--tree", "free", "--", "sh", "-c", &script]);
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    // SAFETY: setsid and one ioctl: both may be called between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut terminal = std::fs::File::from(pty.master);
    terminal.write_all(b"word\n").unwrap();
    wait_for("the command has read from the terminal", || has_line(&started));
    // ctrl-z where no shell could bring us back: the command goes on at once. Then ctrl-c, which reaches the command only.
    terminal.write_all(b"\x1a").unwrap();
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let mut shown = [0; 256];
    let n = terminal.read(&mut shown).unwrap();
    assert!(String::from_utf8_lossy(&shown[..n]).contains("got word"), "{:?}", String::from_utf8_lossy(&shown[..n]));
}

#[test]
fn a_command_inside_a_held_tree_does_not_wait_for_itself() {
    let world = World::new();
    let inner = format!("{} run --tree free -- sh -c 'exit 3'", env!("CARGO_BIN_EXE_treelease"));
    let went = world.run(&["run", "--tree", "free", "--", "sh", "-c", &inner]);
    assert_eq!((went.code, went.err.as_str()), (Some(3), ""), "{went:?}");
    assert_eq!(world.played.holds_taken.load(Ordering::SeqCst), 1);
    // A hold that is gone is no hold.
    world.played.live.lock().unwrap().clear();
    let mut command = world.side.command(&["run", "--tree", "free", "--", "true"]);
    command.env("TREELEASE_HELD_TREE", "free").env("TREELEASE_HOLD", "another");
    assert_eq!(common::went(command).code, Some(0));
    assert_eq!(world.played.holds_taken.load(Ordering::SeqCst), 2);
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_126() {
    let world = World::new();
    assert_eq!(world.run(&["run", "--tree", "free", "--", "no-such-tool"]).code, Some(127));
    assert_eq!(world.run(&["run", "--tree", "free", "--", "/tmp"]).code, Some(126));
}

#[test]
fn an_acquire_says_what_it_got() {
    let world = World::new();
    let went = world.run(&["acquire", "free", "--for", "10m", "--note", "a rebase"]);
    assert_eq!((went.code, went.out.as_str()), (Some(0), ""), "{went:?}");
    assert!(went.err.contains("\"free\" is yours, epoch 42, for 10m"), "{went:?}");
    let asked = world.played.last.lock().unwrap().clone().unwrap();
    assert_eq!((asked.kind.as_str(), asked.for_ms, asked.note.as_str()), ("acquire", 600_000, "a rebase"));
    let got: serde_json::Value = serde_json::from_str(&world.run(&["acquire", "free", "-o", "json"]).out).unwrap();
    assert_eq!((got["schema"].as_u64(), got["epoch"].as_u64()), (Some(1), Some(42)));
}

#[test]
fn a_release_of_what_is_not_ours_is_no_error() {
    let went = World::new().run(&["release", "free"]);
    assert_eq!(went.code, Some(0), "{went:?}");
    assert!(went.err.contains("was not held here"), "{went:?}");
}

#[test]
fn only_the_holder_hands_over_and_others_read_what_to_type() {
    let went = World::new().run(&["handoff", "busy", "--to", "pod"]);
    assert_eq!(went.code, Some(75), "{went:?}");
    assert!(went.err.contains("held by pod") && went.err.contains("treelease acquire busy --ask"), "{went:?}");
}

#[test]
fn the_status_is_a_table_for_people_and_word_for_word_for_scripts() {
    let world = World::new();
    let went = world.run(&["status", "-o", "wide"]);
    assert_eq!(went.code, Some(0), "{went:?}");
    assert!(went.out.lines().next().unwrap().contains("MOUNTED AT"), "{went:?}");
    assert!(went.out.contains("pod (dev-0)") && went.out.contains("held for: a build"), "{went:?}");
    assert!(went.err.contains("hint: "), "it ends with the next thing to type: {went:?}");
    let json: serde_json::Value = serde_json::from_str(&world.run(&["status", "free", "-o", "json"]).out).unwrap();
    assert_eq!(json["trees"].as_array().unwrap().len(), 1);
    assert_eq!(json["trees"][0]["a_later_key"], 1, "keys of a later daemon are passed on");
    assert_eq!(world.run(&["status", "nope"]).code, Some(66));
    assert_eq!(world.run(&["status", "--check", "free"]).code, Some(75));
}

#[test]
fn which_tree_is_meant_comes_from_the_environment_where_several_are_known() {
    let world = World::new();
    let went = world.run(&["run", "-n", "--", "true"]);
    assert_eq!(went.code, Some(66), "{went:?}");
    assert!(went.err.contains("busy, free"), "{went:?}");
    let mut command = world.side.command(&["run", "-n", "--", "true"]);
    command.env("TREELEASE_TREE", "free");
    assert_eq!(common::went(command).code, Some(0));
}

#[test]
fn waiting_for_a_state_ends_when_it_is_there_or_at_the_limit() {
    let world = World::new();
    assert_eq!(world.run(&["wait", "free", "--until", "free"]).code, Some(0));
    assert_eq!(world.run(&["wait", "busy", "--until", "held", "-n"]).code, Some(0));
    let went = world.run(&["wait", "busy", "--until", "mine", "--wait", "300ms"]);
    assert_eq!(went.code, Some(75), "{went:?}");
    assert!(went.err.contains("was not ours within 300ms"), "{went:?}");
}

#[test]
fn an_interrupted_wait_is_130_and_leaves_the_queue() {
    let world = World::new();
    let child = world.side.command(&["acquire", "slow"]).stderr(Stdio::null()).spawn().unwrap();
    wait_for("it waits", || world.played.holds_taken.load(Ordering::SeqCst) == 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGINT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    wait_for("its place is given up", || world.played.gone.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_busy_mount_names_who_uses_it() {
    let went = World::new().run(&["umount", "/x"]);
    assert_eq!(went.code, Some(75), "{went:?}");
    assert!(went.err.contains("pid 7"), "{went:?}");
}

#[test]
fn down_without_a_server_of_ours_ends_the_daemon_only() {
    let went = World::new().run(&["down"]);
    assert_eq!((went.code, went.out.as_str()), (Some(0), ""), "{went:?}");
}
