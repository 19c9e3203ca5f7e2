//! A holder that renews, as a side does: its lease must outlive whatever is done to the nodes.
#![allow(dead_code)] // each test file uses a part

use std::time::Duration;

use tokio::time::{Instant, timeout};
use treelease_proto::command::{Answer, Command, Grant};
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::wire;

use crate::common::Caller;
use crate::nodes::{ELECTION_MAX, Nodes};

/// Just above what this pace allows.
pub const TTL: Duration = Duration::from_secs(6);

/// A tree held by a session, and the number of its last renewal.
pub struct Held {
    pub tree: TreeId,
    pub session: SessionId,
    pub grant: Grant,
    pub number: u64,
}

impl Held {
    pub async fn take(nodes: &Nodes, id: u64, name: &str) -> Self {
        let caller = nodes.caller(id);
        let session = caller.open("workstation", TTL).await;
        let tree = TreeId::random();
        let policy = vec![("grace".into(), "200ms".into()), ("fence".into(), "none".into())];
        let command = Command::AddTree { name: name.parse().unwrap(), tree: tree.clone(), policy, root: None };
        assert!(matches!(caller.command(command).await, Answer::TreeAdded { .. }));
        let grant = caller.acquire(&tree, &session).await;
        Self { tree, session, grant, number: 0 }
    }

    pub async fn renew(&self, caller: &Caller, number: u64) -> Result<wire::RenewAnswer, tonic::Status> {
        renew(caller, &self.session, number).await
    }

    /// Renewed through each of these nodes, well before the session could expire.
    pub async fn stays(&mut self, nodes: &Nodes, through: &[u64]) {
        for id in through {
            let end = Instant::now() + TTL;
            loop {
                self.number += 1;
                let one = timeout(Duration::from_secs(2), self.renew(&nodes.caller(*id), self.number)).await;
                match one {
                    Ok(Ok(answer)) => {
                        assert!(answer.alive, "{}", answer.why_not);
                        assert_eq!((answer.pairs.len(), answer.pairs[0].epoch), (1, self.grant.epoch.get()));
                        break;
                    }
                    _ => assert!(Instant::now() < end, "no renewal through node {id} within a TTL: {one:?}"),
                }
                // An election is under way: asked again soon, as a side does.
                tokio::time::sleep(ELECTION_MAX / 20).await;
            }
        }
    }
}

pub async fn renew(caller: &Caller, session: &SessionId, number: u64) -> Result<wire::RenewAnswer, tonic::Status> {
    let session = session.to_string();
    caller.try_renew(wire::RenewRequest { session, incarnation: 1, number, ..Default::default() }).await
}
