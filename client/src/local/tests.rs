//! Refusals over the local socket, and processes that do not come up.

use std::os::unix::process::CommandExt;
use std::path::Path;

use super::*;
use crate::config::{Env, Overrides};
use crate::words::epoch::Epoch;
use crate::words::id::SessionId;
use crate::words::time::WallTime;

fn config(dir: &Path) -> Config {
    let given = Overrides {
        state_dir: Some(dir.join("state")),
        runtime_dir: Some(dir.join("run")),
        side: Some("test".into()),
        ..Overrides::default()
    };
    Config::load(&given, &Env { home: Some(dir.into()), xdg_config_home: None, ..Env::from_process() }).unwrap()
}

#[test]
fn a_failure_travels_over_the_socket_whole() {
    let holder = Holder {
        side: "pod".parse().unwrap(),
        host: "dev-0".into(),
        session: SessionId::random(),
        epoch: Epoch::from_raw(4),
        since: WallTime::UNKNOWN,
        note: "x".into(),
    };
    let failure = Failure::new(Code::Held, "held").hint("one `a`").hint("two").held_by(holder.clone());
    assert_eq!(from_local(to_local(&failure)), failure);
    assert_eq!(to_local(&failure).exit, 75);
    let report = serde_json::to_string(&HolderReport::from(&holder)).unwrap();
    let back = from_local(wire::LocalRefusal { code: "held".into(), holder_json: report, ..Default::default() });
    assert_eq!(back.holder.unwrap().side, holder.side);
    assert_eq!(from_local(wire::LocalRefusal::default()).code, Code::Internal, "of a later version");
}

#[tokio::test]
async fn no_daemon_is_69_with_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let failure = LocalClient::connect(&config).await.unwrap_err();
    assert_eq!(failure.exit().code(), 69);
    assert!(failure.hints[0].contains("treelease up"));
    config.ensure_runtime_dir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(config.socket()).unwrap());
    assert_eq!(LocalClient::connect(&config).await.unwrap_err().exit().code(), 69, "a socket that nobody serves");
}

#[tokio::test]
async fn another_users_socket_is_77_before_anything_is_sent() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    config.ensure_runtime_dir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(config.socket()).unwrap();
    nix::unistd::chown(&config.socket(), Some(1234.into()), None).unwrap();
    assert_eq!(LocalClient::connect(&config).await.unwrap_err().exit().code(), 77);
}

#[test]
fn a_log_is_quoted_by_its_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("x.log");
    assert_eq!(start::log_tail(&log), "");
    let lines: Vec<String> = (0..5_000).map(|n| format!("line {n}")).collect();
    std::fs::write(&log, lines.join("\n") + "\n\n").unwrap();
    assert_eq!(start::log_tail(&log), lines[4_995..].join("\n"));
}

#[tokio::test]
async fn a_program_that_does_not_come_up_is_reported_with_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    config.ensure_state_dir().unwrap();
    let args = ["-c".as_ref(), "echo side=$TREELEASE_SIDE state=$TREELEASE_STATE in=$PWD; exit 3".as_ref()];
    let (mut child, log) = process::start_detached(&config, Path::new("/bin/sh"), &args, "x.log").unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(log.tail(), format!("side=test state={} in=/", config.state_dir.display()));
    assert!(process::ended(&mut child).is_some());
}

#[tokio::test]
async fn a_pid_file_leads_only_to_the_process_of_this_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (mark, pid_file) = (dir.path().join("server"), dir.path().join("pid"));
    let mut child = std::process::Command::new("sleep").arg("1000").arg0(&mark).spawn().unwrap();
    std::fs::write(&pid_file, child.id().to_string()).unwrap();
    // The name is set by exec, a moment after the fork.
    let found = loop {
        match process::find(&pid_file, &mark) {
            Some(found) => break found,
            None => assert!(child.try_wait().unwrap().is_none()),
        }
        tokio::time::sleep(process::LOOK_AGAIN).await;
    };
    assert!(process::find(&pid_file, Path::new("/elsewhere")).is_none(), "somebody else's process");
    assert!(!found.has_ended());
    assert!(found.signal(rustix::process::Signal::KILL));
    child.wait().unwrap();
    assert!(found.has_ended());
    assert!(process::find(&pid_file, &mark).is_none());
}

#[test]
fn an_executable_that_is_nowhere_is_named() {
    let failure = start::find_executable("treelease-nothing").unwrap_err();
    assert!(failure.message.contains("treelease-nothing"));
    assert!(start::find_executable("sh").is_ok());
}

/// A test that fails leaves no server behind.
struct KillAtEnd<'a>(&'a Config);

impl Drop for KillAtEnd<'_> {
    fn drop(&mut self) {
        if let Some(pid) = start::server_pid(self.0) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// With the server's real executable, which the workspace's tests build; alone, this crate has none to start.
#[tokio::test]
async fn the_embedded_server_starts_once_moves_from_a_taken_port_and_stops() {
    if start::find_executable("treelease-server").is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _kill = KillAtEnd(&config);
    assert!(config.servers().unwrap().is_none());
    assert!(!start::stop_server(&config).await.unwrap(), "none runs");
    let (one, two) = tokio::join!(start::start_server(&config), start::start_server(&config));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((&one.address, one.pid), (&two.address, two.pid));
    assert!(one.started_now != two.started_now, "one start at a time");
    let cluster = config.need_servers().unwrap().status().await.unwrap().cluster;
    let token = config.server_dir().join("token");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&token).unwrap());
    assert_eq!((mode & 0o777, std::fs::read(&token).unwrap().len()), (0o600, 64));

    // Killed, its address stays; somebody else takes the port meanwhile.
    let pid = nix::unistd::Pid::from_raw(one.pid.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    while start::server_pid(&config).is_some() {
        tokio::time::sleep(process::LOOK_AGAIN).await;
    }
    // (On a busy machine it may really be somebody else.)
    let taken = std::net::TcpListener::bind(&one.address);
    let three = start::start_server(&config).await.unwrap();
    assert_ne!(three.address, one.address);
    assert_eq!(config.need_servers().unwrap().status().await.unwrap().cluster, cluster, "the same data");
    drop(taken);
    assert!(start::stop_server(&config).await.unwrap());
    assert_eq!(start::server_pid(&config), None);
    assert!(config.need_servers().unwrap().status().await.is_err());
}
