//! turmoil's network as the product wants it: callers for a node, connections for a node and for a side.

use std::io;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use treelease_client::rpc;
use treelease_server::api::callers::Caller;
use treelease_server::consensus::network;
use turmoil::net::{TcpListener, TcpStream};

/// Where every node listens.
pub const PORT: u16 = 7420;

/// Callers of the node on this host.
pub async fn callers() -> io::Result<BoxStream<'static, io::Result<Caller>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let callers = stream::unfold(listener, |listener| async move {
        let called = listener.accept().await.map(|(stream, _)| Caller::new(stream));
        Some((called, listener))
    });
    Ok(callers.boxed())
}

/// How a node reaches another one.
pub fn between_nodes() -> network::Dial {
    network::Dial::new(connect)
}

/// How a side reaches a node.
pub fn to_nodes() -> rpc::Dial {
    rpc::Dial::new(connect)
}

fn connect(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(|uri: Uri| async move {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        TcpStream::connect(address).await.map(TokioIo::new)
    }))
}
