//! Carrying out what a tree asks for when the policy's mode changes ([`super::tree`], `mode`). Decides nothing.

use treelease_client::words::command::Command;
use treelease_client::words::id::{RequestKey, TreeId};

use super::Daemon;
use super::effects::Done;
use super::servers::Purpose;
use crate::handoff::DRAIN_LIMIT;

impl Daemon {
    /// Waits until what an earlier mode let through has ended, and has the storage confirm it.
    pub(super) fn settle_mode(&self, id: &TreeId, mode_no: u64) {
        let Some(mount) = self.mount(id) else { return };
        let limit = self.trees.get(id).map_or(DRAIN_LIMIT, |tree| tree.side.policy.flush_limit);
        self.elsewhere(id, move || {
            let settled = mount.drain(DRAIN_LIMIT) && mount.flush(limit).is_ok();
            if !settled {
                tracing::warn!("what was written before the tree was enforced is not all on the storage yet");
            }
            Done::ModeSettled(mode_no, settled)
        });
    }

    /// Tells the servers that this side's guard obeys.
    pub(super) fn tell_obeys(&mut self, id: &TreeId, mode_no: u64) {
        match self.file.session.clone().filter(|_| self.session.is_some()) {
            Some(session) => {
                let command = Command::Obeys { tree: id.clone(), session, mode_no };
                self.send(id, command, Purpose::Obeys(mode_no), RequestKey::random());
            }
            None => {
                if let Some(tree) = self.trees.get_mut(id) {
                    tree.side.handle_obeys_answer(mode_no, false);
                }
            }
        }
    }
}
