//! Health and metrics over plain HTTP, for supervisors and for Prometheus: `--admin HOST:PORT`.
//!
//! | path | says |
//! |---|---|
//! | `/healthz` | 200 while this process lives, with or without a quorum: restarting a node does not bring a quorum back |
//! | `/readyz` | 200 if this node can serve; else 503 and a sentence that says why not |
//! | `/metrics` | numbers in Prometheus' text format ([`crate::telemetry`]) |
//!
//! Promises: it runs on a thread and a runtime of its own and waits for no lock that applying an entry holds, so it answers
//! however busy or stuck the agreement is. A caller gets [`CONNECTION_LIMIT`] for its whole visit, one request on each
//! connection, and [`HEAD_MAX`] bytes for it; the number of connections has a limit. It changes nothing, and shows neither
//! names nor paths, so it asks for no token. It does not decide whether a node may serve: readiness is for load balancers.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::consensus::Consensus;
use crate::failure::{FailStop, Failure, Result};
use crate::readiness::Readiness;
use crate::telemetry::{Scrape, Telemetry};

/// Connections at the same time; who comes then waits in the listener's own queue. Some probes and a scraper or two.
const CONNECTIONS_MAX: usize = 32;
/// Longest head of a request, in bytes; bodies are not read. hyper takes no less.
const HEAD_MAX: usize = 8 * 1024;
/// How long a caller may take until its head is there.
const HEAD_LIMIT: Duration = Duration::from_secs(3);
/// How long one connection lives at most.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be taken (no descriptors left): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the answers are made of.
pub struct Admin {
    /// The agreement.
    pub consensus: Arc<Consensus>,
    /// Whether this node can serve.
    pub readiness: Readiness,
    /// What is counted.
    pub counts: Arc<Telemetry>,
    /// Whether the node can not go on.
    pub fail: FailStop,
}

/// Takes the port. Nothing is answered yet.
pub fn bind(addresses: &[SocketAddr]) -> Result<TcpListener> {
    let cannot = |e: std::io::Error| {
        let named: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        Failure::cannot_create(format!("cannot listen on {} for --admin: {e}; choose another port", named.join(", ")))
    };
    let listener = TcpListener::bind(addresses).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    Ok(listener)
}

impl Admin {
    /// Answers until `closing`, on a thread of its own.
    pub fn start(self, listener: TcpListener, closing: CancellationToken) -> Result<()> {
        let failed = |e: std::io::Error| Failure::internal(format!("no thread for --admin: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(failed)?
        };
        let admin = Arc::new(self);
        let work = move || runtime.block_on(async { closing.run_until_cancelled(admin.serve(listener)).await });
        std::thread::Builder::new().name("admin".into()).spawn(work).map(drop).map_err(failed)
    }

    async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::debug!("a caller of --admin could not be taken: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let answers = service_fn(|request| {
                    let answer = admin.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_MAX).keep_alive(false);
                // A caller that breaks off, or speaks no HTTP, is nobody's worry.
                let _ = timeout(CONNECTION_LIMIT, server.serve_connection(TokioIo::new(stream), answers)).await;
                drop(place);
            });
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            return say(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are answered here\n".into());
        }
        match request.uri().path() {
            "/healthz" => match self.fail.failed() {
                None => say(StatusCode::OK, TEXT, "alive\n".into()),
                Some(failure) => say(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("this node is ending: {failure}\n")),
            },
            "/readyz" => match self.readiness.ready() {
                Ok(()) => say(StatusCode::OK, TEXT, "ready\n".into()),
                Err(why) => say(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
            },
            "/metrics" => say(StatusCode::OK, PROMETHEUS, self.scrape()),
            _ => say(StatusCode::NOT_FOUND, TEXT, "there are /healthz, /readyz and /metrics\n".into()),
        }
    }

    fn scrape(&self) -> String {
        let scrape = Scrape {
            ready: self.readiness.ready().is_ok(),
            gauges: self.consensus.gauges(),
            counted: &self.counts,
            store: self.consensus.counts().read(),
            holdings: self.consensus.holdings(),
        };
        scrape.text()
    }
}

fn say(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    answer
}
