//! The applied state, for everybody in this process who only looks.
//!
//! Promises: whoever holds the read lock sees the state after some whole entry, never between two commands of one; the
//! `applied` word changes after the state has. Only `machine` writes. Locks are taken in this order: state, then timers.

use std::collections::BTreeSet;
use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;
use treelease_proto::id::NodeId;

use super::events::Hub;
use crate::lease::State;

/// The applied state.
pub struct Published {
    state: RwLock<State>,
    applied: watch::Sender<u64>,
    /// Of each configuration that is applied.
    voters: Mutex<Vec<BTreeSet<NodeId>>>,
    /// Events as they are applied.
    pub hub: Hub,
}

impl Published {
    /// A state to begin with, and the index of its last entry.
    pub fn new(state: State, applied: u64) -> Self {
        let hub = Hub::new(state.revision());
        Self { state: RwLock::new(state), applied: watch::channel(applied).0, voters: Mutex::default(), hub }
    }

    /// The state as it is now. Held briefly: the next entry waits for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("a panic in apply ends the node")
    }

    /// The same, if nobody is about to change it.
    pub fn try_state(&self) -> Option<RwLockReadGuard<'_, State>> {
        self.state.try_read().ok()
    }

    /// Changes whenever an entry was applied.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The last entry that was applied.
    pub(super) fn applied_now(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Who votes, in each configuration, as far as it is applied.
    pub(super) fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        self.voters.lock().expect("nothing panics while it holds the voters").clone()
    }

    /// Before [`Published::set_applied`] of the entry that made it so.
    pub(super) fn set_voters(&self, voters: Vec<BTreeSet<NodeId>>) {
        *self.voters.lock().expect("nothing panics while it holds the voters") = voters;
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("a panic in apply ends the node")
    }

    pub(super) fn set_applied(&self, index: u64) {
        self.applied.send_replace(index);
    }
}
