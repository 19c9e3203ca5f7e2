//! Who may speak to this node, and in whose name it speaks.
//!
//! Promises (I7): a message counts only if it is of this cluster, meant for this node *and for this data directory*, and from
//! a member under the disk that the formation names for it. So a wiped node's votes and answers are nobody's, a request that
//! reached another node than it was meant for changes nothing, and two clusters on swapped addresses never mix. Both ends
//! check: the receiver the request, the sender the answer. Before this directory has promised itself to a formation, nobody
//! may speak to it but with `Hello` and `Promise`. It also remembers when a leader was last heard.
//!
//! It does not know the network, and trusts what a stamp says: without TLS a name is only claimed.

use std::sync::{Mutex, RwLock};
use std::time::Duration;

use tokio::time::Instant;
use treelease_proto::id::NodeId;
use treelease_proto::wire;

use crate::store::identity::{Formation, Identity, Member};
use crate::telemetry::Counter;

/// What this node knows of the others.
#[derive(Debug)]
pub struct Peers {
    node: NodeId,
    disk: String,
    formation: RwLock<Option<Formation>>,
    heard: Mutex<Option<Instant>>,
    /// Why a message was turned away last.
    turned_away: Mutex<String>,
    /// How many were.
    turned_away_count: Counter,
}

impl Peers {
    /// Of a node with this identity.
    pub fn new(identity: &Identity) -> Self {
        Self {
            node: identity.node,
            disk: identity.data_dir.clone(),
            formation: RwLock::new(identity.formation.clone()),
            heard: Mutex::new(None),
            turned_away: Mutex::default(),
            turned_away_count: Counter::default(),
        }
    }

    /// This node has promised itself, durably, to that formation.
    pub fn formed(&self, formation: Formation) {
        *self.formation.write().expect("nothing panics while it holds the formation") = Some(formation);
    }

    /// Where a member is reached.
    pub fn member(&self, node: NodeId) -> Option<Member> {
        let formation = self.formation.read().expect("nothing panics while it holds the formation");
        formation.as_ref().and_then(|f| f.members.get(&node).cloned())
    }

    /// Where this node is reached, as the cluster was formed; empty: it is a single node.
    pub fn own_address(&self) -> String {
        self.member(self.node).map(|member| member.addr).unwrap_or_default()
    }

    /// How many nodes the cluster was formed of.
    pub fn formed_of(&self) -> Option<usize> {
        let formation = self.formation.read().expect("nothing panics while it holds the formation");
        formation.as_ref().map(|f| f.members.len())
    }

    /// In this node's name, to that one. `None`: there is no cluster yet.
    pub fn stamp(&self, to: NodeId, to_disk: &str) -> Option<wire::Stamp> {
        let formation = self.formation.read().expect("nothing panics while it holds the formation");
        let cluster = formation.as_ref()?.cluster.to_string();
        Some(wire::Stamp { cluster, node: self.node, disk: self.disk.clone(), to, to_disk: to_disk.into() })
    }

    /// Whether a message counts. The error says why not, for both logs.
    pub fn check(&self, stamp: Option<&wire::Stamp>) -> Result<NodeId, String> {
        let stamp = stamp.ok_or("the message does not say who sent it")?;
        let formation = self.formation.read().expect("nothing panics while it holds the formation");
        let Some(formation) = formation.as_ref() else {
            return Err(format!("node {} with disk {} belongs to no cluster of several nodes", self.node, self.disk));
        };
        if stamp.cluster != formation.cluster.as_str() {
            return Err(format!(
                "node {} is of cluster {}, the message is of cluster {}",
                self.node,
                formation.cluster,
                short(&stamp.cluster)
            ));
        }
        if stamp.to != self.node || stamp.to_disk != self.disk {
            return Err(format!(
                "this is node {} with disk {}, the message is for node {} with disk {}",
                self.node,
                self.disk,
                stamp.to,
                short(&stamp.to_disk)
            ));
        }
        match formation.members.get(&stamp.node) {
            Some(member) if member.disk == stamp.disk => Ok(stamp.node),
            Some(member) => Err(format!(
                "node {} has disk {}, the message is from disk {}: a wiped node is removed and added under a new id",
                stamp.node,
                member.disk,
                short(&stamp.disk)
            )),
            None => Err(format!("node {} is no member of cluster {}", stamp.node, formation.cluster)),
        }
    }

    /// Whether an answer counts that was asked of that node.
    pub fn check_answer(&self, stamp: Option<&wire::Stamp>, asked: NodeId) -> Result<(), String> {
        match self.check(stamp)? {
            from if from == asked => Ok(()),
            from => Err(format!("node {asked} was asked and node {from} answered")),
        }
    }

    /// A message was turned away. Said once for each reason in a row: it comes again with every heartbeat.
    pub fn turned_away(&self, why: &str) {
        self.turned_away_count.add();
        let mut last = self.turned_away.lock().expect("nothing panics while it holds the reason");
        if *last != why {
            tracing::warn!("a node's message was turned away: {why}");
            why.clone_into(&mut last);
        }
    }

    /// How many messages were turned away since this node started.
    pub fn turned_away_count(&self) -> u64 {
        self.turned_away_count.get()
    }

    /// A leader's message was accepted.
    pub fn heard(&self) {
        *self.heard.lock().expect("nothing panics while it holds the time") = Some(Instant::now());
    }

    /// Whether a leader was heard within this time.
    pub fn heard_within(&self, limit: Duration) -> bool {
        self.heard.lock().expect("nothing panics while it holds the time").is_some_and(|at| at.elapsed() < limit)
    }
}

fn short(text: &str) -> String {
    if text.is_empty() { "(none)".into() } else { text.chars().take(64).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use treelease_proto::id::ClusterId;

    fn formation() -> Formation {
        let member = |id: NodeId| (id, Member { addr: format!("host:{id}"), disk: format!("disk-{id}") });
        Formation { cluster: ClusterId::random(), members: BTreeMap::from([member(1), member(2), member(3)]) }
    }

    fn peers(node: NodeId, formation: Option<Formation>) -> Peers {
        Peers {
            node,
            disk: format!("disk-{node}"),
            formation: RwLock::new(formation),
            heard: Mutex::new(None),
            turned_away: Mutex::default(),
            turned_away_count: Counter::default(),
        }
    }

    #[test]
    fn a_message_between_two_members_counts() {
        let formed = formation();
        let (one, two) = (peers(1, Some(formed.clone())), peers(2, Some(formed)));
        let stamp = one.stamp(2, "disk-2").unwrap();
        assert_eq!(two.check(Some(&stamp)), Ok(1));
        assert_eq!(two.check_answer(Some(&stamp), 1), Ok(()));
        assert!(two.check_answer(Some(&stamp), 3).is_err());
    }

    #[test]
    fn another_cluster_node_or_disk_counts_for_nothing() {
        let formed = formation();
        let (one, two) = (peers(1, Some(formed.clone())), peers(2, Some(formed)));
        let good = one.stamp(2, "disk-2").unwrap();
        let wrong = [
            wire::Stamp { cluster: ClusterId::random().to_string(), ..good.clone() },
            wire::Stamp { cluster: String::new(), ..good.clone() },
            wire::Stamp { to: 3, ..good.clone() },
            wire::Stamp { to_disk: "disk-3".into(), ..good.clone() },
            wire::Stamp { to_disk: String::new(), ..good.clone() },
            wire::Stamp { disk: "wiped".into(), ..good.clone() },
            wire::Stamp { disk: String::new(), ..good.clone() },
            wire::Stamp { node: 3, ..good.clone() },
            wire::Stamp { node: 4, ..good },
        ];
        for stamp in wrong {
            assert!(two.check(Some(&stamp)).is_err(), "{stamp:?}");
        }
        assert!(two.check(None).is_err());
    }

    #[test]
    fn before_the_promise_nobody_may_speak() {
        let formed = formation();
        let (one, two) = (peers(1, Some(formed)), peers(2, None));
        assert!(two.check(Some(&one.stamp(2, "disk-2").unwrap())).is_err());
        assert_eq!(two.stamp(1, "disk-1"), None);
    }
}
