//! A disk that hangs, as a whole or in its syncs: whoever comes waits until it goes on, as if nothing had been.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Whether it hangs, and who waits for that to end. Clones are of one disk.
#[derive(Clone, Default)]
pub(super) struct Hangs(Arc<(Mutex<bool>, Condvar)>);

impl Hangs {
    /// From now on, until the answer is dropped.
    pub fn begin(&self) -> Hung {
        self.set(true);
        Hung(self.clone())
    }

    /// Until it does not hang.
    pub fn wait(&self) {
        let (hangs, changed) = &*self.0;
        let hangs = hangs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_while(hangs, |hangs| *hangs));
    }

    fn set(&self, hangs: bool) {
        let (now, changed) = &*self.0;
        *now.lock().unwrap_or_else(PoisonError::into_inner) = hangs;
        changed.notify_all();
    }
}

/// It goes on when this is dropped. Whoever uses the disk cannot be killed before.
pub struct Hung(Hangs);

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
