//! The marker's lock in the daemon's hands: taken before a gate opens, looked after while it is open, let go of last; and asked for
//! while another side's unclean end is fenced. What is to be done is decided by [`super::tree`]; here it is done, on threads that
//! may be lost.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use treelease_client::words::command::{Command, Grant};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{RequestKey, TreeId};
use treelease_client::words::refusal::{Code, Refusal};
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::End;

use super::effects::Done;
use super::servers::Purpose;
use super::tree::{Attempt, LOCK_LIMIT, LOCK_PATIENCE, LockWord};
use super::{Daemon, Msg, Tree};
use crate::lower::witness::{self, Lock, Tried};

/// Looks at the storage through the lock come so often where no session says how often.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long letting go of a lock may take before a release is sent all the same: the next holder then waits for the lock.
pub(super) const UNLOCK_LIMIT: Duration = Duration::from_secs(5);

/// The lock of one tree's marker, as the daemon has it.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    /// Under this side's own lease, or left from one that ended before all was confirmed.
    pub own: Option<Arc<Lock>>,
    /// The ended lease's, while this side tells the servers that it has it.
    pub asked: Option<Arc<Lock>>,
    /// When the storage was looked at last through the own one.
    looked: Option<BootTime>,
    looking: bool,
}

impl Tried {
    fn into_word(self) -> (LockWord, Option<Arc<Lock>>, Option<String>) {
        match self {
            Tried::Got(lock) => (LockWord::Held(lock.marker().cloned()), Some(Arc::new(lock)), None),
            Tried::Taken => (LockWord::Taken, None, None),
            Tried::Impossible(why) => (LockWord::Impossible, None, Some(why)),
        }
    }
}

/// Whether there is a lock under which the gate is open, and no look through it that has not come back.
fn is_looked_after(tree: &Tree) -> bool {
    !tree.locks.looking && tree.side.is_open() && tree.locks.own.is_some()
}

/// Lets go of a lock that stands for nothing any more, on a thread of its own: it may hang with the storage.
fn let_go(lock: Option<Arc<Lock>>) {
    if let Some(lock) = lock {
        tokio::task::spawn_blocking(move || lock.let_go(lock.turn()));
    }
}

impl Daemon {
    fn root(&self, id: &TreeId) -> Option<Arc<OwnedFd>> {
        self.trees.get(id)?.mounted.as_ref().map(|m| m.root.clone())
    }

    /// Before a gate opens. After a clean end nobody else may still have the lock: who has is still connected to the storage. After
    /// an unclean end it was waited out already, and the new holder goes on without.
    pub(super) fn lock_for_opening(&mut self, id: &TreeId, grant: &Grant) {
        let Some(root) = self.root(id) else { return };
        let (epoch, fault) = (grant.epoch, self.faults.lock);
        let clean = grant.last_end != End::Unclean;
        let Some(tree) = self.trees.get_mut(id) else { return };
        // Descriptors of this epoch only: the earlier ones go first. Nothing is judged by a free lock while this side has the
        // lease: a witness counts in `Fencing` only.
        let earlier: Vec<Arc<Lock>> = [tree.locks.own.take(), tree.locks.asked.take()].into_iter().flatten().collect();
        let lower = tree.mounted.as_ref().map(|m| m.lower.display().to_string()).unwrap_or_default();
        self.elsewhere(id, move || {
            for lock in &earlier {
                lock.let_go(lock.turn());
            }
            drop(earlier);
            let limit = if clean { LOCK_LIMIT } else { LOCK_PATIENCE };
            let (word, lock, why) = witness::lock_within(root.as_fd(), limit, fault).into_word();
            if let Some(why) = why {
                tracing::info!(lower, why, "no lock on the marker: it is no witness here");
            }
            if word != LockWord::Taken || !clean {
                return Done::Locked(epoch, 0, Ok((word, lock)));
            }
            let who = witness::holders(root.as_fd());
            let who = if who.is_empty() { "on another machine, or not to be seen from here".into() } else { who.join(", ") };
            let message = format!(
                "{lower}: another daemon is still connected to the storage and has the marker's lock, though its lease ended clean: {who}"
            );
            Done::Locked(epoch, 0, Err(Refusal::new(Code::Busy, message)))
        });
    }

    /// Once more, by the descriptor that there is; or by a new one, while the gate is open without.
    pub(super) fn take_lock(&mut self, id: &TreeId, epoch: Epoch, no: u64) {
        let Some(root) = self.root(id) else { return };
        let fault = self.faults.lock;
        let own = self.trees.get(id).and_then(|t| t.locks.own.clone());
        if let Some(lock) = &own {
            lock.next_turn();
        }
        self.elsewhere(id, move || match own {
            None => {
                let (word, lock, _) = witness::try_lock(root.as_fd(), fault).into_word();
                Done::Locked(epoch, no, Ok((word, lock)))
            }
            Some(lock) => match lock.take_again(root.as_fd()) {
                Ok(()) => Done::Locked(epoch, no, Ok((LockWord::Held(lock.marker().cloned()), Some(lock)))),
                Err(why) => {
                    tracing::warn!(%epoch, why, "the marker's lock is not here any more");
                    Done::Locked(epoch, no, Ok((LockWord::Taken, None)))
                }
            },
        });
    }

    /// What came of it.
    pub(super) fn handle_locked(
        &mut self,
        id: &TreeId,
        epoch: Epoch,
        no: u64,
        result: Result<(LockWord, Option<Arc<Lock>>), Refusal>,
        now: BootTime,
    ) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        let (word, lock) = match result {
            Ok(got) => got,
            Err(refusal) => return tree.side.handle_opened(epoch, Err(refusal), now),
        };
        if !tree.side.handle_locked(epoch, no, &word, now) {
            // The same descriptor, asked for once more meanwhile, is that try's.
            let same = matches!((&lock, &tree.locks.own), (Some(new), Some(own)) if Arc::ptr_eq(new, own));
            return if same {
            } else {
                let_go(lock)
            };
        }
        // A try that failed lets go of nothing: the descriptor that there is may still have it, with writes under it that are not
        // confirmed.
        if let Some(lock) = lock {
            let before = tree.locks.own.replace(lock.clone());
            let_go(before.filter(|before| !Arc::ptr_eq(before, &lock)));
        }
        tree.locks.looked = Some(now);
        if no == 0 {
            self.check_root(id, epoch, now);
        }
    }

    fn look_every(&self) -> Duration {
        self.session.as_ref().map_or(LOOK_EVERY, |s| s.ttl().get())
    }

    /// When a look through a lock is due.
    pub(super) fn locks_deadline(&self) -> Option<BootTime> {
        let every = self.look_every();
        self.trees
            .values()
            .filter(|tree| is_looked_after(tree))
            .map(|tree| tree.locks.looked.unwrap_or_default().after(every))
            .min()
    }

    /// Once per TTL, through each lock under which a gate is open. One after the other where they lie on one storage: it answers for all of
    /// them, or hangs for all of them.
    pub(super) fn look_after_locks(&mut self, now: BootTime) {
        let every = self.look_every();
        let due =
            |tree: &Tree, every: Duration| is_looked_after(tree) && tree.locks.looked.is_none_or(|at| now >= at.after(every));
        // All at once, as soon as one is due: a daemon with many trees wakes up once for them.
        if !self.trees.values().any(|tree| due(tree, every)) {
            return;
        }
        let ids: Vec<TreeId> = self.trees.iter().filter(|(_, tree)| due(tree, every / 2)).map(|(id, _)| id.clone()).collect();
        let mut storages: BTreeMap<Result<u64, TreeId>, Vec<_>> = BTreeMap::new();
        for id in ids {
            let Some(tree) = self.trees.get_mut(&id) else { continue };
            let (Some(lock), Some(epoch)) = (tree.locks.own.clone(), tree.side.grant().map(|g| g.epoch)) else { continue };
            tree.locks.looked = Some(now);
            tree.locks.looking = true;
            let place = tree.mounted.as_ref().and_then(|mounted| mounted.place.as_ref());
            let storage = place.map(|place| place.superblock).ok_or_else(|| id.clone());
            storages.entry(storage).or_default().push((id, epoch, lock));
        }
        for locks in storages.into_values() {
            let mail = self.mail.clone();
            tokio::task::spawn_blocking(move || {
                for (id, epoch, lock) in locks {
                    let _ = mail.blocking_send(Msg::Tree(id, Done::LookedAfter(epoch, lock.look())));
                }
            });
        }
    }

    pub(super) fn handle_looked_after(&mut self, id: &TreeId, epoch: Epoch, looked: Result<(), String>, now: BootTime) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        tree.locks.looking = false;
        if let Err(why) = looked {
            tracing::error!(tree = %id, why, "the storage does not answer through the marker's lock: the gate is closed until it does");
            tree.side.handle_lock_doubted(epoch, now);
        }
    }

    /// The lease ends without its gate having opened: nothing was written under this lock.
    pub(super) fn drop_lock(&mut self, id: &TreeId) {
        if let Some(tree) = self.trees.get_mut(id) {
            let_go(tree.locks.own.take());
        }
    }

    // ---- the ended lease's lock ----

    pub(super) fn ask_witness(&mut self, id: &TreeId, of: Attempt) {
        let Some(root) = self.root(id) else { return };
        let fault = self.faults.lock;
        self.elsewhere(id, move || match witness::try_lock(root.as_fd(), fault) {
            Tried::Got(lock) => Done::Asked(of, Some(Arc::new(lock))),
            Tried::Taken | Tried::Impossible(_) => Done::Asked(of, None),
        });
    }

    pub(super) fn handle_asked(&mut self, id: &TreeId, of: Attempt, lock: Option<Arc<Lock>>, now: BootTime) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        let marker = lock.as_ref().and_then(|lock| lock.marker().cloned());
        match marker {
            Some(_) => let_go(std::mem::replace(&mut tree.locks.asked, lock)),
            None => let_go(lock),
        }
        tree.side.handle_witness_try(of, marker, now);
    }

    pub(super) fn tell_witness(&mut self, id: &TreeId, of: Attempt, marker: treelease_client::words::id::MarkerLock) {
        let Some(session) = self.file.session.clone() else { return };
        tracing::info!(tree = %id, epoch = %of.epoch, "the old holder's lock on the marker is here: the servers are told");
        let command = Command::Witnessed { tree: id.clone(), epoch: of.epoch, attempt: of.attempt, session, marker };
        self.send(id, command, Purpose::Witness(of), RequestKey::random());
    }

    pub(super) fn drop_witness(&mut self, id: &TreeId) {
        if let Some(tree) = self.trees.get_mut(id) {
            let_go(tree.locks.asked.take());
        }
    }
}
