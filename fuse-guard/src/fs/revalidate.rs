//! Whether a name still leads where the kernel was told: it opens and changes what it has looked up, and that may have been
//! before another side's turn.
//!
//! # Promises
//!
//! I6. In a run of this side nothing is opened, and nothing is made, removed or changed by a path, until every name by which the
//! kernel may have come to the file, and to the directories above it, was found to lead there *in this run*, at the lower
//! filesystem. *Why:* SQLite deletes its `-wal` and makes it anew; an open that waited for the lease, or was on its way when the
//! lease came, would write into the deleted file, and the commit would be acknowledged and gone.
//!
//! - A name that leads elsewhere is ESTALE: the kernel looks up again and tries again, once, by itself, so that programs see
//!   what has the name now. Such a *file* gets another node, and so whoever comes later with the old one is told ESTALE too. A
//!   *directory* keeps its node, because processes work in it and go along; until somebody has come to it by its new name, it
//!   can be read, and nothing is made or removed in it (calls that wait for one another in the kernel were all looked up before).
//! - What goes through an open handle is not asked for its name: it is judged by its opening ([`crate::gate`]).
//!
//! # Does not know
//!
//! Which of several names a call came by: so all are asked, once in a run.

use std::ffi::OsStr;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::Fs;
use super::caller::Caller;
use super::error::{Errno, Result, reason};
use super::inode::{Key, Node, ROOT};
use crate::gate::{Right, Standing};
use crate::sync::Arc;

/// Directories above one another that are asked; no path has more.
const DEPTH: usize = 2048;

impl Fs {
    /// The run that a standing belongs to, as a number; 0 if this side has none now.
    pub(super) fn run_of(&self, seen: &Standing) -> u64 {
        match seen.right {
            Right::Read => 0,
            Right::Write { .. } | Right::Opening { .. } | Right::Resting { .. } | Right::Closing { .. } => {
                // While this side has the lease, `stale_below` is the start of its run.
                seen.stale_below.get().saturating_add(1)
            }
        }
    }

    /// Looks again where the names of a node lead, at its first touch in a run. ESTALE: one of them leads elsewhere.
    pub(super) fn settle(&self, who: Caller, node: &Arc<Node>, seen: &Standing) -> Result<()> {
        let run = self.run_of(seen);
        if run == 0 || self.faults.no_second_look || node.id == ROOT || node.named_in(run) {
            return Ok(());
        }
        let _acting = self.act(who)?;
        self.look_again(node, run, 0)
    }

    /// The same for a node that was just found by this name; if another one leads elsewhere, the file gets a new node here.
    pub(super) fn settle_other_names(&self, key: Key, dir: &Node, name: &OsStr, run: u64) {
        if run == 0 || self.faults.no_second_look {
            return;
        }
        let Some(node) = self.nodes.by_key(key) else { return };
        if node.id != ROOT && !node.named_in(run) && node.has_other_names(dir.id, name) {
            // ESTALE is for those who came by the other name.
            let _elsewhere = self.look_again(&node, run, 0);
        }
    }

    /// The same for what is to be changed itself, or in which a name is to be made or removed.
    pub(super) fn settle_to_change(&self, who: Caller, node: &Arc<Node>, seen: &Standing) -> Result<()> {
        self.settle(who, node, seen)?;
        match node.is_dir() && node.is_moved() && self.run_of(seen) != 0 {
            true => Err(reason::STALE),
            false => Ok(()),
        }
    }

    fn look_again(&self, node: &Arc<Node>, run: u64, depth: usize) -> Result<()> {
        if node.id == ROOT || node.named_in(run) || depth > DEPTH {
            return Ok(());
        }
        let mut elsewhere = false;
        let mut names = node.known_names();
        loop {
            for (parent, name) in &names {
                let Ok(dir) = self.nodes.get(*parent) else {
                    // The kernel has forgotten the directory, and so every way through it.
                    node.drop_name(*parent, name);
                    continue;
                };
                match self.look_again(&dir, run, depth + 1) {
                    Ok(()) | Err(reason::STALE) => {}
                    Err(why) => return Err(why),
                }
                if dir.is_moved() {
                    // No path that the kernel knows leads through it any more.
                    elsewhere = true;
                    node.lose_name(*parent, name, run);
                    continue;
                }
                let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
                match statx(&dir.fd, name, flags, StatxFlags::TYPE | StatxFlags::INO) {
                    Ok(stat) if Key::of(&stat) == node.key => {}
                    // Who may not look there has not come that way.
                    Err(Errno::ACCESS | Errno::PERM) => {}
                    Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => {
                        elsewhere = true;
                        node.lose_name(*parent, name, run);
                    }
                    Err(why) => return Err(why),
                }
            }
            if node.set_named(&names, run) {
                break;
            }
            names = node.known_names();
        }
        if !elsewhere {
            return Ok(());
        }
        if !node.is_dir() {
            self.nodes.replace(node);
        }
        Err(reason::STALE)
    }
}
