//! Who is inside the raw tree before the guard covers it (DESIGN 4): files open for writing, shared writable mappings, working
//! directories. What was open before a mount goes past the guard for ever, so the first two are refused and the third is named.
//!
//! A file is told by its place in its filesystem (device, and path inside it), not by how a process sees it: one in a container
//! sees other paths. It promises to ask the storage nothing for files and mappings, so it cannot hang on them; processes that
//! this user may not look into are counted, since nothing can be said about them.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mountinfo::{self, Mount};

/// At most so many are listed: more do not help anybody.
pub const MAX_INSIDE: usize = 100;

/// What a process does inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Has a file open for writing.
    Writing,
    /// Has a file mapped shared and writable.
    Mapped,
    /// Has its working directory there.
    WorkingDir,
}

/// A process inside the raw tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Which.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// What it does there.
    pub what: What,
    /// With which file, as it sees it.
    pub path: PathBuf,
}

impl Inside {
    /// Whether a mount is refused because of it (75, unless `--force`).
    pub fn refuses(&self) -> bool {
        self.what != What::WorkingDir
    }
}

impl std::fmt::Display for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            What::Writing => "has it open for writing",
            What::Mapped => "has it mapped for writing",
            What::WorkingDir => "works in it",
        };
        write!(f, "{} (pid {}): {} {what}", self.command, self.pid, self.path.display())
    }
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Who is inside, at most [`MAX_INSIDE`], writers first.
    pub inside: Vec<Inside>,
    /// Processes of other users that could not be looked into.
    pub unseen: usize,
}

impl Look {
    /// Those because of whom a mount is refused.
    pub fn refusing(&self) -> impl Iterator<Item = &Inside> {
        self.inside.iter().filter(|i| i.refuses())
    }
}

/// Where the lower root lies, whatever the paths that lead to it.
#[derive(Debug, Clone)]
pub struct Place {
    device: String,
    inner: PathBuf,
}

impl Place {
    /// Of an opened root, in the mount namespace of this thread.
    pub fn of(lower: BorrowedFd<'_>) -> io::Result<Place> {
        let id = statx(lower, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?.stx_mnt_id;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lower)))?;
        let mounts = mountinfo::of("thread-self")?;
        let mount = mounts.into_iter().find(|m| m.id == id);
        let found = mount.and_then(|m| Some(Place { inner: m.inner_path(&path)?, device: m.device }));
        found.ok_or_else(|| io::Error::other(format!("the mount of {} is not in /proc/self/mountinfo", path.display())))
    }

    fn holds(&self, mount: &Mount, path: &Path) -> bool {
        mount.device == self.device && mount.inner_path(path).is_some_and(|inner| inner.starts_with(&self.inner))
    }
}

/// Lists who is inside that directory. `skip` are processes that are known (this daemon itself always is).
pub fn look(place: &Place, skip: &[u32]) -> io::Result<Look> {
    let mut found = Look::default();
    // Another side's guard on this machine is no way past a guard: what it has open there, it opened for its own holder.
    let executable = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).map(|path| undeleted(&path)).ok();
    let this = executable("self");
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry.ok().and_then(|e| e.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        let is_a_guard = || this.is_some() && executable(&pid.to_string()) == this;
        if pid == std::process::id() || skip.contains(&pid) || is_a_guard() {
            continue;
        }
        match one(pid, place) {
            Ok(inside) => found.inside.extend(inside),
            // It ended meanwhile, or it is a thread of the kernel (no mounts of its own to read).
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => found.unseen += 1,
            Err(_) => {}
        }
    }
    found.inside.sort_by(|a, b| (a.what, a.pid, &a.path).cmp(&(b.what, b.pid, &b.path)));
    found.inside.dedup();
    found.inside.truncate(MAX_INSIDE);
    Ok(found)
}

fn one(pid: u32, place: &Place) -> io::Result<Vec<Inside>> {
    let mounts = mountinfo::of(&pid.to_string())?;
    // A kernel that shows no mount of this device to the process cannot show a file of it either, except through a descriptor
    // that was passed to it: those are found by the mount's own id among our mounts.
    let ours = mountinfo::of("self")?;
    let by_id = |id: u64| mounts.iter().chain(&ours).find(|m| m.id == id);
    let mut found: Vec<(What, PathBuf)> = Vec::new();

    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        let Ok(info) = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy())) else { continue };
        let Some((flags, id)) = fdinfo(&info) else { continue };
        let writable = matches!(flags & 0o3, 0o1 | 0o2);
        let Some(mount) = by_id(id).filter(|m| writable && m.device == place.device) else { continue };
        let Ok(path) = std::fs::read_link(entry.path()) else { continue };
        // Another guard's hand on the marker: nothing is written through it.
        let marker = path.file_name().is_some_and(treelease_client::marker::is_ours);
        if !marker && place.holds(mount, &undeleted(&path)) {
            found.push((What::Writing, path));
        }
    }
    let cwd = format!("/proc/{pid}/cwd");
    if let Ok(path) = std::fs::read_link(&cwd) {
        let id = statx(CWD, &cwd, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID).map(|s| s.stx_mnt_id);
        if id.ok().and_then(by_id).is_some_and(|m| place.holds(m, &undeleted(&path))) {
            found.push((What::WorkingDir, path));
        }
    }
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().lines() {
        let Some((device, path)) = shared_writable(line) else { continue };
        let path = PathBuf::from(path);
        let seen = mounts.iter().filter(|m| m.device == device);
        if device == place.device && seen.into_iter().any(|m| place.holds(m, &undeleted(&path))) {
            found.push((What::Mapped, path));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    Ok(found.into_iter().map(|(what, path)| Inside { pid, command: command.clone(), what, path }).collect())
}

/// Flags and mount id.
fn fdinfo(text: &str) -> Option<(u32, u64)> {
    let field = |name: &str| text.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()));
    let flags = u32::from_str_radix(&field("flags:")?, 8).ok()?;
    Some((flags, field("mnt_id:")?.parse().ok()?))
}

/// `(major:minor as in mountinfo, path)` of a line of `maps` that is a shared writable mapping of a file.
fn shared_writable(line: &str) -> Option<(String, &str)> {
    let mut fields = line.splitn(6, ' ');
    let _range = fields.next()?;
    let permissions = fields.next()?.as_bytes();
    let _offset = fields.next()?;
    let device = fields.next()?;
    let _inode = fields.next()?;
    let path = fields.next()?.trim_start();
    if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') || !path.starts_with('/') {
        return None;
    }
    let (major, minor) = device.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    Some((format!("{}:{}", number(major)?, number(minor)?), path))
}

fn undeleted(path: &Path) -> PathBuf {
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(p) => PathBuf::from(p),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that stays until it is dropped.
    struct Shell(Child);

    impl Shell {
        fn run(dir: &Path, script: &str) -> Shell {
            let mut child = Command::new("sh")
                .args(["-c", &format!("{script}; echo ready; read wait")])
                .current_dir(dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            Shell(child)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn found(dir: &Path, pid: u32) -> Vec<What> {
        let fd = std::fs::File::open(dir).unwrap();
        let look = look(&Place::of(fd.as_fd()).unwrap(), &[]).unwrap();
        look.inside.into_iter().filter(|i| i.pid == pid).map(|i| i.what).collect()
    }

    #[test]
    fn a_file_open_for_writing_and_a_working_directory_are_found_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/f"), "x").unwrap();
        let f = tree.join("sub/f");
        let writer = Shell::run(dir.path(), &format!("exec 3>>{}", f.display()));
        let reader = Shell::run(dir.path(), &format!("exec 3<{}", f.display()));
        let worker = Shell::run(&tree.join("sub"), "true");
        let beside = dir.path().join("tree2");
        std::fs::create_dir(&beside).unwrap();
        let neighbour = Shell::run(&beside, "exec 3>f");
        assert_eq!(found(&tree, writer.0.id()), [What::Writing]);
        assert_eq!(found(&tree, reader.0.id()), []);
        assert_eq!(found(&tree, worker.0.id()), [What::WorkingDir]);
        assert_eq!(found(&tree, neighbour.0.id()), [], "a name that only begins alike is another directory");
    }

    #[test]
    fn a_writer_to_a_file_that_was_unlinked_since_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let shell = Shell::run(Path::new("/"), &format!("exec 3>{0}/f; rm {0}/f", dir.path().display()));
        assert_eq!(found(dir.path(), shell.0.id()), [What::Writing]);
    }

    #[test]
    fn only_shared_writable_mappings_of_files_count() {
        let line = |p: &str| format!("7f0000000000-7f0000001000 {p} 00000000 fe:01 1234                 /mnt/a b (deleted)");
        assert_eq!(shared_writable(&line("rw-s")), Some(("254:1".into(), "/mnt/a b (deleted)")));
        assert_eq!(shared_writable(&line("rw-p")), None);
        assert_eq!(shared_writable(&line("r--s")), None);
        assert_eq!(shared_writable("7f0000000000-7f0000001000 rw-s 00000000 00:00 0 "), None);
    }

    #[test]
    fn flags_and_mount_of_a_descriptor_are_read() {
        assert_eq!(fdinfo("pos:\t0\nflags:\t0100002\nmnt_id:\t29\nino:\t5\n"), Some((0o100_002, 29)));
        assert_eq!(fdinfo("pos:\t0\n"), None);
    }
}
