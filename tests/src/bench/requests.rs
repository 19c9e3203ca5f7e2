//! FUSE requests, counted by the kernel as it sends them: the one number that no noise can touch.
//!
//! By the tracepoint `fuse:fuse_request_send`, in a tracing instance of our own (nobody else's tracing is touched), for one
//! connection at a time. Tracing costs time, so what is counted is not timed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Ground;

/// Room for events, per processor: about half a million of them.
const BUFFER_KIB: u32 = 32 * 1024;

/// How many requests of which kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The most frequent kinds, with their counts.
    pub fn most(&self, kinds: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<(&str, u64)> = self.0.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        all.sort_by_key(|(name, n)| (std::cmp::Reverse(*n), *name));
        all.truncate(kinds);
        all
    }

    /// From the text of a trace: `… fuse_request_send: connection 45 req 12 opcode 1 (FUSE_LOOKUP) len 48`.
    pub(super) fn parse(trace: &str) -> Counts {
        let mut counts = Counts::default();
        for line in trace.lines().filter(|line| line.contains("fuse_request_send:")) {
            let name = line.split_once("(FUSE_").and_then(|(_, rest)| rest.split(')').next());
            let name = name.or_else(|| line.split_once("opcode ").and_then(|(_, rest)| rest.split(' ').next()));
            *counts.0.entry(name.unwrap_or("unknown").to_owned()).or_default() += 1;
        }
        counts
    }
}

/// Counts.
pub struct Tracer {
    instance: PathBuf,
}

impl Tracer {
    /// If this kernel has the tracepoint and we may use it.
    pub fn new(ground: &Ground) -> anyhow::Result<Tracer> {
        let tracefs = match mounted_tracefs() {
            Some(at) => at,
            None => {
                let at = ground.world.directory("tracefs");
                let status = Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(&at).status()?;
                if !status.success() {
                    bail!("tracefs cannot be mounted");
                }
                at
            }
        };
        let instance = tracefs.join("instances").join(format!("treelease-bench-{}", std::process::id()));
        fs::create_dir(&instance).context("a tracing instance")?;
        let tracer = Tracer { instance };
        tracer.set("buffer_size_kb", &BUFFER_KIB.to_string())?;
        tracer.set("events/fuse/fuse_request_send/enable", "0").context("the tracepoint fuse:fuse_request_send")?;
        Ok(tracer)
    }

    /// What one connection sends while the work is done.
    pub fn count<T>(&self, connection: u64, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Counts)> {
        self.set("trace", "")?;
        self.set("events/fuse/fuse_request_send/filter", &format!("connection == {connection}"))?;
        self.set("events/fuse/fuse_request_send/enable", "1")?;
        let done = work();
        self.set("events/fuse/fuse_request_send/enable", "0")?;
        let done = done?;
        let trace = fs::read(self.instance.join("trace"))?;
        if self.lost()? > 0 {
            bail!("more requests than the trace's buffer holds");
        }
        Ok((done, Counts::parse(&String::from_utf8_lossy(&trace))))
    }

    fn set(&self, file: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.instance.join(file), text).with_context(|| format!("tracefs: {file}"))
    }

    fn lost(&self) -> anyhow::Result<u64> {
        let mut lost = 0;
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            let overrun = stats.lines().find_map(|line| line.strip_prefix("overrun: ")).unwrap_or("0");
            lost += overrun.trim().parse::<u64>().unwrap_or(0);
        }
        Ok(lost)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Err(why) = fs::remove_dir(&self.instance) {
            super::say(format!("{} is left: {why}", self.instance.display()));
        }
    }
}

fn mounted_tracefs() -> Option<PathBuf> {
    let known = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    known.into_iter().map(Path::new).find(|at| at.join("instances").is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_other_lines_are_not() {
        let trace = "# tracer: nop\n\
            git-1 [000] ..... 1.0: fuse_request_send: connection 45 req 12 opcode 1 (FUSE_LOOKUP) len 48 \n\
            git-1 [001] ..... 1.1: fuse_request_send: connection 45 req 14 opcode 1 (FUSE_LOOKUP) len 48 \n\
            git-1 [001] ..... 1.2: fuse_request_send: connection 45 req 16 opcode 99 () len 48 \n\
            git-1 [001] ..... 1.2: fuse_request_send: connection 45 req 16 opcode 16 (FUSE_WRITE) len 48 \n\
            git-1 [001] ..... 1.3: fuse_request_end: connection 45 req 16 opcode 16 len 24\n";
        let counts = Counts::parse(trace);
        assert_eq!(counts.total(), 4);
        assert_eq!(counts.most(2), [("LOOKUP", 2), ("99", 1)]);
    }
}
