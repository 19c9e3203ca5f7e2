//! A command that has ended, and what it said.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::{Signal, Timer, signal};

/// No command of a story runs longer: a hang is a failure that says where.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// What was run.
    pub command: String,
    /// Its exit code; 128 + N by signal.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Done {
    /// Whether it ended by a signal such as SIGBUS.
    pub fn signalled(&self) -> bool {
        self.code > 128
    }

    /// Panics, with everything it said, unless it ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Done {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Panics unless it was a clear refusal: this code, a sentence with each of these words, no panic, nothing on stdout.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> Done {
        let done = self.expect(code);
        assert!(!done.stderr.trim().is_empty(), "no word of why\n{done}");
        assert!(!done.stderr.contains("panicked"), "{done}");
        for word in words {
            assert!(done.stderr.contains(word), "it does not name `{word}`\n{done}");
        }
        done
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON: {e}\n{self}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\nexit {}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.code, self.stdout, self.stderr)
    }
}

/// Runs a command to its end, within a limit; never with a terminal.
pub fn finish(command: Command) -> Done {
    finish_within(COMMAND_LIMIT, command)
}

/// The same with another limit.
pub fn finish_within(limit: Duration, mut command: Command) -> Done {
    let text = format!("{command:?}");
    // The environment is printed too; the words are what matters.
    let text = text.rsplit_once("treelease\" ").map_or_else(|| text.clone(), |(_, args)| format!("treelease {args}"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{text}: {e}"));
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let timer = Timer::start();
    let output: Output = match receiver.recv_timeout(limit) {
        Ok(output) => output.unwrap_or_else(|e| panic!("{text}: {e}")),
        Err(_) => {
            signal(pid, Signal::KILL);
            panic!("{text} did not end within {:?}", timer.elapsed());
        }
    };
    let status = output.status;
    Done {
        command: text,
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
