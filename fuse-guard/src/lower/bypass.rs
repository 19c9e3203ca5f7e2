//! Who changes the lower tree without going through a guard: told by the kernel (fanotify), which says of each change whether it was
//! this process's own.
//!
//! # Promises
//!
//! - A change that went through this guard is never told as another's. *Why:* every change of a guard is a system call of its
//!   own process, and the kernel names the process with each event. Nothing is compared or guessed; so no rename, no page of a
//!   mapping and no burst of files can look like somebody else's. (inotify does not say whose a change is, and queues one event for
//!   each of our own: a guess, and a cost.)
//! - It costs next to nothing: while something comes the queue is read once in a while ([`LOOK_EVERY`]), and while nothing does nobody
//!   looks; equal events are merged by the kernel; a write to an open file makes none at all, only its close does.
//! - What is watched is bounded ([`WATCHED_MAX`] directories), found by walking the tree from its root, breadth first, a few at a time
//!   and only while nobody writes. On storage that others may change too (NFS) only the root and `.git` are watched: the rest
//!   would be walked over the network, for what this host alone does.
//!
//! # Does not know
//!
//! What another host does to the storage. What is written through a file that stays open, before it is closed. A change in a directory
//! that is beyond the limit, below another mount, or made a moment ago. Without CAP_SYS_ADMIN, whose a change was: only that
//! it was not ours.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};

use treelease_client::words::time::WallTime;

use crate::sync::Arc;

/// How long after a change the kernel's queue is read: an alarm comes within seconds, and a busy tree wakes its daemon this rarely.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Directories that are watched: those of a large workspace without what its tools unpack; each pins an inode (1 KiB) of the kernel.
pub const WATCHED_MAX: usize = 8192;
/// Directories that are walked at a look: a few milliseconds where the storage is local.
const STEP: usize = 128;
/// A file that was closed and changed longer ago than this was only open: whoever opens a database to read it opens it for writing.
const CHANGED_LATELY: Duration = Duration::from_secs(5);
/// With no room for more directories they are found anew at the first quiet look after so long, by the wall clock.
const ANEW_AFTER: Duration = Duration::from_secs(600);
/// Processes that one look tells apart; what more of them do is told at the next.
const TOLD_MAX: usize = 32;
/// Bytes of events that are read at a time.
const BUFFER: usize = 64 << 10;

/// Changes of names and of attributes, and closes after writing; not each write.
const CHANGES: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;
/// The handle is asked for as the events carry it, also where the storage cannot open by it (kernels before 6.5 do not know this).
const AT_HANDLE_FID: libc::c_int = 0x200;
/// What a side's daemon is called.
const GUARD: &str = "treelease-guard";
/// Daemons of other sides on this host that are remembered.
const GUARDS_MAX: usize = 64;
/// An event's fixed part.
const HEADER: usize = 24;
const DFID_NAME: u8 = 2;
const DFID: u8 = 3;
/// The largest handle that the kernel makes.
const HANDLE_MAX: usize = 128;

/// A change that went past the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Whose, where the kernel says so.
    pub who: Option<Process>,
    /// Where, below the root: the first such change since the last look.
    pub path: PathBuf,
    /// How many.
    pub count: u64,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command; empty if it has ended already.
    pub command: String,
}

/// One watched tree.
pub struct Watch {
    group: OwnedFd,
    root: Arc<OwnedFd>,
    /// Whose changes are no news. Nobody's, in a control: then guards' are told too.
    own: Option<u32>,
    /// Watched directories, by their handles.
    known: HashMap<Vec<u8>, PathBuf>,
    /// Directories that are still to be walked.
    pending: VecDeque<PathBuf>,
    /// Beyond the root and `.git`.
    walks: bool,
    /// Since when there is no room for more, in seconds of the wall clock.
    full_since: Option<i64>,
    /// Other sides' daemons that were seen.
    guards: BTreeSet<u32>,
}

/// One event of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event<'a> {
    mask: u64,
    pid: u32,
    /// The directory's handle, type first, and the name in it.
    at: Option<(&'a [u8], &'a OsStr)>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The first event of a buffer, and what follows it.
fn parse(buffer: &[u8]) -> Option<(Event<'_>, &[u8])> {
    let length = u32::from_ne_bytes(number(buffer, 0)?) as usize;
    let header = usize::from(u16::from_ne_bytes(number(buffer, 6)?));
    let (mask, pid) = (u64::from_ne_bytes(number(buffer, 8)?), i32::from_ne_bytes(number(buffer, 20)?));
    let (event, rest) = buffer.split_at_checked(length).filter(|(event, _)| event.len() >= HEADER)?;
    let mut records = event.get(header..)?;
    let mut at = None;
    while let (Some([kind, ..]), Some(length)) = (records.first_chunk::<2>(), number(records, 2).map(u16::from_ne_bytes)) {
        let (record, more) = records.split_at_checked(usize::from(length).max(4))?;
        if matches!(*kind, DFID_NAME | DFID) {
            // Header, file system id, then a handle: length, type, bytes; then the name.
            let bytes = u32::from_ne_bytes(number(record, 12)?) as usize;
            let handle = record.get(16..20 + bytes)?;
            let name =
                CStr::from_bytes_until_nul(record.get(20 + bytes..)?).map_or(OsStr::new(""), |n| OsStr::from_bytes(n.to_bytes()));
            at = Some((handle, name));
        }
        records = more;
    }
    Some((Event { mask, pid: u32::try_from(pid).unwrap_or_default(), at }, rest))
}

/// A directory's handle as the events carry it: type, then bytes.
fn handle_of(dir: &OwnedFd) -> io::Result<Vec<u8>> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_MAX],
    }
    let ask = |flags| {
        let mut handle = Handle { bytes: HANDLE_MAX as u32, kind: 0, handle: [0; HANDLE_MAX] };
        let mut mount = 0;
        // SAFETY: `handle` is a `struct file_handle` with room for as many bytes as it says, the name is empty and ends with a zero.
        let rc = unsafe {
            libc::name_to_handle_at(dir.as_raw_fd(), c"".as_ptr(), std::ptr::from_mut(&mut handle).cast(), &mut mount, flags)
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut known = handle.kind.to_ne_bytes().to_vec();
        known.extend_from_slice(&handle.handle[..HANDLE_MAX.min(handle.bytes as usize)]);
        Ok(known)
    };
    ask(libc::AT_EMPTY_PATH | AT_HANDLE_FID).or_else(|_| ask(libc::AT_EMPTY_PATH))
}

impl Watch {
    /// Of the tree below an opened root; changes of the process `own` are no news. `walks`: also directories below the root.
    pub fn new(root: Arc<OwnedFd>, own: Option<u32>, walks: bool) -> io::Result<Watch> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_DFID_NAME | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
        // SAFETY: it takes two numbers.
        let group = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as libc::c_uint) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else knows of it.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        let mut watch = Watch {
            group,
            root,
            own,
            known: HashMap::new(),
            pending: VecDeque::new(),
            walks,
            full_since: None,
            guards: BTreeSet::new(),
        };
        watch.visit(Path::new("."))?;
        if !walks {
            // It need not be there.
            let _none = watch.visit(Path::new(".git"));
        }
        Ok(watch)
    }

    /// How many directories are watched.
    pub fn watched(&self) -> usize {
        self.known.len()
    }

    /// Where the kernel says that something has changed: readable then.
    pub fn changes(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    /// Whether there are directories that are not watched yet: looks are needed although nothing changes.
    pub fn has_to_walk(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What was changed by others since the last look. `quiet`: nobody writes now, so there is time to walk on.
    pub fn look(&mut self, quiet: bool, wall: WallTime) -> Vec<Past> {
        let mut told = BTreeMap::new();
        // As a rule nothing has come, and no room is made for it: with many mounts that was half of what an idle guard did.
        let some = rustix::io::ioctl_fionread(&self.group) != Ok(0);
        let mut buffer = vec![0u8; if some { BUFFER } else { 0 }];
        while some && let Ok(n) = rustix::io::read(&self.group, &mut buffer[..]) {
            let mut rest = &buffer[..n];
            while let Some((event, more)) = parse(rest) {
                self.hear(&event, wall, &mut told);
                rest = more;
            }
            if n == 0 {
                break;
            }
        }
        if quiet {
            self.walk(wall.0.as_second());
        }
        told.into_values().flatten().collect()
    }

    /// `told`: by process; nothing for a guard.
    fn hear(&mut self, event: &Event<'_>, wall: WallTime, told: &mut BTreeMap<u32, Option<Past>>) {
        let Some((handle, name)) = event.at else { return };
        let Some(dir) = self.known.get(handle) else { return };
        let path = if name.is_empty() || name == "." { dir.clone() } else { dir.join(name) };
        let path = match path.strip_prefix(".") {
            Ok(below) if !below.as_os_str().is_empty() => below.to_owned(),
            _ => path,
        };
        let new_dir = event.mask & libc::FAN_ONDIR != 0 && event.mask & (libc::FAN_CREATE | libc::FAN_MOVED_TO) != 0;
        if new_dir && self.walks && self.pending.len() < WATCHED_MAX {
            self.pending.push_back(path.clone());
        }
        if Some(event.pid) == self.own || treelease_client::marker::is_ours(name) || self.was_only_open(event.mask, &path, wall) {
            return;
        }
        if let Some(known) = told.get_mut(&event.pid) {
            known.iter_mut().for_each(|past| past.count += 1);
            return;
        }
        if told.len() >= TOLD_MAX {
            return;
        }
        let past = match event.pid {
            0 => Some(None),
            pid => {
                let command = command_of(pid);
                match self.own.is_some() && self.is_a_guard(pid, &command) {
                    true => None,
                    false => Some(Some(Process { pid, command })),
                }
            }
        };
        told.insert(event.pid, past.map(|who| Past { who, path, count: 1 }));
    }

    /// Whether the process is another side's daemon: what it writes goes through its own guard. One that has ended since it was seen
    /// last is known still.
    fn is_a_guard(&mut self, pid: u32, command: &str) -> bool {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // One that was replaced by a later version is called so still, with a word more.
        let is = program.file_name().is_some_and(|name| name.as_bytes().starts_with(GUARD.as_bytes())) || command == GUARD;
        if is && self.guards.len() < GUARDS_MAX {
            self.guards.insert(pid);
        }
        is || (command.is_empty() && self.guards.contains(&pid))
    }

    /// Whether a file that was closed had only been opened for writing.
    fn was_only_open(&self, mask: u64, path: &Path, wall: WallTime) -> bool {
        if mask & CHANGES & !(libc::FAN_CLOSE_WRITE | libc::FAN_EVENT_ON_CHILD | libc::FAN_ONDIR) != 0 {
            return false;
        }
        let Ok(stat) = statat(&*self.root, path, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        wall.0.as_second().saturating_sub(stat.st_mtime) > CHANGED_LATELY.as_secs() as i64
    }

    fn walk(&mut self, now: i64) {
        for _ in 0..STEP {
            if self.known.len() >= WATCHED_MAX {
                return self.is_full(now);
            }
            let Some(path) = self.pending.pop_front() else { return };
            // Gone meanwhile, not ours to enter, or a mount of its own.
            if let Err(why) = self.visit(&path) {
                tracing::trace!(%why, "not watched");
            }
        }
    }

    /// Directories that were removed are among the known still: once in a while all begins anew.
    fn is_full(&mut self, now: i64) {
        self.pending.clear();
        let since = *self.full_since.get_or_insert(now);
        // Set back, the clock says nothing about how long that is.
        if !(0..ANEW_AFTER.as_secs() as i64).contains(&(now - since)) {
            self.full_since = None;
            // SAFETY: it takes numbers alone; what is marked is the group's own.
            unsafe { libc::fanotify_mark(self.group.as_raw_fd(), libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, std::ptr::null()) };
            self.known.clear();
            self.pending.push_back(PathBuf::from("."));
        }
    }

    /// Watches one directory, and puts those in it in line.
    fn visit(&mut self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let dir = openat2(&*self.root, path, flags, Mode::empty(), beneath)?;
        let handle = handle_of(&dir)?;
        let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        // SAFETY: both descriptors are open; without a name the second one is what is marked.
        let rc = unsafe { libc::fanotify_mark(self.group.as_raw_fd(), mark, CHANGES, dir.as_raw_fd(), std::ptr::null()) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        self.known.insert(handle, path.to_owned());
        if self.walks {
            for entry in Dir::new(dir)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                    self.pending.push_back(if path == Path::new(".") { PathBuf::from(name) } else { path.join(name) });
                }
            }
        }
        Ok(())
    }
}

fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| c.trim_end().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use treelease_client::words::clock::{Clock, SideClock};

    use super::*;

    /// A directory that is watched by somebody who takes the process `own` for himself.
    fn watched(own: u32, make: impl FnOnce(&Path)) -> (tempfile::TempDir, Watch) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut watch =
            Watch::new(Arc::new(root), Some(own), true).expect("fanotify (Linux 5.13) on the directory for temporary files");
        watch.look(true, wall());
        (dir, watch)
    }

    fn wall() -> WallTime {
        SideClock::new().wall()
    }

    fn stranger() -> u32 {
        std::process::id() + 1
    }

    #[test]
    fn what_another_process_does_is_told_with_its_name_and_what_is_our_own_is_not() {
        let work = |at: &Path| {
            fs::write(at.join("a"), "x").unwrap();
            fs::create_dir(at.join("d")).unwrap();
            fs::rename(at.join("a"), at.join("sub/b")).unwrap();
            fs::remove_file(at.join("sub/b")).unwrap();
        };
        let (dir, mut others) = watched(stranger(), |at| fs::create_dir(at.join("sub")).unwrap());
        work(dir.path());
        let told = others.look(true, wall());
        assert_eq!(told.len(), 1, "{told:?}");
        let who = told[0].who.clone().expect("tests that mount run as root, and are told who it was");
        assert_eq!((who.pid, who.command), (std::process::id(), command_of(std::process::id())));
        assert!(told[0].count >= 3 && told[0].path == Path::new("a"), "{told:?}");
        let (dir, mut own) = watched(std::process::id(), |at| fs::create_dir(at.join("sub")).unwrap());
        work(dir.path());
        assert_eq!(own.look(true, wall()), []);
    }

    #[test]
    fn directories_are_found_below_the_root_and_when_they_are_made() {
        let (dir, mut watch) = watched(stranger(), |at| fs::create_dir_all(at.join("x/y/z")).unwrap());
        assert_eq!(watch.watched(), 4);
        fs::write(dir.path().join("x/y/z/deep"), "").unwrap();
        assert_eq!(watch.look(true, wall())[0].path, Path::new("x/y/z/deep"));
        fs::create_dir_all(dir.path().join("new/er")).unwrap();
        watch.look(false, wall());
        assert_eq!((watch.watched(), watch.has_to_walk()), (4, true), "not while somebody writes");
        watch.look(true, wall());
        assert_eq!((watch.watched(), watch.has_to_walk()), (6, false));
        fs::write(dir.path().join("new/er/f"), "").unwrap();
        assert_eq!(watch.look(true, wall())[0].path, Path::new("new/er/f"));
        std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
        watch.look(true, wall());
        assert_eq!(watch.watched(), 6, "never out of the tree");
    }

    #[test]
    fn a_file_that_was_only_opened_for_writing_is_no_change() {
        let (dir, mut watch) = watched(stranger(), |at| {
            let file = fs::File::create(at.join("db")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        });
        let open = || fs::File::options().read(true).write(true).open(dir.path().join("db")).unwrap();
        drop(open());
        assert_eq!(watch.look(true, wall()), []);
        std::io::Write::write_all(&mut open(), b"x").unwrap();
        assert_eq!(watch.look(true, wall())[0].path, Path::new("db"));
    }

    #[test]
    fn marker_and_stamps_are_every_sides_own_matter() {
        let (dir, mut watch) = watched(stranger(), |_| {});
        fs::write(dir.path().join(".treelease-tree"), "").unwrap();
        fs::write(dir.path().join(".treelease-tree.7"), "").unwrap();
        assert_eq!(watch.look(true, wall()), []);
    }

    #[test]
    fn what_is_cut_short_is_no_event() {
        let whole = {
            let mut event = Vec::new();
            event.extend_from_slice(&56u32.to_ne_bytes());
            event.extend_from_slice(&[3, 0]);
            event.extend_from_slice(&24u16.to_ne_bytes());
            event.extend_from_slice(&libc::FAN_CREATE.to_ne_bytes());
            event.extend_from_slice(&(-1i32).to_ne_bytes());
            event.extend_from_slice(&812i32.to_ne_bytes());
            event.extend_from_slice(&[DFID_NAME, 0]);
            event.extend_from_slice(&32u16.to_ne_bytes());
            event.extend_from_slice(&[9; 8]);
            event.extend_from_slice(&4u32.to_ne_bytes());
            event.extend_from_slice(&1i32.to_ne_bytes());
            event.extend_from_slice(&[7, 7, 7, 7]);
            event.extend_from_slice(b"name\0\0\0\0");
            event
        };
        let (event, rest) = parse(&whole).unwrap();
        assert_eq!((event.pid, event.mask, rest.len()), (812, libc::FAN_CREATE, 0));
        assert_eq!(event.at, Some((&[1, 0, 0, 0, 7, 7, 7, 7][..], OsStr::new("name"))));
        for n in 0..whole.len() {
            assert_eq!(parse(&whole[..n]), None, "{n}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0xff] {
                let mut broken = whole.clone();
                broken[at] = byte;
                // Whatever it says: no panic, and it ends.
                let mut rest = &broken[..];
                while let Some((_, more)) = parse(rest) {
                    rest = more;
                }
            }
        }
    }
}
