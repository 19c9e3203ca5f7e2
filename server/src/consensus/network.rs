//! To the other nodes, over gRPC. The only module of this crate that names tonic's client.
//!
//! Promises: `new_client` returns at once, because openraft's core waits for it (STACK 1.6): channels connect when first
//! used, two for each member's address and kept as long as it is one, so that a crowd of forwarded calls never holds up a
//! heartbeat, and nothing grows with the members that there once were. What the transport says is `Unreachable`, never an answer; an answer counts only if its stamp is the asked member's (I7, [`super::peers`]). A
//! forwarded call that brought no word of the leader may have happened ([`Lost::Perhaps`]), unless it was never sent.
//!
//! It does not know what an entry or a call means.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt};
use openraft::error::{Fatal, InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use treelease_proto::id::NodeId;
use treelease_proto::wire;
use treelease_proto::wire::raft_client::RaftClient;

use super::ahead::Ahead;
use super::messages;
use super::peers::{Peers, QuorumAge};
use super::types::{AppendAnswer, AppendRequest, SnapshotAnswer, SnapshotRequest, TypeConfig, VoteAnswer, VoteRequest};
use crate::config::Token;
use crate::store::identity::Member;

/// Largest message between nodes: a full message of entries, or a piece of a snapshot, with room to spare.
pub const MESSAGE_MAX: usize = 8 * 1024 * 1024;
const _: () = assert!(super::ENTRIES_IN_MESSAGE as usize * (super::proposer::BATCH_BYTES_MAX + 4096) <= MESSAGE_MAX);
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// A connection that is silent for so long is asked whether it lives: a partition that healed shows within a second or two.
const KEEPALIVE: Duration = Duration::from_millis(1000);
/// And is closed if it does not answer for so long.
const KEEPALIVE_LIMIT: Duration = Duration::from_millis(1000);
/// How long a peer may take to say who it is, or to promise itself.
const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// What a channel is for: those who wait on one never hold up the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Agreement,
    Calls,
}

/// How a connection is made: over this machine's network, unless something else is given.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>);

impl Dial {
    /// Another way.
    pub fn new(connect: impl Fn(&Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }
}

impl Default for Dial {
    fn default() -> Self {
        Self::new(Endpoint::connect_lazy)
    }
}

/// A call that brought no word of the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// It was never sent, or refused at the door: it did not happen.
    NotSent(String),
    /// It may have happened.
    Perhaps(String),
}

/// Why a call that stays open did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOpened {
    /// The node that was asked takes none: it is of an earlier version, or has no room for another one. Nothing on it was read.
    NotTaken,
    /// It is not reached, or did not let it in.
    No(String),
}

/// Only the node's own word: a connection that broke has a cause, and may look like one.
fn not_taken(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unimplemented | tonic::Code::ResourceExhausted)
        && std::error::Error::source(status).is_none()
}

/// The connections to all peers.
#[derive(Clone)]
pub struct Network {
    peers: Arc<Peers>,
    token: Arc<RwLock<Option<Token>>>,
    backoff: Duration,
    dial: Dial,
    channels: Arc<Mutex<BTreeMap<(String, Lane), Channel>>>,
    /// Members that are not reached, and why: said once when it changes, not at every heartbeat.
    away: Arc<Mutex<BTreeMap<NodeId, String>>>,
    /// What a leader says of its quorum with every message.
    quorum_age: Arc<OnceLock<Box<dyn Fn() -> QuorumAge + Send + Sync>>>,
    /// What followers may be sent before this node's disk has it.
    ahead: Ahead,
}

impl Network {
    /// Nothing is connected yet. After a peer was unreachable openraft waits a heartbeat before it tries again.
    pub fn new(peers: Arc<Peers>, token: Option<Token>, heartbeat: Duration, dial: Dial) -> Self {
        let token = Arc::new(RwLock::new(token));
        let (channels, away, quorum_age) = (Arc::default(), Arc::default(), Arc::default());
        Self { peers, token, backoff: heartbeat, dial, channels, away, quorum_age, ahead: Ahead::new(heartbeat) }
    }

    /// What followers are sent before this node's disk has it.
    pub fn ahead(&self) -> Ahead {
        self.ahead.clone()
    }

    /// The token that this node shows to the others from now on.
    pub fn show(&self, token: Option<Token>) {
        *self.token.write().expect("nothing panics while it holds the token") = token;
    }

    /// Where to look for what this node says of its quorum; once.
    pub fn tell_quorum(&self, age: impl Fn() -> QuorumAge + Send + Sync + 'static) {
        let _ = self.quorum_age.set(Box::new(age));
    }

    fn quorum_age(&self) -> QuorumAge {
        self.quorum_age.get().map_or(QuorumAge::Never, |age| age())
    }

    /// The members have changed: what is kept for those that are none any more is let go.
    pub fn members_changed(&self) {
        self.channels().retain(|(addr, _), _| self.peers.keeps(addr));
        self.away().retain(|id, _| self.peers.member(*id).is_some());
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<(String, Lane), Channel>> {
        self.channels.lock().expect("nothing panics while it holds the channels")
    }

    fn away(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.away.lock().expect("nothing panics while it holds the map")
    }

    /// Asks whoever is at this address who it is.
    pub async fn hello(&self, addr: &str, node: NodeId) -> Result<wire::HelloAnswer, String> {
        let mut client = self.client(addr, Lane::Calls)?;
        let request = self.request(wire::HelloRequest { node }, HELLO_LIMIT);
        client.hello(request).await.map(|answer| answer.into_inner()).map_err(|status| said(&status))
    }

    /// Asks an empty node to promise itself.
    pub async fn promise(&self, addr: &str, request: wire::PromiseRequest) -> Result<(), String> {
        let mut client = self.client(addr, Lane::Calls)?;
        let answer = client.promise(self.request(request, HELLO_LIMIT)).await.map_err(|status| said(&status))?;
        match answer.into_inner().why_not {
            why if why.is_empty() => Ok(()),
            why => Err(why),
        }
    }

    /// A caller's call, to the leader.
    pub async fn forward(
        &self,
        leader: NodeId,
        call: wire::forward_request::Call,
        limit: Duration,
    ) -> Result<wire::forward_answer::Kind, Lost> {
        let member = self.peers.member(leader).ok_or_else(|| Lost::NotSent(format!("node {leader} is not known here")))?;
        let stamp = self.peers.stamp(leader, &member.disk).ok_or_else(|| Lost::NotSent("there is no cluster yet".into()))?;
        let request = wire::ForwardRequest { stamp: Some(stamp), limit_ms: limit.as_millis() as u64, call: Some(call) };
        let mut client = self.client(&member.addr, Lane::Calls).map_err(Lost::NotSent)?;
        // The leader ends the call at the limit; this side waits a little longer, for its word.
        let grace = Duration::from_millis(100).min(limit / 4);
        let answer = match tokio::time::timeout(limit, client.forward(self.request(request, limit - grace))).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if is_at_the_door(&status) => return Err(Lost::NotSent(said(&status))),
            Ok(Err(status)) => return Err(Lost::Perhaps(said(&status))),
            Err(_) => return Err(Lost::Perhaps(format!("no answer within {} ms", limit.as_millis()))),
        };
        self.peers.check_answer(answer.stamp.as_ref(), leader, &member.disk).map_err(Lost::Perhaps)?;
        answer.kind.ok_or_else(|| Lost::Perhaps("the answer is of another version".into()))
    }

    /// Opens the call over which renewals go to that node, for as long as there may be more of them.
    pub async fn renewals(
        &self,
        addr: &str,
        asked: impl Stream<Item = wire::RenewalsForwarded> + Send + 'static,
    ) -> Result<BoxStream<'static, Result<wire::RenewalsReturned, String>>, NotOpened> {
        let mut client = self.client(addr, Lane::Calls).map_err(NotOpened::No)?;
        let mut request = Request::new(asked);
        self.authorise(&mut request);
        match client.forward_renewals(request).await {
            Ok(answers) => Ok(answers.into_inner().map(|answer| answer.map_err(|status| said(&status))).boxed()),
            Err(status) if not_taken(&status) => Err(NotOpened::NotTaken),
            Err(status) => Err(NotOpened::No(said(&status))),
        }
    }

    /// What is between this node and the others.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The token that this node shows now.
    pub fn shown(&self) -> Option<Token> {
        self.token.read().expect("nothing panics while it holds the token").clone()
    }

    /// Asks a member to lead. The error says why it does not.
    pub async fn take_over(&self, node: NodeId, limit: Duration) -> Result<(), String> {
        let member = self.peers.member(node).ok_or_else(|| format!("node {node} is not known here"))?;
        let stamp = self.peers.stamp(node, &member.disk).ok_or("there is no cluster yet")?;
        let mut client = self.client(&member.addr, Lane::Calls)?;
        let request = self.request(wire::TakeOverRequest { stamp: Some(stamp) }, limit);
        let answer = client.take_over(request).await.map_err(|status| said(&status))?.into_inner();
        self.peers.check_answer(answer.stamp.as_ref(), node, &member.disk)?;
        if answer.why_not.is_empty() { Ok(()) } else { Err(answer.why_not) }
    }

    fn client(&self, addr: &str, lane: Lane) -> Result<RaftClient<Channel>, String> {
        let mut channels = self.channels();
        let channel = match channels.get(&(addr.to_owned(), lane)) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{addr}"))
                    .map_err(|e| format!("{addr} is no address: {e}"))?
                    .connect_timeout(CONNECT_LIMIT)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_LIMIT)
                    .keep_alive_while_idle(true)
                    .tcp_nodelay(true);
                let channel = (self.dial.0)(&endpoint);
                // Who is asked once, to be taken in perhaps, is asked over a connection of its own.
                if self.peers.keeps(addr) {
                    channels.insert((addr.to_owned(), lane), channel.clone());
                }
                channel
            }
        };
        Ok(RaftClient::new(channel).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX))
    }

    fn request<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        self.authorise(&mut request);
        request
    }

    fn authorise<T>(&self, request: &mut Request<T>) {
        if let Some(token) = self.token.read().expect("nothing panics while it holds the token").as_ref()
            && let Ok(value) = format!("Bearer {}", token.as_str()).parse()
        {
            request.metadata_mut().insert("authorization", value);
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, id: NodeId, node: &Member) -> Peer {
        Peer { id, member: node.clone(), network: self.clone() }
    }
}

/// The way to one member.
pub struct Peer {
    id: NodeId,
    member: Member,
    network: Network,
}

type Error<E = RaftError<NodeId>> = RPCError<NodeId, Member, E>;

impl Peer {
    fn unreachable<E: std::error::Error>(&self, why: impl Into<String>) -> Error<E> {
        let why = why.into();
        if self.network.away().insert(self.id, why.clone()).is_none() {
            tracing::warn!("node {} at {} is not reached: {why}", self.id, self.member.addr);
        }
        RPCError::Unreachable(Unreachable::new(&io::Error::other(format!("node {} at {}: {why}", self.id, self.member.addr))))
    }

    fn client<E: std::error::Error>(&self) -> Result<(RaftClient<Channel>, wire::Stamp), Error<E>> {
        let client = self.network.client(&self.member.addr, Lane::Agreement).map_err(|why| self.unreachable(why))?;
        let stamp = self.network.peers.stamp(self.id, &self.member.disk);
        Ok((client, stamp.ok_or_else(|| self.unreachable("this node belongs to no cluster yet"))?))
    }

    /// What the peer said, if it was that very member who said it.
    fn heard<T, E: std::error::Error>(
        &self,
        answer: Result<tonic::Response<T>, Status>,
        stamp: impl Fn(&T) -> Option<&wire::Stamp>,
    ) -> Result<T, Error<E>> {
        let answer = answer.map_err(|status| self.unreachable(said(&status)))?.into_inner();
        self.network.peers.check_answer(stamp(&answer), self.id, &self.member.disk).map_err(|why| self.unreachable(why))?;
        let was_away = self.network.away().remove(&self.id);
        if was_away.is_some() {
            tracing::info!("node {} at {} is reached again", self.id, self.member.addr);
        }
        Ok(answer)
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(&mut self, request: AppendRequest, option: RPCOption) -> Result<AppendAnswer, Error> {
        let (mut client, stamp) = self.client()?;
        let covered = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id).map(|id| id.index);
        self.network.ahead.may_speak().await;
        let request =
            self.network.request(messages::append_to_wire(&request, stamp, self.network.quorum_age()), option.soft_ttl());
        let answer = self.heard(client.append(request).await, |answer| answer.stamp.as_ref())?;
        let answer = messages::append_answer_from_wire(answer).map_err(|e| self.unreachable(e.to_string()))?;
        if let (AppendAnswer::Success | AppendAnswer::PartialSuccess(_), Some(covered)) = (&answer, covered) {
            // It counts only together with this node's own disk (I7).
            self.network.ahead.has(covered).await;
        }
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        request: SnapshotRequest,
        option: RPCOption,
    ) -> Result<SnapshotAnswer, Error<RaftError<NodeId, InstallSnapshotError>>> {
        let (mut client, stamp) = self.client()?;
        let request =
            self.network.request(messages::snapshot_to_wire(request, stamp, self.network.quorum_age()), option.soft_ttl());
        let answer = self.heard(client.snapshot(request).await, |answer| answer.stamp.as_ref())?;
        match messages::snapshot_answer_from_wire(answer).map_err(|e| self.unreachable(e.to_string()))? {
            Ok(answer) => Ok(answer),
            Err(mismatch) => {
                let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(RemoteError::new(self.id, error)))
            }
        }
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteAnswer, Error> {
        let (mut client, stamp) = self.client()?;
        let request = self.network.request(messages::vote_request_to_wire(&request, stamp), option.soft_ttl());
        let answer = self.heard(client.vote(request).await, |answer| answer.stamp.as_ref())?;
        messages::vote_answer_from_wire(answer).map_err(|e| self.unreachable(e.to_string()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.backoff))
    }
}

/// Why the node's own openraft has no answer for a peer.
pub fn fatal(error: &Fatal<NodeId>) -> String {
    format!("this node is ending: {error}")
}

fn said(status: &Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    }
}

/// Whether a call certainly never reached the one whom it was for: no connection, or a refusal that only our own door speaks.
fn is_at_the_door(status: &Status) -> bool {
    use tonic::Code;
    if matches!(status.code(), Code::FailedPrecondition | Code::Unauthenticated | Code::Unimplemented) {
        return true;
    }
    let mut source = std::error::Error::source(status);
    while let Some(e) = source {
        if e.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = e.source();
    }
    false
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
