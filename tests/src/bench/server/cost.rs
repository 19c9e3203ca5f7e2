//! What processes have taken, as the kernel counts it.
//!
//! Promises: what a node's process did is counted, whichever of its threads did it; what the kernel did elsewhere for it (the disk,
//! the receiving side of a socket) is not.

use anyhow::Context;

/// Ticks in a second: 100 on every Linux that this is built for.
const TICKS: f64 = 100.0;

/// Seconds of processor time that these have taken so far, in user mode and in the kernel.
pub fn cpu(processes: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for process in processes {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).context("the node runs")?;
        // The name, in parentheses, may hold anything; utime and stime are the 14th and 15th of all, 12th and 13th after it.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        for at in [11, 12] {
            ticks += fields.get(at).and_then(|field| field.parse::<u64>().ok()).context("utime and stime")?;
        }
    }
    Ok(ticks as f64 / TICKS)
}

/// Bytes of a process that are in memory and its own.
pub fn memory(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).context("the node runs")?;
    let field = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    let kib: f64 = field.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_taken_time_and_memory() {
        let own = [std::process::id()];
        let before = cpu(&own).unwrap();
        let mut n = 0u64;
        while cpu(&own).unwrap() < before + 0.05 {
            n = std::hint::black_box(n + 1);
        }
        assert!(memory(own[0]).unwrap() > 10_000.0);
    }
}
