//! Starting the daemon and the embedded server, and stopping the server. A person never needs to think of either.
//!
//! One start at a time on one state directory (a file lock, which the kernel drops when the command dies). What was started
//! and does not come up is reported with the last lines of its log; nothing is waited for without a limit.

use std::ffi::OsStr;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::LocalClient;
use super::process::{self, LOOK_AGAIN};
use crate::config::Config;
use crate::error::Failure;
use crate::rpc::{CallError, DEFAULT_PORT, Servers};
use crate::words::refusal::Code;

pub use super::process::{find_executable, log_tail};

/// How long daemon or server may take until they answer.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long an embedded server may take to stop: twice its own limit.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long one question to a server that is coming up may take.
const ASK: Duration = Duration::from_secs(1);
/// How many ports are tried, from [`DEFAULT_PORT`] on: one for each user of a shared machine.
const PORTS: u16 = 20;

/// The embedded server as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// `HOST:PORT`.
    pub address: String,
    /// Its process, where it is known.
    pub pid: Option<i32>,
    /// Whether this call started it.
    pub started_now: bool,
}

/// Starts the daemon and waits until its socket answers.
pub(super) async fn start_daemon(config: &Config) -> Result<LocalClient, Failure> {
    config.ensure_state_dir()?;
    config.ensure_runtime_dir()?;
    let program = find_executable("treelease-guard")?;
    let _lock = lock(config).await?;
    // Somebody else may have started it while we waited for the lock.
    match LocalClient::connect(config).await {
        Err(f) if f.code == Code::Unreachable => {}
        other => return other,
    }
    let args: Vec<&OsStr> = match config.given.config.as_ref() {
        Some(file) => vec![OsStr::new("--config"), file.as_os_str()],
        None => Vec::new(),
    };
    let (mut child, log) = process::start_detached(config, &program, &args, "guard.log")?;
    let limit = Instant::now() + START_LIMIT;
    loop {
        match LocalClient::connect(config).await {
            Err(f) if f.code == Code::Unreachable => {}
            other => return other,
        }
        if let Some(how) = process::ended(&mut child) {
            // It may have given way to another one that runs already (a supervisor's).
            if let Ok(client) = LocalClient::connect(config).await {
                return Ok(client);
            }
            return Err(did_not_start("the daemon", &how, &log, child_code(&mut child)));
        }
        if Instant::now() >= limit {
            let why = format!("does not answer at {} within {} s", config.socket().display(), START_LIMIT.as_secs());
            return Err(did_not_start("the daemon", &why, &log, None));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Starts the embedded server unless it runs.
pub async fn start_server(config: &Config) -> Result<Embedded, Failure> {
    config.ensure_state_dir()?;
    let dir = config.server_dir();
    if let Some(running) = answering(config).await? {
        return Ok(running);
    }
    let _lock = lock(config).await?;
    let earlier = earlier_port(&dir);
    if let Some(found) = process::find(&pid_file(config), &dir) {
        // It runs, and may only be slow: a second one on its data could not start anyway.
        return wait_for(config, None, Some(found.pid), false).await;
    }
    if let Some(running) = answering(config).await? {
        return Ok(running);
    }
    make_dir(&dir)?;
    make_token(&dir.join("token"))?;
    let _ = std::fs::remove_file(dir.join("address"));
    let program = find_executable("treelease-server")?;
    let ports = earlier.into_iter().chain(DEFAULT_PORT..DEFAULT_PORT + PORTS);
    let mut last = None;
    for port in ports {
        // A look first: a server that fails on a taken port costs a second, a look nothing.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            continue;
        }
        match start_on(config, &program, &dir, port).await {
            // Somebody took it between the look and the server's own try.
            Err(f) if f.code == Code::CannotCreate && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() => last = Some(f),
            other => return other,
        }
    }
    Err(last.unwrap_or_else(|| {
        let (first, end) = (DEFAULT_PORT, DEFAULT_PORT + PORTS - 1);
        Failure::new(Code::CannotCreate, format!("no port from {first} to {end} on 127.0.0.1 is free for the embedded server"))
            .hint("free one of them, or set `endpoints` to a server that runs elsewhere")
    }))
}

/// Stops the embedded server (SIGTERM); false if none ran.
pub async fn stop_server(config: &Config) -> Result<bool, Failure> {
    let dir = config.server_dir();
    let Some(found) = process::find(&pid_file(config), &dir) else { return Ok(false) };
    found.signal(Signal::TERM);
    let limit = Instant::now() + STOP_LIMIT;
    while !found.has_ended() {
        if Instant::now() >= limit {
            return Err(Failure::new(
                Code::Busy,
                format!("the embedded server (pid {}) did not stop within {} s", found.pid, STOP_LIMIT.as_secs()),
            )
            .hint(format!("see {}, then `kill -9 {}`", config.log_dir().join("server.log").display(), found.pid)));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let _ = std::fs::remove_file(pid_file(config));
    Ok(true)
}

/// Whether an embedded server's process runs for this state directory, and its pid.
pub fn server_pid(config: &Config) -> Option<i32> {
    process::find(&pid_file(config), &config.server_dir()).map(|found| found.pid)
}

fn pid_file(config: &Config) -> PathBuf {
    config.state_dir.join("server.pid")
}

async fn start_on(config: &Config, program: &Path, dir: &Path, port: u16) -> Result<Embedded, Failure> {
    let (listen, token) = (format!("127.0.0.1:{port}"), dir.join("token"));
    let args: [&OsStr; 9] = [
        "--node-id".as_ref(),
        "1".as_ref(),
        "--data-dir".as_ref(),
        dir.as_os_str(),
        "--listen".as_ref(),
        listen.as_ref(),
        "--insecure".as_ref(),
        "--token-file".as_ref(),
        token.as_os_str(),
    ];
    let (child, log) = process::start_detached(config, program, &args, "server.log")?;
    let pid = child.id() as i32;
    write_file(&pid_file(config), pid.to_string().as_bytes())?;
    wait_for(config, Some((child, log)), Some(pid), true).await
}

/// Until the server answers, has ended, or the limit has passed.
async fn wait_for(
    config: &Config,
    mut child: Option<(std::process::Child, process::Log)>,
    pid: Option<i32>,
    started_now: bool,
) -> Result<Embedded, Failure> {
    let limit = Instant::now() + START_LIMIT;
    loop {
        if let Some(running) = answering(config).await? {
            return Ok(Embedded { pid, started_now, ..running });
        }
        if let Some((child, log)) = &mut child
            && let Some(how) = process::ended(child)
        {
            let _ = std::fs::remove_file(pid_file(config));
            return Err(did_not_start("the embedded server", &how, log, child_code(child)));
        }
        if Instant::now() >= limit {
            let log = config.log_dir().join("server.log");
            let who = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            return Err(Failure::new(
                Code::Unreachable,
                format!("the embedded server{who} runs but does not answer. The end of {}:\n{}", log.display(), log_tail(&log)),
            )
            .hint("stop it with `treelease down --server`, then try again"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The embedded server, if it answers now. Another server at its address, which does not know our token, is not ours.
async fn answering(config: &Config) -> Result<Option<Embedded>, Failure> {
    let dir = config.server_dir();
    let Ok(address) = std::fs::read_to_string(dir.join("address")) else { return Ok(None) };
    match Servers::embedded(dir.clone(), ASK).status().await {
        Ok(_) => {
            let pid = process::find(&pid_file(config), &dir).map(|found| found.pid);
            Ok(Some(Embedded { address: address.trim().to_string(), pid, started_now: false }))
        }
        Err(CallError::Refused(refusal)) if refusal.code == Code::Internal => Err(refusal.into()),
        Err(_) => Ok(None),
    }
}

/// The port that an earlier run had, so that what names it goes on working.
fn earlier_port(dir: &Path) -> Option<u16> {
    std::fs::read_to_string(dir.join("address")).ok()?.trim().rsplit_once(':')?.1.parse().ok()
}

/// What did not come up, with the end of its log. The program's own exit code is the command's: it is of the same contract.
fn did_not_start(what: &str, how: &str, log: &process::Log, exit: Option<i32>) -> Failure {
    let code = match exit {
        Some(2) => Code::Internal,
        Some(exit) => Code::ALL.into_iter().find(|code| i32::from(code.exit()) == exit).unwrap_or(Code::Internal),
        None => Code::Unreachable,
    };
    let code = if code == Code::Held { Code::Busy } else { code };
    Failure::new(code, format!("{what} did not come up ({how}). The end of {}:\n{}", log.path.display(), log.tail()))
}

fn child_code(child: &mut std::process::Child) -> Option<i32> {
    child.try_wait().ok().flatten().and_then(|status| status.code())
}

/// One start at a time. The lock goes with the descriptor.
async fn lock(config: &Config) -> Result<std::fs::File, Failure> {
    let path = config.state_dir.join("start.lock");
    let cannot = |e: std::io::Error| Failure::io(format_args!("cannot lock {}", path.display()), &e);
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(cannot)?;
    let limit = Instant::now() + 2 * START_LIMIT;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < limit => tokio::time::sleep(LOOK_AGAIN).await,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::new(
                    Code::Busy,
                    format!("another command has been starting things for {} s", 2 * START_LIMIT.as_secs()),
                )
                .hint(format!("if it hangs, end it: `fuser {}` names it", path.display())));
            }
            Err(e) => return Err(cannot(e.into())),
        }
    }
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Failure::io(format_args!("cannot make {}", dir.display()), &e))
}

/// 32 random bytes in hex, mode 0600; one that is there stays.
fn make_token(path: &Path) -> Result<(), Failure> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        return Ok(());
    }
    let mut random = [0u8; 32];
    std::io::Read::read_exact(
        &mut std::fs::File::open("/dev/urandom").map_err(|e| Failure::io("cannot read /dev/urandom", &e))?,
        &mut random,
    )
    .map_err(|e| Failure::io("cannot read /dev/urandom", &e))?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    write_file(path, hex.as_bytes())
}

/// Written beside and renamed: whoever reads it finds all of it.
fn write_file(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let temp = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&temp);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&temp, path)
    };
    write().map_err(|e| Failure::io(format_args!("cannot write {}", path.display()), &e))
}
