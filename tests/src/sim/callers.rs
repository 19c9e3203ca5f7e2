//! The hosts from which sides call: the client's real calls, one task for each, over turmoil's network.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use treelease_client::rpc::{CallError, Endpoint, Servers};
use treelease_client::session::{Answered, Renewal};
use treelease_proto::command::{Answer, Proposal};
use treelease_proto::id::{RequestKey, SessionId};
use treelease_proto::tree::ClusterStatus;

use super::{nodes, plan, wires};

/// How long one call may take. A side asks again by itself.
const CALL_LIMIT: Duration = Duration::from_secs(4);

/// What a side wants of the servers.
pub enum Call {
    /// A renewal.
    Renew(Renewal),
    /// A command, for its job of that number.
    Do(u64, Box<Proposal>),
    /// All trees.
    Status,
}

/// What came of it.
pub enum Told {
    /// An answer to a renewal.
    Renewed(SessionId, Answered),
    /// None came to that one.
    Failed(SessionId, u64),
    /// An answer to a command.
    Did(u64, RequestKey, Answer),
    /// All trees.
    Status(Box<ClusterStatus>),
    /// Turned away at the server's door: nothing in this world may be.
    Refused(String),
}

impl Told {
    /// Which comes first of those that came in one step.
    pub fn rank(&self) -> (u8, u64) {
        match self {
            Told::Renewed(_, answered) => (0, answered.number),
            Told::Failed(_, number) => (1, *number),
            Told::Did(job, ..) => (2, *job),
            Told::Status(status) => (3, status.revision),
            Told::Refused(_) => (4, 0),
        }
    }
}

/// What came, and to which host, in order. Clones are the same.
pub type Post = Arc<Mutex<VecDeque<(usize, Told)>>>;

/// The name of a side's host.
pub fn name(host: usize) -> String {
    format!("side-{host}")
}

/// Makes the calls of one host for as long as the world lasts.
pub async fn serve(host: usize, mut calls: UnboundedReceiver<Call>, post: Post) -> turmoil::Result {
    let address = |id| Endpoint::from_address(&format!("{}:{}", nodes::name(id), wires::PORT));
    let endpoints = (1..=plan::NODES as u64).map(address).collect::<Result<Vec<_>, _>>()?;
    let servers = Servers::dialled(endpoints, None, CALL_LIMIT, wires::to_nodes());
    while let Some(call) = calls.recv().await {
        let (servers, post) = (servers.clone(), post.clone());
        tokio::spawn(async move {
            if let Some(told) = make(&servers, call).await {
                post.lock().expect("nothing panics while it holds the post").push_back((host, told));
            }
        });
    }
    Ok(())
}

async fn make(servers: &Servers, call: Call) -> Option<Told> {
    match call {
        Call::Renew(renewal) => Some(match servers.renew(&renewal, None).await {
            Ok(answered) => Told::Renewed(renewal.session, answered),
            Err(CallError::Refused(why)) => Told::Refused(why.to_string()),
            Err(_) => Told::Failed(renewal.session, renewal.number),
        }),
        Call::Do(job, proposal) => {
            match servers.do_keyed(&proposal.request_key, &proposal.actor, None, &proposal.command).await {
                Ok(done) => Some(Told::Did(job, proposal.request_key, done.answer)),
                Err(CallError::Refused(why)) => Some(Told::Refused(why.to_string())),
                Err(_) => None,
            }
        }
        Call::Status => servers.status().await.ok().map(|status| Told::Status(Box::new(status))),
    }
}
