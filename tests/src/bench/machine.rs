//! The words about the machine and the build that a number needs.

use std::path::Path;
use std::process::Command;

use super::disk::Disk;
use super::{Rival, Settings};

/// One paragraph: processor, memory, kernel, filesystem, versions, commit, date, rounds.
pub fn words(settings: &Settings, disk: &Disk) -> String {
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let memory = memory.map_or("memory unknown".into(), |kib| format!("{:.0} GiB", kib as f64 / 1024.0 / 1024.0));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let kernel = first_line("uname", &["-r"]);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    let mut versions = vec![first_line("git", &["--version"])];
    for rival in &settings.rivals {
        let version = first_line(rival.program(), &["--version"]);
        versions.push(if *rival == Rival::Etcd { version.replace(" Version:", "") } else { version });
    }
    format!(
        "{date}, commit {commit}, {build} build, {rounds}{quick}. {processor}, {cores} cores, {memory}; Linux {kernel}; {disk}; {versions}. \
         Load when it began: {load}.",
        date = first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        commit = commit(),
        build = if cfg!(debug_assertions) { "DEBUG" } else { "release" },
        rounds = if settings.rounds == 1 { "one round".into() } else { format!("{} rounds", settings.rounds) },
        quick = if settings.quick { " of small sizes (`--quick`): no numbers to believe" } else { "" },
        disk = disk.words(),
        versions = versions.join(", "),
    )
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn commit() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |args: &[&str]| Command::new("git").arg("-C").arg(here).args(args).output();
    let Ok(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|out| !out.stdout.is_empty());
    match (head.is_empty(), dirty) {
        (true, _) => "unknown".into(),
        (false, true) => format!("{head} and changes"),
        (false, false) => head,
    }
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
