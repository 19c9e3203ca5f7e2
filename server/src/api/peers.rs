//! The Raft service: what other nodes ask of this one.
//!
//! Promises: only members are listened to ([`crate::consensus::peers`]), but for `Hello` and `Promise`, by which a cluster is
//! formed; a forwarded call is carried out here or answered with a reason, never forwarded again, so that two nodes which
//! take each other for the leader do not play ball with it. A word of this node is always an answer, never a failed call:
//! so the one who forwards knows that a failed call is one without a word.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Response, Status, Streaming};
use treelease_proto::wire;
use treelease_proto::wire::forward_answer::Kind;
use treelease_proto::wire::forward_request::Call;
use treelease_proto::wire::raft_server::Raft;

use super::{Service, renewals, talk};
use crate::consensus::incoming::TurnedAway;
use crate::consensus::network::Lost;

/// What other nodes may ask.
pub(crate) struct PeerService(pub Arc<Service>);

#[tonic::async_trait]
impl Raft for PeerService {
    async fn hello(&self, _: Request<wire::HelloRequest>) -> Result<Response<wire::HelloAnswer>, Status> {
        Ok(Response::new(self.0.api.former.hello()))
    }

    async fn promise(&self, request: Request<wire::PromiseRequest>) -> Result<Response<wire::PromiseAnswer>, Status> {
        let why_not = self.0.api.former.promise(request.into_inner()).err().unwrap_or_default();
        Ok(Response::new(wire::PromiseAnswer { why_not }))
    }

    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::AppendAnswer>, Status> {
        self.0.api.consensus.receive_append(request.into_inner()).await.map(Response::new).map_err(turned_away)
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteAnswer>, Status> {
        self.0.api.consensus.receive_vote(request.into_inner()).await.map(Response::new).map_err(turned_away)
    }

    async fn snapshot(&self, request: Request<wire::SnapshotRequest>) -> Result<Response<wire::SnapshotAnswer>, Status> {
        self.0.api.consensus.receive_snapshot(request.into_inner()).await.map(Response::new).map_err(turned_away)
    }

    async fn take_over(&self, request: Request<wire::TakeOverRequest>) -> Result<Response<wire::TakeOverAnswer>, Status> {
        self.0.api.consensus.receive_take_over(request.into_inner()).await.map(Response::new).map_err(turned_away)
    }

    type ForwardRenewalsStream = talk::Answers<wire::RenewalsReturned>;

    async fn forward_renewals(
        &self,
        request: Request<Streaming<wire::RenewalsForwarded>>,
    ) -> Result<Response<Self::ForwardRenewalsStream>, Status> {
        self.0.clone().talk(request, renewals::OfANode::default()).map(Response::new)
    }

    async fn forward(&self, request: Request<wire::ForwardRequest>) -> Result<Response<wire::ForwardAnswer>, Status> {
        let request = request.into_inner();
        let stamp = self.0.api.consensus.let_in(request.stamp.as_ref()).map_err(turned_away)?;
        let limit = Duration::from_millis(request.limit_ms);
        let answer = match request.call {
            Some(Call::Do(call)) => self.0.do_here(call, limit).await.map(Kind::Done),
            Some(Call::Renew(call)) => self.0.renew_here(call).await.map(Kind::Renewed),
            Some(Call::Members(call)) => self.0.members_here(call, limit).await.map(Kind::Members),
            None => Err(Status::unimplemented("this call is of another version")),
        };
        let kind = answer.unwrap_or_else(|status| {
            Kind::Failed(wire::ForwardFailed { code: status.code() as u32, message: status.message().into() })
        });
        Ok(Response::new(wire::ForwardAnswer { stamp: Some(stamp), kind: Some(kind) }))
    }
}

/// What the leader's word, or its silence, means for the caller.
#[allow(clippy::large_enum_variant)] // one at a time, for the length of a call
pub(super) enum Word {
    /// It answered.
    Said(Kind),
    /// It certainly did not happen.
    No(Status),
    /// It may have happened.
    Unknown(String),
}

impl Service {
    /// Sends a call to the leader, with what is left of the caller's time.
    pub(super) async fn ask_leader(&self, leader: u64, call: Call, limit: Duration) -> Word {
        self.api.counts.forwarded.add();
        match self.api.consensus.forward(leader, call, limit).await {
            Ok(Kind::Failed(failed)) => Word::No(Status::new(Code::from(failed.code as i32), failed.message)),
            Ok(kind) => Word::Said(kind),
            Err(Lost::NotSent(why)) => Word::No(not_reached(leader, &why)),
            Err(Lost::Perhaps(why)) => Word::Unknown(no_word(leader, &why)),
        }
    }
}

/// A call certainly did not get to the leader.
pub(super) fn not_reached(leader: u64, why: &str) -> Status {
    Status::unavailable(format!(
        "node {leader} led last and is not reached from here ({why}); an election takes a few seconds, ask again"
    ))
}

/// It may have.
pub(super) fn no_word(leader: u64, why: &str) -> String {
    format!("the leader, node {leader}, did not answer: {why}")
}

pub(super) fn turned_away(why: TurnedAway) -> Status {
    match why {
        TurnedAway::Stranger(why) => Status::failed_precondition(why),
        TurnedAway::Unreadable(why) => Status::invalid_argument(why),
        TurnedAway::Ending(why) => Status::unavailable(why),
    }
}
