//! Pages of mappings that a shut gate refused: the process that stored into them learns nothing (m), so they are on record.
//!
//! *Promises:* each refused page is counted once: with the release of the lease under which it came, else, where it comes when no lease
//! of ours is there any more, in a report of its own (`late_write` in the history, and a note in `status`), which names files. No more
//! than one report of a tree in [`AGAIN`].
//!
//! *Does not know* which pages they were; why the gate was shut.

use std::time::Duration;

use treelease_client::words::command::{Command, EventKind};
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{RequestKey, TreeId};
use treelease_client::words::time::BootTime;

use super::Daemon;
use super::effects::keep_note;
use super::servers::Purpose;

/// Pages that come one after the other are told together.
const AGAIN: Duration = Duration::from_secs(1);

/// How many refused pages of one mount have been told.
#[derive(Debug, Default)]
pub(super) struct Late {
    told: u64,
    /// With the release of that epoch all have been told up to this number, if it is carried out.
    in_release: Option<(Epoch, u64)>,
    again_at: Option<BootTime>,
}

impl Late {
    /// How many to tell with the release of that epoch, of `all` so far. Asked again, it is the same release, and says the same.
    pub(super) fn for_release(&mut self, epoch: Epoch, all: u64) -> u64 {
        let upto = match self.in_release {
            Some((of, upto)) if of == epoch => upto,
            _ => {
                self.counts_anew(all);
                all
            }
        };
        self.in_release = Some((epoch, upto));
        upto.saturating_sub(self.told)
    }

    /// Another mount counts from the beginning.
    fn counts_anew(&mut self, all: u64) {
        if all < self.told {
            self.told = 0;
        }
    }

    /// The release has been carried out.
    pub(super) fn released(&mut self) {
        if let Some((_, upto)) = self.in_release.take() {
            self.told = self.told.max(upto);
        }
    }

    /// How many are to be told by themselves now, of `all` so far.
    fn due(&mut self, all: u64, now: BootTime) -> Option<u64> {
        self.counts_anew(all);
        if all == self.told || self.again_at.is_some_and(|at| now < at) {
            return None;
        }
        self.again_at = Some(now.after(AGAIN));
        let many = all - self.told;
        self.told = all;
        Some(many)
    }
}

fn sentence(many: u64, files: &[String]) -> String {
    let what = if many == 1 { "a mapped page was".into() } else { format!("{many} mapped pages were") };
    let files = if files.is_empty() { "a file that nobody knows any more".into() } else { files.join(", ") };
    format!("{what} refused after the lease, and what was stored there is lost: {files}")
}

impl Daemon {
    /// Tells of pages that came when their lease was gone.
    pub(super) fn look_at_late_pages(&mut self, now: BootTime) {
        let mut told = Vec::new();
        for (id, tree) in &mut self.trees {
            let Some(mounted) = tree.mounted.as_ref().filter(|_| tree.side.grant().is_none()) else { continue };
            if let Some(many) = tree.late.due(mounted.mount.counts().pages_refused, now) {
                let sentence = sentence(many, &mounted.mount.take_late_files());
                tracing::warn!(tree = %id, "{sentence}");
                keep_note(tree, sentence.clone());
                told.push((id.clone(), many, sentence));
            }
        }
        for (id, count, reason) in told {
            self.report_due.get_or_insert(now);
            self.tell_late_pages(&id, count, reason);
        }
    }

    fn tell_late_pages(&mut self, id: &TreeId, count: u64, reason: String) {
        let Some(epoch) = self.trees.get(id).map(|tree| tree.side.latest) else { return };
        if let Some(lease) = self.lease(id, epoch) {
            let report = Command::Report { lease, event: EventKind::LateWrite, reason, count };
            self.send(id, report, Purpose::Tell, RequestKey::random());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_told_once_with_its_release_or_by_itself() {
        let (mut late, now) = (Late::default(), BootTime::default());
        let at = |ms| now.after(Duration::from_millis(ms));
        let epoch = Epoch::from_raw;
        assert_eq!(late.for_release(epoch(1), 2), 2);
        assert_eq!(late.for_release(epoch(1), 5), 2, "asked again, it says the same");
        late.released();
        assert_eq!(late.due(5, at(0)), Some(3), "those that came after it");
        assert_eq!(late.due(5, at(2000)), None);
        assert_eq!(late.for_release(epoch(3), 6), 1, "of this lease alone");
        // It ended otherwise: expired while the release was on its way.
        assert_eq!(late.due(6, at(3000)), Some(1));
        late.released();
        assert_eq!(late.for_release(epoch(5), 6), 0);
    }

    #[test]
    fn pages_that_come_one_after_the_other_are_told_together_and_a_new_mount_counts_anew() {
        let (mut late, now) = (Late::default(), BootTime::default());
        let at = |ms| now.after(Duration::from_millis(ms));
        assert_eq!(late.due(1, at(0)), Some(1));
        assert_eq!(late.due(4, at(999)), None);
        assert_eq!(late.due(7, at(1000)), Some(6));
        assert_eq!(late.due(0, at(2000)), None);
        assert_eq!(late.due(2, at(2000)), Some(2));
        // And one that is made while a lease is there.
        assert_eq!(late.for_release(Epoch::from_raw(7), 1), 1);
    }
}
