//! Finding, signalling and clearing away the processes and mounts of a world.
//!
//! A process belongs to a world if its environment names the world's directory: every process of a story is started so, and
//! hands it on. So daemons that detached themselves are found too, and nobody else's ever is.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use rustix::process::Signal;

use super::holds_within;

/// How much of each log a failed story shows.
const LOG_TAIL: usize = 6000;

/// Sends a signal; a process that has ended does not mind.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// How long one process may take to show its environment. It never does while one of its threads waits in the mount of a
/// daemon that stands still; who is so stuck is looked at again the next time.
const PATIENCE: Duration = Duration::from_millis(500);

/// The processes with this executable (any, if `None`) whose environment names the path.
pub fn naming(path: &Path, executable: Option<&str>) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let runs = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // A rebuilt executable is shown as "NAME (deleted)".
    let is = |pid: &u32, name: &str| runs(pid).file_name().is_some_and(|f| f.to_string_lossy().split(' ').next() == Some(name));
    let mut wanted: Vec<u32> =
        pids.filter(|pid| *pid != std::process::id() && executable.is_none_or(|name| is(pid, name))).collect();
    let mut found = Vec::new();
    // A reader that is stuck is left behind with the process that it is stuck on.
    while !wanted.is_empty() {
        let (tell, told) = std::sync::mpsc::channel();
        let (all, name) = (wanted.clone(), path.as_os_str().to_owned());
        std::thread::spawn(move || {
            for pid in all {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let names = environment.windows(name.len()).any(|w| w == name.as_bytes());
                if tell.send((pid, names)).is_err() {
                    return;
                }
            }
        });
        let mut seen = 0;
        while let Ok((pid, names)) = told.recv_timeout(PATIENCE) {
            seen += 1;
            if names {
                found.push(pid);
            }
        }
        wanted.drain(..(seen + 1).min(wanted.len()));
    }
    found
}

/// Mounts at or below a directory, the last one first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let mut at: Vec<PathBuf> =
        text.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(dir)).collect();
    at.reverse();
    at
}

/// Kills everything that belongs to the directory and unmounts everything below it.
pub fn clear(dir: &Path) {
    // A stopped process dies by SIGKILL too. One that waits in a mount is freed when its daemon is gone.
    let gone = holds_within(Duration::from_secs(10), || {
        let left = naming(dir, None);
        left.iter().for_each(|pid| signal(*pid, Signal::KILL));
        // A killed guard can be kept by a program that waits for its answer: each waits for the other for ever.
        let tables = left.iter().map(|pid| format!("/proc/{pid}/mountinfo")).chain(["/proc/self/mountinfo".into()]);
        tables.for_each(|table| end_connections(Path::new(&table), dir));
        left.iter().all(|pid| is_zombie(*pid))
    });
    if !gone {
        eprintln!("processes are left: {:?}", naming(dir, None));
    }
    for at in mounts_below(dir) {
        let _ = Command::new("umount").arg("-l").arg(&at).output();
    }
}

/// Ends the FUSE connections of guarded mounts below a directory, by one mount table.
fn end_connections(table: &Path, dir: &Path) {
    for line in std::fs::read_to_string(table).unwrap_or_default().lines().filter(|line| line.contains(" - fuse.treelease ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        if let (Some(number), true) = (fields[2].strip_prefix("0:"), Path::new(fields[4]).starts_with(dir)) {
            let _gone = std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), b"1");
        }
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The ends of all logs, for a story that failed.
pub fn logs(dir: &Path) -> String {
    let mut text = String::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(d) = dirs.pop() {
        // Never into a tree: a mount may hang.
        for entry in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.ends_with(".log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let from = log.len().saturating_sub(LOG_TAIL);
                let from = (from..log.len()).find(|i| log.is_char_boundary(*i)).unwrap_or(0);
                text += &format!("--- {}\n{}\n", path.display(), &log[from..]);
            } else if !name.starts_with("lower") && name != "mnt" && entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Side, World};
    use super::*;

    #[test]
    fn a_world_leaves_no_process_and_no_mount_behind_even_after_a_panic() {
        let mut child = None;
        let mut dir = PathBuf::new();
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let world = World::new();
            dir = world.dir().to_owned();
            let side: Side = world.side_at("workstation", &[]);
            let mut sleep = side.command("sleep");
            child = Some(sleep.arg("600").spawn().unwrap());
            let at = world.directory("mnt");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&at).status().unwrap();
            assert!(mounted.success());
            holds_within(Duration::from_secs(5), || !naming(&dir, Some("sleep")).is_empty());
            panic!("a story that fails, on purpose");
        }));
        assert!(story.is_err());
        assert!(!child.expect("it was started").wait().unwrap().success(), "it was killed");
        assert!(mounts_below(&dir).is_empty() && !dir.exists(), "{}", dir.display());
    }
}
