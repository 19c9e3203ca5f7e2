//! Whose disk it is: this machine's, with threads that wait for it, or a simulated world's, with tasks and its time.
//!
//! Promises: with [`Disk::Directory`] no task of the node waits for the disk; with [`Disk::Simulated`] there is no thread, and what
//! the disk had not finished when the node ended is not written. It does not know what is written.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::passing::Passing;
use super::snapshot::SnapshotDir;
use super::writer::Writer;
use super::{Backend, WriteSet};
use crate::failure::FailStop;

/// Where log and vote are kept, and who does the disk's work.
#[derive(Clone, Default)]
pub enum Disk {
    /// Below the data directory, with threads.
    #[default]
    Directory,
    /// In a simulated world.
    Simulated(Arc<dyn SimulatedDisk>),
}

/// The disk of one node of a simulated world.
pub trait SimulatedDisk: Send + Sync + 'static {
    /// What a node finds when it starts; its plain files lie in the directory above.
    fn open(&self, log: &Path) -> io::Result<Box<dyn Backend>>;
    /// How long this change takes, which is begun now.
    fn takes(&self, change: &WriteSet) -> Duration;
}

impl Disk {
    /// The simulated disk's backend, if it is one.
    pub fn simulated(&self, log: &Path) -> Option<io::Result<Box<dyn Backend>>> {
        match self {
            Disk::Directory => None,
            Disk::Simulated(disk) => Some(disk.open(log)),
        }
    }

    /// The one who writes to that backend.
    pub fn writer(&self, backend: impl Backend, fail: FailStop) -> io::Result<Writer> {
        match self {
            Disk::Directory => Writer::start(backend, fail),
            Disk::Simulated(disk) => Ok(Writer::start_as_task(backend, disk.clone(), fail)),
        }
    }

    /// Work that writes plain files.
    pub async fn write<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        if let Disk::Simulated(disk) = self {
            tokio::time::sleep(disk.takes(&WriteSet::default())).await;
        }
        self.read(work).await
    }

    /// Work that reads them.
    pub async fn read<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        match self {
            Disk::Directory => tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e))),
            Disk::Simulated(_) => work(),
        }
    }

    /// A snapshot that goes to another node.
    pub fn going_out(&self, file: File) -> Passing {
        match self {
            Disk::Directory => Passing::with_threads(file),
            Disk::Simulated(_) => Passing::without(file),
        }
    }

    /// One that comes from there.
    pub fn coming_in(&self, snapshots: &SnapshotDir) -> io::Result<Passing> {
        let draft = snapshots.draft()?;
        Ok(self.going_out(draft.handle()?).into_draft(draft))
    }
}
