//! Who may speak to this node, and in whose name it speaks.
//!
//! Promises (I7): a message counts only if it is of this cluster, meant for this node *and for this data directory*, and from
//! a member under the disk that the membership has for it: the current one, as this node's log has it, and before there is a
//! log the one that the directory has promised itself to. So a wiped node's votes and answers are nobody's, nor are those of
//! one that was removed; a request that reached another node than it was meant for changes nothing, and two clusters on
//! swapped addresses never mix; nor do nodes of two builds that make different things of one log, so that their states never differ
//! unseen. Both ends check: the receiver the request, the sender the answer, against the very member that
//! it asked. Before this directory belongs to a cluster, nobody may speak to it but with `Hello` and `Promise`.
//!
//! One exception, and why it is none to the promise: a node that was away while members came and went may know none of those
//! that are there now, and would turn away the only ones who could tell it. So a number that it has *never heard of* is
//! believed while it hears no leader at all. Whose votes and answers make a quorum is decided by who counts them, who asks
//! members by their disks; the receiver's check is a second door. *Heard of* is what was agreed upon, and what the log has now:
//! an entry that another leader has cut off has made nobody a member, and its number may be given again, to another directory
//! too. What the one in it was told meanwhile makes it nothing either: it learns until an agreed entry lets it vote, and whoever
//! counts asks for the directory of the agreed one.
//!
//! It also remembers when a leader was last heard, what that said about its quorum, and who answered when.
//! It does not know the network, and trusts what a stamp says: without TLS a name is only claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, RwLock};
use std::time::Duration;

use tokio::time::Instant;
use treelease_proto::id::{ClusterId, NodeId};
use treelease_proto::wire;

use crate::fault::{Fault, Faults};
use crate::lease;
use crate::store::identity::{Formation, Identity, Member};
use crate::telemetry::Counter;

/// The cluster of this directory, and its members as far as they are known.
#[derive(Debug, Clone)]
struct Known {
    cluster: ClusterId,
    members: BTreeMap<NodeId, Member>,
    /// Every number that was agreed upon as a member's, as far as this node knows: one that is in no membership now was removed.
    seen: BTreeSet<NodeId>,
    /// The numbers that entries of this node's log name, by their place in it. Agreed upon or not: until it is cut off there.
    named: BTreeMap<u64, BTreeSet<NodeId>>,
}

impl Known {
    fn new(formation: &Formation) -> Self {
        Self {
            cluster: formation.cluster.clone(),
            members: formation.members.clone(),
            seen: formation.members.keys().copied().collect(),
            named: BTreeMap::new(),
        }
    }

    fn has_heard_of(&self, node: NodeId) -> bool {
        self.seen.contains(&node) || self.named.values().any(|ids| ids.contains(&node))
    }
}

/// A leader's last word.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    /// How long ago a quorum had answered it then.
    quorum_age: QuorumAge,
}

/// What a leader says about its quorum with every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuorumAge {
    /// So long ago.
    Ago(Duration),
    /// Not since it leads.
    Never,
    /// It is of a version that does not say.
    Unsaid,
}

/// What this node knows of the others.
#[derive(Debug)]
pub struct Peers {
    node: NodeId,
    disk: String,
    known: RwLock<Option<Known>>,
    heard: Mutex<Option<Heard>>,
    /// When each other node answered last.
    answered: Mutex<BTreeMap<NodeId, Instant>>,
    /// While no leader was heard for so long, a number that was never heard of is believed.
    out_of_touch: Duration,
    faults: Faults,
    /// Why a message was turned away last.
    turned_away: Mutex<String>,
    /// How many were.
    turned_away_count: Counter,
}

impl Peers {
    /// Of a node with this identity. `out_of_touch`: the election time-out.
    pub fn new(identity: &Identity, out_of_touch: Duration, faults: Faults) -> Self {
        let own = Member { addr: String::new(), disk: identity.data_dir.clone() };
        // A single node that was complete once is a cluster too.
        let alone = || Formation { cluster: identity.cluster.clone(), members: BTreeMap::from([(identity.node, own)]) };
        let formation = identity.formation.clone().or_else(|| identity.initialized.then(alone));
        Self {
            node: identity.node,
            disk: identity.data_dir.clone(),
            known: RwLock::new(formation.as_ref().map(Known::new)),
            heard: Mutex::new(None),
            answered: Mutex::default(),
            out_of_touch,
            faults,
            turned_away: Mutex::default(),
            turned_away_count: Counter::default(),
        }
    }

    /// This directory belongs to that cluster now, durably.
    pub fn formed(&self, formation: &Formation) {
        self.known.write().expect("nothing panics while it holds the members").get_or_insert_with(|| Known::new(formation));
    }

    /// The log of this node has these members now; `used` are all numbers that any had, as far as it has applied the log.
    pub fn members_are(&self, members: BTreeMap<NodeId, Member>, used: &BTreeSet<NodeId>) {
        let mut known = self.known.write().expect("nothing panics while it holds the members");
        let Some(known) = known.as_mut().filter(|_| !members.is_empty()) else { return };
        known.seen.extend(used);
        self.answered().retain(|id, _| members.contains_key(id));
        known.members = members;
    }

    /// A snapshot names these numbers as members, or as former ones: agreed upon.
    pub fn were_used(&self, ids: impl IntoIterator<Item = NodeId>) {
        self.change(|known| known.seen.extend(ids));
    }

    /// The entry at that place of this node's log names these numbers as members. The log itself is the source, not the members of
    /// now: somebody may come and go between two looks at those, or before this node started.
    pub fn named_at(&self, index: u64, ids: impl IntoIterator<Item = NodeId>) {
        self.change(|known| drop(known.named.insert(index, ids.into_iter().collect())));
    }

    /// From that place on the log was cut off: nothing there was ever agreed upon.
    pub fn cut_off(&self, since: u64) {
        self.change(|known| drop(known.named.split_off(&since)));
    }

    /// Up to that place the log is in a snapshot: all of it was agreed upon.
    pub fn settled(&self, upto: u64) {
        self.change(|known| {
            let later = known.named.split_off(&(upto.saturating_add(1)));
            let agreed = std::mem::replace(&mut known.named, later);
            known.seen.extend(agreed.into_values().flatten());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known.write().expect("nothing panics while it holds the members").as_mut() {
            change(known);
        }
    }

    /// Whether a connection to this address is worth keeping: it is a member's, or there are no members yet and it is listed.
    pub fn keeps(&self, addr: &str) -> bool {
        self.read().as_ref().is_none_or(|known| known.members.values().any(|member| member.addr == addr))
    }

    /// Where a member is reached.
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.read().as_ref().and_then(|known| known.members.get(&node).cloned())
    }

    /// Whether it is a member, with that directory.
    pub fn is_member(&self, node: NodeId, disk: &str) -> bool {
        self.read().as_ref().is_some_and(|known| known.members.get(&node).is_some_and(|member| self.is_of(member, disk)))
    }

    /// Where this node is reached, as the cluster has it; empty: it is a single node.
    pub fn own_address(&self) -> String {
        let known = self.read();
        let several = known.as_ref().filter(|known| known.members.len() > 1);
        several.and_then(|known| known.members.get(&self.node)).map(|member| member.addr.clone()).unwrap_or_default()
    }

    /// In this node's name, to that one. `None`: there is no cluster yet.
    pub fn stamp(&self, to: NodeId, to_disk: &str) -> Option<wire::Stamp> {
        let cluster = self.read().as_ref()?.cluster.to_string();
        let state_version = self.state_version();
        Some(wire::Stamp { cluster, node: self.node, disk: self.disk.clone(), to, to_disk: to_disk.into(), state_version })
    }

    /// What this build makes of the log.
    pub fn state_version(&self) -> u32 {
        lease::VERSION + u32::from(self.faults.has(Fault::OtherBuild))
    }

    /// Whether that node's build makes the same of the log as this one. The error says what to do.
    pub fn same_build(&self, node: NodeId, state_version: u32) -> Result<(), String> {
        match self.state_version() {
            own if own == state_version => Ok(()),
            own => Err(format!(
                "node {node} is of another build than node {} (state version {state_version}, here {own}), and what they made of the log \
                 would differ: all nodes of a cluster are of one build; stop all of them, and start all of the new one",
                self.node
            )),
        }
    }

    /// Whether a message counts. The error says why not, for both logs.
    pub fn check(&self, stamp: Option<&wire::Stamp>) -> Result<NodeId, String> {
        let stamp = stamp.ok_or("the message does not say who sent it")?;
        let known = self.read();
        let known = self.for_us(stamp, known.as_ref())?;
        match known.members.get(&stamp.node) {
            Some(member) if self.is_of(member, &stamp.disk) => Ok(stamp.node),
            // Only an entry that was not agreed upon names it: it may have been cut off elsewhere, and the number given anew.
            Some(_) if !known.seen.contains(&stamp.node) && !stamp.disk.is_empty() && !self.heard_within(self.out_of_touch) => {
                Ok(stamp.node)
            }
            Some(member) => Err(format!(
                "node {} has disk {}, the message is from disk {}: a wiped node is removed and added under a new id",
                stamp.node,
                member.disk,
                short(&stamp.disk)
            )),
            None if known.has_heard_of(stamp.node) => {
                Err(format!("node {} was removed from cluster {}", stamp.node, known.cluster))
            }
            None if known.members.values().any(|member| member.disk == stamp.disk) || stamp.disk.is_empty() => {
                Err(format!("disk {} is not node {}'s", short(&stamp.disk), stamp.node))
            }
            None if !self.heard_within(self.out_of_touch) => Ok(stamp.node),
            None => Err(format!("node {} is no member of cluster {}", stamp.node, known.cluster)),
        }
    }

    /// Whether an answer counts that was asked of that member.
    pub fn check_answer(&self, stamp: Option<&wire::Stamp>, asked: NodeId, disk: &str) -> Result<(), String> {
        let stamp = stamp.ok_or("the answer does not say who sent it")?;
        self.for_us(stamp, self.read().as_ref())?;
        match stamp.node == asked && stamp.disk == disk {
            true => {
                self.answered().insert(asked, Instant::now());
                Ok(())
            }
            false => Err(format!(
                "node {asked} with disk {disk} was asked and node {} with disk {} answered",
                stamp.node,
                short(&stamp.disk)
            )),
        }
    }

    /// Of this cluster, meant for this node and this directory, and of a build like this one.
    fn for_us<'a>(&self, stamp: &wire::Stamp, known: Option<&'a Known>) -> Result<&'a Known, String> {
        let Some(known) = known else {
            return Err(format!("node {} with disk {} belongs to no cluster yet", self.node, self.disk));
        };
        if stamp.cluster != known.cluster.as_str() {
            return Err(format!(
                "node {} is of cluster {}, the message is of cluster {}",
                self.node,
                known.cluster,
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
        self.same_build(stamp.node, stamp.state_version)?;
        Ok(known)
    }

    fn is_of(&self, member: &Member, disk: &str) -> bool {
        member.disk == disk || self.faults.has(Fault::AnyDisk)
    }

    fn answered(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.answered.lock().expect("nothing panics while it holds the times")
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Option<Known>> {
        self.known.read().expect("nothing panics while it holds the members")
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

    /// A leader's message was accepted, and this is what it said about its quorum.
    pub fn heard(&self, quorum_age: QuorumAge) {
        *self.heard.lock().expect("nothing panics while it holds the time") = Some(Heard { at: Instant::now(), quorum_age });
    }

    /// Whether a leader was heard within this time.
    pub fn heard_within(&self, limit: Duration) -> bool {
        self.heard.lock().expect("nothing panics while it holds the time").is_some_and(|heard| heard.at.elapsed() < limit)
    }

    /// How long ago a quorum stood behind the leader that was heard last; none: it was never heard, or never had one.
    pub fn quorum_age(&self) -> Option<Duration> {
        let heard = (*self.heard.lock().expect("nothing panics while it holds the time"))?;
        match heard.quorum_age {
            QuorumAge::Ago(age) => Some(age.saturating_add(heard.at.elapsed())),
            QuorumAge::Unsaid => Some(heard.at.elapsed()),
            QuorumAge::Never => None,
        }
    }

    /// Who has answered this node within this time.
    pub fn answered_within(&self, limit: Duration) -> BTreeSet<NodeId> {
        let answered = self.answered();
        answered.iter().filter(|(_, at)| at.elapsed() < limit).map(|(id, _)| *id).collect()
    }
}

fn short(text: &str) -> String {
    if text.is_empty() { "(none)".into() } else { text.chars().take(64).collect() }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
pub(super) mod tests;
