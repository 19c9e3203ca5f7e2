//! Whose disk it is: this machine's, with threads that wait for it, or a simulated world's, with tasks and its time.
//!
//! Promises: with [`Disk::Directory`] no task of the node waits for the disk; with [`Disk::Simulated`] there is no thread, and what
//! the disk had not finished when the node ended is not written. It does not know what is written.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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

    /// Makes a snapshot durable.
    pub async fn save(&self, snapshots: SnapshotDir, index: u64, id: String, content: Vec<u8>) -> io::Result<()> {
        match self {
            Disk::Directory => {
                let work = tokio::task::spawn_blocking(move || snapshots.save(index, &id, &content));
                work.await.unwrap_or_else(|e| Err(io::Error::other(e)))
            }
            Disk::Simulated(disk) => {
                tokio::time::sleep(disk.takes(&WriteSet::default())).await;
                snapshots.save(index, &id, &content)
            }
        }
    }
}
