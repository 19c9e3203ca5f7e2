//! Which nodes the cluster has now: asked beside the configured servers, and noted for the next start.
//!
//! Only the word of a server of the followed cluster counts, and only with a quorum behind it (I8): what a node that was removed or cut
//! off believes is old. A follower that is behind tells an older list for a moment; the next look, a few seconds later, rights that.

use treelease_client::config::nodes;
use treelease_client::words::tree::{ClusterStatus, NodeRole};

use super::Daemon;

impl Daemon {
    /// After a look at the table that was taken for our cluster's.
    pub(super) fn learn_nodes(&self, table: &ClusterStatus) {
        let known = self.table.as_ref().map_or(0, |(known, _)| known.revision);
        let counts = table.quorum && table.revision >= known && self.cluster() == Some(&table.cluster);
        let Some(servers) = self.servers.as_ref().filter(|_| counts && !self.faults.seeds_only) else { return };
        // One that still catches up has nothing to say.
        let serving = table.members.iter().filter(|node| node.role != NodeRole::Learner);
        let addresses: Vec<String> = serving.map(|node| node.addr.clone()).collect();
        if !servers.learn(&addresses) {
            return;
        }
        tracing::info!(nodes = ?addresses, "the cluster's nodes");
        if let Err(why) = nodes::note(&self.config.state_dir, &self.config.endpoints, &addresses) {
            // A hint only: the configured servers are asked too.
            tracing::warn!(%why, "the cluster's nodes are not noted for the next start");
        }
    }
}
