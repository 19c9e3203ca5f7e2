//! Users other than the root user of a test.
//!
//! Promises: what runs as an [`User::ordinary`] one has no capability, and what runs as [`User::squashed`] has none of those by which
//! root passes over modes and owners: files of others treat it as a stranger, as an export with `root_squash` does.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::executable;

const FUSE: &str = "/dev/fuse";
/// What root can do on a local filesystem, and on a root-squashed export cannot.
const OVER_OTHERS: &str = "-dac_override,-dac_read_search,-fowner,-fsetid,-chown";

/// A user, by number, and how a program becomes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
    squashed: bool,
}

impl User {
    /// Debian's `games`: it has an entry in the table of users, which fusermount3 asks for, and nothing of its own.
    pub const fn ordinary() -> User {
        User { uid: 5, gid: 60, squashed: false }
    }

    /// Any other, without capabilities.
    pub const fn of(uid: u32, gid: u32) -> User {
        User { uid, gid, squashed: false }
    }

    /// Root, for whom the storage's modes hold as for anybody else, and who can give no file away.
    pub const fn squashed() -> User {
        User { uid: 0, gid: 0, squashed: true }
    }

    /// A program as this user; this process must be root's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        match self.squashed {
            true => command.args(["--bounding-set", OVER_OTHERS, "--inh-caps", "-all"]),
            false => command.args([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)]).args([
                "--clear-groups",
                "--inh-caps",
                "-all",
            ]),
        };
        command.arg("--").arg(program);
        command
    }

    /// A directory, and what is in it, becomes this user's.
    pub fn own(&self, dir: &Path) {
        chown(dir, Some(self.uid), Some(self.gid)).unwrap_or_else(|e| panic!("{}: {e}; this test needs root", dir.display()));
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => self.own(&entry.path()),
                false => std::os::unix::fs::lchown(entry.path(), Some(self.uid), Some(self.gid)).expect("root's own test"),
            }
        }
    }

    /// A world's directory can be entered by others than root, and /dev/fuse opened, as it is where udev looks after it.
    pub fn let_in(&self, world: &Path) {
        let let_all = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        let_all(world, 0o755).expect("root's own test");
        if self.uid != 0 && std::fs::metadata(FUSE).is_ok_and(|meta| meta.permissions().mode() & 0o6 != 0o6) {
            let_all(Path::new(FUSE), 0o666).expect("root's own test");
        }
    }
}

/// An executable where every user can reach it: a copy in the world's directory, with the others beside it.
pub fn lent(world: &Path, name: &str) -> PathBuf {
    let dir = world.join("bin");
    if !dir.exists() {
        let made = world.join("bin~");
        std::fs::create_dir_all(&made).expect("a directory in our own");
        for name in ["treelease", "treelease-guard"] {
            std::fs::copy(executable(name), made.join(name)).expect("room for a copy");
        }
        std::fs::rename(made, &dir).expect("a directory in our own");
    }
    dir.join(name)
}
