//! Another cluster where this side's servers were, and following it by its user's word (I8).
//!
//! # Promises
//!
//! Nothing of another cluster is believed by itself: no session, no table, no marker. After `treelease follow CLUSTER` this side
//! follows it, if it names the one followed before among its predecessors: it is what was restored from that one's backup. What
//! was held under the old one is lost first, gates shut; then the old one's markers count as the new one's, if tree and root
//! agree and the epochs on the storage are lower.
//!
//! # Does not know
//!
//! Whether the old cluster still runs somewhere: that is what its user vouches for.

use tokio::sync::oneshot;
use treelease_client::error::Failure;
use treelease_client::local::to_local;
use treelease_client::words::id::ClusterId;
use treelease_client::words::refusal::Code;
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::ClusterStatus;
use treelease_client::words::wire::{FollowAnswer, FollowRequest};

use super::Daemon;

/// What another cluster said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stranger {
    cluster: ClusterId,
    predecessors: Vec<ClusterId>,
}

impl Daemon {
    /// The servers' table is another cluster's: it is looked at for this only.
    pub(super) fn met(&mut self, table: &ClusterStatus) {
        let followed = self.cluster().map(ToString::to_string).unwrap_or_default();
        let way = match self.cluster().is_some_and(|ours| table.predecessors.contains(ours)) {
            true => format!(": it was restored from a backup of that one; `treelease follow {} --reason TEXT`", table.cluster),
            false => String::new(),
        };
        self.link.trouble =
            format!("the lease server belongs to cluster {}, and this side follows {followed}{way}", table.cluster);
        self.link.reachable = false;
        self.stranger = Some(Stranger { cluster: table.cluster.clone(), predecessors: table.predecessors.clone() });
    }

    pub(super) fn follow_cluster(&mut self, request: &FollowRequest, answer: oneshot::Sender<FollowAnswer>, now: BootTime) {
        let said = match self.try_to_follow(request, now) {
            Ok(from) => FollowAnswer { from, refused: None },
            Err(failure) => FollowAnswer { from: String::new(), refused: Some(to_local(&failure)) },
        };
        // The command has gone: it can be typed again.
        let _ = answer.send(said);
    }

    /// Whom it followed before.
    fn try_to_follow(&mut self, request: &FollowRequest, now: BootTime) -> Result<String, Failure> {
        let wanted: ClusterId = request.cluster.parse()?;
        let from = self.cluster().map(ToString::to_string).unwrap_or_default();
        let here = self.table.as_ref().map(|(table, _)| (&table.cluster, &table.predecessors));
        let there = self.stranger.as_ref().map(|stranger| (&stranger.cluster, &stranger.predecessors));
        // What was read before of the one that is followed says nothing of who is there now.
        let known = there.or(here);
        let Some((_, predecessors)) = known.filter(|(cluster, _)| **cluster == wanted) else {
            let met = known.map(|(cluster, _)| format!(": they are of cluster {cluster}")).unwrap_or_default();
            return Err(Failure::new(Code::Config, format!("the lease servers of this side are not of cluster {wanted}{met}"))
                .hint("name the new cluster's servers with `endpoints` in the configuration, then type this again"));
        };
        let predecessors = predecessors.clone();
        let goes_over = self.cluster().is_some_and(|ours| *ours != wanted);
        if goes_over && !self.cluster().is_some_and(|ours| predecessors.contains(ours)) {
            return Err(Failure::new(
                Code::Config,
                format!("cluster {wanted} was not restored from a backup of cluster {from}, which this side follows"),
            )
            .hint("another cluster's tree is made this one's with `treelease tree takeover DIR --reason TEXT`"));
        }
        let mut file = self.file.clone();
        file.accepted.extend(predecessors);
        if goes_over {
            file.cluster = Some(wanted.clone());
            // No session of the old one lives in the new one.
            (file.session, file.secret, file.next_secret) = (None, String::new(), String::new());
            file.leases.clear();
        }
        // What is not on disk is not followed: a restarted daemon would go back.
        self.state.save(&file)?;
        self.file = file;
        tracing::warn!(%wanted, from, reason = request.reason, "following a restored cluster by its user's word");
        if goes_over {
            self.session_lost(&format!("this side follows cluster {wanted} now"), now);
            (self.table, self.stranger) = (None, None);
            self.link.trouble.clear();
            self.read_table_soon(now);
        }
        Ok(from)
    }
}
