//! Renewals, or commands, to one server: over one call that stays open, where the server has such a call.
//!
//! # Promises
//!
//! A question is sent to its server once, over the open call or by one of its own; by one of its own after the open call only if that
//! was refused before anything on it was read, or had no room for it. One whose asker has gone before it was sent is not sent. An answer
//! is given only to the question whose tag it names. A call that broke is opened anew by the next question. A server of an earlier version, one that has no room for such a call, and one that was silent on it
//! (a proxy may hold back what is not ended) get calls of their own for a while ([`ALONE_FOR`]).
//!
//! # Does not know
//!
//! What is asked ([`Kind`]), and whom else to ask: [`super::renew`], [`super::Servers::do_keyed`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::ready;
use futures::stream::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Target;
use crate::words::tags::{NotAsked, Tags};
use crate::words::wire;
use crate::words::wire::lease_client::LeaseClient;

/// A server that does not take the call, or is silent on it, is not asked for it for so long.
const ALONE_FOR: Duration = Duration::from_secs(60);

/// The least that the wire can say of a time: 0 means as much as the server gives.
const LEAST_LEFT: Duration = Duration::from_millis(1);

/// What goes over a call.
pub(super) trait Kind: 'static {
    /// A question.
    type Ask: Clone + Send + 'static;
    /// Its answer.
    type Answer: Send + 'static;
    /// A message to the server.
    type Out: fmt::Debug + Send + 'static;
    /// A message from it.
    type In: Send + 'static;
    /// Questions of one call that are on their way into it, or wait for an answer.
    const MOST: usize;
    /// What they are, for people.
    const WHAT: &'static str;

    /// The call that stays open.
    fn open(
        client: &mut LeaseClient<Channel>,
        asked: Request<impl Stream<Item = Self::Out> + Send + 'static>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::In>>, Status>> + Send;
    /// A call for one.
    fn alone(
        client: &mut LeaseClient<Channel>,
        asked: Request<Self::Ask>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
    /// One question as a message.
    fn message(tag: u64, limit: Duration, ask: Self::Ask) -> Self::Out;
    /// The answers of a message, with the tags that they name; none: it is of another version.
    fn answers(message: Self::In) -> impl Iterator<Item = (u64, Option<Result<Self::Answer, wire::CallFailed>>)>;
    /// What the end of a call means for what is under way on it.
    fn ended(status: Status) -> Status;
}

/// See [`super::renew`].
pub(super) struct Renewals;

impl Kind for Renewals {
    type Ask = wire::RenewRequest;
    type Answer = wire::RenewAnswer;
    type Out = wire::RenewalsAsked;
    type In = wire::RenewalsAnswered;
    /// A session has five under way at most.
    const MOST: usize = 64;
    const WHAT: &'static str = "renewals";

    async fn open(
        client: &mut LeaseClient<Channel>,
        asked: Request<impl Stream<Item = Self::Out> + Send + 'static>,
    ) -> Result<Response<Streaming<Self::In>>, Status> {
        client.renewals(asked).await
    }

    async fn alone(client: &mut LeaseClient<Channel>, asked: Request<Self::Ask>) -> Result<Response<Self::Answer>, Status> {
        client.renew(asked).await
    }

    fn message(tag: u64, limit: Duration, ask: Self::Ask) -> Self::Out {
        let asked = wire::RenewalAsked { tag, limit_ms: limit.as_millis() as u64, renewal: Some(ask) };
        wire::RenewalsAsked { asked: vec![asked] }
    }

    fn answers(message: Self::In) -> impl Iterator<Item = (u64, Option<Result<Self::Answer, wire::CallFailed>>)> {
        use wire::renewal_answered::Word;
        message.answered.into_iter().map(|one| {
            let word = one.word.map(|word| match word {
                Word::Renewed(answer) => Ok(answer),
                Word::Failed(no) => Err(no),
            });
            (one.tag, word)
        })
    }

    /// Nothing is logged by a renewal, so nothing is left open.
    fn ended(status: Status) -> Status {
        status
    }
}

/// See [`super::Servers::do_keyed`].
pub(super) struct Commands;

impl Kind for Commands {
    type Ask = wire::DoRequest;
    type Answer = wire::DoAnswer;
    type Out = wire::CommandsAsked;
    type In = wire::CommandsAnswered;
    const MOST: usize = 256;
    const WHAT: &'static str = "commands";

    async fn open(
        client: &mut LeaseClient<Channel>,
        asked: Request<impl Stream<Item = Self::Out> + Send + 'static>,
    ) -> Result<Response<Streaming<Self::In>>, Status> {
        client.commands(asked).await
    }

    async fn alone(client: &mut LeaseClient<Channel>, asked: Request<Self::Ask>) -> Result<Response<Self::Answer>, Status> {
        client.r#do(asked).await
    }

    fn message(tag: u64, limit: Duration, ask: Self::Ask) -> Self::Out {
        let asked = wire::CommandAsked { tag, limit_ms: limit.as_millis() as u64, command: Some(ask) };
        wire::CommandsAsked { asked: vec![asked] }
    }

    fn answers(message: Self::In) -> impl Iterator<Item = (u64, Option<Result<Self::Answer, wire::CallFailed>>)> {
        use wire::command_answered::Word;
        message.answered.into_iter().map(|one| {
            let word = one.word.map(|word| match word {
                Word::Done(answer) => Ok(answer),
                Word::Failed(no) => Err(no),
            });
            (one.tag, word)
        })
    }

    /// What was under way may have been carried out, whatever the call ended with: that is no word on any of them.
    fn ended(status: Status) -> Status {
        Status::unavailable(format!("the call for commands broke off: {}", status.message()))
    }
}

/// The calls to all servers, by address.
pub(super) struct Lines<K: Kind>(Mutex<BTreeMap<String, Way<K>>>);

impl<K: Kind> Default for Lines<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

enum Way<K: Kind> {
    Open(Line<K>),
    /// Calls of their own, until then.
    Alone(Instant),
}

/// A question on its way into the call.
struct Queued<A> {
    tag: u64,
    until: Instant,
    ask: A,
}

/// A call that is open, or is being opened.
struct Line<K: Kind> {
    token: Option<MetadataValue<Ascii>>,
    asks: mpsc::Sender<Queued<K::Ask>>,
    waiting: Arc<Waiting<K>>,
    call: Arc<Call>,
}

impl<K: Kind> Clone for Line<K> {
    fn clone(&self) -> Self {
        let Self { token, asks, waiting, call } = self;
        Self { token: token.clone(), asks: asks.clone(), waiting: waiting.clone(), call: call.clone() }
    }
}

/// The task of an open call. It ends with the last who knows the line: a server that never answers keeps no stream.
struct Call(AbortHandle);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a call has ended.
#[derive(Debug, Clone)]
struct End {
    status: Status,
    read: Read,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Perhaps,
    /// It was not put on the call, which has as many as may be: it may go by a call of its own.
    NoRoom,
    /// The server takes no such call, and has read nothing on it: calls of their own, for a while.
    NotTaken,
}

/// Somebody waits for an answer. Whoever gives up after (nearly) its whole time, in here or outside, has met a server that is silent.
struct Patience<'a, K: Kind> {
    lines: &'a Lines<K>,
    address: &'a str,
    until: Instant,
    heard: bool,
}

impl<'a, K: Kind> Patience<'a, K> {
    fn new(lines: &'a Lines<K>, address: &'a str, limit: Duration) -> Self {
        Self { lines, address, until: Instant::now() + limit.mul_f32(0.9), heard: false }
    }
}

impl<K: Kind> Drop for Patience<'_, K> {
    fn drop(&mut self) {
        // Whoever went away earlier says nothing about the server.
        if !self.heard && Instant::now() >= self.until {
            self.lines.alone(self.address);
        }
    }
}

impl<K: Kind> Lines<K> {
    /// One question to that server. A failure is its word, or why there is none.
    pub async fn ask(&self, target: &Target, ask: K::Ask, limit: Duration) -> Result<K::Answer, Status> {
        if let Some(line) = self.line(target) {
            let mut patience = Patience::new(self, &target.address, limit);
            let asked = timeout(limit, line.ask(ask.clone(), limit)).await;
            patience.heard = asked.is_ok();
            drop(patience);
            match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(End { read: Read::NotTaken, .. })) => self.alone(&target.address),
                Ok(Err(End { read: Read::NoRoom, .. })) => {}
                Ok(Err(End { status, .. })) => return Err(status),
                Err(_) => return Err(in_time()),
            }
        }
        self.ask_alone(target, ask, limit).await
    }

    /// One by a call of its own.
    pub async fn ask_alone(&self, target: &Target, ask: K::Ask, limit: Duration) -> Result<K::Answer, Status> {
        let (mut client, request) = (target.client.clone(), target.request(ask, limit));
        timeout(limit, K::alone(&mut client, request)).await.unwrap_or_else(|_| Err(in_time())).map(Response::into_inner)
    }

    /// The open call to that server, if it takes one.
    fn line(&self, target: &Target) -> Option<Line<K>> {
        let mut ways = self.lock();
        match ways.get(&target.address) {
            Some(Way::Open(line)) if line.token == target.token && line.waiting.ended().is_none() => return Some(line.clone()),
            Some(Way::Alone(until)) if Instant::now() < *until => return None,
            _ => {}
        }
        let line = Line::open(target);
        // An embedded server has another address after each start.
        ways.retain(|_, way| !matches!(way, Way::Open(line) if line.waiting.ended().is_some()));
        ways.insert(target.address.clone(), Way::Open(line.clone()));
        Some(line)
    }

    fn alone(&self, address: &str) {
        self.lock().insert(address.to_owned(), Way::Alone(Instant::now() + ALONE_FOR));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Way<K>>> {
        self.0.lock().expect("nothing panics while it holds the lines")
    }
}

impl<K: Kind> Line<K> {
    fn open(target: &Target) -> Self {
        let (asks, queue) = mpsc::channel::<Queued<K::Ask>>(K::MOST);
        let waiting = Arc::<Waiting<K>>::default();
        // Whoever has given up meanwhile sends nothing, and the others what is left of their time.
        let wanted = waiting.clone();
        let queue = ReceiverStream::new(queue).filter_map(move |Queued { tag, until, ask }: Queued<K::Ask>| {
            let left = until.saturating_duration_since(Instant::now());
            ready((wanted.waits(tag) && left >= LEAST_LEFT).then(|| K::message(tag, left, ask)))
        });
        // No time limit in the request: it would end the call.
        let mut request = Request::new(queue);
        target.authorise(&mut request);
        let (mut client, outcomes) = (target.client.clone(), waiting.clone());
        let task = tokio::spawn(async move {
            let end = match K::open(&mut client, request).await {
                Ok(answers) => {
                    End { status: K::ended(hand_out::<K>(&outcomes, answers.into_inner()).await), read: Read::Perhaps }
                }
                Err(status) => {
                    let read = if refused_unread(&status) { Read::NotTaken } else { Read::Perhaps };
                    End { status, read }
                }
            };
            for outcome in outcomes.end(end.clone()) {
                let _ = outcome.send(Err(end.clone()));
            }
        });
        Self { token: target.token.clone(), asks, waiting, call: Arc::new(Call(task.abort_handle())) }
    }

    async fn ask(&self, ask: K::Ask, limit: Duration) -> Result<K::Answer, End> {
        let ended = |read| End { status: Status::unavailable(format!("the call for {} broke off", K::WHAT)), read };
        let (outcome, answer) = oneshot::channel();
        let under_way = self.waiting.ask(outcome, K::MOST).map_err(|why| match why {
            NotAsked::Ended(end) => end,
            NotAsked::Full => ended(Read::NoRoom),
        })?;
        let queued = Queued { tag: under_way.tag(), until: Instant::now() + limit, ask };
        self.asks.try_send(queued).map_err(|why| match why {
            mpsc::error::TrySendError::Full(_) => ended(Read::NoRoom),
            mpsc::error::TrySendError::Closed(_) => {
                // Its task has gone without a word: the next question opens another one.
                let end = ended(Read::Perhaps);
                self.waiting.end(end.clone());
                end
            }
        })?;
        answer.await.unwrap_or_else(|_| Err(ended(Read::Perhaps)))
    }
}

/// Whether the server itself has turned the call away. What tonic makes of a connection that breaks has a source ([`super::failed`]): it
/// may look like that, and what was sent may have been read.
fn refused_unread(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) && std::error::Error::source(status).is_none()
}

/// The questions of one call that are under way.
type Waiting<K> = Tags<oneshot::Sender<Result<<K as Kind>::Answer, End>>, End>;

/// Until the call ends; says why it did.
async fn hand_out<K: Kind>(waiting: &Waiting<K>, mut answers: Streaming<K::In>) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(message)) => K::answers(message).for_each(|(tag, word)| answer::<K>(waiting, tag, word)),
            Ok(None) => return Status::unavailable(format!("the server has ended the call for {}", K::WHAT)),
            Err(status) => return status,
        }
    }
}

/// One that nobody waits for is nobody's.
fn answer<K: Kind>(waiting: &Waiting<K>, tag: u64, word: Option<Result<K::Answer, wire::CallFailed>>) {
    let Some(outcome) = waiting.answered(tag) else { return };
    let failed = |status| Err(End { status, read: Read::Perhaps });
    // Whoever has gone meanwhile needs none.
    let _ = outcome.send(match word {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(no)) => failed(Status::new(Code::from(no.code as i32), no.message)),
        None => failed(Status::unavailable("the server's answer is of another version")),
    });
}

fn in_time() -> Status {
    Status::deadline_exceeded("no answer in time")
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
