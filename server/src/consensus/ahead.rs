//! A leader's own disk and its followers', at the same time.
//!
//! openraft 0.9 sends an entry to the followers only when the leader's `append` has called back, so an entry took the time of
//! both disks, one after the other (STACK 1.5). Here the callback of a leader's own entry comes at once, while the disk still
//! writes.
//!
//! Promises, and the argument for each (I7).
//! 1. *What openraft takes for committed is on this disk, and on as many others as ever.* [`Ahead::may_run`] allows it only to a
//!    leader that is no quorum by itself: so a commit needs a follower's answer, and an answer that covers an entry reaches
//!    openraft only when this disk has that entry ([`Ahead::has`], called by `network`). A change of members is never ahead, and
//!    nothing is while one is not applied: whether the leader is a quorum by itself is then not known for sure.
//! 2. *The name of an entry is never given twice.* A leader that dies before its disk has an entry may have given it to a
//!    follower under its term. It must not go on in that term with another entry at that place, as openraft does when it reads a
//!    committed vote of its own: so what is read back is a vote that is not ([`step_back`]), and it leads again only when it is
//!    elected in a later term. One that is a quorum by itself was never ahead, and goes on.
//! 3. *A leader whose disk hangs falls silent*, and is replaced, as when openraft waited for the disk itself: nothing is sent
//!    while an entry waits for longer than a heartbeat ([`Ahead::may_speak`]).
//!
//! It does not know what an entry means, nor who the followers are.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use treelease_proto::id::NodeId;

use super::types::{Entry, Membership, Vote};

/// Appends that the disk still writes; one more is waited for. The proposer makes a second one beside the first where many wait, so there
/// are two as a rule at most.
const WAITING_MAX: usize = 8;

/// One append that the disk still writes.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Its first entry.
    from: u64,
    since: Instant,
}

/// What this leader's disk does not have yet; clones share it.
#[derive(Debug, Clone)]
pub struct Ahead {
    inner: Arc<Inner>,
    silence: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<VecDeque<Waiting>>,
    /// The disk has one more. It wakes in the order in which they came: a simulated run must be the same each time.
    written: Notify,
}

impl Ahead {
    /// Of a node that falls silent when its disk has been busy with one entry for so long.
    pub fn new(silence: Duration) -> Self {
        Self { inner: Arc::default(), silence }
    }

    /// Whether these entries of a leader under this vote may be sent before the disk has them. `voters`: of all configurations that
    /// are in force.
    pub fn may_run(&self, node: NodeId, vote: Option<&Vote>, entries: &[Entry], voters: &[BTreeSet<NodeId>]) -> bool {
        let own = |entry: &Entry| {
            let (id, vote) = (entry.log_id.leader_id, vote.map(|vote| *vote.leader_id()));
            vote.is_some_and(|vote| (vote.term, vote.node_id) == (id.term, id.node_id)) && entry.get_members().is_none()
        };
        let leads = vote.is_some_and(|vote| vote.committed && vote.leader_id().node_id == node);
        leads && !is_quorum(node, voters) && entries.iter().all(own) && self.waiting().len() < WAITING_MAX
    }

    /// These entries are on their way to the disk, which takes one after the other.
    pub fn begin(&self, from: u64) {
        self.waiting().push_back(Waiting { from, since: Instant::now() });
    }

    /// The disk has the oldest of what was begun.
    pub fn end(&self) {
        self.waiting().pop_front();
        self.inner.written.notify_waiters();
    }

    /// Waits until the disk has this entry, if it was ever ahead.
    pub async fn has(&self, index: u64) {
        self.until(|waiting| waiting.front().is_none_or(|first| first.from > index)).await;
    }

    /// Waits while the disk hangs.
    pub async fn may_speak(&self) {
        self.until(|waiting| waiting.front().is_none_or(|first| first.since.elapsed() < self.silence)).await;
    }

    async fn until(&self, holds: impl Fn(&VecDeque<Waiting>) -> bool) {
        loop {
            // Before the look: what is written after it is not missed.
            let written = self.inner.written.notified();
            if holds(&self.waiting()) {
                return;
            }
            written.await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.inner.waiting.lock().expect("nothing panics while it holds the waiting ones")
    }
}

/// Whether a node needs nobody else to commit.
pub fn is_quorum(node: NodeId, voters: &[BTreeSet<NodeId>]) -> bool {
    voters.iter().all(|config| config.len() == 1 && config.contains(&node))
}

/// The vote that a node starts with, which is the one on its disk but for the second promise above.
pub fn step_back(node: NodeId, vote: Vote, voters: &[BTreeSet<NodeId>]) -> Vote {
    let id = *vote.leader_id();
    if vote.committed && id.node_id == node && !is_quorum(node, voters) { Vote::new(id.term, id.node_id) } else { vote }
}

/// The members that an entry makes.
pub trait Members {
    /// None: it changes none.
    fn get_members(&self) -> Option<&Membership>;
}

impl Members for Entry {
    fn get_members(&self) -> Option<&Membership> {
        match &self.payload {
            openraft::EntryPayload::Membership(members) => Some(members),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::EntryPayload;
    use openraft::testing::{blank_ent, log_id};

    const LIMIT: Duration = Duration::from_secs(60);
    /// What waits for something that does not come waits longer than this.
    const MOMENT: Duration = Duration::from_millis(50);

    fn voters(configs: &[&[NodeId]]) -> Vec<BTreeSet<NodeId>> {
        configs.iter().map(|config| config.iter().copied().collect()).collect()
    }

    #[test]
    fn only_a_leader_that_needs_others_runs_ahead_and_only_with_entries_of_its_own_term() {
        let ahead = Ahead::new(LIMIT);
        let (own, three) = (Vote::new_committed(3, 1), voters(&[&[1, 2, 3]]));
        let may = |vote: Vote, entry: Entry, voters: &[BTreeSet<NodeId>]| ahead.may_run(1, Some(&vote), &[entry], voters);
        assert!(may(own, blank_ent(3, 1, 7), &three));
        assert!(!may(Vote::new(3, 1), blank_ent(3, 1, 7), &three), "it is a candidate");
        assert!(!may(Vote::new_committed(3, 2), blank_ent(3, 2, 7), &three), "it follows");
        assert!(!may(Vote::new_committed(4, 2), blank_ent(3, 1, 7), &three), "a later leader sends it what it once made itself");
        assert!(!may(own, blank_ent(2, 1, 7), &three));
        assert!(!may(own, blank_ent(3, 1, 7), &voters(&[&[1]])), "what it has is committed");
        assert!(may(own, blank_ent(3, 1, 7), &voters(&[&[1], &[1, 2, 3]])));
        let members = Entry { log_id: log_id(3, 1, 7), payload: EntryPayload::Membership(Membership::default()) };
        assert!(!may(own, members, &three));
        assert!(!ahead.may_run(1, None, &[blank_ent(3, 1, 7)], &three));
        (0..WAITING_MAX as u64).for_each(|from| ahead.begin(from));
        assert!(!may(own, blank_ent(3, 1, 70), &three), "enough waits for the disk");
    }

    #[test]
    fn i7_a_leader_that_may_have_been_ahead_of_its_disk_does_not_go_on_in_its_term() {
        let (own, three) = (Vote::new_committed(3, 1), voters(&[&[1, 2, 3]]));
        assert_eq!(step_back(1, own, &three), Vote::new(3, 1));
        assert_eq!(step_back(1, own, &voters(&[&[1], &[1, 2]])), Vote::new(3, 1));
        assert_eq!(step_back(1, own, &voters(&[&[1]])), own, "one that is a quorum never was");
        assert_eq!(step_back(2, own, &three), own, "whom it follows is another matter");
        assert_eq!(step_back(1, Vote::new(4, 1), &three), Vote::new(4, 1));
    }

    #[tokio::test]
    async fn i7_an_answer_counts_when_the_disk_has_what_it_covers() {
        let ahead = Ahead::new(LIMIT);
        ahead.begin(5);
        ahead.begin(7);
        let waits = |index| {
            let ahead = ahead.clone();
            async move { tokio::time::timeout(MOMENT, ahead.has(index)).await.is_err() }
        };
        assert_eq!((waits(4).await, waits(5).await, waits(7).await), (false, true, true));
        ahead.end();
        assert_eq!((waits(6).await, waits(7).await, waits(8).await), (false, true, true));
        let asked = tokio::spawn({
            let ahead = ahead.clone();
            async move { ahead.has(u64::MAX).await }
        });
        ahead.end();
        tokio::time::timeout(LIMIT, asked).await.expect("the disk has everything").unwrap();
    }

    #[tokio::test]
    async fn a_leader_whose_disk_hangs_is_silent() {
        let (busy, hangs) = (Ahead::new(LIMIT), Ahead::new(Duration::ZERO));
        for ahead in [&busy, &hangs] {
            ahead.may_speak().await;
            ahead.begin(5);
        }
        busy.may_speak().await;
        assert!(tokio::time::timeout(MOMENT, hangs.may_speak()).await.is_err(), "an entry waits for the disk");
        hangs.end();
        hangs.may_speak().await;
    }
}
