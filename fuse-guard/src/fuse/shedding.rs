//! Making the kernel forget files when descriptors run short (the guard keeps one for each file that the kernel knows); and telling it
//! to forget many names, directory by directory.
//!
//! # Promises
//!
//! - The files that the kernel has known longest go first, a third of all in a round. Directories stay: one may be where somebody works.
//! - A call that waits, or that hangs on the storage, keeps at most the names of its own directory from being forgotten, and a round
//!   from ending for [`ROUND`]: the next one passes by the directories in which somebody is still stuck.
//! - At [`STUCK_MAX`] stuck threads no further round begins. Where files go by their numbers, only those count that drop by numbers: who
//!   is stuck in a directory hinders nobody else, and each kind has an end.
//!
//! # Why nobody waits for ever
//!
//! To drop a name, the kernel takes the lock of its directory, which a call that waits holds until it is answered. A call waits for the
//! lease, for a stage of the gate, or for room ([`crate::gate::waiters`], [`crate::fs::write_back`]); each of these ends by the clock
//! alone, and is answered by a thread that sends no invalidation. What the lease's end and a grant wait for is none of what such
//! a call holds: a drain waits for permits, and who waits has none; a flush has descriptors of its own, below; what is pushed
//! and dropped through the kernel is done by threads like these, waited for with a limit ([`super::notify`]), and the calls that wait
//! are answered before. So the arrows are: these threads wait for calls, calls wait for the clock, and nobody waits for these
//! threads longer than a limit.
//!
//! Where the kernel can (ABI 7.45), a file that nobody uses is dropped by its number, which takes no directory's lock at all.
//!
//! # Does not know
//!
//! Which files will be used again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::Shared;
use super::notify::Notify;
use crate::fs::inode::Node;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// Below this part of all descriptors, unconfirmed files are left to the flush.
const MANY_UNCONFIRMED: u64 = 8;
/// Threads of one round: in one directory the kernel lets each of them in as often as one that looks up.
const SHEDDERS: usize = 4;
/// How long the kernel has for its answer before more files are shed.
const SHED_PAUSE: Duration = Duration::from_millis(20);
/// How long a round of shedding is waited for before the next one may begin beside it.
const ROUND: Duration = Duration::from_millis(200);
/// Threads that may be stuck at the same time: four rounds of them.
const STUCK_MAX: usize = 4 * SHEDDERS;
/// Files or names that a thread takes at once.
const PARCEL: usize = 128;

/// Who is at work.
#[derive(Default)]
pub(super) struct Shedding {
    under_way: AtomicBool,
    relieving: AtomicBool,
    /// In which directory each thread is.
    at_work: Mutex<Vec<Option<u64>>>,
}

impl Shedding {
    /// Whether a round goes on.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed)
    }

    fn is_at(&self, directory: u64) -> bool {
        lock(&self.at_work).contains(&Some(directory))
    }

    /// Whether too many threads are stuck for another round.
    fn is_full(&self, by_number: bool) -> bool {
        lock(&self.at_work).iter().filter(|at| !by_number || at.is_none()).count() >= STUCK_MAX
    }

    fn begin(&self, at: Option<u64>) -> AtWork<'_> {
        lock(&self.at_work).push(at);
        AtWork { of: self, at }
    }
}

/// A thread is at work, as long as it lives.
struct AtWork<'a> {
    of: &'a Shedding,
    at: Option<u64>,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut all = lock(&self.of.at_work);
        if let Some(place) = all.iter().position(|at| *at == self.at) {
            all.swap_remove(place);
        }
    }
}

/// What a thread does at once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parcel {
    /// Files, by number.
    Files(Vec<u64>),
    /// Names in one directory.
    Names(u64, Vec<OsString>),
}

impl Parcel {
    fn directory(&self) -> Option<u64> {
        match self {
            Parcel::Files(_) => None,
            Parcel::Names(directory, _) => Some(*directory),
        }
    }
}

/// Names by directory, no more than [`PARCEL`] together.
fn parcels(names: impl IntoIterator<Item = (u64, OsString)>) -> Vec<Parcel> {
    let mut by_directory: BTreeMap<u64, Vec<OsString>> = BTreeMap::new();
    for (directory, name) in names {
        by_directory.entry(directory).or_default().push(name);
    }
    let parts = |(directory, names): (u64, Vec<OsString>)| -> Vec<Parcel> {
        names.chunks(PARCEL).map(|some| Parcel::Names(directory, some.to_vec())).collect()
    };
    by_directory.into_iter().flat_map(parts).collect()
}

/// The next parcel: one of a directory in which nobody is at work, as long as there is one.
fn take(row: &Mutex<Vec<Parcel>>, shedding: &Shedding) -> Option<Parcel> {
    let mut row = lock(row);
    let free = row.iter().rposition(|parcel| parcel.directory().is_none_or(|at| !shedding.is_at(at)));
    match free {
        Some(place) => Some(row.swap_remove(place)),
        None => row.pop(),
    }
}

/// Tells the kernel of all parcels, on some threads. False: not within the limit; then they go on.
fn tell(shared: &Arc<Shared>, notify: &Notify, parcels: Vec<Parcel>, expire: bool, limit: Duration) -> bool {
    let threads = SHEDDERS.min(parcels.len());
    let row = Arc::new(Mutex::new(parcels));
    let (shared, notify) = (shared.clone(), notify.clone());
    let run = move || {
        let shedding = &shared.keeper.shedding;
        while let Some(parcel) = take(&row, shedding) {
            let _here = shedding.begin(parcel.directory());
            match parcel {
                Parcel::Files(ids) => _ = notify.unused(&ids),
                Parcel::Names(directory, names) => names.iter().for_each(|name| notify.entry(directory, name, expire)),
            }
        }
    };
    on_threads(threads, limit, run, |n, job| {
        std::thread::Builder::new().name(format!("forget-{n}")).spawn(job).map(|_detached| ())
    })
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs the same on so many threads, and waits for them. Where none is to be had it is run here, unless there is a limit: what is to be
/// forgotten without one is asked for once, and nobody comes again with it. False: not done within the limit.
fn on_threads(
    threads: usize,
    limit: Duration,
    run: impl Fn() + Clone + Send + 'static,
    spawn: impl Fn(usize, Job) -> std::io::Result<()>,
) -> bool {
    let (at_work, ended) = channel::<()>();
    let job = |until_the_end: Sender<()>| -> Job {
        let run = run.clone();
        Box::new(move || {
            let _until_the_end = until_the_end;
            run();
        })
    };
    let mut begun = 0;
    for n in 0..threads {
        match spawn(n, job(at_work.clone())) {
            Ok(()) => begun += 1,
            Err(why) => tracing::error!(%why, "no thread to forget with"),
        }
    }
    drop(at_work);
    if begun == 0 && threads > 0 {
        if limit != Duration::MAX {
            return false;
        }
        run();
        return true;
    }
    // Nobody sends: the last one hangs up.
    ended.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
}

/// Makes the kernel ask anew for every one of these names. As long as a call is stuck in one of their directories this does not end:
/// for a thread that may be lost.
pub(super) fn forget_names(shared: &Arc<Shared>, notify: &Notify, names: impl IntoIterator<Item = (u64, OsString)>) {
    let expire = shared.expire_only.load(Ordering::Relaxed);
    tell(shared, notify, parcels(names), expire, Duration::MAX);
}

/// Sheds a third of all files. Where many are unconfirmed, those are confirmed beside, for each keeps a descriptor too.
pub(super) fn shed(shared: &Arc<Shared>, notify: &Notify) {
    let shedding = &shared.keeper.shedding;
    let by_number = notify.unused(&[]) && !shared.fs.faults.no_prune;
    if shedding.is_full(by_number) || shedding.under_way.swap(true, Ordering::SeqCst) {
        return;
    }
    relieve(shared);
    let nodes = &shared.fs.nodes;
    // By its name a file cannot go as long as somebody is stuck in its directory.
    let may_go = |node: &Node| by_number || node.names().iter().any(|(directory, _)| !shedding.is_at(*directory));
    // Numbers alone: whoever keeps a node keeps its descriptor.
    let mut files: Vec<(u64, u64)> =
        nodes.all().iter().filter(|node| !node.is_dir() && may_go(node)).map(|node| (node.generation, node.id)).collect();
    files.sort_unstable();
    files.truncate(files.len() / 3 + 1);
    let ids: Vec<u64> = files.into_iter().map(|(_, id)| id).collect();
    let parcels = match by_number {
        true => ids.chunks(PARCEL).map(|some| Parcel::Files(some.to_vec())).collect(),
        false => {
            let names = ids.iter().filter_map(|id| nodes.get(*id).ok()).flat_map(|node| node.names());
            parcels(names.filter(|(directory, _)| !shedding.is_at(*directory)))
        }
    };
    tell(shared, notify, parcels, false, ROUND);
    std::thread::sleep(SHED_PAUSE);
    shedding.under_way.store(false, Ordering::SeqCst);
}

fn relieve(shared: &Arc<Shared>) {
    if shared.keeper.shedding.relieving.swap(true, Ordering::SeqCst) {
        return;
    }
    let mine = shared.clone();
    let thread = std::thread::Builder::new().name("relieve".into()).spawn(move || {
        let nodes = &mine.fs.nodes;
        mine.fs.dirty.relieve(nodes.descriptors.may_have() / MANY_UNCONFIRMED, |node| nodes.path_of(node));
        mine.keeper.shedding.relieving.store(false, Ordering::SeqCst);
    });
    if thread.is_err() {
        shared.keeper.shedding.relieving.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[(u64, &str)]) -> Vec<(u64, OsString)> {
        all.iter().map(|(directory, name)| (*directory, OsString::from(name))).collect()
    }

    #[test]
    fn names_are_told_by_directory_in_parcels() {
        let many: Vec<(u64, OsString)> = (0..PARCEL + 1).map(|n| (9, OsString::from(n.to_string()))).collect();
        let all = parcels(names(&[(7, "a"), (8, "b"), (7, "c")]).into_iter().chain(many));
        assert_eq!(all[0], Parcel::Names(7, vec!["a".into(), "c".into()]));
        let sizes: Vec<(Option<u64>, usize)> = all
            .iter()
            .map(|parcel| match parcel {
                Parcel::Names(directory, names) => (Some(*directory), names.len()),
                Parcel::Files(ids) => (None, ids.len()),
            })
            .collect();
        assert_eq!(sizes, [(Some(7), 2), (Some(8), 1), (Some(9), PARCEL), (Some(9), 1)]);
    }

    #[test]
    fn where_somebody_is_stuck_nobody_goes_as_long_as_there_is_another_directory() {
        let shedding = Shedding::default();
        let row = Mutex::new(parcels(names(&[(7, "a"), (8, "b"), (9, "c")])));
        let stuck = shedding.begin(Some(9));
        let mut order: Vec<u64> = Vec::new();
        while let Some(parcel) = take(&row, &shedding) {
            order.extend(parcel.directory());
        }
        assert_eq!(order.last(), Some(&9), "{order:?}");
        assert_eq!(order.len(), 3, "and it is not forgotten");
        assert!(shedding.is_at(9));
        drop(stuck);
        assert!(!shedding.is_at(9));
    }

    #[test]
    fn what_is_to_be_forgotten_without_a_limit_is_forgotten_here_if_no_thread_is_to_be_had() {
        let done = Arc::new(Mutex::new(0));
        let run = {
            let done = done.clone();
            move || *lock(&done) += 1
        };
        let none = |_: usize, _: Job| Err(std::io::Error::from_raw_os_error(nix::libc::EAGAIN));
        assert!(on_threads(SHEDDERS, Duration::MAX, run.clone(), none));
        assert_eq!(*lock(&done), 1);
        assert!(!on_threads(SHEDDERS, ROUND, run.clone(), none), "a round comes again");
        assert_eq!(*lock(&done), 1);
        let one = |n: usize, job: Job| {
            if n > 0 {
                return none(n, job);
            }
            job();
            Ok(())
        };
        assert!(on_threads(SHEDDERS, Duration::MAX, run, one));
        assert_eq!(*lock(&done), 2, "by the one there is");
    }

    #[test]
    fn who_is_stuck_in_a_directory_keeps_no_file_from_going_by_its_number() {
        let shedding = Shedding::default();
        let stuck: Vec<AtWork> = (0..STUCK_MAX as u64).map(|n| shedding.begin(Some(n))).collect();
        assert!(shedding.is_full(false) && !shedding.is_full(true));
        let by_number: Vec<AtWork> = (0..STUCK_MAX).map(|_| shedding.begin(None)).collect();
        assert!(shedding.is_full(true), "nor are these without number");
        drop((stuck, by_number));
        assert!(!shedding.is_full(false));
    }
}
