//! One program, twice: in a guarded tree whose lease this side holds, and in a bare directory of the same filesystem. What it says
//! and what it leaves must be the same.
//!
//! Does not compare times, inode numbers and sizes of directories: the filesystem chooses them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::hosts::user::User;
use crate::hosts::{Done, Server, Side, World, finish_within, quick};

/// No program of these tests runs longer.
const PROGRAM: Duration = Duration::from_secs(240);
/// Where tools of the person who runs the tests keep theirs; the side's own home is another one.
const TOOL_HOMES: [(&str, &str); 3] = [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv")];

/// A guarded tree and a bare one.
pub struct Twin {
    /// Where both lie.
    pub world: World,
    /// The side that holds the tree.
    pub side: Side,
    _server: Server,
}

impl Twin {
    /// Of root, for all users.
    pub fn new() -> Twin {
        Self::made(None)
    }

    /// Of another user: its guard is that user's, and both directories are.
    pub fn of(user: User) -> Twin {
        Self::made(Some(user))
    }

    /// Of a root that the storage treats as a stranger, over directories of an ordinary user.
    pub fn squashed() -> Twin {
        Self::made(Some(User::squashed()))
    }

    fn made(user: Option<User>) -> Twin {
        let world = World::new();
        let server = world.server();
        let mut side = world.side("workstation", &server);
        let lower = world.directory("lower-dev");
        let bare = world.directory("bare");
        // Other users are let in where root's guard lets them.
        User::ordinary().let_in(world.dir());
        if let Some(user) = user {
            side = side.as_user(user);
            User::ordinary().own(&lower);
            User::ordinary().own(&bare);
        }
        world.tree(&side, "dev", &quick(&[]));
        side.mount("dev", &lower);
        side.ok(&["acquire", "dev"]);
        Twin { world, side, _server: server }
    }

    /// The tree, through the guard.
    pub fn guarded(&self) -> PathBuf {
        self.side.at("dev")
    }

    /// The bare directory.
    pub fn bare(&self) -> PathBuf {
        self.world.path("bare")
    }

    /// Does something in both places; what comes out must be the same, and is returned.
    #[track_caller]
    pub fn both<T: PartialEq + Debug>(&self, what: &str, work: impl Fn(&Path) -> T) -> T {
        let bare = work(&self.bare());
        let guarded = work(&self.guarded());
        assert_eq!(guarded, bare, "{what}: through the guard (left) it is not as on the bare directory (right)");
        guarded
    }

    /// The same, where what comes out is of no more use.
    #[track_caller]
    pub fn same<T: PartialEq + Debug>(&self, what: &str, work: impl Fn(&Path) -> T) {
        let _the_same = self.both(what, work);
    }

    /// A shell script in both places, `set -eu`. It must end well, and say the same; its words are returned.
    #[track_caller]
    pub fn script(&self, script: &str) -> String {
        let run = |place: &Path| {
            let done = self.run(place, script);
            assert_eq!(done.code, 0, "{done}");
            done.stdout.replace(place.to_str().expect("our own path"), "@")
        };
        self.both(script, run)
    }

    /// A shell script in one place, by whoever the side is.
    pub fn run(&self, place: &Path, script: &str) -> Done {
        self.finish(self.side.command("sh"), place, script)
    }

    /// The same by another user.
    pub fn run_as(&self, user: User, place: &Path, script: &str) -> Done {
        let mut command = user.command("sh");
        command.env("TREELEASE_TEST_WORLD", self.world.dir());
        self.finish(command, place, script)
    }

    /// A shell script in both places by another user, `set -eu`. It must end well, and say the same; its words are returned.
    #[track_caller]
    pub fn script_as(&self, user: User, script: &str) -> String {
        let run = |place: &Path| {
            let done = self.run_as(user, place, script);
            assert_eq!(done.code, 0, "{done}");
            done.stdout.replace(place.to_str().expect("our own path"), "@")
        };
        self.both(script, run)
    }

    fn finish(&self, mut command: Command, place: &Path, script: &str) -> Done {
        // By itself: a mount for one user lets nobody else in, the root of this test neither.
        let script = format!("cd \"$PLACE\"\n{script}");
        command.args(["-euc", &script]).current_dir(self.world.dir()).env("PLACE", place).env("LC_ALL", "C");
        command.env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z").env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z");
        keep_tool_homes(&mut command);
        finish_within(PROGRAM, command)
    }

    /// What both places have now is the same, byte for byte, below the guard.
    #[track_caller]
    pub fn same_below(&self) {
        let (guarded, bare) = (self.world.lower("dev"), self.bare());
        assert_eq!(inventory(&guarded), inventory(&bare), "what lies below the guard (left), and in the bare directory (right)");
    }
}

impl Default for Twin {
    fn default() -> Self {
        Self::new()
    }
}

fn keep_tool_homes(command: &mut Command) {
    let Some(home) = std::env::var_os("HOME") else { return };
    for (variable, dir) in TOOL_HOMES {
        let dir = std::env::var_os(variable).map_or_else(|| Path::new(&home).join(dir), PathBuf::from);
        if dir.exists() {
            command.env(variable, dir);
        }
    }
}

/// Everything below a directory: kind, mode, owner, links, size, and what is in it. Not the marker and its stamps.
fn inventory(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(".treelease-tree") {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            let inside = if kind.is_file() {
                fs::read(&path).map_or_else(|e| e.to_string(), |data| format!("{} bytes, {:08x}", data.len(), sum(&data)))
            } else if kind.is_symlink() {
                format!("to {:?}", fs::read_link(&path).expect("a link"))
            } else if kind.is_dir() {
                dirs.push(path.clone());
                "directory".into()
            } else if kind.is_fifo() {
                "fifo".into()
            } else {
                format!("device {}", meta.rdev())
            };
            let links = if kind.is_dir() { 0 } else { meta.nlink() };
            let text = format!("{:o} {}:{} {links} {inside}", meta.mode(), meta.uid(), meta.gid());
            found.insert(path.strip_prefix(root).expect("below it").to_owned(), text);
        }
    }
    found
}

/// FNV-1a: to tell contents apart in a message.
fn sum(data: &[u8]) -> u32 {
    data.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
