//! Telling the kernel to forget, or to write back.
//!
//! An invalidation blocks while the kernel holds the lock that it needs: of a directory in which a mkdir waits, of a page
//! that is being written (m). So it is never sent from a thread that serves the kernel, nor under a lock of ours: every job
//! runs on a thread of its own, and whoever waits for it has a limit ([`within`]); a thread that does not come back is lost,
//! and counted.
//!
//! Names *expire* where the kernel can do that (ABI 7.38): they are looked up again at their next use. Dropping them would
//! take the name from every working directory below (`getcwd`: ENOENT) and unmount what is mounted there. fuser's notifier has no such flag:
//! so the message is written here.
//!
//! # Promises
//!
//! - Whoever waits for a job waits no longer than its limit, and [`Notify::lost`] is the number of threads that have not come back:
//!   each is counted once, and counted no more when it has come back, or ended otherwise.
//! - At [`LOST_MAX`] of them, or where no thread is to be had, no job begins: its caller is told so at once ([`Ran::NotBegun`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering};

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const PRUNE: i32 = 9;
const EXPIRE_ONLY: u32 = 1;
/// Nodes that one message names, as many as the kernel takes at a time.
const PRUNE_AT_ONCE: usize = 512;

/// Threads of one mount that may be lost at the same time: a storage that hangs for days, and is asked every minute, takes no more.
pub(super) const LOST_MAX: usize = 64;

/// What became of a job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ran<T> {
    /// It ended in time.
    Ended(T),
    /// It goes on, or has ended without a result.
    GoesOn,
    /// It has not begun, and nothing of it is done.
    NotBegun,
}

/// The kernel's ear for one mount.
#[derive(Clone)]
pub(crate) struct Notify {
    device: Arc<File>,
    lost: Arc<AtomicUsize>,
}

impl Notify {
    pub(crate) fn new(device: File) -> Self {
        Notify { device: Arc::new(device), lost: Arc::default() }
    }

    /// The same ear, with a count of its own of threads that have not come back.
    pub(crate) fn beside(&self) -> Self {
        Notify { device: self.device.clone(), lost: Arc::default() }
    }

    /// False: the kernel does not know such a message.
    fn send(&self, code: i32, body: &[u8]) -> bool {
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        message.extend_from_slice(&code.to_ne_bytes());
        message.extend_from_slice(&0u64.to_ne_bytes());
        message.extend_from_slice(body);
        // ENOENT: the kernel did not know it, or has forgotten it already. Anything else is not an error of ours either:
        // the connection is gone, and with it the cache.
        let sent = (&*self.device).write_all(&message);
        match sent.as_ref().map_err(std::io::Error::raw_os_error) {
            Ok(()) | Err(Some(nix::libc::ENOENT)) => true,
            Err(number) => {
                tracing::debug!(?sent, code, "an invalidation was not taken");
                number != Some(nix::libc::EINVAL)
            }
        }
    }

    /// Forgets a node's attributes and pages; dirty pages of mappings are written back first.
    pub(crate) fn inode(&self, id: u64) {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&id.to_ne_bytes());
        self.send(INVAL_INODE, &body);
    }

    /// Forgets a node's attributes alone. Takes none of the kernel's locks, so it blocks on nothing, whoever waits.
    pub(crate) fn attributes(&self, id: u64) {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&id.to_ne_bytes());
        // A negative offset: no pages.
        body[8..16].copy_from_slice(&(-1i64).to_ne_bytes());
        self.send(INVAL_INODE, &body);
    }

    /// Forgets a name, or lets it expire.
    pub(crate) fn entry(&self, parent: u64, name: &OsStr, expire: bool) {
        let flags = if expire { EXPIRE_ONLY } else { 0 };
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend_from_slice(&parent.to_ne_bytes());
        body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        body.extend_from_slice(&flags.to_ne_bytes());
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        self.send(INVAL_ENTRY, &body);
    }

    /// Drops the names of those of these nodes that nobody uses, and with them the nodes, where the kernel can (ABI 7.45). It takes no
    /// directory's lock: so it waits for no call, neither for one that waits for the lease nor for one that hangs on the storage.
    /// False: it cannot. With no node: whether it can.
    pub(crate) fn unused(&self, ids: &[u64]) -> bool {
        let message = |part: &[u64]| {
            let mut body = Vec::with_capacity(16 + 8 * part.len());
            body.extend_from_slice(&(part.len() as u32).to_ne_bytes());
            body.extend_from_slice(&[0; 12]);
            part.iter().for_each(|id| body.extend_from_slice(&id.to_ne_bytes()));
            self.send(PRUNE, &body)
        };
        if ids.is_empty() { message(ids) } else { ids.chunks(PRUNE_AT_ONCE).all(message) }
    }

    /// Threads that have not come back from a job in time.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs a job on a thread of its own and waits for it at most `limit`. None: it did not end by then, or did not even begin.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        name: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self.run(limit, name, job) {
            Ran::Ended(result) => Some(result),
            Ran::GoesOn | Ran::NotBegun => None,
        }
    }

    /// The same, for who does more when it has not begun.
    pub(crate) fn run<T: Send + 'static>(&self, limit: Duration, name: &str, job: impl FnOnce() -> T + Send + 'static) -> Ran<T> {
        if self.lost() >= LOST_MAX {
            tracing::error!(name, "{LOST_MAX} threads have not come back from the kernel or the storage: no further one begins");
            return Ran::NotBegun;
        }
        let (done, wait) = channel();
        let parting = Arc::new(AtomicBool::new(false));
        let end = End { other_has_gone: parting.clone(), lost: self.lost.clone() };
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // Dropped last, also where the job panics.
            let _end = end;
            let _nobody_waits = done.send(job());
        });
        if let Err(why) = thread {
            tracing::error!(%why, name, "no thread to be had");
            return Ran::NotBegun;
        }
        match wait.recv_timeout(limit) {
            Ok(result) => Ran::Ended(result),
            Err(RecvTimeoutError::Disconnected) => {
                tracing::error!(name, "a job has ended without a result");
                Ran::GoesOn
            }
            Err(RecvTimeoutError::Timeout) => {
                // Counted before the other one can take it back.
                self.lost.fetch_add(1, Ordering::SeqCst);
                if !parting.swap(true, Ordering::SeqCst) {
                    return Ran::GoesOn;
                }
                // It has ended in the meantime, and has left what it found: it counts nothing.
                self.lost.fetch_sub(1, Ordering::SeqCst);
                wait.try_recv().map_or(Ran::GoesOn, Ran::Ended)
            }
        }
    }
}

/// A job's thread ends. Of the two that part, the thread and who waits for it, the second one knows that it is: so a thread is either
/// waited for to its end, or counted as lost and taken back by itself.
struct End {
    other_has_gone: Arc<AtomicBool>,
    lost: Arc<AtomicUsize>,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.other_has_gone.swap(true, Ordering::SeqCst) {
            // It came back after all.
            self.lost.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ear() -> Notify {
        Notify::new(File::open("/dev/null").unwrap())
    }

    fn eventually(what: &str, mut is: impl FnMut() -> bool) {
        for _ in 0..30_000 {
            if is() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never: {what}");
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_thread_that_comes_back_at_the_very_limit_is_not_lost_for_ever() {
        let ear = ear();
        for round in 0..4000 {
            // Around the time that a thread takes to begin and end.
            let _either = ear.within(Duration::from_micros(round % 100), "quick", || ());
        }
        eventually("none is lost", || ear.lost() == 0);
    }

    #[test]
    fn a_thread_is_lost_until_it_comes_back_and_a_job_that_panics_is_not() {
        let ear = ear();
        let (go, gone) = channel::<()>();
        assert_eq!(ear.run(Duration::from_millis(1), "hangs", move || gone.recv().is_ok()), Ran::GoesOn);
        assert_eq!(ear.lost(), 1);
        assert_eq!(ear.within(LONG, "goes on", || 7), Some(7));
        drop(go);
        eventually("it came back", || ear.lost() == 0);
        let (go, gone) = channel::<()>();
        let late = move || {
            let _hung_up = gone.recv();
            panic!("on purpose, when nobody waits any more");
        };
        assert_eq!(ear.within(Duration::from_millis(1), "panics late", late), None);
        drop(go);
        eventually("it has ended", || ear.lost() == 0);
        assert_eq!(ear.within::<()>(LONG, "panics", || panic!("on purpose")), None);
        assert_eq!(ear.lost(), 0);
    }

    #[test]
    fn where_very_many_threads_are_lost_no_further_one_begins_until_one_comes_back() {
        let ear = ear();
        let goers: Vec<_> = (0..LOST_MAX)
            .map(|_| {
                let (go, gone) = channel::<()>();
                assert_eq!(ear.within(Duration::ZERO, "hangs", move || gone.recv().is_ok()), None);
                go
            })
            .collect();
        let begun = Arc::new(AtomicBool::new(false));
        let note = || {
            let begun = begun.clone();
            move || begun.store(true, Ordering::SeqCst)
        };
        assert_eq!((ear.lost(), ear.run(LONG, "one more", note())), (LOST_MAX, Ran::NotBegun));
        assert!(!begun.load(Ordering::SeqCst));
        drop(goers);
        eventually("they come back", || ear.lost() == 0);
        assert_eq!(ear.within(LONG, "one more", note()), Some(()));
    }
}
