//! Events as they are applied, for those who watch, and the last of them for those who come back.
//!
//! Promises: a subscription sees every event after the revision that it names, each once and in order, or is told that it
//! missed some; nothing falls between what it gets from the ring and what it gets live. Slow watchers never hold up the
//! state. It does not know what an event means.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;
use treelease_proto::command::Event;

/// How many recent events are kept for watchers that come back.
pub const RING: usize = 10_000;
/// How far a watcher may fall behind before it is told that it missed events.
const BEHIND_MAX: usize = 4_096;

/// What goes to watchers.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Something happened.
    Event(Arc<Event>),
    /// The state was replaced by a snapshot: events were missed.
    Reset {
        /// Of the new state.
        revision: u64,
    },
}

/// A subscription's beginning.
#[derive(Debug)]
pub struct Subscription {
    /// Whether events between the revision asked for and `backlog` are gone.
    pub lagged: bool,
    /// Events after that revision.
    pub backlog: Vec<Arc<Event>>,
    /// Of the state after the backlog: everything later comes through `live`.
    pub revision: u64,
    /// From now on.
    pub live: broadcast::Receiver<Notice>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// Every event later than this is in `events`.
    floor: u64,
    /// Of the last event.
    revision: u64,
}

/// The place where events are published.
#[derive(Debug)]
pub struct Hub {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Notice>,
}

impl Hub {
    /// For a state at this revision.
    pub fn new(revision: u64) -> Self {
        let ring = Ring { events: VecDeque::new(), floor: revision, revision };
        Self { ring: Mutex::new(ring), live: broadcast::channel(BEHIND_MAX).0 }
    }

    /// These happened, in this order.
    pub fn publish(&self, events: Vec<Event>) {
        let mut ring = self.ring.lock().expect("nothing panics while it holds the ring");
        for event in events {
            let event = Arc::new(event);
            ring.revision = event.revision;
            if ring.events.len() == RING
                && let Some(oldest) = ring.events.pop_front()
            {
                ring.floor = oldest.revision;
            }
            ring.events.push_back(event.clone());
            // An error means that nobody watches.
            let _ = self.live.send(Notice::Event(event));
        }
    }

    /// The state was replaced.
    pub fn reset(&self, revision: u64) {
        let mut ring = self.ring.lock().expect("nothing panics while it holds the ring");
        *ring = Ring { events: VecDeque::new(), floor: revision, revision };
        // An error means that nobody watches.
        let _ = self.live.send(Notice::Reset { revision });
    }

    /// Events after this revision; 0: from now on.
    pub fn subscribe(&self, since: u64) -> Subscription {
        let ring = self.ring.lock().expect("nothing panics while it holds the ring");
        // Both under the ring's lock: nothing is published between the look at the ring and the subscription.
        let live = self.live.subscribe();
        let known = since >= ring.floor && since <= ring.revision;
        let backlog = match since {
            0 => Vec::new(),
            _ if known => ring.events.iter().filter(|e| e.revision > since).cloned().collect(),
            _ => Vec::new(),
        };
        Subscription { lagged: since != 0 && !known, backlog, revision: ring.revision, live }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use treelease_proto::command::EventKind;
    use treelease_proto::epoch::{Epoch, RunStart};
    use treelease_proto::id::TreeId;
    use treelease_proto::time::WallTime;
    use treelease_proto::tree::End;

    #[test]
    fn a_watcher_that_comes_back_sees_each_event_once_and_in_order() {
        let hub = Hub::new(0);
        hub.publish((1..=5).map(event).collect());
        let mut back = hub.subscribe(3);
        hub.publish(vec![event(6)]);
        assert!(!back.lagged);
        assert_eq!(revisions(&back.backlog), [4, 5]);
        let Ok(Notice::Event(live)) = back.live.try_recv() else { panic!("the sixth is live") };
        assert_eq!(live.revision, 6);
        assert!(back.live.try_recv().is_err());
    }

    #[test]
    fn a_watcher_from_before_the_ring_or_from_another_history_is_told() {
        let hub = Hub::new(0);
        let all = RING as u64 + 10;
        hub.publish((1..=all).map(event).collect());
        assert!(hub.subscribe(9).lagged);
        assert!(!hub.subscribe(10).lagged);
        assert_eq!(hub.subscribe(10).backlog.len(), RING);
        assert!(hub.subscribe(all + 1).lagged);
        assert!(!hub.subscribe(0).lagged);
    }

    fn revisions(events: &[Arc<Event>]) -> Vec<u64> {
        events.iter().map(|e| e.revision).collect()
    }

    fn event(revision: u64) -> Event {
        Event {
            revision,
            at: WallTime::UNKNOWN,
            tree: TreeId::random(),
            name: "dev".parse().unwrap(),
            kind: EventKind::Queued,
            side: None,
            session: None,
            epoch: Epoch::ZERO,
            run_start: RunStart::default(),
            actor: String::new(),
            reason: String::new(),
            end: End::None,
            files: 0,
            bytes: 0,
            count: 0,
        }
    }
}
