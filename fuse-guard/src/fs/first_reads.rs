//! Pages that the storage's own client keeps: dropped when a file is first opened or read in a run of ours, where that client cannot tell
//! by itself that they are old (NFSv3: it compares times and lengths, and two writes may agree in both).
//!
//! *Promises:* in each run, before the first byte of a file is read, by whichever thread: those that come while it is being done do it
//! too, and later ones do not. Pages that are not written yet are not dropped, but on their way.
//!
//! *Does not know* which storage is so ([`crate::lower::fstype`]).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::fs::{Advice, fadvise};

use super::Fs;
use super::inode::Node;
use crate::gate::Standing;
use crate::sync::lock;

/// Files of one run that are remembered; at the limit all are forgotten, and their pages dropped once more.
const REMEMBERED: usize = 65_536;

/// Which files have been read in the present run.
#[derive(Default)]
pub struct FirstReads {
    /// Whether the storage's client keeps pages that are old.
    pub matter: bool,
    seen: Mutex<(u64, BTreeSet<u64>)>,
}

impl FirstReads {
    /// Whether what the client had kept of the file has been dropped in that run.
    pub(super) fn was_dropped(&self, run: u64, file: u64) -> bool {
        let seen = lock(&self.seen);
        seen.0 == run && seen.1.contains(&file)
    }

    /// Drops it by that call, where that has not been done. *Why it is noted afterwards:* who finds it noted reads at once. To drop it
    /// twice does no harm.
    fn first(&self, run: u64, file: u64, drop_pages: impl FnOnce()) {
        if self.was_dropped(run, file) {
            return;
        }
        drop_pages();
        let mut seen = lock(&self.seen);
        if seen.0 != run || seen.1.len() >= REMEMBERED {
            *seen = (run, BTreeSet::new());
        }
        seen.1.insert(file);
    }
}

impl Fs {
    /// A file is about to be read under that standing, through this descriptor.
    pub(super) fn drop_old_pages(&self, node: &Node, fd: &OwnedFd, seen: &Standing) {
        let run = self.run_of(seen);
        if !self.first_reads.matter || run == 0 || self.faults.no_first_drop {
            return;
        }
        self.first_reads.first(run, node.generation, || {
            if let Err(why) = fadvise(fd, 0, None, Advice::DontNeed) {
                tracing::debug!(%why, "what the storage's client has kept of a file was not dropped");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_first_read_once_in_each_run_and_what_is_remembered_is_bounded() {
        let reads = FirstReads::default();
        let is_first = |run, file| {
            let mut dropped = false;
            reads.first(run, file, || dropped = true);
            dropped
        };
        assert!(is_first(3, 7));
        assert!(!is_first(3, 7));
        assert!(is_first(3, 8));
        assert!(is_first(5, 7), "another run");
        for file in 0..2 * REMEMBERED as u64 {
            is_first(5, file);
            assert!(lock(&reads.seen).1.len() <= REMEMBERED);
        }
    }

    #[test]
    fn who_comes_while_old_pages_are_being_dropped_reads_none_of_them() {
        let reads = FirstReads::default();
        let mut second = false;
        reads.first(3, 7, || reads.first(3, 7, || second = true));
        assert!(second, "it drops them too before it reads");
        assert!(reads.was_dropped(3, 7));
    }
}
