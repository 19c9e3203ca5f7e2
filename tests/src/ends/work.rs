//! Programs that write in a tree on one side, and go on across refusals and ends.
//!
//! A *scribe* ([`super::scribe`]) appends lines; a *committer* adds one row after the other to a database, mostly as people do it,
//! `treelease run --ask -- ledger add`, sometimes by a first write alone. Both acknowledge outside the tree.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::random::Random;
use crate::hosts::{Side, Signal, Timer, executable, holds_within, signal};
use crate::ledger::Journal;

/// The tree.
pub const TREE: &str = "dev";
/// The database in it.
pub const DATABASE: &str = "ledger.db";
/// A command that has not ended after this hangs. Longer than a stop of the daemon, its own wait and everything after it.
const HANGS: Duration = Duration::from_secs(120);
/// How long one command waits for the lease.
const WAIT: &str = "15s";
/// Rows of the first side begin here, those of the second one at twice as much.
const ROWS: i64 = 1_000_000;

/// What one side's programs keep outside the tree.
#[derive(Debug, Clone)]
pub struct Kept {
    /// When writes succeeded.
    pub notes: PathBuf,
    /// Lines that were acknowledged.
    pub lines: PathBuf,
    /// Rows that were acknowledged.
    pub rows: PathBuf,
    log: PathBuf,
}

impl Kept {
    /// In a directory, for the side of that name.
    pub fn new(dir: &Path, side: &str) -> Kept {
        let path = |what: &str| dir.join(format!("{what}-{side}"));
        Kept { notes: path("notes"), lines: path("lines"), rows: path("rows"), log: dir.join(format!("commands-{side}.log")) }
    }
}

/// What a side's programs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// The scribe alone, without a pause in which the tree could come to rest. It starts no daemon.
    Lines,
    /// The same, and a committer, whose commands start the daemon if none runs.
    Busy,
    /// Both, with pauses.
    Restful,
}

/// The programs of one side.
pub struct Work {
    side: Arc<Side>,
    scribe: Child,
    committer: Option<JoinHandle<Result<(), String>>>,
    stop: Arc<AtomicBool>,
    command: Arc<AtomicU32>,
}

impl Work {
    /// Starts them.
    pub fn start(side: &Arc<Side>, number: usize, kept: &Kept, habit: Habit, journal: Journal, seed: u64) -> Work {
        let seed = seed * 2 + number as u64;
        let mut scribe = side.command(executable("scribe"));
        scribe.arg(side.at(TREE)).arg(side.name()).arg(&kept.notes).arg(&kept.lines).arg(seed.to_string());
        if habit == Habit::Restful {
            scribe.arg("--rests");
        }
        let log = log(kept);
        let scribe = scribe.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().expect("the scribe runs");
        let (stop, command) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (theirs, kept, stopped, current) = (side.clone(), kept.clone(), stop.clone(), command.clone());
        let committer = (habit != Habit::Lines).then(|| {
            std::thread::spawn(move || {
                let first = ROWS * (number as i64 + 1);
                commit(&theirs, first, &kept, journal, &mut Random::new(seed), &stopped, &current)
            })
        });
        Work { side: side.clone(), scribe, committer, stop, command }
    }

    /// kill -9 of what runs under the lease now: of `treelease run` itself, or of the tool.
    pub fn kill_command(&self, host: &crate::hosts::Host, the_tool: bool) -> bool {
        let tool = if the_tool { host.processes(Some("ledger")).first().copied() } else { None };
        let pid = tool.or_else(|| Some(self.command.load(Ordering::SeqCst)).filter(|pid| *pid != 0));
        pid.inspect(|pid| signal(*pid, Signal::KILL)).is_some()
    }

    /// Ends them in order. What does not end hangs.
    pub fn stop(&mut self) -> Result<(), String> {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.scribe.stdin.take());
        let ended = holds_within(HANGS, || self.scribe.try_wait().expect("our child").is_some());
        if !ended {
            return Err(format!("the scribe of {} hangs", self.side.name()));
        }
        let status = self.scribe.wait().expect("our child");
        if !status.success() {
            return Err(format!("the scribe of {} ended with {status}", self.side.name()));
        }
        self.committer.take().map_or(Ok(()), |c| c.join().unwrap_or_else(|_| Err("the committer panicked".into())))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.scribe.kill();
        let _ = self.scribe.try_wait();
        // The committer ends with its command, which the network's end kills.
    }
}

fn log(kept: &Kept) -> File {
    File::options().create(true).append(true).open(&kept.log).expect("a log in our own directory")
}

fn commit(
    side: &Side,
    first: i64,
    kept: &Kept,
    journal: Journal,
    random: &mut Random,
    stop: &AtomicBool,
    current: &AtomicU32,
) -> Result<(), String> {
    use std::io::Write;
    let timer = Timer::start();
    for id in first.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let tool = ledger_add(side, id, &kept.rows, journal);
        let under = random.below(4) > 0;
        let mut command =
            if under { side.treelease(&["run", "--tree", TREE, "--ask", "--wait", WAIT, "--"]) } else { side.command(&tool[0]) };
        command.args(if under { &tool[..] } else { &tool[1..] });
        let (code, took) = to_its_end(command, kept, current).map_err(|e| format!("{} row {id}: {e}", side.name()))?;
        let _ = writeln!(log(kept), "{:?} row {id}, under a hold: {under}, ended with {code} after {took:?}", timer.elapsed());
        std::thread::sleep(Duration::from_millis(100 + random.below(1000)));
    }
    Ok(())
}

/// The words of one commit.
pub fn ledger_add(side: &Side, id: i64, rows: &Path, journal: Journal) -> Vec<String> {
    let journal = if journal == Journal::Wal { "wal" } else { "delete" };
    let text = |path: &Path| path.to_str().expect("our own path").to_owned();
    let (tool, database, rows, id) = (text(&executable("ledger")), side.file(TREE, DATABASE), text(rows), id.to_string());
    [tool, "add".into(), database, rows, "--id".into(), id, "--journal".into(), journal.into()].to_vec()
}

fn to_its_end(mut command: Command, kept: &Kept, current: &AtomicU32) -> Result<(String, Duration), String> {
    let timer = Timer::start();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log(kept)).spawn();
    let mut child = child.map_err(|e| e.to_string())?;
    current.store(child.id(), Ordering::SeqCst);
    let ended = holds_within(HANGS, || child.try_wait().ok().flatten().is_some());
    current.store(0, Ordering::SeqCst);
    if !ended {
        let _ = child.kill();
        return Err(format!("hangs for {:?}", timer.elapsed()));
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    Ok((status.to_string(), timer.elapsed()))
}
