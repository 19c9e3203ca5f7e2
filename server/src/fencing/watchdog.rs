//! The process between the server and a fence agent, which ends the agent at its deadline whatever has become of the server.
//!
//! ```text
//! treelease-server ──▶ treelease-server fence-watchdog UNTIL PROGRAM ARGS… ──▶ PROGRAM ARGS…  (a process group of its own)
//! ```
//!
//! Promises: the agent is not started after its deadline; at the deadline its whole process group, and whatever it has started
//! elsewhere, is killed; the same when it ends by itself, so that nothing of an attempt acts after its end. *Why:* this process adopts
//! what loses its parent below it (a child subreaper), so that nothing gets out of its sight; and the kernel kills the agent if this
//! process is killed. Time is the side's clock (`treelease_proto::clock`): it counts suspend, so that a machine that slept past the
//! deadline goes no further.
//!
//! What it tells the server is one line on its standard output ([`Word`]); the agent's own output goes to standard error.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use treelease_proto::clock::{Clock, SideClock};

/// The first argument by which the server's executable becomes a watchdog.
pub const ARGUMENT: &str = "fence-watchdog";
/// How often agent and clock are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often what is left is killed again: each round finds what was started since the last one.
const KILL_ROUNDS: u32 = 100;

/// What a watchdog tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The agent ended by itself.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It was killed at its deadline.
    Deadline,
    /// The deadline had passed before it was started.
    Late,
    /// It could not be started.
    Cannot(String),
}

impl Word {
    fn line(&self) -> String {
        match self {
            Word::Exited(code) => format!("exited {code}"),
            Word::Signalled(signal) => format!("signalled {signal}"),
            Word::Deadline => "deadline".into(),
            Word::Late => "late".into(),
            Word::Cannot(why) => format!("cannot {}", why.replace('\n', " ")),
        }
    }

    /// Reads what a watchdog wrote; `None`: it said nothing that can be believed.
    pub fn parse(line: &str) -> Option<Word> {
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        Some(match word {
            "exited" => Word::Exited(rest.parse().ok()?),
            "signalled" => Word::Signalled(rest.parse().ok()?),
            "deadline" => Word::Deadline,
            "late" => Word::Late,
            "cannot" => Word::Cannot(rest.into()),
            _ => return None,
        })
    }
}

/// The whole life of a watchdog. Arguments: until when, in microseconds of the side's clock; the program and its arguments.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let until = args.next().and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_micros);
    let word = match (until, args.next()) {
        (Some(until), Some(program)) => watch(until, &program, args),
        _ => Word::Cannot("its watchdog was started with the wrong arguments".into()),
    };
    // Nobody may be left to hear it: the server has gone.
    let _ = writeln!(std::io::stdout(), "{}", word.line());
    ExitCode::SUCCESS
}

fn watch(until: Duration, program: &OsString, args: impl Iterator<Item = OsString>) -> Word {
    let clock = SideClock::new();
    // Apart from the server, whose end and whose terminal's signals are not meant for it.
    if let Err(e) = rustix::process::setsid() {
        return Word::Cannot(format!("no session of its own: {e}"));
    }
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        return Word::Cannot(format!("its watchdog cannot adopt what it starts: {e}"));
    }
    // Standard output is ours, for the one word.
    let output = rustix::io::dup(rustix::stdio::stderr()).map_or_else(|_| Stdio::null(), Stdio::from);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(output).process_group(0);
    // SAFETY: between fork and exec only one system call is made, which takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from));
    }
    if clock.now().elapsed >= until {
        return Word::Late;
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Word::Cannot(format!("it cannot be started: {e}")),
    };
    let pid = Pid::from_child(&child);
    let mut word = None;
    // It is looked at and not reaped: as long as it is there, its group's number belongs to nobody else.
    while !has_ended(pid) {
        if clock.now().elapsed >= until {
            word = Some(Word::Deadline);
            break;
        }
        std::thread::sleep(LOOK);
    }
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let status = child.wait();
    kill_what_is_left();
    word.unwrap_or_else(|| match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Word::Exited(code),
            (None, signal) => Word::Signalled(signal.unwrap_or_default()),
        },
        Err(e) => Word::Cannot(format!("its end is not known: {e}")),
    })
}

fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error means that there is nobody to wait for.
    rustix::process::waitid(WaitId::Pid(pid), options).map_or(true, |status| status.is_some())
}

/// What left the agent's group and lost its parent is a child of this process now.
fn kill_what_is_left() {
    let list = format!("/proc/self/task/{}/children", rustix::process::getpid().as_raw_nonzero());
    for _ in 0..KILL_ROUNDS {
        let children = std::fs::read_to_string(&list).unwrap_or_default();
        let pids: Vec<Pid> = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
        for pid in &pids {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(_) if pids.is_empty() => return,
            Ok(Some(_)) => {}
            _ => std::thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written_and_nothing_else_is_believed() {
        let words = [
            Word::Exited(0),
            Word::Exited(75),
            Word::Signalled(9),
            Word::Deadline,
            Word::Late,
            Word::Cannot("it is\nnot there".into()),
        ];
        for word in words {
            let read = Word::parse(&format!("{}\n", word.line())).unwrap();
            assert_eq!(read.line(), word.line());
        }
        for strange in ["", "exited", "exited zero", "succeeded", "exited 0 1"] {
            assert_eq!(Word::parse(strange), None, "{strange}");
        }
    }
}
