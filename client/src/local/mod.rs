//! Calls to the side's daemon over its Unix socket, and starting it if none runs.
//!
//! Who owns the socket's directory decides who answers there: another user's is refused (77) before anything is sent. A
//! daemon's refusal comes back as the same [`Failure`] that it was there. The messages are the wire's own, under
//! [`wire`]; the daemon serves the same ones.

use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::config::Config;
use crate::error::Failure;
use crate::report::HolderReport;
use crate::words::refusal::Code;
use crate::words::tree::Holder;
use wire::side_client::SideClient;

pub mod lingering;
mod process;
pub mod start;
#[cfg(test)]
mod tests;
/// The messages of the local socket (service `Side`), under one name; also for the daemon that serves it.
pub use crate::words::wire;

/// How long the daemon may take to answer what needs no server and no storage.
const QUICK: Duration = Duration::from_secs(5);
/// How long it may take to mount or unmount: it looks at the storage, which may be slow, and waits for the lease's end.
const MOUNTING: Duration = Duration::from_secs(120);
/// Largest answer taken: the report of thousands of trees.
const ANSWER_MAX: usize = 16 << 20;

/// A connection to this side's daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalClient {
    client: SideClient<Channel>,
    socket: PathBuf,
}

/// The items of a hold: `Waiting`…, then `Held` (or an `Err`: refused), then perhaps `Lost`.
pub type HoldStream = BoxStream<'static, Result<wire::hold_answer::Kind, Failure>>;

/// What `give_up`, `hand_over` and `down` bring: steps, then the end.
#[derive(Debug)]
pub struct Progress {
    stream: Streaming<wire::Progress>,
    socket: PathBuf,
    /// `down`: that the daemon is gone is the end that was asked for.
    may_end: bool,
    finished: Option<wire::Finished>,
}

impl Progress {
    /// The next step's message; `None` at the end (then [`Self::finish`] has the last word).
    pub async fn step(&mut self) -> Result<Option<String>, Failure> {
        use wire::progress::Kind;
        if self.finished.is_some() {
            return Ok(None);
        }
        let message = match self.stream.message().await {
            Ok(message) => message,
            Err(_) if self.may_end => None,
            Err(status) => return Err(lost(&status, &self.socket)),
        };
        match message.and_then(|m| m.kind) {
            Some(Kind::Step(step)) => Ok(Some(step.message)),
            Some(Kind::Refused(refusal)) => Err(from_local(refusal)),
            Some(Kind::Finished(finished)) => {
                self.finished = Some(finished);
                Ok(None)
            }
            None if self.may_end => {
                self.finished = Some(wire::Finished::default());
                Ok(None)
            }
            None => Err(Failure::new(
                Code::OutcomeUnknown,
                "the daemon ended before it said how this went; `treelease status` shows how things stand",
            )),
        }
    }

    /// Reads on to the end, showing each step.
    pub async fn finish(mut self, mut show: impl FnMut(&str)) -> Result<wire::Finished, Failure> {
        while let Some(step) = self.step().await? {
            show(&step);
        }
        Ok(self.finished.unwrap_or_default())
    }
}

impl LocalClient {
    /// Connects. No daemon: `Unreachable`; socket or directory of another user: `Denied`.
    pub async fn connect(config: &Config) -> Result<LocalClient, Failure> {
        config.check_runtime_owner()?;
        let socket = config.socket();
        let away = |why: String| {
            Failure::new(Code::Unreachable, format!("no daemon of this side answers at {}: {why}", socket.display()))
                .hint("start it with `treelease up`")
        };
        // A killed daemon that the kernel keeps has its socket still, and never answers there.
        if let Some(killed) = lingering::lingering(&config.state_dir) {
            killed.abort();
            let gone = async {
                while !killed.is_gone() {
                    tokio::time::sleep(lingering::LOOK).await;
                }
            };
            if tokio::time::timeout(lingering::GONE, gone).await.is_err() {
                let pid = killed.pid;
                return Err(away(format!("the killed one (pid {pid}) is still there, a call on the storage keeps it")));
            }
        }
        if !socket.exists() {
            return Err(away("there is no socket".into()));
        }
        let path = socket.to_str().ok_or_else(|| {
            Failure::new(Code::Config, format!("the socket's path {} is not UTF-8", socket.display()))
                .hint("set TREELEASE_RUNTIME to a path that is")
        })?;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|e| Failure::new(Code::Config, format!("{path}: {e}")))?
            .connect_timeout(QUICK);
        let channel = match tokio::time::timeout(QUICK, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(away(innermost(&e))),
            Err(_) => return Err(away("it does not take the connection".into())),
        };
        Ok(LocalClient { client: SideClient::new(channel).max_decoding_message_size(ANSWER_MAX), socket })
    }

    /// Connects, or starts the daemon and waits until it answers.
    pub async fn connect_or_start(config: &Config) -> Result<LocalClient, Failure> {
        match Self::connect(config).await {
            Err(f) if f.code == Code::Unreachable => start::start_daemon(config).await,
            other => other,
        }
    }

    /// The side's state.
    pub async fn report(&mut self) -> Result<wire::ReportAnswer, Failure> {
        let begun = tokio::time::timeout(QUICK, self.client.report_in_pieces(wire::ReportRequest {})).await;
        let mut pieces = match begun {
            // It is of an earlier version.
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                let answer = tokio::time::timeout(QUICK, self.client.report(wire::ReportRequest {})).await;
                return self.taken(answer);
            }
            begun => self.taken(begun)?,
        };
        let mut whole: Option<wire::ReportAnswer> = None;
        loop {
            let piece = tokio::time::timeout(QUICK, pieces.message()).await;
            let piece = self.taken(piece.map(|piece| piece.map(tonic::Response::new)))?;
            match (piece, &mut whole) {
                (Some(piece), None) => whole = Some(piece),
                (Some(piece), Some(whole)) => whole.json.push_str(&piece.json),
                (None, _) => return Ok(whole.unwrap_or_default()),
            }
        }
    }

    /// Takes a hold. Dropping the stream drops a hold of kind `run`.
    pub async fn hold(&mut self, request: wire::HoldRequest) -> Result<HoldStream, Failure> {
        use wire::hold_answer::Kind;
        let stream = self.client.hold(request).await.map_err(|status| lost(&status, &self.socket))?.into_inner();
        let socket = self.socket.clone();
        let items = stream.map(move |answer| match answer {
            Ok(wire::HoldAnswer { kind: Some(Kind::Refused(refusal)) }) => Err(from_local(refusal)),
            Ok(wire::HoldAnswer { kind: Some(kind) }) => Ok(kind),
            Ok(wire::HoldAnswer { kind: None }) => {
                Err(Failure::new(Code::Internal, "the daemon's answer was not understood: it is of a later version"))
            }
            Err(status) => Err(lost(&status, &socket)),
        });
        Ok(items.boxed())
    }

    /// Drops what `acquire` took and hands the lease back.
    pub async fn give_up(&mut self, tree: &str, now: bool) -> Result<Progress, Failure> {
        let stream = self.client.give_up(wire::GiveUpRequest { tree: tree.into(), now }).await;
        self.progress(stream, false)
    }

    /// Gives the lease to another side.
    pub async fn hand_over(&mut self, request: wire::HandOverRequest) -> Result<Progress, Failure> {
        let stream = self.client.hand_over(request).await;
        self.progress(stream, false)
    }

    /// Adds a guarded mount, or with `check_only` says whether it could be added.
    pub async fn add_mount(&mut self, request: wire::AddMountRequest) -> Result<wire::AddMountAnswer, Failure> {
        let answer = tokio::time::timeout(MOUNTING, self.client.add_mount(request)).await;
        let mut answer = self.taken(answer)?;
        match answer.refused.take() {
            Some(refusal) => Err(from_local(refusal)),
            None => Ok(answer),
        }
    }

    /// Removes a guarded mount, by tree or directory: the paths that are unguarded now.
    pub async fn remove_mount(&mut self, what: &str, lazy: bool) -> Result<Vec<String>, Failure> {
        let request = wire::RemoveMountRequest { what: what.into(), lazy };
        let answer = tokio::time::timeout(MOUNTING, self.client.remove_mount(request)).await;
        let answer = self.taken(answer)?;
        match answer.refused {
            Some(refusal) => Err(from_local(refusal)),
            None => Ok(answer.unguarded),
        }
    }

    /// Hands over, unmounts, ends the daemon. Its end is the stream's end.
    pub async fn down(&mut self, within: Duration) -> Result<Progress, Failure> {
        let stream = self.client.down(wire::DownRequest { within_ms: within.as_millis() as u64 }).await;
        self.progress(stream, true)
    }

    /// Follows a restored cluster; whom this side followed before.
    pub async fn follow(&mut self, cluster: &str, reason: &str) -> Result<String, Failure> {
        let request = wire::FollowRequest { cluster: cluster.into(), reason: reason.into() };
        let answer = tokio::time::timeout(MOUNTING, self.client.follow(request)).await;
        let answer = self.taken(answer)?;
        match answer.refused {
            Some(refusal) => Err(from_local(refusal)),
            None => Ok(answer.from),
        }
    }

    /// The JSON of `holds`; an empty tree: of all.
    pub async fn holds(&mut self, tree: &str) -> Result<String, Failure> {
        let answer = tokio::time::timeout(QUICK, self.client.holds(wire::HoldsRequest { tree: tree.into() })).await;
        Ok(self.taken(answer)?.json)
    }

    /// The JSON of `writers`; an empty tree: of all.
    pub async fn writers(&mut self, tree: &str) -> Result<String, Failure> {
        let answer = tokio::time::timeout(QUICK, self.client.writers(wire::WritersRequest { tree: tree.into() })).await;
        let answer = self.taken(answer)?;
        match answer.refused {
            Some(refusal) => Err(from_local(refusal)),
            None => Ok(answer.json),
        }
    }

    fn taken<T>(
        &self,
        answer: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failure> {
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(lost(&status, &self.socket)),
            Err(_) => Err(Failure::new(
                Code::OutcomeUnknown,
                format!("the daemon at {} does not answer in time", self.socket.display()),
            )
            .hint("see `treelease logs`")),
        }
    }

    fn progress(
        &self,
        stream: Result<tonic::Response<Streaming<wire::Progress>>, tonic::Status>,
        may_end: bool,
    ) -> Result<Progress, Failure> {
        let stream = stream.map_err(|status| lost(&status, &self.socket))?.into_inner();
        Ok(Progress { stream, socket: self.socket.clone(), may_end, finished: None })
    }
}

/// What a broken call means.
fn lost(status: &tonic::Status, socket: &std::path::Path) -> Failure {
    match status.code() {
        tonic::Code::InvalidArgument => Failure::new(Code::Usage, status.message()),
        tonic::Code::Unimplemented => {
            Failure::new(Code::Config, "the daemon is of another version: it does not know this request")
                .hint("replace it by the installed one with `treelease up --restart`")
        }
        _ => Failure::new(Code::Unreachable, format!("the daemon at {} went away: {}", socket.display(), status.message()))
            .hint("see `treelease logs`, and start it again with `treelease up`"),
    }
}

/// The cause at the bottom: transport errors wrap each other without saying anything.
fn innermost(e: &dyn std::error::Error) -> String {
    let mut e = e;
    while let Some(source) = e.source() {
        e = source;
    }
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}

/// Separates hints in one text of the wire.
const HINTS: char = '\n';

/// A failure as it travels over the local socket (for the daemon).
pub fn to_local(failure: &Failure) -> wire::LocalRefusal {
    wire::LocalRefusal {
        code: failure.code.as_str().into(),
        exit: failure.code.exit().into(),
        message: failure.message.clone(),
        hint: failure.hints.join("\n"),
        holder_json: failure.holder.as_ref().and_then(|holder| serde_json::to_string(holder).ok()).unwrap_or_default(),
    }
}

/// And back. The holder may come as the words' or as the report's JSON.
pub fn from_local(refusal: wire::LocalRefusal) -> Failure {
    let holder = serde_json::from_str::<Holder>(&refusal.holder_json)
        .or_else(|_| serde_json::from_str::<HolderReport>(&refusal.holder_json).map_err(drop).and_then(as_holder))
        .ok();
    Failure {
        code: Code::parse(&refusal.code).unwrap_or(Code::Internal),
        message: refusal.message,
        hints: refusal.hint.split(HINTS).filter(|hint| !hint.is_empty()).map(str::to_string).collect(),
        holder,
    }
}

fn as_holder(report: HolderReport) -> Result<Holder, ()> {
    Ok(Holder {
        side: report.side.parse().map_err(drop)?,
        host: report.host,
        // A report names no session; nobody decides anything by this one.
        session: "00000000-0000-0000-0000-000000000000".parse().map_err(drop)?,
        epoch: crate::words::epoch::Epoch::from_raw(report.epoch),
        since: report.since,
        note: report.note,
    })
}
