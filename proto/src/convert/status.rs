//! What a node says about itself: sessions and the whole cluster.

use std::time::Duration;

use super::{BadMessage, Out, each, few, id, say, text, ttl};
use crate::time::WallTime;
use crate::tree::{ClusterStatus, NodeRole, NodeStatus, SessionStatus};
use crate::wire;

/// Most clusters that one has grown from: a restore is a rare thing.
const PREDECESSORS_MAX: usize = 1_000;

impl From<&SessionStatus> for wire::SessionInfo {
    fn from(s: &SessionStatus) -> Self {
        Self {
            session: s.session.to_string(),
            side: s.side.to_string(),
            host: say(&s.host),
            ttl_ms: s.ttl.as_millis(),
            since: s.since.to_string(),
        }
    }
}

impl TryFrom<wire::SessionInfo> for SessionStatus {
    type Error = BadMessage;
    fn try_from(s: wire::SessionInfo) -> Out<Self> {
        Ok(Self {
            session: id("session.session", &s.session)?,
            side: id("session.side", &s.side)?,
            host: text("session.host", s.host)?,
            ttl: ttl(s.ttl_ms),
            since: WallTime::parse(&s.since),
        })
    }
}

impl From<&NodeStatus> for wire::NodeInfo {
    fn from(n: &NodeStatus) -> Self {
        Self { id: n.id, addr: say(&n.addr), role: n.role.as_str().into(), reached: n.reached, behind: n.behind }
    }
}

impl TryFrom<wire::NodeInfo> for NodeStatus {
    type Error = BadMessage;
    fn try_from(n: wire::NodeInfo) -> Out<Self> {
        let role = NodeRole::parse(&n.role)
            .ok_or_else(|| BadMessage::new("node.role", "use one of voter, learner, joining, leaving"))?;
        Ok(Self { id: n.id, addr: text("node.addr", n.addr)?, role, reached: n.reached, behind: n.behind })
    }
}

impl From<&ClusterStatus> for wire::StatusAnswer {
    fn from(c: &ClusterStatus) -> Self {
        Self {
            cluster: c.cluster.to_string(),
            revision: c.revision,
            // Node ids begin at 1.
            leader: c.leader.unwrap_or(0),
            nodes: c.nodes,
            quorum: c.quorum,
            secure: c.secure,
            trees: c.trees.iter().map(Into::into).collect(),
            sessions: c.sessions.iter().map(Into::into).collect(),
            ttl_min_ms: c.ttl_min.as_millis(),
            ttl_max_ms: c.ttl_max.as_millis(),
            predecessors: c.predecessors.iter().map(ToString::to_string).collect(),
            members: c.members.iter().map(Into::into).collect(),
            joint: c.joint,
            age_ms: c.age.map(|age| age.as_millis() as u64),
        }
    }
}

impl TryFrom<wire::StatusAnswer> for ClusterStatus {
    type Error = BadMessage;
    fn try_from(c: wire::StatusAnswer) -> Out<Self> {
        Ok(Self {
            cluster: id("status.cluster", &c.cluster)?,
            revision: c.revision,
            leader: (c.leader > 0).then_some(c.leader),
            nodes: c.nodes,
            quorum: c.quorum,
            secure: c.secure,
            trees: each("status.trees", c.trees)?,
            sessions: each("status.sessions", c.sessions)?,
            ttl_min: ttl(c.ttl_min_ms),
            ttl_max: ttl(c.ttl_max_ms),
            predecessors: few("status.predecessors", c.predecessors, PREDECESSORS_MAX)?
                .iter()
                .map(|cluster| id("status.predecessors", cluster))
                .collect::<Out<_>>()?,
            members: each("status.members", c.members)?,
            joint: c.joint,
            age: c.age_ms.map(Duration::from_millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_clusters_status_comes_back_as_it_went(status in arbitrary::cluster_status()) {
            prop_assert_eq!(ClusterStatus::try_from(wire::StatusAnswer::from(&status)).unwrap(), status);
        }
    }
}
