//! When a snapshot is made.
//!
//! A snapshot writes the whole state, so it comes after as many entries as it is worth: at least so many as the configuration says, and
//! with many trees more, in proportion ([`Due`]); earlier when the log takes much memory. What a snapshot costs each command is
//! then the same, however many trees there are.
//!
//! Promises: a log that grows is cut at last, whatever its entries are. It decides nothing about leases.

use std::sync::Arc;

use super::log::LogStore;
use super::published::Published;
use super::types::Raft;

/// Trees that are written down for each entry: writing one takes some microseconds, an entry some hundreds.
const TREES_AN_ENTRY: u64 = 2;
/// Bytes of log in memory beyond which a snapshot is made, with few trees: a restart reads so many within a second.
const BYTES: u64 = 16 << 20;
/// And for each tree more, so that the log never takes more than the trees.
const BYTES_A_TREE: u64 = 128;

/// See the module. Entries and bytes are counted from the one at which a snapshot was made, or asked for, last.
#[derive(Debug)]
struct Due {
    /// The least number of entries.
    least: u64,
    index: u64,
    written: u64,
}

impl Due {
    fn is(&self, applied: u64, written: u64, trees: u64) -> bool {
        let entries = applied.saturating_sub(self.index);
        let bytes = written.saturating_sub(self.written);
        entries >= self.least.max(trees / TREES_AN_ENTRY) || entries > 0 && bytes >= BYTES + BYTES_A_TREE * trees
    }
}

/// Asks for snapshots until openraft ends.
pub(super) fn follow(raft: Raft, published: Arc<Published>, log: LogStore, least: u64) {
    let mut metrics = raft.data_metrics();
    tokio::spawn(async move {
        let mut due = Due { least: least.max(1), index: 0, written: 0 };
        loop {
            let (applied, snapshot) = {
                let metrics = metrics.borrow_and_update();
                let index = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index);
                (index(metrics.last_applied), index(metrics.snapshot))
            };
            due.index = due.index.max(snapshot);
            let (written, trees) = (log.written(), published.state().tree_count() as u64);
            if due.is(applied, written, trees) {
                // One that fails is asked for again after as many entries.
                (due.index, due.written) = (applied, written);
                if raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_trees_are_written_down_less_often_and_a_log_that_grows_is_cut_at_last() {
        let due = Due { least: 5_000, index: 1_000, written: 7 };
        let first = |written: u64, trees: u64| (1_000..).find(|applied| due.is(*applied, written, trees)).unwrap();
        assert_eq!([0, 10_000, 100_000].map(|trees| first(7, trees)), [6_000, 6_000, 51_000]);
        assert_eq!(first(7 + BYTES, 0), 1_001, "of large entries a few are enough");
        assert_eq!(first(7 + BYTES, 100_000), 51_000, "there, so many bytes are no more than the trees");
        assert_eq!(first(7 + BYTES + 100_000 * BYTES_A_TREE, 100_000), 1_001);
    }
}
