//! What a restarted daemon must know of the leases that this one had.
//!
//! # Promises
//!
//! - That a lease is let go of is noted before the server hears so: the gate never opens again under an epoch whose end may be on its
//!   way, whatever becomes of this process.
//! - That a gate opens is noted before it does. A note that is missing says the worst: that the lease wrote.
//!
//! # Does not know
//!
//! What follows from a note ([`super::tree::Past`]).

use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::TreeId;
use treelease_client::words::time::BootTime;

use super::Daemon;
use super::state_dir::{LeaseNote, LetGo};
use super::tree::Past;

impl Daemon {
    /// A gate is about to open under this epoch.
    pub(super) fn note_lease(&mut self, id: &TreeId, epoch: Epoch) {
        let mounted = self.trees.get(id).is_some_and(|t| t.mounted.is_some());
        let before = self.file.leases.insert(id.clone(), LeaseNote { epoch, mounted, let_go: None });
        if let Some(note) = self.file.leases.get_mut(id)
            && before.is_some_and(|b| b.epoch == epoch && b.mounted)
        {
            note.mounted = true;
        }
        if mounted {
            self.file.written.insert(id.clone(), epoch);
        }
        // A note that is not there says the worst already: that it may have written.
        self.save_notes();
    }

    /// Before the server hears that this lease ends: the gate never opens under its epoch again, nor does a restarted daemon's.
    /// False: it could not be noted, and nothing is said to the server before it is (tried again until then, with the gate shut): a
    /// daemon that was killed and restarted would open its gate under a lease whose end was on its way.
    pub(super) fn note_let_go(&mut self, id: &TreeId, epoch: Epoch, how: Past) -> bool {
        let let_go = match how {
            Past::Wrote => None,
            Past::Released => Some(LetGo::Released),
            Past::GivenBack => Some(LetGo::GivenBack),
            Past::Surrendered => Some(LetGo::Surrendered),
        };
        let mounted = self.wrote_through_a_mount(id);
        self.file.leases.insert(id.clone(), LeaseNote { epoch, mounted, let_go });
        self.save_notes()
    }

    pub(super) fn save_notes(&self) -> bool {
        let saved = self.state.note(&self.file);
        if let Err(failure) = &saved {
            tracing::error!(why = %failure.message, "the state of the leases could not be noted for a restart");
        }
        saved.is_ok()
    }

    pub(super) fn owed_later(&mut self, id: &TreeId, epoch: Epoch, now: BootTime) {
        if let Some(tree) = self.trees.get_mut(id) {
            tree.side.handle_owed_answer(epoch, false, now);
        }
    }

    pub(super) fn end_later(&mut self, id: &TreeId, no: u64, now: BootTime) {
        if let Some(tree) = self.trees.get_mut(id) {
            tree.side.handle_end_answer(no, Err("it could not be noted for a restart".into()), now);
        }
    }

    pub(super) fn wrote_through_a_mount(&self, id: &TreeId) -> bool {
        let epoch = self.trees.get(id).and_then(|t| t.side.grant()).map(|g| g.epoch);
        self.file.leases.get(id).is_some_and(|note| note.mounted && Some(note.epoch) == epoch)
    }

    pub(super) fn past_of(&self, id: &TreeId, epoch: Epoch) -> Past {
        match self.file.leases.get(id).filter(|note| note.epoch == epoch).and_then(|note| note.let_go) {
            None => Past::Wrote,
            Some(LetGo::Released) => Past::Released,
            Some(LetGo::GivenBack) => Past::GivenBack,
            Some(LetGo::Surrendered) => Past::Surrendered,
        }
    }
}
