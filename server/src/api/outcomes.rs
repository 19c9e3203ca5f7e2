//! Counts how calls end, where every call passes: also those that no service understands.
//!
//! Promises: a call that is answered with a failure is counted once, under its status code; a stream that ends with one later is
//! not. It changes nothing.

use std::sync::Arc;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tower::util::MapResponseLayer;

use crate::telemetry::Telemetry;

/// A layer that counts.
pub fn counted(counts: Arc<Telemetry>) -> MapResponseLayer<impl Fn(Response<Body>) -> Response<Body> + Clone> {
    MapResponseLayer::new(move |answer: Response<Body>| {
        // What fails before it has an answer says so in the head.
        if let Some(status) = Status::from_header_map(answer.headers()) {
            counts.answered(status.code() as usize);
        }
        answer
    })
}
