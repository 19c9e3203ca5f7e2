//! The one OS thread, `raft-log`, that writes to the backend; in a simulated world one task.
//!
//! Promises: changes reach the disk in the order in which they were given, one after the other (votes and entries may not
//! change places, I7); each caller's word comes only when its change is durable. The first error, or panic, of the backend
//! is the last thing that the backend does: it is reported as final, and everything after it fails. Whoever asks is told how long
//! the change takes that is being written: a disk may hang. It does not know what is written.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::disk::SimulatedDisk;
use super::{Backend, WriteSet};
use crate::failure::{FailStop, Failure};

/// Changes that wait for the disk. The log waits for all but a leader's own entries, of which a handful may wait (`consensus/ahead.rs`),
/// before it gives the next, so this is never reached.
const WAITING_MAX: usize = 1024;

/// What is called when a change is durable, or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Job {
    Commit(WriteSet, Done),
    Stop,
}

/// Since when the change is being written that is; none: nothing is.
#[derive(Debug, Clone, Default)]
struct Busy(Arc<Mutex<Option<Instant>>>);

impl Busy {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().expect("nothing panics while it holds this") = since;
    }
}

/// The way to the thread, or to the task.
pub struct Writer {
    hand: Hand,
    busy: Busy,
}

enum Hand {
    Thread { jobs: SyncSender<Job>, thread: Mutex<Option<JoinHandle<()>>> },
    Task(mpsc::Sender<Job>),
}

/// The backend in the writer's hand; none once it has failed.
struct Held<B> {
    backend: Option<B>,
    fail: FailStop,
}

impl<B: Backend> Held<B> {
    fn commit(&mut self, change: &WriteSet) -> io::Result<()> {
        let result = match self.backend.as_mut() {
            Some(open) => commit(open, change),
            None => Err(io::Error::other("the store has failed before")),
        };
        if let (Err(e), Some(_)) = (&result, &self.backend) {
            self.fail.report(Failure::storage(format!(
                "writing to the data directory failed: {e}. The node stops, since it cannot know what is on disk; \
                 check the disk (space, errors in the kernel's log) and start it again"
            )));
            self.backend = None;
        }
        result
    }
}

impl Writer {
    /// Starts the thread; it owns the backend from now on.
    pub fn start(backend: impl Backend, fail: FailStop) -> io::Result<Self> {
        let (jobs, inbox) = sync_channel::<Job>(WAITING_MAX);
        let mut held = Held { backend: Some(backend), fail };
        let busy = Busy::default();
        let writes = busy.clone();
        let work = move || {
            while let Ok(Job::Commit(change, done)) = inbox.recv() {
                writes.set(Some(Instant::now()));
                let written = held.commit(&change);
                writes.set(None);
                done(written);
            }
        };
        let thread = std::thread::Builder::new().name("raft-log".into()).spawn(work)?;
        Ok(Self { hand: Hand::Thread { jobs, thread: Mutex::new(Some(thread)) }, busy })
    }

    /// Starts a task instead, which takes as long as that disk says.
    pub fn start_as_task(backend: impl Backend, disk: Arc<dyn SimulatedDisk>, fail: FailStop) -> Self {
        let (jobs, mut inbox) = mpsc::channel(WAITING_MAX);
        let mut held = Held { backend: Some(backend), fail };
        let busy = Busy::default();
        let writes = busy.clone();
        tokio::spawn(async move {
            while let Some(Job::Commit(change, done)) = inbox.recv().await {
                writes.set(Some(Instant::now()));
                tokio::time::sleep(disk.takes(&change)).await;
                let written = held.commit(&change);
                writes.set(None);
                done(written);
            }
        });
        Self { hand: Hand::Task(jobs), busy }
    }

    /// For how long the change is being written that is; zero: nothing is.
    pub fn busy_for(&self) -> Duration {
        self.busy.0.lock().expect("nothing panics while it holds this").map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Gives a change to the thread. `done` is called from there; never if the thread has stopped, then it is dropped.
    pub fn commit(&self, change: WriteSet, done: Done) {
        let job = Job::Commit(change, done);
        let back = match &self.hand {
            Hand::Thread { jobs, .. } => jobs.send(job).map_err(|e| e.0),
            Hand::Task(jobs) => jobs.try_send(job).map_err(mpsc::error::TrySendError::into_inner),
        };
        if let Err(Job::Commit(_, done)) = back {
            done(Err(io::Error::other("the store is closed")));
        }
    }

    /// Waits until everything given before is on disk and the backend is closed. Blocks.
    pub fn stop(&self) {
        // A task ends with its runtime.
        let Hand::Thread { jobs, thread } = &self.hand else { return };
        // A thread that has ended already has closed its inbox: nothing to tell it.
        let _ = jobs.send(Job::Stop);
        if let Some(thread) = thread.lock().expect("only taken here").take()
            && thread.join().is_err()
        {
            tracing::error!("the thread raft-log ended with a panic");
        }
    }
}

fn commit(backend: &mut impl Backend, change: &WriteSet) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(|| backend.commit(change)))
        .unwrap_or_else(|_| Err(io::Error::other("the store's backend panicked")))
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, Loaded};
    use super::*;
    use std::sync::mpsc;
    use treelease_proto::refusal::Code;

    struct Failing(u32);

    impl Backend for Failing {
        fn commit(&mut self, _: &WriteSet) -> io::Result<()> {
            self.0 += 1;
            match self.0 {
                1 => Ok(()),
                2 => panic!("as sled may"),
                _ => unreachable!("a backend that panicked is not asked again"),
            }
        }
        fn load(&mut self) -> io::Result<Loaded> {
            Ok(Loaded::default())
        }
        fn counts(&self) -> Arc<Counts> {
            Arc::default()
        }
    }

    #[test]
    fn the_first_failure_of_the_backend_is_final() {
        let fail = FailStop::new();
        let writer = Writer::start(Failing(0), fail.clone()).unwrap();
        let (tx, rx) = mpsc::channel();
        for _ in 0..3 {
            let tx = tx.clone();
            writer.commit(WriteSet::default(), Box::new(move |r| tx.send(r.is_ok()).unwrap()));
        }
        writer.stop();
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(fail.failed().unwrap().code, Code::Storage);
    }
}
