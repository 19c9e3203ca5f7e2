//! Is what an unclean end left behind sound? (Policy `checks`, DESIGN 5.) It reports; it decides and repairs nothing.
//!
//! `quick_check` runs `sqlite3` on a private copy of each database that has a log or a hot journal, outside the tree: opening a
//! database in place would take the log in or roll the journal back, which is a write, by a process that no gate can stop when
//! the lease ends. `fsck` runs `git fsck`, which only reads. Both are reached through the root's descriptor in `/proc`, since the
//! path may be covered by the guard. A missing tool, too large a database and a passed limit are reported as "not checked",
//! never as sound.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use treelease_client::words::clock::Clock;
use treelease_client::words::policy::Check;
use treelease_client::words::time::BootTime;

use super::leftovers::Found;

/// All checks of one grant together take at most so long: the new holder's user waits for them.
pub const CHECKS_LIMIT: Duration = Duration::from_secs(30);
/// A database with its log that is larger is not copied.
pub const MAX_COPY: u64 = 512 * 1024 * 1024;
/// At most so much of what a tool says is kept.
const MAX_OUTPUT: usize = 4096;
/// How often a running tool is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The tool found nothing.
    Sound,
    /// The tool found something.
    Damaged,
    /// Nobody knows.
    NotChecked,
}

/// One check of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which check.
    pub check: Check,
    /// A database or a repository, beneath the root.
    pub path: PathBuf,
    /// What came out.
    pub verdict: Verdict,
    /// What the tool said, or why it was not checked; empty if sound.
    pub said: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        let check = match self.check {
            Check::QuickCheck => "quick_check",
            Check::Fsck => "git fsck",
        };
        match self.verdict {
            Verdict::Sound => write!(f, "{path}: {check} found nothing"),
            Verdict::Damaged => write!(f, "{path}: {check} says: {}", self.said),
            Verdict::NotChecked => write!(f, "{path}: {check} was not done: {}", self.said),
        }
    }
}

/// Runs the checks of `which` on what was found. `scratch` is a directory of ours outside every tree, for copies.
pub fn run(root: BorrowedFd<'_>, found: &Found, which: &BTreeSet<Check>, scratch: &Path, clock: &dyn Clock) -> Vec<Report> {
    let ends = clock.now().after(CHECKS_LIMIT);
    let mut reports = Vec::new();
    let mut add = |check, path: &Path, outcome: Result<(bool, String), String>| {
        let (verdict, said) = match outcome {
            Ok((true, _)) => (Verdict::Sound, String::new()),
            Ok((false, said)) => (Verdict::Damaged, said),
            Err(why) => (Verdict::NotChecked, why),
        };
        reports.push(Report { check, path: path.to_owned(), verdict, said });
    };
    if which.contains(&Check::QuickCheck) {
        let databases: BTreeSet<PathBuf> = found.leftovers.iter().filter_map(|l| l.database()).collect();
        for database in &databases {
            add(Check::QuickCheck, database, quick_check(root, database, scratch, ends, clock));
        }
    }
    if which.contains(&Check::Fsck) {
        for repository in &found.git_dirs {
            add(Check::Fsck, repository, fsck(root, repository, ends, clock));
        }
    }
    reports
}

fn quick_check(
    root: BorrowedFd<'_>,
    database: &Path,
    scratch: &Path,
    ends: BootTime,
    clock: &dyn Clock,
) -> Result<(bool, String), String> {
    let failed = |e: io::Error| format!("its copy could not be made: {e}");
    let dir = Scratch::new(scratch).map_err(failed)?;
    let mut left = MAX_COPY;
    for suffix in ["", "-wal", "-journal"] {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        match copy_beneath(root, Path::new(&name), &dir.0.join(format!("db{suffix}")), &mut left, ends, clock) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {}
            Err(e) => return Err(failed(e)),
        }
    }
    let mut command = Command::new("sqlite3");
    command.arg("-batch").arg(dir.0.join("db")).arg("PRAGMA quick_check(5)");
    let (success, said) = bounded(command, ends, clock)?;
    Ok((success && said.trim() == "ok", said))
}

fn fsck(root: BorrowedFd<'_>, repository: &Path, ends: BootTime, clock: &dyn Clock) -> Result<(bool, String), String> {
    // The child is of our user, so it may follow our descriptors; the root keeps its descriptor while this runs.
    let git_dir = format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd());
    let mut command = Command::new("git");
    // Nothing that the repository itself names is run.
    command.args(["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]);
    command.arg("--no-optional-locks").arg("--git-dir").arg(Path::new(&git_dir).join(repository));
    command.args(["fsck", "--no-dangling", "--no-progress", "--connectivity-only"]);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
    bounded(command, ends, clock)
}

/// A directory of ours, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: &Path) -> io::Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = within.join(format!("check-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().recursive(false).mode(0o700).create(&dir)?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Walks beneath the root by descriptors, never through a symlink.
fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let names: Vec<_> = path.iter().collect();
    let (name, dirs) = names.split_last().ok_or_else(|| io::Error::other("an empty path"))?;
    let mut dir = openat(root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in dirs {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        dir = openat(&dir, Path::new(part), flags, Mode::empty())?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(openat(&dir, Path::new(name), flags, Mode::empty())?))
}

fn copy_beneath(
    root: BorrowedFd<'_>,
    from: &Path,
    to: &Path,
    left: &mut u64,
    ends: BootTime,
    clock: &dyn Clock,
) -> io::Result<()> {
    let mut from = open_beneath(root, from)?;
    let meta = from.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no ordinary file"));
    }
    if meta.len() > *left {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_COPY >> 20)));
    }
    let mut to = File::options().write(true).create_new(true).open(to)?;
    // In pieces, so that slow storage meets the limit.
    loop {
        if clock.now() >= ends {
            return Err(io::Error::other("the time for checks is over"));
        }
        let copied = io::copy(&mut (&mut from).take((*left).min(8 << 20)), &mut to)?;
        *left -= copied;
        if copied == 0 {
            return Ok(());
        }
    }
}

/// Runs a tool until it ends or the time is over: whether it ended with 0, and what it said.
fn bounded(mut command: Command, ends: BootTime, clock: &dyn Clock) -> Result<(bool, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = tempfile_for_output().map_err(|e| format!("no room for what {name} says: {e}"))?;
    let copy = |f: &File| f.try_clone().map(Stdio::from);
    let (out, err) = (copy(&output), copy(&output));
    let (Ok(out), Ok(err)) = (out, err) else { return Err("no descriptors are left".into()) };
    let child = command.stdin(Stdio::null()).stdout(out).stderr(err).current_dir("/").process_group(0).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(format!("`{name}` is not installed")),
        Err(e) => return Err(format!("`{name}` cannot be run: {e}")),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok((status.success(), text_of(output))),
            Ok(None) if clock.now() < ends => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                kill(&mut child);
                return Err(format!("`{name}` did not end within the limit of {} s for checks", CHECKS_LIMIT.as_secs()));
            }
        }
    }
}

/// The tool and all it started. One that hangs in the storage is not waited for.
fn kill(child: &mut Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.try_wait();
}

/// A file without a name in memory: a pipe would need a reader while the tool runs.
fn tempfile_for_output() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("treelease-check", rustix::fs::MemfdFlags::CLOEXEC)?))
}

fn text_of(mut output: File) -> String {
    use std::io::Seek;
    let mut bytes = vec![0; MAX_OUTPUT];
    let read = output.rewind().and_then(|()| output.read(&mut bytes)).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use treelease_client::words::clock::SideClock;

    use super::super::leftovers;
    use super::*;

    fn have(tool: &str) -> bool {
        Command::new(tool).arg("--version").output().is_ok()
    }

    fn sh(dir: &Path, script: &str) {
        let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn checked(tree: &Path, check: Check) -> Vec<Report> {
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(tree).unwrap();
        let found = leftovers::look(root.as_fd()).unwrap();
        let reports = run(root.as_fd(), &found, &BTreeSet::from([check]), scratch.path(), &SideClock::new());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "copies are removed");
        reports
    }

    /// A database whose last transaction is only in its log, as after a killed holder.
    fn database_with_a_log(tree: &Path) {
        sh(
            tree,
            "printf 'PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(1);\n.shell cp a.db b.db; cp a.db-wal b.db-wal\n' | sqlite3 a.db",
        );
        assert!(tree.join("b.db-wal").metadata().unwrap().len() > 0);
    }

    #[test]
    fn a_database_with_a_log_is_checked_on_a_copy_and_left_as_it_was() {
        if !have("sqlite3") {
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        database_with_a_log(tree.path());
        let before = std::fs::read(tree.path().join("b.db-wal")).unwrap();
        let reports = checked(tree.path(), Check::QuickCheck);
        assert_eq!(reports.len(), 1);
        assert_eq!((&reports[0].verdict, reports[0].path.as_path()), (&Verdict::Sound, Path::new("b.db")), "{reports:?}");
        assert_eq!(std::fs::read(tree.path().join("b.db-wal")).unwrap(), before, "not taken in");
    }

    #[test]
    fn a_damaged_database_is_reported_and_one_that_is_missing_is_not_called_sound() {
        if !have("sqlite3") {
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        database_with_a_log(tree.path());
        std::fs::write(tree.path().join("b.db"), vec![0x55; 8192]).unwrap();
        std::fs::write(tree.path().join("b.db-wal"), "no log").unwrap();
        std::fs::write(tree.path().join("gone.db-wal"), "x").unwrap();
        let reports = checked(tree.path(), Check::QuickCheck);
        let verdicts: Vec<_> = reports.iter().map(|r| (r.path.to_str().unwrap(), r.verdict.clone())).collect();
        assert_eq!(verdicts, [("b.db", Verdict::Damaged), ("gone.db", Verdict::NotChecked)], "{reports:?}");
    }

    #[test]
    fn a_repository_that_lost_an_object_is_reported_and_a_sound_one_is_sound() {
        if !have("git") {
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        sh(tree.path(), "git init -q r; cd r; echo x > f; git add f; git -c user.name=a -c user.email=a@b commit -qm x");
        assert_eq!(checked(tree.path(), Check::Fsck)[0].verdict, Verdict::Sound);
        sh(tree.path(), "cd r; o=$(git rev-parse HEAD:f); rm -f .git/objects/$(echo $o | cut -c1-2)/$(echo $o | cut -c3-)");
        let report = &checked(tree.path(), Check::Fsck)[0];
        assert_eq!(report.verdict, Verdict::Damaged);
        assert!(report.said.contains("missing"), "{report}");
    }

    #[test]
    fn a_tool_that_does_not_end_is_stopped_at_the_limit_and_a_missing_one_is_named() {
        let clock = SideClock::new();
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let ends = clock.now().after(Duration::from_millis(50));
        assert!(bounded(sleep, ends, &clock).unwrap_err().contains("did not end"));
        assert!(bounded(Command::new("no-such-tool"), ends, &clock).unwrap_err().contains("not installed"));
    }
}
