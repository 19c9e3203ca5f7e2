//! A fenced side whose machine has been restarted since: its daemon has shown that its lower mount is fresh, so it is let in without a
//! person's word, where the tree's policy says so (`unfence=restart`; DESIGN 3, Fences).
//!
//! It promises that nobody is let in where the tree's owner has not agreed to what this rests on; and that the word is taken for shown
//! only by a session of that very side, of the machine whose lease was fenced, under another boot id than that lease had, and neither
//! kernel being one of which there is a copy. *Why that is enough:* what had not been sent lay in the memory of the kernel that wrote it,
//! and a machine runs one kernel after the other. *What that assumes:* that no two machines have one machine-id at the same time. A
//! virtual machine that is started anew on another host while its first host is only cut off, one that goes back to a memory image, and
//! machines made of one image break it; where that may be, the agent must end what was open before (a new `fsid=` for each epoch), as
//! it should anyway. *Why only with the policy:* the servers cannot see whether that holds, and where it does not, two sides write; so
//! by default a person says so, who can look. *Why the machine counts and not the side:* a side can be opened on another machine (a
//! rebuilt pod) while the old one, cut off, still has what it has not sent; the new mount is fresh, the old one is not, and what lets
//! the side in may let both in. *Why not a new mount of the same kernel:* one that was detached (`umount -l`) keeps its pages and is
//! seen by nobody. There a person says so.
//!
//! It undoes nothing itself: it gives the word that a person gives with `treelease fence unfence`, and the agent does the rest
//! ([`super::fencing`]), not before every attempt to fence is over.

use serde::{Deserialize, Serialize};
use treelease_proto::command::{AttemptRef, EventKind, OpenSession};
use treelease_proto::id::{SideName, TreeId};
use treelease_proto::policy::Unfence;

use super::history::Context;
use super::{State, cut};

/// A machine, and which of its boots: both as the side's own daemon said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    machine: String,
    boot: String,
}

impl Kernel {
    /// Of a daemon that knows both.
    fn of(open: &OpenSession) -> Option<Box<Self>> {
        let known = !open.machine.is_empty() && !open.boot.is_empty();
        known.then(|| Box::new(Self { machine: cut(&open.machine), boot: cut(&open.boot) }))
    }

    /// Which machine.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The other one has ended, because this one runs on the same machine.
    fn follows(&self, other: &Kernel) -> bool {
        self.machine == other.machine && self.boot != other.boot
    }
}

impl State {
    /// The kernel of a session that is opened, unless a machine of that name has another side's session under another boot id at this
    /// moment: then two machines were made of one image, and the name says nothing.
    pub(super) fn kernel_of(&self, open: &OpenSession) -> Option<Box<Kernel>> {
        let kernel = Kernel::of(open)?;
        let mut others =
            self.sessions.values().filter(|session| session.side != open.side).filter_map(|session| session.kernel.as_ref());
        let is_twin = others.any(|other| kernel.follows(other));
        (!is_twin).then_some(kernel)
    }

    /// The trees of which that side is shut out.
    pub(super) fn shut_out_of(&self, side: &SideName) -> Vec<TreeId> {
        let shut_out = |id: &&TreeId| self.trees.get(id).is_some_and(|tree| tree.fenced.contains_key(side));
        self.fences.iter().filter(shut_out).cloned().collect()
    }

    /// Gives the word that a fenced side may be let in, where its daemon has shown it. Runs for every touched tree after every command.
    pub(super) fn let_in_the_restarted(&mut self, id: &TreeId, context: &mut Context) {
        let Some(tree) = self.trees.get(id).filter(|tree| !tree.fenced.is_empty()) else { return };
        let shown: Vec<SideName> = tree.fenced.keys().filter(|side| self.has_shown(id, side)).cloned().collect();
        for side in shown {
            let Some(tree) = self.trees.get_mut(id) else { return };
            let Some(fenced) = tree.fenced.get_mut(&side) else { continue };
            (fenced.unfence, fenced.failures) = (true, 0);
            let reason = format!(
                "{side} may have its access back, from the agent `{}`: its machine was restarted since, so nothing of what it had \
                 written can come any more",
                fenced.agent
            );
            let of = AttemptRef { tree: id.clone(), side, epoch: fenced.epoch, number: fenced.attempts };
            let event = tree.fence_event(EventKind::Fencing, &of, reason, context);
            context.happened(event);
        }
    }

    /// Whether that side is shut out, nobody has said yet that it may be let in, its daemon has shown it, and that is enough here.
    fn has_shown(&self, id: &TreeId, side: &SideName) -> bool {
        let Some(tree) = self.trees.get(id).filter(|tree| tree.policy.unfence == Unfence::Restart) else { return false };
        let Some(fenced) = tree.fenced.get(side).filter(|fenced| fenced.touched && !fenced.unfence) else { return false };
        // First that has to end, as for a person.
        if tree.is_fencing(side) {
            return false;
        }
        let session = self.sides.get(side).and_then(|session| self.sessions.get(session));
        let (Some(then), Some(now)) = (&fenced.kernel, session.and_then(|session| session.kernel.as_ref())) else { return false };
        let copied = |kernel: &Kernel| self.copied_boots.contains(&kernel.boot);
        #[cfg(test)]
        if self.fault == super::tests::Fault::AnyKernelIsFresh {
            return true;
        }
        now.follows(then) && !copied(then) && !copied(now)
    }
}
