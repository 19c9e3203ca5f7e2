//! The gRPC server: its limits, who is let in, its end. The only module that names tonic's server.
//!
//! | call | where |
//! |---|---|
//! | Do, History | `lease` |
//! | Status, StatusInPieces | `status` |
//! | Renew (I5) | `renew`, with the nonces of [`nonce`] |
//! | many of them, over calls that stay open | `renewals`, `commands`; such a call itself: `talk` |
//! | Watch | `watch` |
//! | Backup | `backup` |
//! | ChangeMembers | `members` |
//! | who may call | [`auth`] |
//! | grpc.health.v1 | `health` |
//! | what other nodes ask; calls to the leader | `peers` |
//! | where callers come from; how many there may be | [`callers`], `connections` |
//! | how calls end, counted | `outcomes` |
//!
//! What the status codes of a failed call mean, for those who write clients: UNAVAILABLE: it certainly did not happen, ask
//! another node or again; DEADLINE_EXCEEDED (and CANCELLED, from the transport): unknown, ask again with the same request
//! key; RESOURCE_EXHAUSTED: too many at once, later; INVALID_ARGUMENT: the message is no word; UNAUTHENTICATED: the token;
//! FAILED_PRECONDITION: another cluster (I8). A "no" by the lease state is no failed call but an answer, `Refused`.
//! Any node answers any call: what only the leader can do is sent to it, with what is left of the caller's time.
//! It decides nothing about leases.

pub mod auth;
mod backup;
pub mod callers;
mod commands;
mod connections;
mod health;
mod lease;
mod members;
pub mod nonce;
mod outcomes;
mod peers;
mod renew;
mod renewals;
mod status;
mod talk;
mod watch;

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use treelease_proto::clock::Clock;
use treelease_proto::id::ClusterId;
use treelease_proto::wire;
use treelease_proto::wire::lease_server::{self, LeaseServer};
use treelease_proto::wire::raft_server::{self, RaftServer};

use crate::consensus::{Consensus, network};
use crate::failure::{FailStop, Failure};
use crate::fencing::runner::Runner;
use crate::formation::Former;
use crate::leader::Seat;
use crate::limits::{self, MESSAGE_MAX};
use crate::readiness::Readiness;
use crate::telemetry::Telemetry;
use callers::Callers;
use nonce::Nonces;

/// Largest message that is sent: a status of many trees in one, or a history with long words.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// A connection that is silent for so long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// And is closed if it does not answer for so long.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);
/// The same on the level of TCP.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// What the calls need.
#[derive(Clone)]
pub struct Api {
    /// The agreement.
    pub consensus: Arc<Consensus>,
    /// The leader's timers.
    pub seat: Arc<Seat>,
    /// A server's clock.
    pub clock: Arc<dyn Clock>,
    /// The node's way into its cluster.
    pub former: Arc<Former>,
    /// The cluster of this node; not set until it belongs to one, and nobody is answered before.
    pub cluster: Arc<OnceLock<ClusterId>>,
    /// What is counted.
    pub counts: Arc<Telemetry>,
    /// Fence agents: a policy may name those that this node has.
    pub runner: Arc<Runner>,
    /// How much callers may take.
    pub limits: limits::Live,
    /// Ends streams, and the server.
    pub closing: CancellationToken,
}

/// The service.
pub(crate) struct Service {
    /// For what outlives the call that began it.
    own: Weak<Service>,
    api: Api,
    /// For calls that stay open.
    keys: auth::Keys,
    nonces: Mutex<Nonces>,
    watches: Arc<limits::Seats>,
    /// Statuses in pieces that are being read.
    statuses: Arc<limits::Seats>,
    /// One at a time.
    backups: Arc<Semaphore>,
    /// Held while a change of the members is under way.
    changing: tokio::sync::Mutex<()>,
}

/// Who may call, and what is said beside the lease service.
pub struct Door {
    /// The tokens that open it.
    pub keys: auth::Keys,
    /// For the health service.
    pub readiness: Readiness,
    /// Whether callers may ask which calls there are.
    pub reflection: bool,
}

/// Serves until `api.closing`.
pub async fn serve(callers: Callers, api: Api, door: Door, fail: FailStop) {
    let (closing, live, counts) = (api.closing.clone(), api.limits.clone(), api.counts.clone());
    let limits = live.get();
    let gatekeeper = auth::Gatekeeper::new(&door.keys);
    let service = Arc::new_cyclic(|own| Service {
        own: own.clone(),
        api,
        keys: door.keys.clone(),
        nonces: Mutex::new(Nonces::default()),
        watches: Arc::default(),
        statuses: Arc::default(),
        backups: Arc::new(Semaphore::new(1)),
        changing: tokio::sync::Mutex::new(()),
    });
    let peers = RaftServer::new(peers::PeerService(service.clone()))
        .max_decoding_message_size(network::MESSAGE_MAX)
        .max_encoding_message_size(network::MESSAGE_MAX);
    let peers = InterceptedService::new(peers, gatekeeper.clone());
    let service = LeaseServer::from_arc(service).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(ANSWER_MAX);
    let service = InterceptedService::new(service, gatekeeper.clone());
    let health = HealthServer::new(health::Health::new(door.readiness, closing.clone())).max_decoding_message_size(MESSAGE_MAX);
    let reflection = door.reflection.then(|| InterceptedService::new(reflection(), gatekeeper));
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .max_concurrent_streams(u32::try_from(limits.streams).unwrap_or(u32::MAX))
        .concurrency_limit_per_connection(limits.calls)
        .layer(outcomes::counted(counts.clone()))
        .add_service(service)
        .add_service(peers)
        .add_service(health)
        .add_optional_service(reflection);
    let ended = closing.clone().cancelled_owned();
    let served = match callers {
        Callers::Sockets(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
            router.serve_with_incoming_shutdown(connections::counted(incoming, live, counts), ended).await
        }
        Callers::Given(incoming) => router.serve_with_incoming_shutdown(incoming, ended).await,
    };
    if let Err(e) = served
        && !closing.is_cancelled()
    {
        fail.report(Failure::internal(format!("the gRPC server ended: {e}")));
    }
}

/// Which calls there are: those that this node answers.
fn reflection() -> ServerReflectionServer<impl ServerReflection> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(lease_server::SERVICE_NAME)
        .with_service_name(raft_server::SERVICE_NAME)
        .with_service_name(health_server::SERVICE_NAME)
        .build_v1()
        .expect("our own descriptors are well formed")
        .max_decoding_message_size(MESSAGE_MAX)
}

#[tonic::async_trait]
impl wire::lease_server::Lease for Service {
    async fn r#do(&self, request: Request<wire::DoRequest>) -> Result<Response<wire::DoAnswer>, Status> {
        self.ready()?;
        let limit = time_left(request.metadata());
        self.do_command(request.into_inner(), limit).await.map(Response::new)
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewAnswer>, Status> {
        self.ready()?;
        let limit = time_left(request.metadata());
        self.renew_session(request.into_inner(), limit).await.map(Response::new)
    }

    type CommandsStream = talk::Answers<wire::CommandsAnswered>;

    async fn commands(&self, request: Request<Streaming<wire::CommandsAsked>>) -> Result<Response<Self::CommandsStream>, Status> {
        self.ready()?;
        self.own()?.talk(request, commands::Commands).map(Response::new)
    }

    type RenewalsStream = talk::Answers<wire::RenewalsAnswered>;

    async fn renewals(&self, request: Request<Streaming<wire::RenewalsAsked>>) -> Result<Response<Self::RenewalsStream>, Status> {
        self.ready()?;
        self.own()?.talk(request, renewals::OfASide).map(Response::new)
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusAnswer>, Status> {
        self.ready()?;
        self.whole_status().map(Response::new)
    }

    type StatusInPiecesStream = status::Pieces;

    async fn status_in_pieces(&self, request: Request<wire::StatusPiecesRequest>) -> Result<Response<status::Pieces>, Status> {
        self.ready()?;
        self.status_pieces(request.into_inner()).map(Response::new)
    }

    async fn history(&self, request: Request<wire::HistoryRequest>) -> Result<Response<wire::HistoryAnswer>, Status> {
        self.ready()?;
        self.tree_history(request.into_inner()).map(Response::new)
    }

    type WatchStream = watch::Watch;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<watch::Watch>, Status> {
        self.ready()?;
        self.start_watch(request.into_inner()).map(Response::new)
    }

    type BackupStream = backup::Backup;

    async fn backup(&self, _: Request<wire::BackupRequest>) -> Result<Response<backup::Backup>, Status> {
        self.ready()?;
        self.start_backup().await.map(Response::new)
    }

    async fn change_members(&self, request: Request<wire::MembersRequest>) -> Result<Response<wire::MembersAnswer>, Status> {
        self.ready()?;
        let limit = time_left(request.metadata());
        Service::change_members(self, request.into_inner(), limit).await.map(Response::new)
    }
}

/// How long any call to this node may take, and how much of that the leader gets.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// What is left of the caller's time: gRPC's own header, at most eight digits and a unit.
fn time_left(metadata: &MetadataMap) -> Duration {
    let written = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let parsed = written.and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let n: u64 = if digits.len() <= 8 { digits.parse().ok()? } else { return None };
        Some(match unit {
            "H" => Duration::from_secs(n * 3600),
            "M" => Duration::from_secs(n * 60),
            "S" => Duration::from_secs(n),
            "m" => Duration::from_millis(n),
            "u" => Duration::from_micros(n),
            "n" => Duration::from_nanos(n),
            _ => return None,
        })
    });
    parsed.map_or(CALL_LIMIT, |limit| limit.min(CALL_LIMIT))
}

/// What a question on an open call that says how long it may take gets.
fn time_given(limit_ms: u64) -> Duration {
    if limit_ms == 0 { CALL_LIMIT } else { Duration::from_millis(limit_ms).min(CALL_LIMIT) }
}

impl Service {
    /// Whether this node belongs to a cluster yet.
    fn ready(&self) -> Result<(), Status> {
        match self.api.cluster.get() {
            Some(_) => Ok(()),
            None => Err(Status::unavailable(
                "this node belongs to no cluster yet: it waits until every listed node runs (its log says for which)",
            )),
        }
    }

    fn own(&self) -> Result<Arc<Self>, Status> {
        self.own.upgrade().ok_or_else(|| Status::unavailable("the node is stopping"))
    }

    fn cluster(&self) -> &ClusterId {
        self.api.cluster.get().expect("every call passes `ready` first")
    }

    /// One storage, one authority (I8): a caller who follows another cluster is told both names.
    fn same_cluster(&self, theirs: &str) -> Result<(), Status> {
        if theirs.is_empty() || theirs == self.cluster().as_str() {
            return Ok(());
        }
        let theirs: String = theirs.chars().take(64).collect();
        Err(Status::failed_precondition(format!(
            "this server is cluster {}, the caller follows cluster {theirs}; check the endpoints, or follow this cluster with `treelease follow {}`",
            self.cluster(),
            self.cluster()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_time_is_read_and_has_a_limit() {
        let left = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            time_left(&metadata)
        };
        assert_eq!(left("1500m"), Duration::from_millis(1500));
        assert_eq!(left("1500000u"), Duration::from_millis(1500));
        assert_eq!(left("2S"), Duration::from_secs(2));
        for unlimited in ["99999999H", "", "x", "5", "999999999S", "5\u{20}S", "-1S"] {
            assert_eq!(left(unlimited), CALL_LIMIT, "{unlimited}");
        }
        assert_eq!(time_left(&MetadataMap::new()), CALL_LIMIT);
    }
}
