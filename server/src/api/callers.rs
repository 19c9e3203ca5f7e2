//! Where callers come from: the machine's sockets, or a stream of connections that somebody else makes.
//!
//! It does not know who calls, nor what.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

/// Where callers come from.
pub enum Callers {
    /// Connections to a listening socket.
    Sockets(TcpListener),
    /// Connections of a simulated network.
    Given(BoxStream<'static, io::Result<Caller>>),
}

/// Both directions of a connection.
trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connection that was made elsewhere.
pub struct Caller(Pin<Box<dyn Duplex>>);

impl Caller {
    /// Of that connection.
    pub fn new(connection: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(connection))
    }
}

impl Connected for Caller {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Caller {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}
