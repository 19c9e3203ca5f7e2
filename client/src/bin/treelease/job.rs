//! A command that runs in its own process group, with the terminal if we have it.
//!
//! It promises what a shell promises: keys like ctrl-c reach the command and not us; ctrl-z stops both and `fg` brings both back;
//! a signal sent to us is passed on to the whole group; the end of the command is told as its exit code, or 128 + N by signal.
//! When the lease is lost the whole group is ended, not only the one process that was started.
//!
//! It does not know what a lease is.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, killpg, raise, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use treelease_client::error::{Failure, plain};
use treelease_client::words::refusal::Code;

/// How long the command may take to end after SIGTERM before it is killed: long enough to remove a lock file and close a
/// database, short against what the other side waits.
pub const TERM_LIMIT: Duration = Duration::from_secs(5);
/// Changes of the command's state on their way to us: it can be stopped and continued faster than we look.
const STATES: usize = 64;

/// Why a command did not start, as the exit code that shells use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// 127.
    NotFound,
    /// 126.
    CannotRun,
}

/// The exit code and the sentence for a command that could not be started.
pub fn not_started(command: &OsString, error: &io::Error) -> (NotStarted, String) {
    let name = command.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => (NotStarted::NotFound, format!("{name}: command not found")),
        _ => (NotStarted::CannotRun, format!("{name}: cannot be run: {}", plain(error))),
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Code(u8),
    /// By a signal.
    Signal(i32),
}

impl Ended {
    /// As shells tell it.
    pub fn exit(self) -> u8 {
        match self {
            Ended::Code(code) => code,
            Ended::Signal(n) => 128u8.saturating_add(u8::try_from(n).unwrap_or(127)),
        }
    }
}

/// A running command.
pub struct Job {
    group: Pid,
    terminal: Option<File>,
    states: mpsc::Receiver<WaitStatus>,
    signals: Passed,
}

impl Job {
    /// Starts it; signals to us are passed on from now on, and those that came since `signals` was made.
    pub fn start(mut command: Command, mut signals: Passed) -> io::Result<Job> {
        signals.all()?;
        let terminal = foreground_terminal();
        command.process_group(0);
        if let Some(terminal) = &terminal {
            let terminal = terminal.try_clone()?;
            // SAFETY: between fork and exec only async-signal-safe calls are made (sigprocmask, tcsetpgrp, getpid); nothing
            // allocates and no lock is taken.
            unsafe {
                command.pre_exec(move || {
                    // The command has the terminal before its first instruction; a process outside the foreground group that
                    // hands the terminal on would be stopped by SIGTTOU.
                    let blocked = SigSet::from(Signal::SIGTTOU);
                    blocked.thread_block()?;
                    let taken = tcsetpgrp(&terminal, getpid());
                    blocked.thread_unblock()?;
                    taken.map_err(io::Error::from)
                });
            }
        }
        let child: Child = command.spawn()?;
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid is a pid_t"));
        let (tell, states) = mpsc::channel(STATES);
        std::thread::spawn(move || watch(group, &tell));
        Ok(Job { group, terminal, states, signals })
    }

    /// Waits for its end, passing signals on. `lost` resolves when the command has to end: then SIGTERM to the group, and
    /// SIGKILL after [`TERM_LIMIT`]. Also says whether it was so.
    pub async fn wait(mut self, lost: impl Future<Output = ()>) -> Result<(Ended, bool), Failure> {
        tokio::pin!(lost);
        let mut ending = None;
        let mut kill_at = None;
        let ended = loop {
            tokio::select! {
                state = self.states.recv() => match state {
                    Some(WaitStatus::Exited(_, code)) => break Ended::Code(code as u8),
                    Some(WaitStatus::Signaled(_, signal, _)) => break Ended::Signal(signal as i32),
                    Some(WaitStatus::Stopped(..)) if ending.is_none() => self.stop_with_it(),
                    Some(_) => {}
                    None => return Err(Failure::new(Code::Internal, "the command's end was missed")),
                },
                signal = self.signals.next() => { let _ = killpg(self.group, signal); }
                () = &mut lost, if ending.is_none() => {
                    ending = Some(());
                    let _ = killpg(self.group, Signal::SIGTERM);
                    // A stopped process would never see it.
                    let _ = killpg(self.group, Signal::SIGCONT);
                    kill_at = Some(tokio::time::Instant::now() + TERM_LIMIT);
                }
                () = at(kill_at), if kill_at.is_some() => {
                    kill_at = None;
                    let _ = killpg(self.group, Signal::SIGKILL);
                }
            }
        };
        if ending.is_some() {
            // Its children may have outlived it; they must not go on writing either.
            let _ = killpg(self.group, Signal::SIGKILL);
        }
        let had_terminal = self.terminal.is_some();
        self.take_terminal(getpgrp());
        if let (Ended::Signal(n @ (2 | 3)), true, None) = (ended, had_terminal, ending) {
            die_of(n);
        }
        Ok((ended, ending.is_some()))
    }

    /// The command was stopped (ctrl-z): so are we, and when we go on, so does it.
    fn stop_with_it(&self) {
        if self.terminal.is_some() {
            self.take_terminal(getpgrp());
            let quiet = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: both actions are the kernel's own; no handler of ours runs.
            let before = unsafe { sigaction(Signal::SIGTSTP, &quiet) };
            // The rest of our group first (a pipeline, a script), then ourselves. Where no shell could bring us back the kernel
            // drops the signal, and the command goes on at once.
            let _ = killpg(getpgrp(), Signal::SIGTSTP);
            // SAFETY: as above.
            let _ = unsafe { sigaction(Signal::SIGTSTP, &default) };
            let _ = raise(Signal::SIGTSTP);
            if let Ok(before) = before {
                // SAFETY: the action that was there before.
                let _ = unsafe { sigaction(Signal::SIGTSTP, &before) };
            }
            if self.terminal.as_ref().and_then(|t| tcgetpgrp(t).ok()) == Some(getpgrp()) {
                self.take_terminal(self.group);
            }
            let _ = killpg(self.group, Signal::SIGCONT);
        }
    }

    fn take_terminal(&self, group: Pid) {
        let Some(terminal) = &self.terminal else { return };
        let blocked = SigSet::from(Signal::SIGTTOU);
        let _ = blocked.thread_block();
        let _ = tcsetpgrp(terminal, group);
        let _ = blocked.thread_unblock();
    }
}

/// The terminal, if our group has it.
fn foreground_terminal() -> Option<File> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
    (tcgetpgrp(&terminal).ok()? == getpgrp()).then_some(terminal)
}

/// Reports every change of the command until it has ended.
fn watch(pid: Pid, tell: &mpsc::Sender<WaitStatus>) {
    loop {
        match waitpid(pid, Some(WaitPidFlag::WUNTRACED)) {
            Ok(state) => {
                let over = matches!(state, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
                if tell.blocking_send(state).is_err() || over {
                    return;
                }
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// A shell script that started us has to learn that the user pressed ctrl-c: the key reached the command only. So the group gets
/// it too, and we die of it as the command did.
fn die_of(n: i32) {
    let Ok(signal) = Signal::try_from(n) else { return };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the kernel's own action; no handler of ours runs.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = kill(Pid::from_raw(0), signal);
    let _ = raise(signal);
}

async fn at(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// The signals that are passed on.
pub struct Passed(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Passed {
    /// Those that ask us to end, before there is a command: none is missed between the wait for the lease and the start. The
    /// others keep their own meaning until then (ctrl-z stops us while we wait).
    pub fn before() -> io::Result<Self> {
        let mut signals = Self(Vec::new());
        signals.add(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        Ok(signals)
    }

    fn all(&mut self) -> io::Result<()> {
        use Signal::*;
        self.add(&[SIGQUIT, SIGWINCH, SIGTSTP, SIGCONT, SIGUSR1, SIGUSR2])
    }

    fn add(&mut self, signals: &[Signal]) -> io::Result<()> {
        for number in signals {
            self.0.push((*number, signal(SignalKind::from_raw(*number as i32))?));
        }
        Ok(())
    }

    async fn next(&mut self) -> Signal {
        let waits = self.0.iter_mut().map(|(s, stream)| {
            Box::pin(async move {
                stream.recv().await;
                *s
            })
        });
        futures::future::select_all(waits).await.0
    }
}

/// Becomes the command: for a command inside another one that holds the lease already.
pub fn become_it(mut command: Command) -> io::Error {
    command.exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn the_commands_own_code_is_passed_on() {
        let job = Job::start(shell("exit 7"), Passed::before().unwrap()).unwrap();
        assert_eq!(job.wait(std::future::pending()).await.unwrap(), (Ended::Code(7), false));
    }

    #[tokio::test]
    async fn an_end_by_a_signal_is_128_and_its_number() {
        let job = Job::start(shell("kill -KILL $$"), Passed::before().unwrap()).unwrap();
        let (ended, lost) = job.wait(std::future::pending()).await.unwrap();
        assert_eq!((ended.exit(), lost), (137, false));
    }

    #[tokio::test]
    async fn a_lost_lease_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let job =
            Job::start(shell(&format!("sleep 600 & echo $! > {}; wait", pid.display())), Passed::before().unwrap()).unwrap();
        let written = || std::fs::read_to_string(&pid).is_ok_and(|t| t.ends_with('\n'));
        let lost = async {
            while !written() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (ended, was_lost) = job.wait(lost).await.unwrap();
        assert!(was_lost, "{ended:?}");
        let child = Pid::from_raw(std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap());
        let gone = || match std::fs::read_to_string(format!("/proc/{child}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..1_000 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the command's child lives on");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_126() {
        let missing = Job::start(Command::new("/nonexistent/tool"), Passed::before().unwrap()).err().unwrap();
        assert_eq!(not_started(&"/nonexistent/tool".into(), &missing).0, NotStarted::NotFound);
        let directory = Job::start(Command::new("/tmp"), Passed::before().unwrap()).err().unwrap();
        assert_eq!(not_started(&"/tmp".into(), &directory).0, NotStarted::CannotRun);
    }
}
