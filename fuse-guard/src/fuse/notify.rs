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

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc;
use std::time::Duration;

use crate::sync::{Arc, AtomicUsize, Ordering};

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const EXPIRE_ONLY: u32 = 1;

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

    fn send(&self, code: i32, body: &[u8]) {
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        message.extend_from_slice(&code.to_ne_bytes());
        message.extend_from_slice(&0u64.to_ne_bytes());
        message.extend_from_slice(body);
        // ENOENT: the kernel did not know it, or has forgotten it already. Anything else is not an error of ours either:
        // the connection is gone, and with it the cache.
        if let Err(why) = (&*self.device).write_all(&message)
            && why.raw_os_error() != Some(nix::libc::ENOENT)
        {
            tracing::debug!(%why, code, "an invalidation was not taken");
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

    /// Threads that have not come back from a job in time.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs a job on a thread of its own and waits for it at most `limit`.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        name: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, wait) = mpsc::channel();
        let lost = self.lost.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if done.send(job()).is_err() {
                // It came back after all.
                lost.fetch_sub(1, Ordering::Relaxed);
            }
        });
        if let Err(why) = thread {
            tracing::error!(%why, name, "no thread to be had");
            return None;
        }
        let result = wait.recv_timeout(limit).ok();
        if result.is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}
