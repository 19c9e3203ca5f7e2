//! Which process made or wrote which file, and in which epoch: git and editors commit by rename.
//!
//! # Promises
//!
//! I6: a rename or link whose source the same process made or wrote before another side's turn is ESTALE. *Why:* a finished
//! `index.lock` of before that turn, renamed into place after it, undoes what the other side has committed. A process that
//! makes the file anew in this run may rename it, and so may any other process (`mv` by a person who looked).
//!
//! What was written through an earlier mount nobody remembers: so after another side's turn since, a process older than this
//! mount moves nothing that it has not written through this one.
//!
//! # Does not know
//!
//! Processes that the kernel does not name (of another pid namespace): theirs are not judged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::epoch::Epoch;
use treelease_client::words::time::BootTime;

use super::inode::Key;
use crate::sync::lock;

/// (Process, file) pairs that are remembered; at the limit, those of processes that have ended go first, then the oldest epochs'.
pub const AUTHORS_MAX: usize = 65_536;
/// How long it is believed which process a thread belongs to. A thread's number is not used again so soon.
const THREADS_KEPT: Duration = Duration::from_secs(1);
/// Threads that are remembered; at the limit all are forgotten.
const THREADS_MAX: usize = 1024;

/// A process, told from a later one with its number by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    started: u64,
}

/// Mounts before this one.
#[derive(Debug, Clone, Copy)]
struct Earlier {
    /// The last epoch that was written through one of them.
    epoch: Epoch,
    /// When this mount began, as a process's start is counted.
    ended: u64,
}

/// Who made or wrote what.
#[derive(Default)]
pub struct Authors {
    earlier: Option<Earlier>,
    known: Mutex<BTreeMap<(Process, Key), Epoch>>,
    threads: Mutex<BTreeMap<u32, (BootTime, Process)>>,
}

/// The field `starttime` of `/proc/PID/stat`, in ticks since boot. The name before it may contain anything.
pub(super) fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn process_of(thread: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let started = started(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(Process { pid, started })
}

/// Now, as a process's start is counted: the start of a thread that was just made.
fn ticks() -> Option<u64> {
    let read = || std::fs::read_to_string("/proc/thread-self/stat").ok().and_then(|stat| started(&stat));
    std::thread::Builder::new().spawn(read).ok()?.join().ok()?
}

/// Makes room for a quarter of the limit at least, so that this walk, and its questions about processes, are rare. Each process
/// is asked about once: openers for writing wait for this.
fn make_room(known: &mut BTreeMap<(Process, Key), Epoch>, limit: usize, mut lives: impl FnMut(Process) -> bool) {
    let mut asked = BTreeMap::new();
    known.retain(|(process, _), _| *asked.entry(*process).or_insert_with(|| lives(*process)));
    let surplus = known.len().saturating_sub(limit - limit / 4);
    if surplus > 0 {
        let mut oldest: Vec<(Epoch, (Process, Key))> = known.iter().map(|(pair, epoch)| (*epoch, *pair)).collect();
        oldest.sort_unstable();
        for (_, pair) in oldest.iter().take(surplus) {
            known.remove(pair);
        }
    }
}

impl Authors {
    /// For a mount that begins now; `earlier`: the last epoch that was written through a mount before it.
    pub fn after(earlier: Option<Epoch>) -> Self {
        let earlier = earlier.map(|epoch| Earlier { epoch, ended: ticks().unwrap_or(u64::MAX) });
        Authors { earlier, ..Authors::default() }
    }

    fn process(&self, thread: u32, now: BootTime) -> Option<Process> {
        if thread == 0 {
            return None;
        }
        if let Some((at, process)) = lock(&self.threads).get(&thread)
            && now.since(*at) < THREADS_KEPT
        {
            return Some(*process);
        }
        let process = process_of(thread)?;
        let mut threads = lock(&self.threads);
        if threads.len() >= THREADS_MAX {
            threads.clear();
        }
        threads.insert(thread, (now, process));
        Some(process)
    }

    /// A process made the file (`anew`: nothing of an earlier run is in it) or wrote it, under this epoch.
    pub fn wrote(&self, thread: u32, key: Key, epoch: Epoch, anew: bool, now: BootTime) {
        let Some(process) = self.process(thread, now) else { return };
        let mut known = lock(&self.known);
        if known.len() >= AUTHORS_MAX && !known.contains_key(&(process, key)) {
            make_room(&mut known, AUTHORS_MAX, |process| process_of(process.pid) == Some(process));
        }
        let since = known.entry((process, key)).or_insert(epoch);
        *since = if anew { epoch } else { (*since).min(epoch) };
    }

    /// Whether the process made or wrote the file before another side's turn, or may have.
    pub fn is_stale(&self, thread: u32, key: Key, stale_below: Epoch, now: BootTime) -> bool {
        let Some(process) = self.process(thread, now) else { return false };
        match lock(&self.known).get(&(process, key)) {
            Some(epoch) => *epoch < stale_below,
            // It may have been written through an earlier mount, and another side has had a turn since.
            None => self.earlier.is_some_and(|e| e.epoch < stale_below && process.started < e.ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> Key {
        Key::raw(1, ino)
    }

    #[test]
    fn what_this_process_made_before_another_sides_turn_is_stale_until_it_makes_it_anew() {
        let (authors, me, now) = (Authors::default(), std::process::id(), BootTime::default());
        let epoch = Epoch::from_raw;
        authors.wrote(me, key(7), epoch(3), true, now);
        assert!(!authors.is_stale(me, key(7), epoch(3), now), "no turn since");
        assert!(authors.is_stale(me, key(7), epoch(5), now));
        assert!(!authors.is_stale(me, key(8), epoch(5), now), "another file");
        assert!(!authors.is_stale(1, key(7), epoch(5), now), "another process");
        authors.wrote(me, key(7), epoch(5), false, now);
        assert!(authors.is_stale(me, key(7), epoch(5), now), "written to, but what was in it is still in it");
        authors.wrote(me, key(7), epoch(5), true, now);
        assert!(!authors.is_stale(me, key(7), epoch(5), now));
    }

    #[test]
    fn what_an_older_process_may_have_written_through_an_earlier_mount_is_stale_after_another_sides_turn() {
        let epoch = Epoch::from_raw;
        let (me, now) = (std::process::id(), BootTime::default());
        let began = process_of(me).unwrap().started;
        let authors = |ended| Authors { earlier: Some(Earlier { epoch: epoch(4), ended }), ..Authors::default() };
        let older = authors(began + 1);
        assert!(!older.is_stale(me, key(7), epoch(4), now), "no turn since");
        assert!(older.is_stale(me, key(7), epoch(5), now));
        older.wrote(me, key(7), epoch(6), false, now);
        assert!(!older.is_stale(me, key(7), epoch(5), now), "written through this mount");
        assert!(!authors(began).is_stale(me, key(7), epoch(5), now), "the process is not older than the mount");
        assert!(!Authors::after(None).is_stale(me, key(7), epoch(5), now), "there was no mount before");
        assert!(ticks().unwrap() >= began);
    }

    #[test]
    fn at_the_limit_each_process_is_asked_about_once_and_room_is_made_for_many() {
        let process = |pid| Process { pid, started: 1 };
        let mut known: BTreeMap<(Process, Key), Epoch> =
            (0..8).map(|n| ((process(1 + n as u32 % 2), key(n)), Epoch::from_raw(n))).collect();
        let mut asked = Vec::new();
        make_room(&mut known, 8, |process| {
            asked.push(process.pid);
            true
        });
        assert_eq!(asked, [1, 2]);
        assert_eq!(known.values().map(|epoch| epoch.get()).min(), Some(2), "the oldest have gone: {known:?}");
        assert_eq!(known.len(), 6);
        make_room(&mut known, 8, |process| process.pid == 2);
        assert_eq!(known.len(), 3, "and those of a process that has ended");
    }

    #[test]
    fn a_start_time_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=30).map(|n| n.to_string()).collect();
        assert_eq!(started(&format!("12 (a ) b) {}", fields.join(" "))), Some(22));
    }
}
