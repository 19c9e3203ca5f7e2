//! One directory three times: bare, through bindfs, through the guard. Each its own, all on one filesystem.
//!
//! # Promises
//!
//! The guard's side holds the tree all the time, by hand, so that no policy takes it away between two rounds; and it is awake
//! when a measurement begins ([`Place::wake`]): a holder at rest asks the server before its first write, once per burst, which
//! is not what a workload measures. Everything is unmounted when the places are dropped.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::material::run;
use super::{Ground, Rival, Settings};
use crate::hosts::{Server, Side, wait_for};

/// The tree's name.
pub const TREE: &str = "bench";
/// How long a mount may take to come.
const MOUNT: Duration = Duration::from_secs(20);
/// The side's time to live: the default, as it says how long the kernel may keep answers.
const TTL: &str = "15s";

/// How a directory is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Bare,
    /// Through bindfs.
    Bindfs,
    /// Through the guard, by the holder.
    Treelease,
}

impl Kind {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Bindfs => "bindfs",
            Kind::Treelease => "treelease",
        }
    }
}

/// A directory to work in.
#[derive(Debug, Clone)]
pub struct Place {
    /// How it is reached.
    pub kind: Kind,
    /// Where.
    pub dir: PathBuf,
}

impl Place {
    /// The number of the kernel's FUSE connection behind it; 0: none.
    pub fn connection(&self) -> u64 {
        match self.kind {
            Kind::Bare => 0,
            _ => std::fs::metadata(&self.dir).map_or(0, |meta| rustix::fs::minor(meta.dev()).into()),
        }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// One small write, so that the holder is not at rest.
    pub fn wake(&self) -> anyhow::Result<()> {
        let file = self.path("awake");
        std::fs::write(&file, b"x").and_then(|()| std::fs::remove_file(&file)).context("the holder may write")
    }
}

/// A side with its server and its mounted tree, held.
pub struct Guarded {
    /// The side.
    pub side: Side,
    /// Where the tree appears.
    pub at: PathBuf,
    _server: Server,
}

impl Guarded {
    /// Server, side and tree on the disk, in directories of that name; the lease taken.
    pub fn start(ground: &Ground, name: &str) -> anyhow::Result<Guarded> {
        let server = Server::start(ground.disk.directory(&format!("server-{name}"))?);
        let side = ground.world.side(name, &server).ttl(TTL);
        let lower = ground.disk.directory(&format!("lower-{name}"))?;
        side.ok(&["tree", "add", TREE, "--root", text(&lower), "fence=none"]);
        side.mount(TREE, &lower);
        side.ok(&["acquire", TREE, "--note", "bench"]);
        Ok(Guarded { at: side.at(TREE), side, _server: server })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let done = self.side.run(&["down"]);
        if done.code != 0 {
            super::say(done);
        }
    }
}

/// All of them.
pub struct Places {
    /// In the order of the table.
    pub list: Vec<Place>,
    _guarded: Guarded,
    _bindfs: Option<Bindfs>,
}

impl Places {
    /// Mounts what is mounted.
    pub fn new(settings: &Settings, ground: &Ground) -> anyhow::Result<Places> {
        let mut list = vec![Place { kind: Kind::Bare, dir: ground.disk.directory("bare")? }];
        let bindfs = settings.beside(Rival::Bindfs).then(|| Bindfs::start(ground)).transpose()?;
        list.extend(bindfs.iter().map(|bindfs| Place { kind: Kind::Bindfs, dir: bindfs.at.clone() }));
        let guarded = Guarded::start(ground, "guard")?;
        list.push(Place { kind: Kind::Treelease, dir: guarded.at.clone() });
        Ok(Places { list, _guarded: guarded, _bindfs: bindfs })
    }
}

struct Bindfs {
    at: PathBuf,
}

impl Bindfs {
    /// As a daemon, as the guard is one: the scheduler gives each session its share.
    fn start(ground: &Ground) -> anyhow::Result<Bindfs> {
        let (lower, at) = (ground.disk.directory("lower-bindfs")?, ground.world.directory("bindfs"));
        let mut command = Command::new("bindfs");
        run(command.args([&lower, &at]).env("TREELEASE_TEST_WORLD", ground.world.dir()))?;
        let device = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.dev());
        let above = device(ground.world.dir());
        wait_for(MOUNT, "bindfs mounts", || device(&at) != above);
        Ok(Bindfs { at })
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        // Its process ends with its mount.
        let gone = Command::new("umount").arg(&self.at).status().is_ok_and(|status| status.success());
        if !gone {
            super::say(format!("{} could not be unmounted", self.at.display()));
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own path")
}
