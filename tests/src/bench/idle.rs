//! What a side's daemon costs while nobody does anything: processor time and memory, with many mounts, each held and at rest; with
//! its lease server, and without.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::stats::three_digits;
use super::table::Table;
use super::{Ground, Settings, say};
use crate::hosts::{Server, Side, Timer, holds_within};

/// The goals, of one processor and of memory.
const GOAL: (f64, f64) = (0.2, 50.0);
/// After a change: renewals run out, queues are empty, every tree is at rest.
const SETTLED: Duration = Duration::from_secs(20);
const TTL: &str = "15s";

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let (mounts, long) = (settings.size(20, 2), Duration::from_secs(settings.size(60, 1) as u64));
    let mut server = Server::start(ground.disk.directory("server-idle")?);
    let side = ground.world.side("idle", &server).ttl(TTL);
    for n in 0..mounts {
        let (name, lower) = (format!("idle-{n}"), ground.disk.directory(&format!("lower-idle-{n}"))?);
        std::fs::write(lower.join("file"), "x")?;
        side.ok(&["tree", "add", &name, "--root", lower.to_str().context("our own path")?, "fence=none"]);
        side.mount(&name, &lower);
        // Takes the tree, which is free.
        std::fs::write(side.at(&name).join("file"), "y")?;
    }
    let daemon = side.daemon().context("a daemon runs")?;
    let settle = if settings.quick { Duration::from_millis(100) } else { SETTLED };
    let rests = |side: &Side| {
        let status = side.status();
        status["trees"].as_array().is_some_and(|trees| trees.iter().all(|tree| tree["at_rest"] == true))
    };
    ensure!(holds_within(SETTLED, || rests(&side)), "the trees do not come to rest");
    let mut table = Table::new(["the daemon, nobody does anything", "processor", "memory", "goals"]);
    let mut row = |what: String| -> anyhow::Result<()> {
        std::thread::sleep(settle);
        let (cpu, memory) = (share(daemon, long)?, resident(daemon)?);
        let word = |met: bool| if met { "met" } else { "**behind**" };
        let goals = format!("{} %: {}; {} MiB: {}", GOAL.0, word(cpu < GOAL.0), GOAL.1, word(memory < GOAL.1));
        table.row([what, format!("{} %", three_digits(cpu)), format!("{} MiB", three_digits(memory)), goals]);
        Ok(())
    };
    row(format!("{mounts} mounts, held and at rest, for {} s", long.as_secs()))?;
    server.kill();
    row("the same, its lease server gone".into())?;
    say("idle: measured");
    server.restart();
    side.run(&["down"]);
    Ok(table.to_string())
}

/// Of one processor, in percent, over a while.
fn share(process: u32, during: Duration) -> anyhow::Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(process as i32)).context("a process's clock")?;
    let spent = || clock_gettime(clock).map(Duration::from);
    let (timer, before) = (Timer::start(), spent()?);
    std::thread::sleep(during);
    Ok((spent()? - before).as_secs_f64() / timer.elapsed().as_secs_f64() * 100.0)
}

/// What a process has in memory, in MiB.
fn resident(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().split(' ').next().unwrap_or_default().parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}
