//! The bypass alarm: who writes to the storage past the mount, on this host, is on record with its path and process.
//!
//! A thread of the mount's own sleeps until the kernel has something to tell, looks a second later ([`crate::lower::bypass`]) and tells
//! the loop, which puts it into the history, the log and the status.
//!
//! # Promises
//!
//! - Never for what came through a guard. *Why:* the kernel names the process of each change: this one's are no news, another side's
//!   guard is told by its program. Where the kernel does not name it (an ordinary user's daemon; a process of another pid
//!   namespace), or it has ended meanwhile, it counts only under `enforce` while this side has held the tree for a while: then no other
//!   guard writes (I4); and, ended, where no other side has had a turn.
//! - A process that goes on is told again once a minute, with a count; the history holds nothing else otherwise.
//!
//! # Does not know
//!
//! What another host does.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use treelease_client::report::BypassReport;
use treelease_client::words::command::{Command, EventKind};
use treelease_client::words::id::{RequestKey, TreeId};
use treelease_client::words::policy::Mode;
use treelease_client::words::time::BootTime;

use super::effects::{Done, keep_note};
use super::servers::Purpose;
use super::tree::Phase;
use super::{Daemon, Msg, Tree};
use crate::fs::is_local;
use crate::fuse::Mount;
use crate::lower::bypass::{LOOK_EVERY, Past, Watch};

/// A process that goes on is told again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// Processes told within [`AGAIN`]; what more of them do is in the log alone.
const TOLD_MAX: usize = 16;
/// How long this side has held the tree before a nameless change is nobody's guard's: a look and a half, and what a write that was
/// admitted before may take to end.
const HELD_FOR: Duration = Duration::from_secs(5);

/// A watcher that has nothing to do looks this often whether its mount is still there: it keeps a descriptor of the lower tree.
const THERE: Duration = Duration::from_secs(30);

/// What was told of processes that went past the guard.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// By process (0: nameless): when it was told last, and what came since.
    told: BTreeMap<u32, (BootTime, u64)>,
    last: Option<BypassReport>,
}

impl Alarms {
    /// So many changes by that process. How many are to be told now.
    fn hear(&mut self, pid: u32, count: u64, now: BootTime) -> Option<u64> {
        if let Some((told, since)) = self.told.get_mut(&pid) {
            *since += count;
            if now.since(*told) < AGAIN {
                return None;
            }
            *told = now;
            return Some(std::mem::take(since));
        }
        if self.told.len() >= TOLD_MAX {
            self.told.retain(|_, (told, _)| now.since(*told) < AGAIN);
        }
        (self.told.len() < TOLD_MAX).then(|| {
            self.told.insert(pid, (now, 0));
            count
        })
    }

    /// The last one, for `status`.
    pub(super) fn last(&self) -> Option<&BypassReport> {
        self.last.as_ref()
    }
}

/// Ends the thread that looks when it is dropped.
pub(super) struct Watcher {
    _stop: OwnedFd,
}

/// How a watcher's sleep ended.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    Stopped,
    Changes,
    Time,
}

/// Sleeps until the other end of `stop` is closed, there is something to read in `changes`, or the time is over.
fn sleep(stop: &OwnedFd, changes: Option<BorrowedFd<'_>>, at_most: Duration) -> Woken {
    let mut both = vec![PollFd::new(stop.as_fd(), PollFlags::empty())];
    both.extend(changes.map(|changes| PollFd::new(changes, PollFlags::POLLIN)));
    let ready = poll(&mut both, PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX));
    let is = |n: usize| both.get(n).is_some_and(|fd| fd.any() == Some(true));
    match ready {
        Err(Errno::EINTR) => Woken::Time,
        Ok(_) if !is(0) => {
            if is(1) {
                Woken::Changes
            } else {
                Woken::Time
            }
        }
        Ok(_) | Err(_) => Woken::Stopped,
    }
}

fn there(mount: &Weak<Mount>) -> Option<Arc<Mount>> {
    mount.upgrade().filter(|mount| mount.alive())
}

fn sentence(past: &Past, count: u64) -> String {
    let path = past.path.display();
    let who = match &past.who {
        None => "a process that the kernel does not name".to_owned(),
        Some(process) if process.command.is_empty() => format!("a process that has ended (pid {})", process.pid),
        Some(process) => format!("{} (pid {})", process.command, process.pid),
    };
    match count {
        1 => format!("past the mount, by {who}: {path}"),
        n => format!("past the mount, by {who}: {path} and {} more changes", n - 1),
    }
}

impl Daemon {
    /// Begins to look after the lower tree of a new mount.
    pub(super) fn watch_lower(&mut self, id: &TreeId) {
        let Some(mounted) = self.trees.get_mut(id).and_then(|tree| tree.mounted.as_mut()) else { return };
        let (mount, root) = (Arc::downgrade(&mounted.mount), mounted.root.clone());
        let (mail, clock, tree) = (self.mail.clone(), self.clock.clone(), id.clone());
        let (stopped, stop) = match pipe_with(PipeFlags::CLOEXEC) {
            Ok(ends) => ends,
            Err(why) => return tracing::warn!(tree = %id, %why, "writes past the mount are not looked for"),
        };
        let own = (!self.faults.guards_told).then(std::process::id);
        let look_after = move || {
            let walks = rustix::fs::fstatfs(&*root).is_ok_and(|fs| is_local(fs.f_type as u64));
            let mut watch = match Watch::new(root, own, walks) {
                Ok(watch) => watch,
                Err(why) => {
                    tracing::info!(%tree, %why, "who writes to the storage past the mount is not noticed here");
                    return;
                }
            };
            loop {
                if !watch.has_to_walk() {
                    match sleep(&stopped, Some(watch.changes()), THERE) {
                        Woken::Changes => {}
                        Woken::Time if there(&mount).is_some() => continue,
                        Woken::Time | Woken::Stopped => return,
                    }
                }
                // What comes in its wake is looked at with it.
                if sleep(&stopped, None, LOOK_EVERY) == Woken::Stopped {
                    return;
                }
                let Some(mount) = there(&mount) else { return };
                let quiet = mount.last_mutation().is_none_or(|last| clock.now().since(last) > LOOK_EVERY);
                drop(mount);
                let past = watch.look(quiet, clock.wall());
                if !past.is_empty() && mail.blocking_send(Msg::Tree(tree.clone(), Done::Bypassed(past))).is_err() {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("bypass".into()).spawn(look_after) {
            Ok(_) => mounted.watcher = Some(Watcher { _stop: stop }),
            Err(why) => tracing::warn!(tree = %id, %why, "no thread to look for writes past the mount"),
        }
    }

    pub(super) fn bypassed(&mut self, id: &TreeId, all: Vec<Past>, now: BootTime) {
        for past in all {
            let Some(tree) = self.trees.get_mut(id) else { return };
            if !is_sure(tree, &past, now) {
                continue;
            }
            let pid = past.who.as_ref().map_or(0, |process| process.pid);
            let Some(count) = tree.alarms.hear(pid, past.count, now) else { continue };
            let reason = sentence(&past, count);
            tracing::warn!(tree = %id, pid, count, "the storage was written past the mount");
            tree.alarms.last = Some(BypassReport {
                path: past.path.display().to_string(),
                pid: past.who.as_ref().map(|process| process.pid),
                command: past.who.map(|process| process.command).filter(|command| !command.is_empty()),
                count,
                last: self.clock.wall(),
            });
            keep_note(tree, reason.clone());
            let epoch = tree.side.latest;
            if let Some(lease) = self.lease(id, epoch) {
                let report = Command::Report { lease, event: EventKind::Bypass, reason, count };
                self.send(id, report, Purpose::Tell, RequestKey::random());
            }
        }
    }
}

/// Whether it was nobody's guard. A process that is there has told its program. One that has ended, or has no name, may have been
/// another side's guard: not while this side holds the tree; nor, of one that has ended, where no other side has had a turn.
fn is_sure(tree: &Tree, past: &Past, now: BootTime) -> bool {
    let ended = match &past.who {
        Some(process) if !process.command.is_empty() => return true,
        who => who.is_some(),
    };
    let side = &tree.side;
    let held = matches!(side.phase, Phase::Open { opened, .. } if now.since(opened) > HELD_FOR) && side.writes(now);
    let alone = || side.table.as_ref().is_some_and(|t| t.run_side.as_ref().is_none_or(|run| *run == side.me));
    side.policy.mode == Mode::Enforce && (held || ended && alone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_goes_on_is_told_at_once_and_then_once_a_minute_with_all_that_came_between() {
        let (mut alarms, now) = (Alarms::default(), BootTime::default());
        let at = |s| now.after(Duration::from_secs(s));
        assert_eq!(alarms.hear(7, 2, at(0)), Some(2));
        assert_eq!(alarms.hear(7, 3, at(1)), None);
        assert_eq!(alarms.hear(8, 1, at(2)), Some(1), "another one at once");
        assert_eq!(alarms.hear(7, 4, at(60)), Some(7));
        assert_eq!(alarms.hear(7, 1, at(61)), None);
    }

    #[test]
    fn no_more_processes_are_told_of_than_a_history_bears() {
        let (mut alarms, now) = (Alarms::default(), BootTime::default());
        let told = |alarms: &mut Alarms, now| (1..1000).filter(|pid| alarms.hear(*pid, 1, now).is_some()).count();
        assert_eq!(told(&mut alarms, now), TOLD_MAX);
        assert_eq!(told(&mut alarms, now.after(Duration::from_secs(1))), 0);
        assert_eq!(told(&mut alarms, now.after(AGAIN)), TOLD_MAX);
    }

    #[test]
    fn a_watcher_sleeps_until_there_is_something_to_read_or_it_is_stopped() {
        let (changes, change) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        assert_eq!(sleep(&stopped, Some(changes.as_fd()), short), Woken::Time);
        rustix::io::write(&change, b"x").unwrap();
        assert_eq!(sleep(&stopped, Some(changes.as_fd()), long), Woken::Changes);
        assert_eq!(sleep(&stopped, None, short), Woken::Time, "not while it gathers");
        let watcher = Watcher { _stop: stop };
        std::thread::scope(|threads| {
            let sleeper = threads.spawn(|| sleep(&stopped, None, long));
            drop(watcher);
            assert_eq!(sleeper.join().unwrap(), Woken::Stopped);
        });
        assert_eq!(sleep(&stopped, Some(changes.as_fd()), long), Woken::Stopped, "first of all");
    }

    #[test]
    fn the_sentence_names_path_and_process_as_far_as_they_are_known() {
        let process = |command: &str| Some(crate::lower::bypass::Process { pid: 812, command: command.into() });
        let past = |who| Past { who, path: "src/a".into(), count: 1 };
        assert_eq!(sentence(&past(process("vim")), 1), "past the mount, by vim (pid 812): src/a");
        assert_eq!(sentence(&past(process("vim")), 3), "past the mount, by vim (pid 812): src/a and 2 more changes");
        assert!(sentence(&past(process("")), 1).contains("has ended (pid 812)"));
        assert!(sentence(&past(None), 1).contains("does not name"));
    }
}
