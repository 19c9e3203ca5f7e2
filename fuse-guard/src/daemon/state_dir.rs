//! What survives a restart of the daemon: which session it had, and the secret by which it proves itself.
//!
//! The secret of the next incarnation is on disk *before* the server hears of it, beside the present one: whichever of the two
//! the server knows when the daemon is killed in between, the next start has it. `daemon.lock` is held while the daemon lives,
//! so holding it on the same boot means that the old process, and every gate of it, is gone (DESIGN 3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use treelease_client::error::Failure;
use treelease_client::local::lingering::{self, Connection};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{ClusterId, SessionId, SideName, TreeId};
use treelease_client::words::refusal::Code;

/// What the daemon remembers of its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFile {
    /// The side that it was opened for.
    pub side: SideName,
    /// The cluster that this side follows (I8).
    pub cluster: Option<ClusterId>,
    /// The session, if one was opened.
    pub session: Option<SessionId>,
    /// The secret that the server knows, in hexadecimal.
    pub secret: String,
    /// The secret that the server may know, if the daemon was killed while it said so.
    pub next_secret: String,
    /// The kernel's boot id then.
    pub boot: String,
    /// The leases that it had, and how far they had come.
    #[serde(default)]
    pub leases: BTreeMap<TreeId, LeaseNote>,
    /// The last epoch of each tree that was written through a mount, whatever became of the session since (I6, renames).
    #[serde(default)]
    pub written: BTreeMap<TreeId, Epoch>,
    /// The clusters from which the one that is followed has grown, by its user's word (`treelease follow`): their markers are
    /// taken for its own (I8).
    #[serde(default)]
    pub accepted: BTreeSet<ClusterId>,
}

/// What the daemon remembers of a lease: what a restarted one must not do again (DESIGN 3: once a release has left the daemon,
/// the gate never opens under that epoch again), and what it cannot know otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseNote {
    /// The grant's number.
    pub epoch: Epoch,
    /// It was written through a mount.
    pub mounted: bool,
    /// How it was let go, noted before that was said to the server.
    pub let_go: Option<LetGo>,
}

/// How a lease was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetGo {
    /// Flushed, and the release was asked for.
    Released,
    /// The gate had not opened.
    GivenBack,
    /// Unclean.
    Surrendered,
}

/// The daemon's part of the state directory.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

fn storage(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(Code::Storage, format!("{}: {e}", path.display()))
}

impl StateDir {
    /// Takes the daemon's lock. Another daemon has it: `busy`.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join("daemon.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| storage(&path, &e))?;
        let take = || flock(&lock, FlockOperation::NonBlockingLockExclusive);
        let mut taken = take();
        if taken == Err(rustix::io::Errno::WOULDBLOCK)
            && let Some(killed) = lingering::lingering(dir)
        {
            tracing::warn!(
                pid = killed.pid,
                ended = killed.abort(),
                "a killed daemon was still there: its connections are ended"
            );
            let mut left = lingering::GONE.as_millis() / lingering::LOOK.as_millis();
            while taken == Err(rustix::io::Errno::WOULDBLOCK) && left > 0 {
                std::thread::sleep(lingering::LOOK);
                taken = take();
                left -= 1;
            }
        }
        match taken {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Failure::new(Code::Busy, format!("a side daemon runs already on the state directory {}", dir.display()))
                    .hint("stop it with `treelease down`, or use another TREELEASE_STATE for another side"))
            }
            Err(e) => Err(storage(&path, &e.into())),
        }
    }

    /// Notes where this daemon's mounts are connected, for the case that it is killed and the kernel keeps it.
    pub fn note_connections(&self, mounts: Vec<Connection>) {
        // A note only: without it a person ends the connection.
        if let Err(why) = lingering::note(&self.dir, mounts) {
            tracing::warn!(%why, "the mounts' connections are not noted");
        }
    }

    /// Writes it so that a restart on this boot finds it. Not synced: after a power loss the session is not resumed anyway.
    pub fn note(&self, file: &SessionFile) -> Result<(), Failure> {
        let path = self.session_path();
        let text = serde_json::to_vec_pretty(file).expect("plain strings always serialise");
        replace(&path, &text, 0o600).map_err(|e| storage(&path, &e))
    }

    fn session_path(&self) -> PathBuf {
        self.dir.join("session.json")
    }

    /// What the last run of the daemon has left. A damaged file is an error: without it the old session must end first.
    pub fn session(&self) -> Result<Option<SessionFile>, Failure> {
        let path = self.session_path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(storage(&path, &e)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            Failure::new(Code::Storage, format!("{}: damaged: {e}", path.display()))
                .hint("remove the file; the daemon then waits until the old session has ended")
        })
    }

    /// Writes it: durable when this returns.
    pub fn save(&self, file: &SessionFile) -> Result<(), Failure> {
        let path = self.session_path();
        let text = serde_json::to_vec_pretty(file).expect("plain strings always serialise");
        write_durably(&path, &text, 0o600).map_err(|e| storage(&path, &e))
    }
}

/// Replaces a small file: whole or not at all, and on disk when this returns.
fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temp, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Replaces a file that only tells how things stand: whole or not at all, on disk whenever the kernel likes.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&temp)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_one_state_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert_eq!(StateDir::open(dir.path()).unwrap_err().code, Code::Busy);
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_session_file_reads_as_it_was_written_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.session().unwrap(), None);
        let file = SessionFile {
            side: "pod".parse().unwrap(),
            cluster: None,
            session: Some(SessionId::random()),
            secret: "aa".into(),
            next_secret: "bb".into(),
            boot: "x".into(),
            leases: BTreeMap::from([(
                TreeId::random(),
                LeaseNote { epoch: Epoch::from_raw(7), mounted: true, let_go: Some(LetGo::Released) },
            )]),
            written: BTreeMap::from([(TreeId::random(), Epoch::from_raw(7))]),
            accepted: BTreeSet::new(),
        };
        state.save(&file).unwrap();
        assert_eq!(state.session().unwrap(), Some(file));
        std::fs::write(dir.path().join("session.json"), b"{").unwrap();
        assert_eq!(state.session().unwrap_err().code, Code::Storage);
    }
}
