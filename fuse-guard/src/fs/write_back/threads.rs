//! The threads of a mount's writing back: which there are to be, which run, and those that cannot be had.
//!
//! *Promises:* each is started once, and again when it has died or could not be started, no sooner than [`START_AGAIN`] after a failure.
//!
//! *Does not know* how a thread is started.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::{CARRIERS, Fs, WriteBack, plan};
use crate::sync::{Arc, Ordering, lock};

/// How soon a thread that could not be started is tried again.
pub const START_AGAIN: Duration = Duration::from_secs(1);

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Carries out the writes that waited and that the gate refuses by now: never hangs on the storage.
    Refuses,
    /// Carries out the writes that waited.
    Carries,
    /// Makes the calls that are due. May be lost in one.
    Calls,
}

/// How many threads there are for each.
const THREADS: [(Role, usize); 3] = [(Role::Refuses, 1), (Role::Carries, CARRIERS), (Role::Calls, plan::CALLS)];

/// Those of one mount.
#[derive(Default)]
pub(super) struct Threads {
    /// That run, or are about to.
    running: BTreeMap<Role, usize>,
    /// One could not be started: since when, and when it is tried again.
    trouble: Option<(BootTime, BootTime)>,
    /// What the daemon has heard of that.
    told: bool,
}

impl Threads {
    /// Whether somebody is there for it.
    pub(super) fn run(&self, role: Role) -> bool {
        self.running.get(&role).is_some_and(|many| *many > 0)
    }

    /// Since when nobody is there for it, and cannot be had.
    pub(super) fn none_since(&self, role: Role) -> Option<BootTime> {
        self.trouble.filter(|_| !self.run(role)).map(|(since, _)| since)
    }

    /// One that is missing, from now on counted as running. None: none is, or it is not yet tried again.
    fn begins(&mut self, now: BootTime) -> Option<Role> {
        if self.trouble.is_some_and(|(_, again)| now < again) {
            return None;
        }
        let missing = THREADS.iter().find(|(role, many)| self.running.get(role).is_none_or(|running| running < many));
        match missing {
            Some((role, _)) => *self.running.entry(*role).or_default() += 1,
            None => self.trouble = None,
        }
        missing.map(|(role, _)| *role)
    }

    fn ends(&mut self, role: Role) {
        if let Some(running) = self.running.get_mut(&role) {
            *running = running.saturating_sub(1);
        }
    }
}

/// A thread runs, as long as it lives.
pub(super) struct Running<'a>(pub(super) &'a WriteBack, pub(super) Role);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).threads.ends(self.1);
    }
}

impl WriteBack {
    /// Has every thread started that is missing, each with [`WriteBack::run`].
    pub fn start(&self, mut spawn: impl FnMut(Role) -> std::io::Result<()>) {
        let now = self.gate.now();
        // No more often than there are threads: one that dies at once is tried again at the next turn.
        for _ in 0..THREADS.iter().map(|(_, many)| many).sum::<usize>() + 1 {
            let role = {
                let mut state = lock(&self.state);
                if state.over || !self.on.load(Ordering::SeqCst) {
                    return;
                }
                let Some(role) = state.threads.begins(now) else { return };
                role
            };
            if let Err(why) = spawn(role) {
                let threads = &mut lock(&self.state).threads;
                threads.ends(role);
                if threads.trouble.is_none() {
                    tracing::error!(%why, ?role, "no thread to write back with: tried again every second");
                }
                let since = threads.trouble.map_or(now, |(since, _)| since);
                threads.trouble = Some((since, now.after(START_AGAIN)));
                return;
            }
        }
    }

    /// What a thread does until the mount is gone.
    pub fn run(self: &Arc<Self>, role: Role, fs: &Fs) {
        let _running = Running(self, role);
        match role {
            Role::Calls => self.work(fs),
            Role::Carries => self.carry(false),
            Role::Refuses => self.carry(true),
        }
    }

    /// Whether threads are missing, if that is news.
    pub fn take_trouble(&self) -> Option<bool> {
        let threads = &mut lock(&self.state).threads;
        let trouble = threads.trouble.is_some();
        (std::mem::replace(&mut threads.told, trouble) != trouble).then_some(trouble)
    }
}
