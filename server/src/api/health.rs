//! `grpc.health.v1`: the same words as `/healthz` and `/readyz`, for those who speak gRPC only.
//!
//! Promises: the empty service name is SERVING for as long as this process answers, with or without a quorum, because a restart does
//! not bring a quorum back; [`LEASE`] is SERVING while this node can serve ([`crate::readiness`]). Who watches is told each change
//! within [`LOOK`], NOT_SERVING when the node ends, and then the watch ends. It shows no names and asks for no token, so that a
//! supervisor needs none. It decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::readiness::Readiness;

/// The service whose status is this node's readiness.
pub const LEASE: &str = "treelease.v1.Lease";
/// How often readiness is looked at for who watches.
const LOOK: Duration = Duration::from_millis(250);
/// Watches of this node's health at the same time: some supervisors and balancers.
const WATCHES_MAX: usize = 64;

/// The service.
pub struct Health {
    readiness: Readiness,
    closing: CancellationToken,
    watches: Arc<Semaphore>,
}

impl Health {
    /// Until `closing`.
    pub fn new(readiness: Readiness, closing: CancellationToken) -> Self {
        Self { readiness, closing, watches: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }
}

/// How a service stands now.
fn now(readiness: &Readiness, service: &str) -> ServingStatus {
    match service {
        "" => ServingStatus::Serving,
        LEASE if readiness.ready().is_ok() => ServingStatus::Serving,
        LEASE => ServingStatus::NotServing,
        _ => ServingStatus::ServiceUnknown,
    }
}

fn word(status: ServingStatus) -> Result<HealthCheckResponse, Status> {
    Ok(HealthCheckResponse { status: status.into() })
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match now(&self.readiness, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("there is no such service here; ask for `{LEASE}`, or for none by name")))
            }
            status => word(status).map(Response::new),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let permit = self.watches.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHES_MAX} watch this node's health; end one, or ask with Check"))
        })?;
        // One message at a time: who does not read hears the newest word when it does.
        let (out, watch) = mpsc::channel(1);
        let (readiness, closing) = (self.readiness.clone(), self.closing.clone());
        tokio::spawn(tell(readiness, request.into_inner().service, out, closing, permit));
        Ok(Response::new(ReceiverStream::new(watch)))
    }
}

/// Each change, until the caller goes or the node ends.
async fn tell(
    readiness: Readiness,
    service: String,
    out: mpsc::Sender<Result<HealthCheckResponse, Status>>,
    closing: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let changes = async {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            looks.tick().await;
            let status = now(&readiness, &service);
            if last != Some(status) && out.send(word(status)).await.is_err() {
                return;
            }
            last = Some(status);
        }
    };
    tokio::select! {
        () = changes => {}
        () = out.closed() => {}
        () = closing.cancelled() => {
            // Full or gone: the stream's own end tells the caller.
            let _ = out.try_send(word(ServingStatus::NotServing));
        }
    }
}
