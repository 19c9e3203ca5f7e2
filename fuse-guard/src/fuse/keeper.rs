//! What the kernel is told to forget without being asked to by the daemon: listings that have become old, and everything that was
//! kept under the lease's licence, when that ends.
//!
//! # Promises
//!
//! - A listing that the kernel keeps is forgotten when the names in it are believed no more ([`crate::fs::caching`]), or, without
//!   the lease, half a second after it was read. *Why:* the kernel compares a kept listing with the directory's time of last
//!   change, which may be too coarse to tell; and a listing whose names must be looked up one by one is dearer than a new one.
//! - When the licence ends, whatever the reason, the kernel forgets at once what it may be wrong about from then on, and once
//!   more [`AGAIN`] later: an answer of before may have been on its way to a program that had no processor.
//! - When descriptors run short, the files that the kernel has known longest are forgotten, and closed: so a tree may have more files
//!   than the guard may have descriptors.
//! - What could not be begun, since no thread was to be had, is due again [`LOOK`] later.
//! - Pages of files that somebody may write are left: they may be dirty, and if the lease comes back in this run they are still
//!   to be written. The daemon drops them when the lease is really gone.
//!
//! # Does not know
//!
//! The lease. What may block in the kernel, as every invalidation ([`super::notify`]), runs on a thread beside it, and is waited for
//! [`BESIDE`] at most: a mutation that waits for the lease keeps its directory locked in the kernel, and no other listing or name
//! is to wait for that one ([`super::shedding`] says why none waits for ever). At [`BESIDE_MAX`] such threads no further one begins before
//! one has come back; only files go on being forgotten where descriptors run short, which has an end of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::Shared;
use super::notify::{Notify, Ran};
use super::shedding::{self, Shedding};
use crate::fs::caching::READER_TTL;
use crate::gate::in_time;
use crate::sync::{Arc, Condvar, Mutex, Ordering, PoisonError, lock};

/// When the kernel is told to forget a second time: answers are not that long on their way.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it sleeps at most while there is something to come, before it reads the clock again.
const LOOK: Duration = Duration::from_millis(250);

/// How long a round of forgetting is waited for before what is due next is begun beside it.
const BESIDE: Duration = Duration::from_millis(500);
/// Rounds that hang at the same time; each ends with the mutation that it hangs behind, at the latest after its wait.
const BESIDE_MAX: usize = 16;

/// What there is to forget, and when.
#[derive(Default)]
pub(crate) struct Keeper {
    state: Mutex<State>,
    wake: Condvar,
    /// Who tells the kernel of names.
    pub(super) shedding: Shedding,
}

#[derive(Default)]
struct State {
    /// Directories whose listing the kernel may keep, and until when. No more than there are directories that it knows.
    listed: BTreeMap<u64, BootTime>,
    /// The licence has ended.
    ended: bool,
    /// Descriptors run short.
    crowded: bool,
    /// It had ended, and at this time all is forgotten once more.
    again: Option<BootTime>,
    over: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Job {
    Listings(Vec<u64>),
    Everything,
    Shed,
    End,
}

impl Keeper {
    /// A directory's listing is about to be told to the kernel, which may keep it for `ttl`.
    pub(super) fn listed(&self, id: u64, ttl: Duration, now: BootTime) {
        let mut state = lock(&self.state);
        let first = state.listed.is_empty();
        let until = now.after(ttl.max(READER_TTL));
        // The earlier of two: whoever took the licence's time-out may be late with it, and the licence gone.
        let noted = state.listed.entry(id).or_insert(until);
        *noted = (*noted).min(until);
        drop(state);
        if first {
            self.wake.notify_all();
        }
    }

    /// What was kept under the licence may be wrong from now on.
    pub(super) fn licence_ends(&self) {
        lock(&self.state).ended = true;
        self.wake.notify_all();
    }

    /// Descriptors run short: one for each file that the kernel knows.
    pub(super) fn crowded(&self) {
        if !self.shedding.is_under_way() {
            lock(&self.state).crowded = true;
            self.wake.notify_all();
        }
    }

    /// The mount is gone.
    pub(super) fn end(&self) {
        lock(&self.state).over = true;
        self.wake.notify_all();
    }

    /// Does what is due until the mount is gone.
    pub(super) fn run(shared: &Arc<Shared>, notify: &Notify) {
        // Counts of their own of those that hang.
        let (beside, shedding) = (notify.beside(), notify.beside());
        loop {
            let job = match shared.keeper.next(|| shared.fs.gate.now(), || beside.lost() >= BESIDE_MAX) {
                Job::End => return,
                _ if shared.fs.faults.no_forgetting => continue,
                job => job,
            };
            let ear = if job == Job::Shed { &shedding } else { &beside };
            let (mine, notify, due) = (shared.clone(), notify.clone(), job.clone());
            let ran = ear.run(BESIDE, "forgetting", move || match due {
                Job::Listings(ids) => ids.into_iter().for_each(|id| notify.inode(id)),
                Job::Shed => shedding::shed(&mine, &notify),
                _ => forget(&mine, &notify),
            });
            if ran == Ran::NotBegun {
                lock(&shared.keeper.state).put_back(job, shared.fs.gate.now());
                std::thread::sleep(LOOK);
            }
        }
    }

    /// `full`: nothing that may hang is to begin now; asked anew at each look, since what hung may have ended.
    fn next(&self, now: impl Fn() -> BootTime, full: impl Fn() -> bool) -> Job {
        let mut state = lock(&self.state);
        loop {
            match state.due(now(), full()) {
                Ok(job) => return job,
                Err(Some(nap)) => {
                    state = self.wake.wait_timeout(state, nap.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
                }
                Err(None) => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl State {
    /// What is due, or when to look again. `full`: no more than what has an end of its own.
    fn due(&mut self, now: BootTime, full: bool) -> Result<Job, Option<Duration>> {
        if self.over {
            return Ok(Job::End);
        }
        if full {
            return if std::mem::take(&mut self.crowded) { Ok(Job::Shed) } else { Err(Some(LOOK)) };
        }
        let again = self.again.is_some_and(|at| !in_time(at, now));
        if self.ended || again {
            self.again = self.ended.then(|| now.after(AGAIN));
            self.ended = false;
            // They stay, and are due at once beside this round, which may hang before it has come to them.
            self.listed.values_mut().for_each(|until| *until = (*until).min(now));
            return Ok(Job::Everything);
        }
        if std::mem::take(&mut self.crowded) {
            return Ok(Job::Shed);
        }
        let old: Vec<u64> = self.listed.iter().filter(|(_, until)| !in_time(**until, now)).map(|(id, _)| *id).collect();
        if !old.is_empty() {
            old.iter().for_each(|id| _ = self.listed.remove(id));
            return Ok(Job::Listings(old));
        }
        Err(self.listed.values().chain(&self.again).map(|at| at.since(now)).min())
    }

    /// It could not be begun: it is due as before.
    fn put_back(&mut self, job: Job, now: BootTime) {
        match job {
            Job::Listings(ids) => ids.into_iter().for_each(|id| _ = self.listed.insert(id, now)),
            Job::Everything => self.ended = true,
            // Whoever is short of descriptors says so with the next request.
            Job::Shed | Job::End => {}
        }
    }
}

/// All that the kernel keeps, without pages that may still have to be written.
fn forget(shared: &Arc<Shared>, notify: &Notify) {
    let nodes = shared.fs.nodes.all();
    // What blocks on nothing, before anything else.
    nodes.iter().for_each(|node| notify.attributes(node.id));
    // Names last: the kernel locks the directory for each, which a waiting mutation may hold.
    for node in nodes.iter().filter(|node| !node.has_writers()) {
        notify.inode(node.id);
    }
    let expire = shared.expire_only.load(Ordering::Relaxed);
    // Where names cannot expire, a directory's stays to its time-out: dropped, it would be gone from under whoever works there.
    let told = nodes.iter().filter(|node| expire || !node.is_dir()).flat_map(|node| node.names());
    let names: Vec<_> = told.chain(shared.fs.absent.all(shared.fs.gate.now())).collect();
    // Whoever keeps a node keeps its descriptor.
    drop(nodes);
    shedding::forget_names(shared, notify, names);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(millis))
    }

    #[test]
    fn a_listing_is_due_when_its_names_are_believed_no_more() {
        let keeper = Keeper::default();
        keeper.listed(7, Duration::from_secs(9), at(0));
        keeper.listed(8, Duration::ZERO, at(0));
        let due = |millis| lock(&keeper.state).due(at(millis), false);
        assert_eq!(due(499), Err(Some(Duration::from_millis(1))), "an answer is on its way for a while");
        assert_eq!(due(500), Ok(Job::Listings(vec![8])));
        assert_eq!(due(501), Err(Some(Duration::from_millis(8499))));
        assert_eq!(due(9000), Ok(Job::Listings(vec![7])));
        assert_eq!(due(9001), Err(None), "it sleeps until something comes");
    }

    #[test]
    fn a_listing_that_was_read_without_the_licence_is_due_whoever_is_late_with_a_longer_time() {
        let keeper = Keeper::default();
        keeper.listed(7, Duration::ZERO, at(0));
        keeper.listed(7, Duration::from_secs(9), at(1));
        assert_eq!(lock(&keeper.state).due(at(500), false), Ok(Job::Listings(vec![7])));
    }

    #[test]
    fn a_licence_that_ends_is_two_rounds_of_forgetting() {
        let keeper = Keeper::default();
        keeper.licence_ends();
        let due = |millis| lock(&keeper.state).due(at(millis), false);
        assert_eq!(due(5), Ok(Job::Everything));
        assert_eq!(due(6), Err(Some(Duration::from_millis(999))));
        assert_eq!(due(1005), Ok(Job::Everything));
        assert_eq!(due(1006), Err(None));
        keeper.end();
        assert_eq!(due(1007), Ok(Job::End));
    }

    #[test]
    fn what_could_not_be_begun_is_due_again() {
        let keeper = Keeper::default();
        keeper.listed(7, Duration::ZERO, at(0));
        let due = |millis| lock(&keeper.state).due(at(millis), false);
        let put_back = |job, millis| lock(&keeper.state).put_back(job, at(millis));
        let listing = Job::Listings(vec![7]);
        assert_eq!((due(500), due(500)), (Ok(listing.clone()), Err(None)));
        put_back(listing.clone(), 500);
        assert_eq!((due(500), due(500)), (Ok(listing), Err(None)));
        keeper.licence_ends();
        assert_eq!(due(1000), Ok(Job::Everything));
        put_back(Job::Everything, 1000);
        assert_eq!((due(1250), due(1251)), (Ok(Job::Everything), Err(Some(Duration::from_millis(999)))), "both rounds of it");
    }

    #[test]
    fn while_very_many_rounds_hang_files_are_shed_and_what_may_hang_waits() {
        let keeper = Keeper::default();
        keeper.licence_ends();
        keeper.listed(7, Duration::ZERO, at(0));
        keeper.crowded();
        let due = |full| lock(&keeper.state).due(at(500), full);
        assert_eq!((due(true), due(true)), (Ok(Job::Shed), Err(Some(LOOK))));
        assert_eq!((due(false), due(false)), (Ok(Job::Everything), Ok(Job::Listings(vec![7]))), "and is not lost");
        keeper.end();
        assert_eq!(due(true), Ok(Job::End));
    }

    #[test]
    fn when_what_hung_has_ended_what_was_due_meanwhile_is_begun() {
        let keeper = Keeper::default();
        keeper.licence_ends();
        let looks = std::cell::Cell::new(0);
        let full = || looks.replace(looks.get() + 1) < 3;
        assert_eq!(keeper.next(|| at(0), full), Job::Everything);
        assert_eq!(looks.get(), 4, "it looks again while it waits");
    }
}
