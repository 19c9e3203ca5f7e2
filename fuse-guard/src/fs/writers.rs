//! Which processes wrote lately, for `treelease writers` and for the reason of a refusal.

use std::collections::BTreeMap;
use std::sync::Mutex;

use treelease_client::words::time::BootTime;

use crate::sync::lock;

/// Processes that are remembered; the one that wrote longest ago goes first.
const REMEMBERED: usize = 64;

/// A process that wrote lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Its id.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// What it did last.
    pub op: &'static str,
    /// On which path, when it first wrote.
    pub path: String,
    /// How often it wrote.
    pub count: u64,
    /// When it wrote last.
    pub last: BootTime,
}

/// The processes that wrote.
#[derive(Default)]
pub struct Writers {
    known: Mutex<BTreeMap<u32, Writer>>,
}

/// A process's command name.
pub fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| c.trim_end().to_owned()).unwrap_or_else(|_| "?".into())
}

impl Writers {
    /// A process wrote. `path` is asked for only when it is new.
    pub fn wrote(&self, pid: u32, op: &'static str, path: impl FnOnce() -> String, now: BootTime) {
        if pid == 0 {
            return;
        }
        let mut known = lock(&self.known);
        if let Some(writer) = known.get_mut(&pid) {
            writer.op = op;
            writer.count += 1;
            writer.last = now;
            return;
        }
        drop(known);
        let writer = Writer { pid, command: command_of(pid), op, path: path(), count: 1, last: now };
        let mut known = lock(&self.known);
        if known.len() >= REMEMBERED
            && let Some(oldest) = known.values().min_by_key(|w| w.last).map(|w| w.pid)
        {
            known.remove(&oldest);
        }
        known.insert(pid, writer);
    }

    /// All that are remembered, the latest first.
    pub fn report(&self) -> Vec<Writer> {
        let mut all: Vec<Writer> = lock(&self.known).values().cloned().collect();
        all.sort_by_key(|w| std::cmp::Reverse(w.last));
        all
    }
}
