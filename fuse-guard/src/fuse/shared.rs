//! What the face, the carriers, the keeper and the mount share; and what each tells the kernel to forget in the same way.

use super::counts::Requests;
use super::crew::Crew;
use super::keeper::Keeper;
use super::locks;
use super::notify::Notify;
use crate::fs::Fs;
use crate::fs::caching::Kept;
use crate::fs::inode::Node;
use crate::gate::Hooks;
use crate::sync::{Arc, AtomicBool, Ordering};

/// What the face, the carriers and the mount share.
pub(crate) struct Shared {
    pub(crate) fs: Fs,
    pub(crate) hooks: Arc<dyn Hooks>,
    /// Whether the kernel can let names expire without unhashing them.
    pub(crate) expire_only: AtomicBool,
    /// The mount's device, as /proc/locks names it; set once it is mounted.
    pub(crate) device: std::sync::OnceLock<(u32, u32)>,
    /// What the kernel is told to forget by itself.
    pub(crate) keeper: Keeper,
    /// Who serves.
    pub(crate) crew: Crew,
    /// What the kernel has asked.
    pub(crate) requests: Requests,
    /// The kernel checks permissions by itself (`default_permissions`), by mode and access control lists: users other than the
    /// daemon's own may enter.
    pub(crate) kernel_permits: bool,
    /// The kernel can open directories by itself.
    pub(crate) unopened: AtomicBool,
}

impl Shared {
    pub(super) fn new(fs: Fs, hooks: Arc<dyn Hooks>, kernel_permits: bool, threads: usize) -> Self {
        Shared {
            crew: Crew::new(threads, fs.is_far()),
            fs,
            hooks,
            expire_only: AtomicBool::new(false),
            device: std::sync::OnceLock::new(),
            keeper: Keeper::default(),
            requests: Requests::default(),
            kernel_permits,
            unopened: AtomicBool::new(false),
        }
    }

    /// Makes the kernel ask for every name of a node anew.
    pub(super) fn forget_names(&self, node: &Node, notify: &Notify) {
        let expire = self.expire_only.load(Ordering::Relaxed);
        for (parent, name) in node.names() {
            notify.entry(parent, &name, expire);
        }
    }

    /// Makes the kernel ask anew for every name that it was told is not there.
    pub(super) fn forget_absent(&self, notify: &Notify) {
        let expire = self.expire_only.load(Ordering::Relaxed);
        for (parent, name) in self.fs.absent.all(self.fs.gate.now()) {
            notify.entry(parent, &name, expire);
        }
    }

    /// A directory's listing is about to be told to the kernel.
    pub(super) fn lists(&self, id: u64, offset: u64) {
        if offset == 0 {
            let kept = self.fs.nodes.get(id).map_or(Kept::Never, |node| Kept::of(&node));
            let ttl = self.fs.ttl(&self.fs.gate.standing(), kept);
            self.keeper.listed(id, ttl, self.fs.gate.now());
        }
    }

    /// Who holds an exclusive lock on this file through a node of an earlier run (I6): it believes that it is alone.
    pub(super) fn locked_in_an_earlier_run(&self, id: u64) -> Option<String> {
        let node = self.fs.nodes.get(id).ok().filter(|_| !self.fs.faults.no_lock_check)?;
        let replaced = self.fs.nodes.replaced_of(node.key);
        if replaced.is_empty() {
            return None;
        }
        let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let held = locks::exclusive(&text, *self.device.get()?);
        let held = held.into_iter().find(|lock| replaced.iter().any(|old| old.id == lock.ino && old.id != id))?;
        Some(match u32::try_from(held.pid) {
            Ok(pid) => format!("{} (pid {pid})", crate::fs::writers::command_of(pid)),
            Err(_) => "an open file description".into(),
        })
    }
}
