//! At no moment do the gates of two sides admit.
//!
//! Of a side whose machine was paused invisibly this is not promised until an answer uncovers it: see `uncovered_means_shut`.

use super::{Broken, Gate};

/// At this moment.
pub fn check(gates: &[Gate]) -> Result<(), Broken> {
    let open: Vec<usize> = gates.iter().filter(|g| g.admits && g.deluded.is_none()).map(|g| g.side).collect();
    if open.len() > 1 {
        return Err(format!("the gates of sides {open:?} admit at the same moment"));
    }
    Ok(())
}

/// Whether two admit, one of which cannot know better yet.
pub fn is_excused(gates: &[Gate]) -> bool {
    gates.iter().filter(|g| g.admits).count() > 1
}
