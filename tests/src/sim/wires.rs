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

use super::sockets::Sockets;

/// Where every node listens.
pub const PORT: u16 = 7420;

/// Callers of the node on this host.
pub async fn callers(sockets: Sockets) -> io::Result<BoxStream<'static, io::Result<Caller>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let callers = stream::unfold((listener, sockets), |(listener, sockets)| async move {
        let called = listener.accept().await.map(|(stream, _)| Caller::new(sockets.own(stream)));
        Some((called, (listener, sockets)))
    });
    Ok(callers.boxed())
}

/// How a node reaches another one.
pub fn between_nodes(sockets: Sockets) -> network::Dial {
    network::Dial::new(move |endpoint| connect(endpoint, &sockets))
}

/// How a side reaches a node.
pub fn to_nodes() -> rpc::Dial {
    let sockets = Sockets::default();
    rpc::Dial::new(move |endpoint| connect(endpoint, &sockets))
}

fn connect(endpoint: &Endpoint, sockets: &Sockets) -> Channel {
    let sockets = sockets.clone();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let sockets = sockets.clone();
        async move {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            TcpStream::connect(address).await.map(|stream| TokioIo::new(sockets.own(stream)))
        }
    }))
}
