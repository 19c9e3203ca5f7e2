//! How many of the serving threads wait in the kernel for a request: while one process removes names, one after the other, one is enough.
//!
//! For each file that is removed the kernel sends, beside what the process asks, a FORGET that nobody waits for. If several threads
//! wait it wakes one for that, and another for the process's next question. On a processor that has gone to sleep each waking takes
//! longer than the answer; one thread that is at work already takes all of them without being woken (m: `rm -r` in half the time).
//! For other requests it is the other way round (m: a write of 4 KiB takes 19 µs with four threads, and 25 to 50 with one).
//!
//! # Promises
//!
//! - A thread rests for [`REST`] and no longer, whatever the others do. So a removal that hangs below, and with it the only thread that
//!   waited, delays everybody else by so much at most.
//! - Nobody rests but after an answer, and only while another thread was seen to wait: where there is more to do than one can, all do it.
//! - Nobody rests where the storage is far: a removal waits for the network there, and others are to be served meanwhile.
//!
//! # Does not know
//!
//! Which thread the kernel gives the next request.

use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::counts::Kind;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// How long a thread rests. Less than anybody notices; and those that come back now and then cost the remover one waking in a hundred.
const REST: Duration = Duration::from_millis(4);
/// So many names that one process has removed are a row of them.
const ROW: u32 = 8;
/// No more than this lies between two of them.
const GAP: Duration = Duration::from_millis(20);

/// The threads that serve one mount.
pub(crate) struct Crew {
    /// Those that wait for a request, or are on their way there.
    waiting: AtomicUsize,
    /// Names that were removed in a row, and by whom.
    removed: AtomicU32,
    remover: AtomicU32,
    /// When the last of them was, in milliseconds.
    last: AtomicU64,
    far: bool,
    rests: AtomicU64,
}

/// A thread that has a request. Dropped once that is answered.
#[must_use]
pub(super) struct Serving<'a>(&'a Crew);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.answered();
    }
}

impl Crew {
    /// So many threads. `far`: the storage is not this machine's own.
    pub(super) fn new(threads: usize, far: bool) -> Self {
        let [removed, remover] = [(); 2].map(|()| AtomicU32::new(0));
        let [last, rests] = [(); 2].map(|()| AtomicU64::new(0));
        Crew { waiting: AtomicUsize::new(threads), removed, remover, last, far, rests }
    }

    /// This thread has got a request of that kind, made by the thread `asker`.
    pub(super) fn serve(&self, kind: Kind, asker: u32, now: impl FnOnce() -> BootTime) -> Serving<'_> {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match kind {
            Kind::Unlink | Kind::Rmdir => self.removes(asker, now()),
            // What `rm -r` asks between two of them; of somebody else it is something else to do.
            Kind::Lookup | Kind::Getattr | Kind::Readdir | Kind::Readdirplus | Kind::Opendir | Kind::Releasedir
                if asker == self.remover.load(Ordering::Relaxed) => {}
            _ => self.removed.store(0, Ordering::Relaxed),
        }
        Serving(self)
    }

    /// This thread has got what nobody waits for, and does not wait for a request until it is done: the last name of a large file is
    /// freed then, which may take long.
    pub(super) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let done = work();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        done
    }

    fn removes(&self, asker: u32, now: BootTime) {
        let now = now.elapsed.as_millis() as u64;
        let last = self.last.swap(now, Ordering::Relaxed);
        let same = self.remover.swap(asker, Ordering::Relaxed) == asker;
        if same && u128::from(now.saturating_sub(last)) <= GAP.as_millis() {
            self.removed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.removed.store(0, Ordering::Relaxed);
        }
    }

    fn one_is_enough(&self) -> bool {
        !self.far && self.removed.load(Ordering::Relaxed) >= ROW && self.waiting.load(Ordering::Relaxed) > 0
    }

    fn answered(&self) {
        if self.one_is_enough() {
            self.rests.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(REST);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a thread has rested.
    pub(crate) fn rests(&self) -> u64 {
        self.rests.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(millis))
    }

    /// As many names as make a row.
    fn remove(crew: &Crew, asker: u32) {
        (0..=ROW).for_each(|_| crew.removes(asker, at(1000)));
    }

    fn serve(crew: &Crew, kind: Kind, asker: u32) -> Serving<'_> {
        crew.serve(kind, asker, || at(1000))
    }

    #[test]
    fn while_one_process_removes_names_those_rest_that_are_not_needed() {
        let crew = Crew::new(2, false);
        drop(serve(&crew, Kind::Unlink, 7));
        assert_eq!(crew.rests(), 0, "one name is no row");
        remove(&crew, 7);
        let serving = serve(&crew, Kind::Getattr, 7);
        assert!(crew.one_is_enough());
        drop(serving);
        assert_eq!((crew.rests(), crew.waiting.load(Ordering::SeqCst)), (1, 2), "and waits again after that");
    }

    #[test]
    fn the_last_one_never_rests() {
        let crew = Crew::new(2, false);
        remove(&crew, 7);
        let other = serve(&crew, Kind::Getattr, 7);
        drop(serve(&crew, Kind::Getattr, 7));
        assert_eq!(crew.rests(), 0, "nobody else would have taken the next request");
        drop(other);
        assert_eq!(crew.rests(), 1);
    }

    #[test]
    fn a_row_is_of_one_process_and_ends_with_whatever_else_is_asked_and_with_time() {
        let row = |then: fn(&Crew)| {
            let crew = Crew::new(2, false);
            remove(&crew, 7);
            assert!(crew.one_is_enough());
            then(&crew);
            crew.one_is_enough()
        };
        assert!(row(|crew| crew.removes(7, at(1000).after(GAP))));
        assert!(!row(|crew| crew.removes(7, at(1001).after(GAP))));
        assert!(!row(|crew| crew.removes(8, at(1000))), "two remove at the same time");
        for kind in [Kind::Write, Kind::Create, Kind::Fsync, Kind::Open, Kind::Rename] {
            let crew = Crew::new(2, false);
            remove(&crew, 7);
            let _serving = serve(&crew, kind, 8);
            assert!(!crew.one_is_enough(), "{kind:?}");
        }
        for (kind, asker, goes_on) in [(Kind::Getattr, 7, true), (Kind::Getattr, 8, false), (Kind::Lookup, 8, false)] {
            let crew = Crew::new(2, false);
            remove(&crew, 7);
            let _serving = serve(&crew, kind, asker);
            assert_eq!(crew.one_is_enough(), goes_on, "{kind:?} of {asker}");
        }
    }

    #[test]
    fn nobody_rests_while_the_others_free_what_was_removed() {
        let crew = Crew::new(2, false);
        remove(&crew, 7);
        crew.aside(|| drop(serve(&crew, Kind::Getattr, 7)));
        assert_eq!(crew.rests(), 0);
        drop(serve(&crew, Kind::Getattr, 7));
        assert_eq!(crew.rests(), 1);
    }

    #[test]
    fn where_the_storage_is_far_nobody_rests() {
        let crew = Crew::new(2, true);
        remove(&crew, 7);
        drop(serve(&crew, Kind::Getattr, 7));
        assert_eq!(crew.rests(), 0);
    }
}
