//! Calls that no client of ours makes: any bytes, to any name, over the server's real port; and what a message looks like that was
//! damaged on its way.
#![allow(dead_code)] // each test file uses a part

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use proptest::sample::Index;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Longest wait for any answer: nothing here is a matter of speed.
const LIMIT: Duration = Duration::from_secs(60);

/// A caller.
#[derive(Clone)]
pub struct Raw {
    address: String,
    channel: Channel,
}

impl Raw {
    pub fn new(address: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().connect_timeout(LIMIT);
        Self { address: address.into(), channel: endpoint.connect_lazy() }
    }

    /// How the call ended: by its status, which an answer has too. The connection itself must not break.
    pub async fn call(&self, path: &str, authorization: Option<&[u8]>, body: Vec<u8>) -> Status {
        let request = http::Request::builder().method("POST").uri(format!("http://{}{path}", self.address));
        let mut request = request.header("content-type", "application/grpc").header("te", "trailers");
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let request = request.body(Body::new(Full::from(body))).unwrap();
        let mut channel = self.channel.clone();
        let called = async {
            poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            let (head, body) = channel.call(request).await.unwrap_or_else(|e| panic!("{path}: {e}")).into_parts();
            if let Some(status) = Status::from_header_map(&head.headers) {
                return status;
            }
            assert_eq!(head.status, 200, "{path}");
            let ended = body.collect().await.unwrap_or_else(|e| panic!("{path}: {e}"));
            ended.trailers().and_then(Status::from_header_map).unwrap_or_else(|| Status::unknown("no status at all"))
        };
        tokio::time::timeout(LIMIT, called).await.unwrap_or_else(|_| panic!("{path}: no answer in {LIMIT:?}"))
    }
}

/// A message as gRPC sends it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    frame(0, message.len() as u32, message)
}

/// The same with any head.
pub fn frame(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

/// Says these bytes to a port and waits until the other end closes, or has nothing to say for a moment.
pub fn say(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // It may be closed in the middle.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// One thing that happens to bytes on their way.
#[derive(Debug, Clone)]
pub enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    /// A part comes twice.
    Twice(Index, Index),
    /// A number that is as large as there are.
    Huge(Index),
}

pub fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let some = || prop::collection::vec(any::<u8>(), 1..40);
    let one = prop_oneof![
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), some()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Twice(from, to)),
        1 => any::<Index>().prop_map(Damage::Huge),
    ];
    prop::collection::vec(one, 1..5)
}

pub fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let end = bytes.len() + 1;
        match damage {
            Damage::Flip(_, _) if bytes.is_empty() => {}
            Damage::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Damage::Cut(at) => bytes.truncate(at.index(end)),
            Damage::Insert(at, more) => {
                let at = at.index(end);
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Twice(from, to) => {
                let (from, to) = (from.index(end), to.index(end));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from..from, part);
            }
            Damage::Huge(at) => {
                let at = at.index(end);
                bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
            }
        }
    }
    bytes
}

/// Whether that is no answer.
pub fn failed(status: &Status) -> bool {
    status.code() != Code::Ok
}
