//! Connections to this node's port, counted; those beyond the limit are closed at once.
//!
//! Promises: what was let in is counted until it ends; what is beyond the limit costs nothing but the moment in which it is closed,
//! so that a crowd takes no descriptor that log and snapshots need. It does not know who calls: other nodes come through the same
//! port, so the limit must leave room for them.

use std::future::{Future, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::limits::{Live, Seat};
use crate::telemetry::Telemetry;

/// How long a caller may take for its first words. For what comes after them there is HTTP/2's own keepalive.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// HTTP/2's preface has so many bytes.
const PREFACE: usize = 24;

/// Those of them that are let in.
pub fn counted(
    incoming: impl Stream<Item = io::Result<TcpStream>>,
    limits: Live,
    counts: Arc<Telemetry>,
) -> impl Stream<Item = io::Result<Counted>> {
    incoming.filter_map(move |accepted| {
        ready(match accepted.map(|stream| (counts.connections.take(limits.get().connections), stream)) {
            Ok((Some(seat), stream)) => {
                Some(Ok(Counted { stream, silent: Some((Box::pin(sleep(FIRST_WORDS)), 0)), _seat: seat }))
            }
            Ok((None, _closed)) => {
                counts.connections_refused.add();
                None
            }
            Err(e) => Some(Err(e)),
        })
    })
}

/// A connection that was let in.
pub struct Counted {
    stream: TcpStream,
    /// Until when its first words must have come, and how many bytes of them have: else whoever only connects keeps its seat for ever,
    /// and other nodes find none.
    silent: Option<(Pin<Box<Sleep>>, usize)>,
    _seat: Seat,
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;
    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((limit, bytes)) = &mut self.silent {
            *bytes += buf.filled().len() - before;
            if *bytes >= PREFACE {
                self.silent = None;
            } else if read.is_pending() && limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
