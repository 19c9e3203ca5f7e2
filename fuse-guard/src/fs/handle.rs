//! Open files and directories: what the kernel's file handles stand for.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use super::dir::Listing;
use super::error::{Result, reason};
use super::inode::Node;
use crate::gate::Opened;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, RwLock, lock};

/// One open file description.
pub struct Handle {
    /// Of which node.
    pub node: Arc<Node>,
    /// Opened as the application asked (`O_APPEND` included).
    pub fd: Arc<OwnedFd>,
    /// For a handle that may write: under which epoch it was opened (I6).
    pub opened: Option<Opened>,
    /// Whether it may write.
    pub writable: bool,
}

/// What a handle's number stands for.
pub enum Open {
    /// A file.
    File(Handle),
    /// A directory: its node, and its listing, which belongs to whoever has the lock.
    Dir(Arc<Node>, Mutex<Listing>),
    /// A file of the virtual `.treelease/`, as it was when it was opened.
    Status(Vec<u8>),
}

/// All open handles of a mount.
#[derive(Default)]
pub struct Handles {
    open: RwLock<BTreeMap<u64, Arc<Open>>>,
    last: AtomicU64,
}

impl Handles {
    /// A number for it.
    pub fn add(&self, open: Open) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(open));
        number
    }

    /// What the number stands for.
    pub fn get(&self, number: u64) -> Result<Arc<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned().ok_or(reason::UNKNOWN)
    }

    /// The kernel has closed it.
    pub fn remove(&self, number: u64) {
        let gone = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(Open::File(handle)) = gone.as_deref()
            && handle.writable
        {
            let unused = {
                let mut writable = lock(&handle.node.writable);
                writable.handles = writable.handles.saturating_sub(1);
                // The kernel writes mapped pages back before it releases the last handle under which they were mapped.
                if writable.handles == 0 { writable.pages.take() } else { None }
            };
            // Closed under no lock: on network storage a close writes back.
            drop(unused);
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Open {
    /// The file, or EBADF.
    pub fn file(&self) -> Result<&Handle> {
        match self {
            Open::File(handle) => Ok(handle),
            _ => Err(rustix::io::Errno::BADF),
        }
    }
}
