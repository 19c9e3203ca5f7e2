//! The local socket: what a command asks its side's daemon. A call is turned into a message to the daemon's loop, and its
//! answer back; nothing is decided here.
//!
//! The socket lies in the runtime directory, mode 0600; callers of another user are refused by their credentials as well.
//! A hold of a command lives as long as its stream: when the command dies, the kernel closes the connection, the stream is
//! dropped here, and the loop is told.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use treelease_client::error::Failure;
use treelease_client::words::id::HoldId;
use treelease_client::words::refusal::Code;
use treelease_client::words::wire::side_server::{Side, SideServer};
use treelease_client::words::wire::{
    AddMountAnswer, AddMountRequest, DownRequest, FollowAnswer, FollowRequest, GiveUpRequest, HandOverRequest, HoldAnswer,
    HoldRequest, HoldsAnswer, HoldsRequest, Progress, RemoveMountAnswer, RemoveMountRequest, ReportAnswer, ReportRequest,
    WritersAnswer, WritersRequest,
};

/// The most calls that the loop has not seen to yet; more wait at the socket.
pub const CALLS_MAX: usize = 256;
/// Longest piece of a report's JSON, in bytes.
const PIECE_MAX: usize = 1 << 20;
/// The most words to one waiting command that it has not read yet.
const ANSWERS_MAX: usize = 64;

/// A call for the daemon's loop.
#[derive(Debug)]
pub enum Call {
    /// How things stand.
    Report(oneshot::Sender<ReportAnswer>),
    /// A claim on a lease.
    Hold(HoldId, HoldRequest, mpsc::Sender<HoldAnswer>),
    /// The command that claimed it is gone.
    HoldGone(HoldId),
    /// Hand a lease back.
    GiveUp(GiveUpRequest, mpsc::Sender<Progress>),
    /// Give a lease to another side.
    HandOver(HandOverRequest, mpsc::Sender<Progress>),
    /// Guard a directory.
    AddMount(AddMountRequest, oneshot::Sender<AddMountAnswer>),
    /// Guard it no more.
    RemoveMount(RemoveMountRequest, oneshot::Sender<RemoveMountAnswer>),
    /// Follow a restored cluster.
    Follow(FollowRequest, oneshot::Sender<FollowAnswer>),
    /// End.
    Down(DownRequest, mpsc::Sender<Progress>),
    /// What keeps leases here.
    Holds(HoldsRequest, oneshot::Sender<HoldsAnswer>),
    /// Who wrote lately.
    Writers(WritersRequest, oneshot::Sender<WritersAnswer>),
}

/// The service over the loop's mailbox.
#[derive(Debug, Clone)]
struct Face {
    calls: mpsc::Sender<Call>,
    uid: u32,
}

/// Tells the loop when the command at the other end is gone.
struct HoldStream {
    inner: ReceiverStream<HoldAnswer>,
    hold: HoldId,
    calls: mpsc::Sender<Call>,
}

impl Stream for HoldStream {
    type Item = Result<HoldAnswer, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.inner).poll_next(cx).map(|answer| answer.map(Ok))
    }
}

impl Drop for HoldStream {
    fn drop(&mut self) {
        let (calls, hold) = (self.calls.clone(), self.hold.clone());
        // The runtime may be going down: then the loop ends too and there is nobody to tell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { calls.send(Call::HoldGone(hold)).await });
        }
    }
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<Progress, Status>> + Send>>;

impl Face {
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred).map(|cred| cred.uid());
        match caller {
            Some(uid) if uid == self.uid || uid == 0 => Ok(()),
            _ => Err(Status::permission_denied(format!("this daemon belongs to user {}", self.uid))),
        }
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<Response<T>, Status> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(call(answer)).await.map_err(|_| ending())?;
        answered.await.map(Response::new).map_err(|_| ending())
    }

    async fn progress(&self, call: impl FnOnce(mpsc::Sender<Progress>) -> Call) -> Result<Response<ProgressStream>, Status> {
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        self.calls.send(call(answers)).await.map_err(|_| ending())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answered).map(Ok))))
    }
}

/// The JSON in pieces of at most so many bytes; the first has everything else.
fn pieces_of(mut whole: ReportAnswer, most: usize) -> Vec<ReportAnswer> {
    let json = std::mem::take(&mut whole.json);
    let mut rest = json.as_str();
    let mut pieces = vec![whole];
    loop {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(most));
        if let Some(last) = pieces.last_mut() {
            last.json = piece.to_owned();
        }
        if after.is_empty() {
            return pieces;
        }
        rest = after;
        pieces.push(ReportAnswer::default());
    }
}

fn ending() -> Status {
    Status::unavailable("the side daemon is ending")
}

#[tonic::async_trait]
impl Side for Face {
    type HoldStream = Pin<Box<dyn Stream<Item = Result<HoldAnswer, Status>> + Send>>;
    type GiveUpStream = ProgressStream;
    type HandOverStream = ProgressStream;
    type DownStream = ProgressStream;

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportAnswer>, Status> {
        self.check(&request)?;
        self.ask(Call::Report).await
    }

    type ReportInPiecesStream = Pin<Box<dyn Stream<Item = Result<ReportAnswer, Status>> + Send>>;

    async fn report_in_pieces(&self, request: Request<ReportRequest>) -> Result<Response<Self::ReportInPiecesStream>, Status> {
        self.check(&request)?;
        let whole = self.ask(Call::Report).await?.into_inner();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces_of(whole, PIECE_MAX).into_iter().map(Ok)))))
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        self.check(&request)?;
        let hold = HoldId::random();
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        self.calls.send(Call::Hold(hold.clone(), request.into_inner(), answers)).await.map_err(|_| ending())?;
        let stream = HoldStream { inner: ReceiverStream::new(answered), hold, calls: self.calls.clone() };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn give_up(&self, request: Request<GiveUpRequest>) -> Result<Response<Self::GiveUpStream>, Status> {
        self.check(&request)?;
        self.progress(|answers| Call::GiveUp(request.into_inner(), answers)).await
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Result<Response<Self::HandOverStream>, Status> {
        self.check(&request)?;
        self.progress(|answers| Call::HandOver(request.into_inner(), answers)).await
    }

    async fn add_mount(&self, request: Request<AddMountRequest>) -> Result<Response<AddMountAnswer>, Status> {
        self.check(&request)?;
        self.ask(|answer| Call::AddMount(request.into_inner(), answer)).await
    }

    async fn remove_mount(&self, request: Request<RemoveMountRequest>) -> Result<Response<RemoveMountAnswer>, Status> {
        self.check(&request)?;
        self.ask(|answer| Call::RemoveMount(request.into_inner(), answer)).await
    }

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<FollowAnswer>, Status> {
        self.check(&request)?;
        self.ask(|answer| Call::Follow(request.into_inner(), answer)).await
    }

    async fn down(&self, request: Request<DownRequest>) -> Result<Response<Self::DownStream>, Status> {
        self.check(&request)?;
        self.progress(|answers| Call::Down(request.into_inner(), answers)).await
    }

    async fn holds(&self, request: Request<HoldsRequest>) -> Result<Response<HoldsAnswer>, Status> {
        self.check(&request)?;
        self.ask(|answer| Call::Holds(request.into_inner(), answer)).await
    }

    async fn writers(&self, request: Request<WritersRequest>) -> Result<Response<WritersAnswer>, Status> {
        self.check(&request)?;
        self.ask(|answer| Call::Writers(request.into_inner(), answer)).await
    }
}

/// Serves the socket until `stop` is cancelled. Returns once it listens.
///
/// A socket file that nobody listens on any more is removed first: the caller holds the daemon's lock, so it is a leftover.
pub fn serve(path: &Path, calls: mpsc::Sender<Call>, stop: CancellationToken) -> Result<tokio::task::JoinHandle<()>, Failure> {
    let cannot = |e: std::io::Error| Failure::new(Code::CannotCreate, format!("{}: {e}", path.display()));
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(cannot(e)),
        _ => {}
    }
    // Bound under a private name, made private, then renamed into place: it is never there with other people's rights.
    let private = path.with_extension("binding");
    let _ = std::fs::remove_file(&private);
    let listener = UnixListener::bind(&private).map_err(cannot)?;
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(cannot)?;
    std::fs::rename(&private, path).map_err(cannot)?;
    let face = Face { calls, uid: rustix::process::geteuid().as_raw() };
    Ok(tokio::spawn(async move {
        let served = Server::builder()
            .add_service(SideServer::new(face))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the local socket has failed");
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_in_pieces_is_the_report() {
        for json in ["", "x", "{\"a\":\"äöü\"}", &"äx".repeat(1_000)] {
            let whole = ReportAnswer { json: json.into(), server_reachable: true, daemon_version: "1".into(), pid: 7 };
            for most in [4, 5, 1_000, 1 << 20] {
                let pieces = pieces_of(whole.clone(), most);
                assert!(pieces.iter().all(|piece| piece.json.len() <= most), "{most}");
                let joined: String = pieces.iter().map(|piece| piece.json.as_str()).collect();
                assert_eq!(ReportAnswer { json: joined, ..pieces[0].clone() }, whole);
            }
        }
    }
}
