//! The synchronisation that the gate uses, in one place.
//!
//! Today these are std's types. A model checker's types go here, under test, without a change in the gate. Locks of ours
//! never guard what a panic could leave half changed, so a poisoned one is entered all the same ([`lock`]).

pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// Locks, also after a thread has died while it held the lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
