//! The mount itself: /dev/fuse, mount(2) or fusermount3, the mount table, and taking it away again.
//!
//! Not fuser's own code for that: it unmounts the path again when the session ends, whatever is mounted there by then, and
//! falls back to a lazy unmount without a word.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mount::{Busy, MountError};
use crate::fs::writers::command_of;

/// The type in the mount table.
pub(super) const FSTYPE: &str = "fuse.treelease";
const FUSERMOUNT: &str = "fusermount3";
/// The largest READ. What is read is copied into a buffer and out of it: of 1 MiB each, four threads' buffers do not stay in the
/// processor's cache, and the same bytes cost a quarter more of its time and of the reader's (measured).
pub(super) const MAX_READ: u32 = 256 << 10;
/// How far the kernel reads ahead: eight requests of the largest size, so that there are some for each thread while the reader copies.
const READ_AHEAD_KIB: u32 = 2048;
/// Processes that a busy mount names.
const NAMED: usize = 32;

/// One line of the mount table.
pub(super) struct Mounted {
    pub(super) id: u64,
    parent: u64,
    pub(super) at: PathBuf,
    pub(super) fstype: String,
    pub(super) device: (u32, u32),
}

fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::new();
    let bytes = field.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[i], octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

/// The mount table, the newest last.
pub(super) fn table(text: &str) -> Vec<Mounted> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let (major, minor) = left.get(2)?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        Some(Mounted {
            id: left[0].parse().ok()?,
            parent: left.get(1)?.parse().ok()?,
            at: unescape(left.get(4)?),
            fstype: right.split(' ').next()?.to_owned(),
            device,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// What is mounted at a path, the one on top last. Of this thread's namespace. The newest need not be on top: a mount can be put
/// beneath another one.
pub(super) fn stack_at(at: &Path) -> Vec<Mounted> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    stack(table(&text), at)
}

fn stack(all: Vec<Mounted>, at: &Path) -> Vec<Mounted> {
    let mut here: Vec<Mounted> = all.into_iter().filter(|mounted| mounted.at == at).collect();
    let parents: Vec<u64> = here.iter().map(|mounted| mounted.parent).collect();
    let mut next = here.iter().rposition(|mounted| !parents.contains(&mounted.id));
    let mut stack = Vec::new();
    while let Some(position) = next {
        let mounted = here.remove(position);
        next = here.iter().position(|below| below.id == mounted.parent);
        stack.push(mounted);
    }
    stack.reverse();
    stack
}

/// What is on top at a path.
pub(super) fn top_at(at: &Path) -> Option<Mounted> {
    stack_at(at).pop()
}

/// Opens /dev/fuse, or says what is missing.
pub(super) fn open_device() -> Result<File, MountError> {
    File::options().read(true).write(true).open("/dev/fuse").map_err(|why| {
        let says = match why.kind() {
            std::io::ErrorKind::PermissionDenied => "as root user: `chmod 666 /dev/fuse` (what distributions do by udev)",
            _ => "on a host: `modprobe fuse`; in a container: give it the device /dev/fuse, or use the mode without mounts",
        };
        MountError::NoFuse(format!("/dev/fuse cannot be opened ({why}): {says}"))
    })
}

/// Mounts, and returns the connection to the kernel.
pub(super) fn mount(at: &Path, name: &str, allow_other: bool) -> Result<File, MountError> {
    let source = format!("treelease:{name}");
    let device = open_device()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let others = if allow_other { ",allow_other,default_permissions" } else { "" };
    let data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},max_read={MAX_READ}{others}", device.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match nix::mount::mount(Some(source.as_str()), at, Some(FSTYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(device),
        Err(nix::errno::Errno::EPERM) => {
            drop(device);
            by_helper(at, &source, allow_other)
        }
        Err(nix::errno::Errno::ENODEV) => {
            Err(MountError::NoFuse("this kernel has no FUSE filesystem: `modprobe fuse` as root user".into()))
        }
        Err(why) => Err(MountError::System(format!("{} cannot be mounted on: {}", at.display(), why.desc()))),
    }
}

fn by_helper(at: &Path, source: &str, allow_other: bool) -> Result<File, MountError> {
    let system = |what: &str, why: &dyn std::fmt::Display| MountError::System(format!("{FUSERMOUNT}: {what}: {why}"));
    let (ours, theirs) = UnixStream::pair().map_err(|why| system("socket", &why))?;
    let others = if allow_other { ",allow_other,default_permissions" } else { "" };
    let their_fd = rustix::io::fcntl_dupfd_cloexec(&theirs, 3).map_err(|why| system("socket", &why))?;
    rustix::io::fcntl_setfd(&their_fd, rustix::io::FdFlags::empty()).map_err(|why| system("socket", &why))?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(format!("fsname={source},subtype=treelease,nosuid,nodev,max_read={MAX_READ}{others}"))
        .arg("--")
        .arg(at)
        .env("_FUSE_COMMFD", their_fd.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
            let says = "install the package fuse3 (apt install fuse3), or use the mode without mounts";
            return Err(MountError::NoFusermount(format!(
                "{FUSERMOUNT} is missing, and this user may not mount without: {says}"
            )));
        }
        Err(why) => return Err(system("start", &why)),
    };
    drop((theirs, their_fd));
    let received = receive(&ours);
    drop(ours);
    let output = child.wait_with_output().map_err(|why| system("wait", &why))?;
    received.ok_or_else(|| system("refused", &String::from_utf8_lossy(&output.stderr).trim()))
}

fn receive(socket: &UnixStream) -> Option<File> {
    let mut byte = [0u8];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just put this descriptor into our table for us; nobody else knows of it.
            return Some(File::from(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    None
}

/// Unmounts what is on top at a path.
pub(super) fn unmount(at: &Path, lazy: bool) -> Result<(), Busy> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    let why = match nix::mount::umount2(at, flags) {
        Ok(()) => return Ok(()),
        Err(nix::errno::Errno::EPERM) => {
            let mode = if lazy { "-uqz" } else { "-uq" };
            match Command::new(FUSERMOUNT).arg(mode).arg("--").arg(at).stdin(Stdio::null()).output() {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(why) => format!("{FUSERMOUNT}: {why}"),
            }
        }
        Err(why) => why.desc().to_owned(),
    };
    Err(Busy { pids: inside(at), why })
}

/// Processes with a working directory, an open file or a mapping below a path. Reads links of /proc only: never the mount.
pub(super) fn inside(at: &Path) -> Vec<(u32, String)> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == own || found.len() >= NAMED {
            continue;
        }
        let below = |link: &Path| std::fs::read_link(link).is_ok_and(|to| to.starts_with(at));
        let dir = entry.path();
        let fds = || std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().any(|fd| below(&fd.path()));
        let maps = || {
            let text = std::fs::read_to_string(dir.join("maps")).unwrap_or_default();
            text.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).any(|path| Path::new(path).starts_with(at))
        };
        if below(&dir.join("cwd")) || below(&dir.join("root")) || fds() || maps() {
            found.push((pid, command_of(pid)));
        }
    }
    found
}

/// Whether a path answers that its FUSE server is gone. Not by `stat`: the kernel may still believe attributes of before.
pub(super) fn is_dead(at: &Path) -> bool {
    rustix::fs::statfs(at).is_err_and(|why| why == rustix::io::Errno::NOTCONN)
}

/// Lets the kernel read further ahead. Only root user may; without, it is the kernel's default.
pub(super) fn read_further_ahead((major, minor): (u32, u32)) {
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(why) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%why, file, "the kernel reads ahead as it is used to");
    }
}

/// As many descriptors as this process may have: one for each inode that the kernel knows.
pub(super) fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let text = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n\
                    40 36 0:45 / /t rw,nosuid - fuse.treelease treelease:dev rw\nbroken\n";
        let mounts = table(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].at, PathBuf::from("/mnt/a b"));
        assert_eq!((mounts[1].fstype.as_str(), mounts[1].device), (FSTYPE, (0, 45)));
    }

    #[test]
    fn on_top_is_what_has_nothing_on_it_whatever_came_last() {
        // 40 was there; 41 was put beneath it; 39 is at the same path, below a mount that hides it.
        let text = "39 20 0:44 / /t rw - tmpfs x rw\n30 25 8:1 / /t rw - ext4 /dev/a rw\n\
                    40 41 0:45 / /t rw - fuse.treelease treelease:dev rw\n41 30 0:46 / /t rw - fuse.treelease treelease:dev rw\n";
        let ids: Vec<u64> = stack(table(text), Path::new("/t")).iter().map(|mounted| mounted.id).collect();
        assert_eq!(ids, [30, 41, 40]);
    }
}
