//! Renewals to one server: over one call that stays open, where the server has such a call.
//!
//! # Promises
//!
//! A renewal is sent to its server once, over the open call or by one of its own; by one of its own after the open call only if that
//! was refused before anything on it was read. An answer is given only to the renewal whose tag it names. A call that broke is opened
//! anew by the next renewal. A server of an earlier version, one that has no room for such a call, and one that was silent on it
//! (a proxy may hold back what is not ended) get calls of their own for a while ([`ALONE_FOR`]).
//!
//! # Does not know
//!
//! What a renewal means, and whom else to ask: [`super::renew`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};

use super::Target;
use crate::words::tags::{NotAsked, Tags};
use crate::words::wire;
use crate::words::wire::renewal_answered::Word;

/// A server that does not take the call, or is silent on it, is not asked for it for so long.
const ALONE_FOR: Duration = Duration::from_secs(60);
/// Renewals on their way into one call: a session has five under way at most.
const QUEUE_MAX: usize = 64;
/// Renewals that wait for an answer on one call.
const WAITING_MAX: usize = 64;

/// The calls to all servers, by address.
#[derive(Default)]
pub(super) struct Lines(Mutex<BTreeMap<String, Way>>);

enum Way {
    Open(Line),
    /// Calls of their own, until then.
    Alone(Instant),
}

/// A call that is open, or is being opened.
#[derive(Clone)]
struct Line {
    token: Option<MetadataValue<Ascii>>,
    asks: mpsc::Sender<wire::RenewalsAsked>,
    waiting: Arc<Waiting>,
    _call: Arc<Call>,
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
    /// Nothing that was sent on it was read.
    unread: bool,
}

impl Lines {
    /// One renewal to that server. A failure is its word, or why there is none.
    pub async fn renew(
        &self,
        target: &Target,
        renewal: wire::RenewRequest,
        limit: Duration,
    ) -> Result<wire::RenewAnswer, Status> {
        if let Some(line) = self.line(target) {
            match timeout(limit, line.renew(renewal.clone(), limit)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(End { unread: true, .. })) => self.alone(target),
                Ok(Err(End { status, .. })) => return Err(status),
                Err(_) => {
                    self.alone(target);
                    return Err(in_time());
                }
            }
        }
        let (mut client, request) = (target.client.clone(), target.request(renewal, limit));
        timeout(limit, client.renew(request)).await.unwrap_or_else(|_| Err(in_time())).map(tonic::Response::into_inner)
    }

    /// The open call to that server, if it takes one.
    fn line(&self, target: &Target) -> Option<Line> {
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

    fn alone(&self, target: &Target) {
        self.lock().insert(target.address.clone(), Way::Alone(Instant::now() + ALONE_FOR));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Way>> {
        self.0.lock().expect("nothing panics while it holds the lines")
    }
}

impl Line {
    fn open(target: &Target) -> Self {
        let (asks, queue) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::<Waiting>::default();
        // No time limit in the request: it would end the call.
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        target.authorise(&mut request);
        let (mut client, outcomes) = (target.client.clone(), waiting.clone());
        let task = tokio::spawn(async move {
            let end = match client.renewals(request).await {
                Ok(answers) => End { status: hand_out(&outcomes, answers.into_inner()).await, unread: false },
                Err(status) => {
                    let unread = matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted);
                    End { status, unread }
                }
            };
            for outcome in outcomes.end(end.clone()) {
                let _ = outcome.send(Err(end.clone()));
            }
        });
        Self { token: target.token.clone(), asks, waiting, _call: Arc::new(Call(task.abort_handle())) }
    }

    async fn renew(&self, renewal: wire::RenewRequest, limit: Duration) -> Result<wire::RenewAnswer, End> {
        let broke = || End { status: Status::unavailable("the call for renewals broke off"), unread: false };
        let (outcome, answer) = oneshot::channel();
        let under_way = self.waiting.ask(outcome, WAITING_MAX).map_err(|why| match why {
            NotAsked::Ended(end) => end,
            NotAsked::Full => broke(),
        })?;
        let asked = wire::RenewalAsked { tag: under_way.tag(), limit_ms: limit.as_millis() as u64, renewal: Some(renewal) };
        self.asks.try_send(wire::RenewalsAsked { asked: vec![asked] }).map_err(|_| broke())?;
        answer.await.unwrap_or_else(|_| Err(broke()))
    }
}

/// The renewals of one call that are under way.
type Waiting = Tags<oneshot::Sender<Result<wire::RenewAnswer, End>>, End>;

/// Until the call ends; says why it did.
async fn hand_out(waiting: &Waiting, mut answers: tonic::Streaming<wire::RenewalsAnswered>) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(message)) => message.answered.into_iter().for_each(|one| answer(waiting, one)),
            Ok(None) => return Status::unavailable("the server has ended the call for renewals"),
            Err(status) => return status,
        }
    }
}

/// One that nobody waits for is nobody's.
fn answer(waiting: &Waiting, answered: wire::RenewalAnswered) {
    let Some(outcome) = waiting.answered(answered.tag) else { return };
    let failed = |status| Err(End { status, unread: false });
    // Whoever has gone meanwhile needs none.
    let _ = outcome.send(match answered.word {
        Some(Word::Renewed(answer)) => Ok(answer),
        Some(Word::Failed(no)) => failed(Status::new(Code::from(no.code as i32), no.message)),
        None => failed(Status::unavailable("the server's answer is of another version")),
    });
}

fn in_time() -> Status {
    Status::deadline_exceeded("no answer in time")
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
