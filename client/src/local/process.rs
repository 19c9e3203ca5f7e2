//! Processes of ours: finding the executable, starting it detached with its output in a log, knowing it again by its pid.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::Config;
use crate::error::Failure;
use crate::words::refusal::Code;

/// How many lines of a log a message quotes.
const TAIL_LINES: usize = 5;
/// How much of a log's end is read for them.
const TAIL_BYTES: u64 = 4096;
/// A log larger than this is put aside (one old one is kept) before a process is started on it.
const LOG_MAX: u64 = 16 << 20;
/// Between two looks at something that has no event to wait for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a process that is just ending may take, in milliseconds: the kernel frees its memory and files.
const ENDING: u16 = 1_000;

/// What a child of ours must not take over from the command that happens to start it: the hold that the command runs under.
const NOT_INHERITED: [&str; 5] =
    ["TREELEASE_TREE", "TREELEASE_HELD_TREE", "TREELEASE_EPOCH", "TREELEASE_HOLD", "TREELEASE_BYPASS_SHIM"];

/// An executable of ours: beside this one (or one directory up, where cargo puts tests), else in PATH.
pub fn find_executable(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.iter().flat_map(|exe| exe.ancestors().skip(1).take(2)).map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    beside.chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(runs).ok_or_else(|| {
        Failure::new(Code::NotFound, format!("the executable `{name}` is neither beside this one nor in PATH"))
            .hint("install all three executables of treelease into one directory")
    })
}

/// The last lines of a log, for a message; empty if there is none.
pub fn log_tail(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
        let mut end = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut end)?;
        Ok(String::from_utf8_lossy(&end).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// What the log has got since a process was started on it.
pub(super) struct Log {
    pub path: PathBuf,
    from: u64,
}

impl Log {
    /// The end of what this process wrote.
    pub fn tail(&self) -> String {
        match std::fs::metadata(&self.path) {
            Ok(meta) if meta.len() > self.from => log_tail(&self.path),
            _ => "(it wrote nothing)".into(),
        }
    }
}

/// Starts a program in a session of its own, with nothing of ours but its log.
pub(super) fn start_detached(
    config: &Config,
    program: &Path,
    args: &[&std::ffi::OsStr],
    log: &str,
) -> Result<(Child, Log), Failure> {
    let dir = config.log_dir();
    std::fs::create_dir_all(&dir).map_err(|e| Failure::io(format_args!("cannot make {}", dir.display()), &e))?;
    let path = dir.join(log);
    let from = match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > LOG_MAX => {
            let _ = std::fs::rename(&path, path.with_extension("log.old"));
            0
        }
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    let cannot = |e: std::io::Error| Failure::io(format_args!("cannot write the log {}", path.display()), &e);
    let out = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(cannot)?;
    let err = out.try_clone().map_err(cannot)?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let given = &config.given;
    command.env("TREELEASE_STATE", &config.state_dir).env("TREELEASE_RUNTIME", &config.runtime_dir);
    if let Some(file) = given.config.as_ref() {
        command.env("TREELEASE_CONFIG", file);
    }
    if let Some(side) = &given.side {
        command.env("TREELEASE_SIDE", side);
    }
    if !given.endpoints.is_empty() {
        command.env("TREELEASE_ENDPOINTS", given.endpoints.join(","));
    }
    if let Some(file) = &given.token_file {
        command.env("TREELEASE_TOKEN_FILE", file);
    }
    // SAFETY: between fork and exec only `setsid` is called, a single system call that allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(std::io::Error::from));
    }
    let child = command.spawn().map_err(|e| Failure::io(format_args!("cannot start {}", program.display()), &e))?;
    Ok((child, Log { path, from }))
}

/// Whether a child of ours has ended, and how.
pub(super) fn ended(child: &mut Child) -> Option<String> {
    child.try_wait().ok().flatten().map(|status| status.to_string())
}

/// A process that was found by its pid file. It is held by a descriptor: a pid that is used again is never mistaken for it.
pub(super) struct Found {
    pub pid: i32,
    fd: std::os::fd::OwnedFd,
}

/// The process of a pid file, if it runs and its command line has `mark` (the directory that it serves).
pub(super) fn find(pid_file: &Path, mark: &Path) -> Option<Found> {
    let pid: i32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Read after the descriptor was opened: it is this process's, whatever becomes of the number.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let found = Found { pid, fd };
    if line.is_empty() {
        // It is just ending, and may still hold its port and its data's lock: who asks wants to go on after that.
        found.wait_end(ENDING);
        return None;
    }
    let mark = std::os::unix::ffi::OsStrExt::as_bytes(mark.as_os_str());
    line.split(|b| *b == 0).any(|arg| arg == mark).then_some(found)
}

impl Found {
    /// Sends a signal; an error only if it has ended already.
    pub fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.fd, signal).is_ok()
    }

    /// Whether it has ended: its descriptor becomes readable then.
    pub fn has_ended(&self) -> bool {
        self.wait_end(0)
    }

    fn wait_end(&self, millis: u16) -> bool {
        use nix::poll::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, millis).is_ok_and(|ready| ready > 0)
    }
}
