//! `grpc.health.v1`: the same words as `/healthz` and `/readyz`, for those who speak gRPC only.
//!
//! Promises: the empty service name is SERVING for as long as this process answers, with or without a quorum, because a restart does
//! not bring a quorum back; `treelease.v1.Lease` is SERVING while this node can serve ([`crate::readiness`]), within
//! [`LOOK`] of the truth, and NOT_SERVING as soon as the node ends. It shows no names and asks for no token, so that a
//! supervisor needs none. It decides nothing.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::health_reporter;

use crate::readiness::Readiness;

/// The service whose status is this node's readiness.
pub const LEASE: &str = "treelease.v1.Lease";
/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The service, and a task that keeps it true until `closing`.
pub fn service(readiness: Readiness, closing: CancellationToken) -> HealthServer<impl Health> {
    let (mut reporter, service) = health_reporter();
    tokio::spawn(async move {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while closing.run_until_cancelled(looks.tick()).await.is_some() {
            let status = if readiness.ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(LEASE, status).await;
        }
        // Who watches is told, and then its stream ends: the server's own end waits for streams.
        reporter.set_service_status(LEASE, ServingStatus::NotServing).await;
        reporter.clear_service_status(LEASE).await;
        reporter.clear_service_status("").await;
    });
    service
}
