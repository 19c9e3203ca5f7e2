//! Which processes wrote lately, or were (in `observe`: would have been) refused: for `treelease writers`.
//!
//! # Promises
//!
//! - A write of a process that is known here takes no lock and allocates nothing: it looks through one set of slots, and adds to
//!   two numbers. Names are asked for when a process is met, and where a file is named again only when somebody looks.
//! - What is remembered is bounded ([`REMEMBERED`]): whoever wrote longest ago goes first.
//!
//! # Does not know
//!
//! Exactness: while a slot is given to another process, a write may be counted for the wrong one of the two. Nothing is decided
//! by this. Processes that the kernel does not name (its own write-back; those of another pid namespace) are not counted.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::authors::started;
use super::caller::Caller;
use crate::sync::{AtomicU32, AtomicU64, Ordering, lock};

/// Threads that share their slots; within a set the one that wrote longest ago goes first.
const WAYS: usize = 8;
/// Sets of slots. A thread belongs to the set that its number says.
const SETS: usize = 64;
/// Threads that are remembered: more than write at the same time on a large machine, 100 bytes each.
pub const REMEMBERED: usize = WAYS * SETS;
/// How long it is believed whose number it is. A number is not used again so soon.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// A process that wrote lately, or was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Its id.
    pub pid: u32,
    /// Of which user.
    pub uid: u32,
    /// Its command.
    pub command: String,
    /// Where it was refused last; if it never was, where it wrote last.
    pub path: String,
    /// How often it wrote.
    pub count: u64,
    /// How often it was refused, or would have been.
    pub refused: u64,
    /// When it was met.
    pub first: BootTime,
    /// When it wrote, or was refused, last.
    pub last: BootTime,
}

/// What is known of a slot's thread.
#[derive(Debug, Clone, Default)]
struct Met {
    pid: u32,
    /// When the process began: tells it from a later one with its number.
    started: u64,
    uid: u32,
    command: String,
    first: BootTime,
    /// On which node it was met, and that path.
    on: u64,
    path: String,
    /// Where it was refused last.
    refused: Option<String>,
}

/// One thread.
#[derive(Default)]
struct Slot {
    /// 0: nobody.
    thread: AtomicU32,
    count: AtomicU64,
    refused: AtomicU64,
    /// Nanoseconds of elapsed time.
    last: AtomicU64,
    /// The node that it wrote last.
    on: AtomicU64,
    /// The node on which it was refused last, plus one.
    refused_on: AtomicU64,
    met: Mutex<Met>,
}

/// The processes that wrote.
pub struct Writers {
    slots: Box<[Slot]>,
    /// One newcomer at a time.
    meeting: Mutex<()>,
}

impl Default for Writers {
    fn default() -> Self {
        Writers { slots: (0..REMEMBERED).map(|_| Slot::default()).collect(), meeting: Mutex::default() }
    }
}

/// A process's command name.
pub fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| c.trim_end().to_owned()).unwrap_or_else(|_| "?".into())
}

/// Whose thread it is: process, its start, its command. A process that has ended already is told by its number alone.
fn process_of(thread: u32) -> (u32, u64, String) {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok()).unwrap_or(thread);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let command = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("?", |(command, _)| command);
    (pid, started(&stat).unwrap_or_default(), command.to_owned())
}

fn nanos(at: BootTime) -> u64 {
    at.elapsed.as_nanos() as u64
}

impl Slot {
    fn saw(&self, now: BootTime) {
        self.last.fetch_max(nanos(now), Ordering::Relaxed);
    }
}

impl Writers {
    /// A process wrote on this node. `path` is asked for only when it is met.
    pub fn wrote(&self, who: Caller, on: u64, path: impl FnOnce() -> String, now: BootTime) {
        let Some(slot) = self.slot(who, on, path, now) else { return };
        slot.count.fetch_add(1, Ordering::Relaxed);
        slot.on.store(on, Ordering::Relaxed);
        slot.saw(now);
    }

    /// A process was refused on this node, or would have been. True: it was not the last time too, and its path has been asked for.
    pub fn refused(&self, who: Caller, on: u64, path: impl Fn() -> String, now: BootTime) -> bool {
        let Some(slot) = self.slot(who, on, &path, now) else { return true };
        slot.refused.fetch_add(1, Ordering::Relaxed);
        slot.saw(now);
        let new = slot.refused_on.swap(on + 1, Ordering::Relaxed) != on + 1;
        if new {
            let path = path();
            lock(&slot.met).refused = Some(path);
        }
        new
    }

    /// All that are remembered, by process, the latest first. `path_of` names a node, if it is known still.
    pub fn report(&self, path_of: impl Fn(u64) -> Option<String>) -> Vec<Writer> {
        let mut all: BTreeMap<(u32, u64), Writer> = BTreeMap::new();
        for slot in self.slots.iter().filter(|slot| slot.thread.load(Ordering::Acquire) != 0) {
            let met = lock(&slot.met).clone();
            let last = BootTime { elapsed: Duration::from_nanos(slot.last.load(Ordering::Relaxed)), ..met.first };
            let on = slot.on.load(Ordering::Relaxed);
            let written = if on == met.on { None } else { path_of(on) }.unwrap_or(met.path);
            let (count, refused) = (slot.count.load(Ordering::Relaxed), slot.refused.load(Ordering::Relaxed));
            let path = met.refused.filter(|_| refused > 0).unwrap_or(written);
            let (pid, uid, command, first) = (met.pid, met.uid, met.command, met.first);
            let one = Writer { pid, uid, command, path, count, refused, first, last };
            all.entry((pid, met.started)).and_modify(|known| known.add(&one)).or_insert(one);
        }
        let mut all: Vec<Writer> = all.into_values().collect();
        all.sort_by_key(|w| std::cmp::Reverse(w.last));
        all
    }

    fn set(&self, thread: u32) -> &[Slot] {
        let set = (thread.wrapping_mul(0x9e37_79b9) >> 16) as usize % SETS;
        &self.slots[set * WAYS..][..WAYS]
    }

    fn slot(&self, who: Caller, on: u64, path: impl FnOnce() -> String, now: BootTime) -> Option<&Slot> {
        if who.pid == 0 {
            return None;
        }
        let known = self.set(who.pid).iter().find(|slot| slot.thread.load(Ordering::Acquire) == who.pid);
        match known {
            Some(slot) if nanos(now).saturating_sub(slot.last.load(Ordering::Relaxed)) < nanos_of(KNOWN_FOR) => Some(slot),
            _ => self.meet(who, on, path, now),
        }
    }

    /// A thread that is not known, or was not heard of for a while.
    fn meet(&self, who: Caller, on: u64, path: impl FnOnce() -> String, now: BootTime) -> Option<&Slot> {
        let (pid, started, command) = process_of(who.pid);
        let _one = lock(&self.meeting);
        let set = self.set(who.pid);
        let of_thread = set.iter().find(|slot| slot.thread.load(Ordering::Acquire) == who.pid);
        if let Some(slot) = of_thread {
            let met = lock(&slot.met);
            // A process that has ended meanwhile is taken for the one that was known.
            if met.pid == pid && (met.started == started || started == 0) {
                return Some(slot);
            }
        }
        let age = |slot: &&Slot| match slot.thread.load(Ordering::Relaxed) {
            0 => 0,
            _ => 1 + slot.last.load(Ordering::Relaxed),
        };
        let slot = of_thread.or_else(|| set.iter().min_by_key(age))?;
        slot.thread.store(0, Ordering::Release);
        for number in [&slot.count, &slot.refused, &slot.refused_on] {
            number.store(0, Ordering::Relaxed);
        }
        slot.on.store(on, Ordering::Relaxed);
        slot.last.store(nanos(now), Ordering::Relaxed);
        *lock(&slot.met) = Met { pid, started, uid: who.uid, command, first: now, on, path: path(), refused: None };
        slot.thread.store(who.pid, Ordering::Release);
        Some(slot)
    }
}

const fn nanos_of(length: Duration) -> u64 {
    length.as_nanos() as u64
}

impl Writer {
    /// What another thread of the process did.
    fn add(&mut self, other: &Writer) {
        let later = other.last > self.last;
        if (other.refused > 0, later) > (self.refused > 0, !later) {
            self.path.clone_from(&other.path);
        }
        self.count += other.count;
        self.refused += other.refused;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(pid: u32) -> Caller {
        Caller { uid: 7, gid: 7, pid }
    }

    fn at(ms: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(ms))
    }

    #[test]
    fn a_process_is_named_once_and_its_last_file_is_named_when_somebody_looks() {
        let (writers, me) = (Writers::default(), std::process::id());
        let asked = std::cell::Cell::new(0);
        let path = || {
            asked.set(asked.get() + 1);
            "first".to_owned()
        };
        for ms in 0..100 {
            writers.wrote(who(me), 5, path, at(ms));
        }
        assert_eq!(asked.get(), 1);
        let report = writers.report(|_| panic!("where it was met is known"));
        let first = &report[0];
        assert_eq!((first.pid, first.uid, first.path.as_str(), first.count, first.refused), (me, 7, "first", 100, 0));
        assert_eq!((first.first, first.last), (at(0), at(99)));
        assert_eq!(first.command, command_of(me));
        writers.wrote(who(me), 6, path, at(100));
        assert_eq!(writers.report(|node| (node == 6).then(|| "second".to_owned()))[0].path, "second");
        assert_eq!(writers.report(|_| None)[0].path, "first", "the kernel has forgotten it");
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn where_a_process_was_refused_is_asked_for_once_for_each_file_and_shown_before_where_it_wrote() {
        let (writers, me) = (Writers::default(), std::process::id());
        writers.wrote(who(me), 5, || "written".into(), at(0));
        let refused = |node, ms| writers.refused(who(me), node, || format!("file {node}"), at(ms));
        assert!(refused(8, 1));
        assert!(!refused(8, 2), "the same file again");
        assert!(refused(9, 3));
        let report = writers.report(|_| None);
        assert_eq!((report[0].path.as_str(), report[0].count, report[0].refused), ("file 9", 1, 3));
        assert_eq!(report[0].last, at(3));
    }

    #[test]
    fn threads_of_one_process_are_one_writer() {
        let writers = std::sync::Arc::new(Writers::default());
        let rounds = 200;
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let writers = writers.clone();
                std::thread::spawn(move || {
                    let me = rustix::thread::gettid().as_raw_nonzero().get() as u32;
                    (0..rounds).for_each(|ms| writers.wrote(who(me), 5, || "f".into(), at(ms)));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let report = writers.report(|_| None);
        assert_eq!(report.len(), 1, "{report:?}");
        assert_eq!((report[0].pid, report[0].count), (std::process::id(), 4 * rounds));
    }

    #[test]
    fn a_later_process_with_the_number_of_an_earlier_one_is_not_taken_for_it() {
        let (writers, me) = (Writers::default(), std::process::id());
        writers.wrote(who(me), 5, || "f".into(), at(0));
        let slot = writers.set(me).iter().find(|slot| slot.thread.load(Ordering::Relaxed) == me).unwrap();
        lock(&slot.met).started -= 1;
        writers.wrote(who(me), 6, || "g".into(), at(500));
        assert_eq!(writers.report(|_| None)[0].count, 2, "a number is not used again so soon");
        writers.wrote(who(me), 6, || "g".into(), at(5_000));
        let report = writers.report(|_| None);
        assert_eq!((report.len(), report[0].count, report[0].path.as_str()), (1, 1, "g"));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        /// Whatever comes: never more than there is room for, the latest of each set is there, and nothing is counted twice.
        #[test]
        fn the_latest_writers_are_remembered_within_the_limit(threads in proptest::collection::vec(1u32..4_000_000, 1..1_200)) {
            let writers = Writers::default();
            for (ms, thread) in threads.iter().enumerate() {
                // Numbers that no process of ours need have: they are told by them alone.
                writers.wrote(who(thread | 1 << 30), 5, || "f".into(), at(ms as u64));
            }
            let report = writers.report(|_| None);
            proptest::prop_assert!(report.len() <= REMEMBERED);
            proptest::prop_assert_eq!(report[0].pid, threads[threads.len() - 1] | 1 << 30);
            let counted: u64 = report.iter().map(|w| w.count).sum();
            proptest::prop_assert!(counted <= threads.len() as u64);
            let distinct: std::collections::BTreeSet<_> = report.iter().map(|w| w.pid).collect();
            proptest::prop_assert_eq!(distinct.len(), report.len());
        }
    }
}
