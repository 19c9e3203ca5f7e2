//! What the last holder left behind (DESIGN 5, the new holder's side): SQLite's `-wal` and hot `-journal`, git's lock files,
//! NFS's `.nfs*`. Looked for so that a person is told, and so that the checks know where to look; nothing is removed, since only
//! the owner of a lock file knows whether it still means something.
//!
//! It reads directories at the root, down to [`DEPTH`], and below each `.git`; it is bounded, says when it did not see all, never
//! follows a symlink and never leaves the root's filesystem. It may hang with the storage.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

/// So many levels below the root, and again below a `.git`, are looked into.
pub const DEPTH: usize = 3;
/// At most so many names are read: a tree of sources has more, but its databases lie near the top.
pub const MAX_NAMES: usize = 20_000;
/// At most so many leftovers are listed.
pub const MAX_FOUND: usize = 100;
/// Directories that hold nothing of interest and very many names.
const NOT_INTO: [&str; 4] = ["objects", "node_modules", "target", ".venv"];
/// A rollback journal that has to be rolled back begins with this; a zeroed header means it was committed.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// What was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A write-ahead log with something in it.
    Wal,
    /// A rollback journal of a transaction that did not end.
    HotJournal,
    /// A lock file of git.
    GitLock,
    /// A file that was removed while the last holder had it open, on NFS.
    SillyRenamed,
}

/// One thing that was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Beneath the root.
    pub path: PathBuf,
    /// What.
    pub what: What,
    /// How large.
    pub bytes: u64,
}

impl Leftover {
    /// The database that a write-ahead log or a journal belongs to.
    pub fn database(&self) -> Option<PathBuf> {
        let suffix = match self.what {
            What::Wal => "-wal",
            What::HotJournal => "-journal",
            What::GitLock | What::SillyRenamed => return None,
        };
        let bytes = self.path.as_os_str().as_bytes().strip_suffix(suffix.as_bytes())?;
        Some(PathBuf::from(OsStr::from_bytes(bytes)))
    }
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, bytes) = (self.path.display(), self.bytes);
        match self.what {
            What::Wal => write!(f, "{path}: a SQLite write-ahead log of {bytes} bytes; the next connection takes it in"),
            What::HotJournal => {
                write!(f, "{path}: the journal of a SQLite transaction that did not end; the next connection rolls it back")
            }
            What::GitLock => write!(f, "{path}: a git command did not end; if none runs any more, remove it"),
            What::SillyRenamed => write!(f, "{path}: removed while it was open on the last holder ({bytes} bytes)"),
        }
    }
}

/// Everything that one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What was left, in the order of their paths.
    pub leftovers: Vec<Leftover>,
    /// Directories named `.git`, beneath the root.
    pub git_dirs: Vec<PathBuf>,
    /// False: there were more names than [`MAX_NAMES`], or more leftovers than [`MAX_FOUND`].
    pub complete: bool,
}

/// Looks beneath `root`. What cannot be read is skipped: the user's own tools will say so better.
pub fn look(root: BorrowedFd<'_>) -> Result<Found, Errno> {
    let device = fstat(root)?.st_dev;
    let mut walk = Walk { device, names: 0, found: Found { complete: true, ..Found::default() } };
    let top = openat(root, ".", DIRECTORY, Mode::empty())?;
    walk.directory(top, Path::new(""), DEPTH, false);
    walk.found.leftovers.sort_by(|a, b| a.path.cmp(&b.path));
    walk.found.git_dirs.sort();
    Ok(walk.found)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Walk {
    device: u64,
    names: usize,
    found: Found,
}

impl Walk {
    fn directory(&mut self, dir: OwnedFd, path: &Path, depth: usize, in_git: bool) {
        let Ok(entries) = Dir::read_from(&dir) else { return };
        let mut below = Vec::new();
        for entry in entries {
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.names += 1;
            if self.names > MAX_NAMES || self.found.leftovers.len() >= MAX_FOUND {
                self.found.complete = false;
                return;
            }
            let kind = match entry.file_type() {
                // Some filesystems do not say.
                FileType::Unknown => statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode)),
                kind => kind,
            };
            let text = OsStr::from_bytes(name.to_bytes());
            if kind == FileType::RegularFile {
                self.file(dir.as_fd(), name, &path.join(text), in_git);
            } else if kind == FileType::Directory && !NOT_INTO.iter().any(|n| *n == text) {
                let is_git = text == ".git";
                if is_git {
                    self.found.git_dirs.push(path.join(text));
                }
                let left = if is_git { DEPTH } else { depth.saturating_sub(1) };
                if is_git || depth > 0 {
                    below.push((name.to_owned(), left, in_git || is_git));
                }
            }
        }
        for (name, left, in_git) in below {
            let Ok(sub) = openat(&dir, &*name, DIRECTORY, Mode::empty()) else { continue };
            if fstat(&sub).is_ok_and(|s| s.st_dev == self.device) {
                self.directory(sub, &path.join(OsStr::from_bytes(name.to_bytes())), left, in_git);
            }
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &Path, in_git: bool) {
        let bytes = name.to_bytes();
        let what = if bytes.ends_with(b"-wal") && bytes.len() > 4 {
            What::Wal
        } else if bytes.ends_with(b"-journal") && bytes.len() > 8 && is_hot(dir, name) {
            What::HotJournal
        } else if in_git && bytes.ends_with(b".lock") {
            What::GitLock
        } else if bytes.starts_with(b".nfs") && bytes.len() > 8 && bytes[4..].iter().all(u8::is_ascii_hexdigit) {
            What::SillyRenamed
        } else {
            return;
        };
        let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let size = stat.st_size as u64;
        if what != What::Wal || size > 0 {
            self.found.leftovers.push(Leftover { path: path.to_owned(), what, bytes: size });
        }
    }
}

fn is_hot(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut head = [0_u8; 8];
    openat(dir, name, flags, Mode::empty()).is_ok_and(|fd| rustix::io::read(&fd, &mut head) == Ok(8) && head == JOURNAL_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn look_at(dir: &Path) -> Found {
        let fd = fs::File::open(dir).unwrap();
        look(fd.as_fd()).unwrap()
    }

    #[test]
    fn a_log_a_hot_journal_a_git_lock_and_a_silly_renamed_file_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir_all(at("repo/.git/worktrees/x")).unwrap();
        fs::create_dir_all(at("repo/.git/objects")).unwrap();
        fs::write(at("a/b/notes.db-wal"), [1; 32]).unwrap();
        fs::write(at("empty.db-wal"), "").unwrap();
        fs::write(at("hot.db-journal"), [&JOURNAL_MAGIC[..], &[0; 8]].concat()).unwrap();
        fs::write(at("cold.db-journal"), [0; 512]).unwrap();
        fs::write(at("repo/.git/index.lock"), "").unwrap();
        fs::write(at("repo/.git/worktrees/x/HEAD.lock"), "").unwrap();
        fs::write(at("repo/.git/objects/x.lock"), "").unwrap();
        fs::write(at("Cargo.lock"), "").unwrap();
        fs::write(at("a/.nfs000000000012ab34"), "gone").unwrap();
        fs::write(at(".nfsrc"), "").unwrap();
        let found = look_at(dir.path());
        let seen: Vec<_> = found.leftovers.iter().map(|l| (l.path.to_str().unwrap(), l.what)).collect();
        assert_eq!(
            seen,
            [
                ("a/.nfs000000000012ab34", What::SillyRenamed),
                ("a/b/notes.db-wal", What::Wal),
                ("hot.db-journal", What::HotJournal),
                ("repo/.git/index.lock", What::GitLock),
                ("repo/.git/worktrees/x/HEAD.lock", What::GitLock),
            ]
        );
        assert_eq!(found.leftovers[1].database(), Some("a/b/notes.db".into()));
        assert_eq!(found.git_dirs, [Path::new("repo/.git")]);
        assert!(found.complete);
    }

    #[test]
    fn a_symlink_is_not_followed_and_depth_has_an_end() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("x.db-wal"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x.db-wal"), dir.path().join("y.db-wal")).unwrap();
        fs::create_dir_all(dir.path().join("1/2/3/4")).unwrap();
        fs::write(dir.path().join("1/2/3/in.db-wal"), "x").unwrap();
        fs::write(dir.path().join("1/2/3/4/out.db-wal"), "x").unwrap();
        let found = look_at(dir.path());
        assert_eq!(found.leftovers.len(), 1, "{found:?}");
        assert_eq!(found.leftovers[0].path, Path::new("1/2/3/in.db-wal"));
    }

    #[test]
    fn a_directory_with_very_many_names_is_not_read_to_its_end_and_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..MAX_FOUND + 1 {
            fs::write(dir.path().join(format!("{n}.db-wal")), "x").unwrap();
        }
        let found = look_at(dir.path());
        assert_eq!(found.leftovers.len(), MAX_FOUND);
        assert!(!found.complete);
    }
}
