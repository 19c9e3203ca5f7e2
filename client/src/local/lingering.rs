//! A guard that was killed and does not go.
//!
//! A thread of it can wait in the kernel for a page that a program is writing, while the program waits for the guard's answer.
//! Killed then, the process keeps that thread, and with it `/dev/fuse`, the daemon's lock and the socket: nothing is ever
//! answered, and nobody takes its place. Only ending the connection in the kernel (`fusectl`) breaks the circle.
//!
//! # Promises
//!
//! The connections of a guard that lives are never ended. *Why:* it is done only where the noted process (number and start)
//! is a zombie or has a SIGKILL pending, and only for a connection that the mount table still shows as a guarded mount at the
//! noted path. What a program is told then (ENOTCONN) it would have been told at the kill. Whether the process is *gone*
//! remains for `daemon.lock` to say: a thread that hangs on the storage itself is not freed by this.
//!
//! # Does not know
//!
//! Mounts that have left the mount table (unmounted lazily), and those of a machine whose `fusectl` is not mounted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::place::{self, MountEntry};

/// How long a freed process may take to be gone: the kernel ends its threads and closes its files.
pub const GONE: Duration = Duration::from_secs(5);
/// Between two looks while it does.
pub const LOOK: Duration = Duration::from_millis(20);
/// Where the kernel shows its FUSE connections, each by the number of its mount's device.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// The bit of SIGKILL in a set of signals.
const KILL: u64 = 1 << 8;

/// What a guard notes of itself, in its state directory, for whoever comes after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot: String,
    pid: u32,
    /// When it began, in the kernel's ticks: tells it from a later process with its number.
    started: u64,
    mounts: Vec<Connection>,
}

/// A guarded mount and its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Where it is mounted.
    pub at: PathBuf,
    /// The number of its connection: the minor of its device.
    pub number: u32,
}

impl Connection {
    fn is(&self, mount: &MountEntry) -> bool {
        mount.is_guarded() && mount.device == (0, self.number) && mount.at == self.at
    }
}

fn note_path(state: &Path) -> PathBuf {
    state.join("guard.json")
}

/// Notes this process and its mounts. Not synced: after a power loss there is nothing to free.
pub fn note(state: &Path, mounts: Vec<Connection>) -> std::io::Result<()> {
    let pid = std::process::id();
    let started = look(pid).map(|seen| seen.started).unwrap_or_default();
    let text = serde_json::to_vec_pretty(&Note { boot: place::boot_id()?, pid, started, mounts })?;
    let temp = state.join("guard.json.new");
    std::fs::write(&temp, text)?;
    std::fs::rename(temp, note_path(state))
}

/// A guard that was killed and is still there.
#[derive(Debug)]
pub struct Lingering {
    /// Its process.
    pub pid: u32,
    started: u64,
    mounts: Vec<Connection>,
}

/// The guard of this state directory, if it was killed and is still there.
pub fn lingering(state: &Path) -> Option<Lingering> {
    let note: Note = serde_json::from_slice(&std::fs::read(note_path(state)).ok()?).ok()?;
    let lingering = Lingering { pid: note.pid, started: note.started, mounts: note.mounts };
    (note.boot == place::boot_id().ok()? && !lingering.is_gone() && look(note.pid)?.dying).then_some(lingering)
}

impl Lingering {
    /// Ends its connections: who waits for an answer of it is told ENOTCONN. Answers how many.
    pub fn abort(&self) -> usize {
        let table = place::mounts();
        let there = self.mounts.iter().filter(|connection| table.iter().any(|mount| connection.is(mount)));
        there.filter(|c| std::fs::write(format!("{CONNECTIONS}/{}/abort", c.number), b"1").is_ok()).count()
    }

    /// Whether the process has gone, with all its threads.
    pub fn is_gone(&self) -> bool {
        look(self.pid).is_none_or(|seen| seen.started != self.started)
    }
}

/// A process as /proc shows it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    started: u64,
    dying: bool,
}

fn look(pid: u32) -> Option<Seen> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    seen(&read("stat")?, &read("status")?)
}

/// From the texts of `stat` and `status`. The fields of `stat` stand behind the name, which may contain anything.
fn seen(stat: &str, status: &str) -> Option<Seen> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let pending = |name: &str| {
        let set = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    let killed = ["SigPnd:", "ShdPnd:"].iter().filter_map(|name| pending(name)).any(|set| set & KILL != 0);
    Some(Seen { started: fields.get(19)?.parse().ok()?, dying: killed || matches!(fields.first(), Some(&"Z" | &"X")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_was_killed_is_dying() {
        let stat =
            |state: &str| format!("12 (a ) b) {state} 1 {}", (3..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" "));
        let status =
            |own: &str, shared: &str| format!("Name:\ta\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000100\n");
        let (none, kill, term) = ("0000000000000000", "0000000000000100", "0000000000004000");
        let dying = |state: &str, own: &str, shared: &str| seen(&stat(state), &status(own, shared)).unwrap().dying;
        assert!(!dying("S", none, none) && !dying("D", none, none) && !dying("T", term, term));
        assert!(dying("Z", none, none), "its first thread has ended");
        assert!(dying("D", kill, none) && dying("D", none, kill), "it cannot die of it yet");
        assert_eq!(seen(&stat("S"), "").unwrap().started, 20);
    }

    #[test]
    fn a_guard_that_lives_is_not_lingering_and_neither_is_one_of_another_boot() {
        let state = tempfile::tempdir().unwrap();
        assert!(lingering(state.path()).is_none(), "no note");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let started = look(child.id()).unwrap().started;
        let pid = child.id();
        let put = |boot: String, started| {
            let note = Note { boot, pid, started, mounts: Vec::new() };
            std::fs::write(note_path(state.path()), serde_json::to_vec(&note).unwrap()).unwrap();
        };
        let boot = place::boot_id().unwrap();
        put(boot.clone(), started);
        assert!(lingering(state.path()).is_none(), "it lives");
        child.kill().unwrap();
        // Not waited for: a zombie stays, as of a guard that the kernel keeps.
        assert!(
            (0..3000).any(|_| lingering(state.path()).is_some() || {
                std::thread::sleep(LOOK);
                false
            }),
            "it was killed"
        );
        put("another".into(), started);
        assert!(lingering(state.path()).is_none());
        put(boot, started + 1);
        assert!(lingering(state.path()).is_none(), "a later process with its number");
        child.wait().unwrap();
    }

    #[test]
    fn only_a_guarded_mount_at_its_path_is_the_noted_connection() {
        let noted = Connection { at: "/t".into(), number: 45 };
        let mount = |at: &str, device, fstype: &str| MountEntry {
            at: at.into(),
            device,
            fstype: fstype.into(),
            source: "treelease:dev".into(),
        };
        assert!(noted.is(&mount("/t", (0, 45), place::GUARD_FSTYPE)));
        assert!(!noted.is(&mount("/t", (0, 46), place::GUARD_FSTYPE)), "made anew");
        assert!(!noted.is(&mount("/u", (0, 45), place::GUARD_FSTYPE)), "another's, with a number that was free");
        assert!(!noted.is(&mount("/t", (0, 45), "fuse.sshfs")));
    }
}
