//! A call that stays open, with many questions and their answers on it: those of a side, and those that another node passes on.
//!
//! Promises: each question is what a call of its own would be: worked on within its own time, answered or failed by itself, counted. What
//! the caller showed at the begin of its call is looked at again with every message: a token that was taken out of the file opens
//! nothing any more. A message that is none, or has more than [`IN_MESSAGE_MAX`] in it, ends the call. While as many as the caller may
//! have under way are worked on, no more is read: it waits in the caller's own window. Whoever ends its call ends what is
//! under way on it. When the node ends, nothing more is read.
//!
//! It does not know what is asked: a [`Speaker`] does.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Status, Streaming};

use super::Service;
use super::auth::Shown;
use crate::consensus::relay::IN_MESSAGE_MAX;
use crate::fault::Fault;
use crate::limits::{Seat, Seats};

/// The answers of one call.
pub type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// What there is to say of some questions, and what is still to come.
pub(super) struct Step<T> {
    pub answered: Vec<T>,
    pub later: Vec<BoxFuture<'static, Step<T>>>,
}

impl<T> Default for Step<T> {
    fn default() -> Self {
        Self { answered: Vec::new(), later: Vec::new() }
    }
}

/// Who calls, and how its messages are read and answered.
pub(super) trait Speaker: Send + 'static {
    /// A message to this node.
    type Asked: Send + 'static;
    /// A message from it.
    type Answered: Send + 'static;
    /// A question.
    type One: Send + 'static;
    /// Its answer.
    type Said: Send + 'static;
    /// Messages, or what [`Self::begin`] makes of them, that are worked on at the same time.
    const MOST: usize;
    /// What they are, for people.
    const WHAT: &'static str;

    /// Where such calls are counted.
    fn seats(service: &Service) -> &Arc<Seats>;
    /// The questions of a message; or it ends the call.
    fn read(&mut self, service: &Service, message: Self::Asked) -> Result<Vec<Self::One>, Status>;
    /// Has them carried out, here or elsewhere.
    fn begin(service: &Arc<Service>, asked: Vec<Self::One>, begun: impl FnMut(BoxFuture<'static, Step<Self::Said>>));
    fn say(&self, answered: Vec<Self::Said>) -> Self::Answered;
    /// Of a caller whom nothing is open to any more, if each of its questions gets that word; none: the call ends with it.
    fn refused(&self, _: Self::Asked, _: &Status) -> Option<Self::Answered> {
        None
    }
    /// Whether what is under way is answered when the node ends: it may be carried out.
    const LASTS: bool;
}

impl Service {
    pub(super) fn talk<S: Speaker>(
        self: Arc<Self>,
        request: Request<Streaming<S::Asked>>,
        speaker: S,
    ) -> Result<Answers<S::Answered>, Status> {
        if self.api.consensus.faults().has(Fault::OlderNode) {
            return Err(Status::unimplemented(""));
        }
        // One for each connection is what our own callers have.
        let (most, what) = (self.api.limits.get().connections, S::WHAT);
        let seat = S::seats(&self).take(most).ok_or_else(|| {
            Status::resource_exhausted(format!("{most} calls for {what} are open on this node; send them by calls of their own"))
        })?;
        let shown = request.extensions().get::<Shown>().copied().unwrap_or_default();
        let closing = Box::pin(self.api.closing.clone().cancelled_owned());
        let talk = Talk {
            incoming: request.into_inner(),
            speaker,
            shown,
            under_way: FuturesUnordered::new(),
            over: Over::Not,
            closing,
            service: self,
            _seat: seat,
        };
        Ok(stream::unfold(talk, |mut talk| async move { Some((talk.next().await?, talk)) }).boxed())
    }
}

/// How far a call is.
#[derive(PartialEq)]
enum Over {
    Not,
    /// No more is read; what is under way is answered.
    Asking,
    All,
}

struct Talk<S: Speaker> {
    incoming: Streaming<S::Asked>,
    speaker: S,
    shown: Shown,
    under_way: FuturesUnordered<BoxFuture<'static, Step<S::Said>>>,
    over: Over,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    service: Arc<Service>,
    _seat: Seat,
}

impl<S: Speaker> Talk<S> {
    async fn next(&mut self) -> Option<Result<S::Answered, Status>> {
        loop {
            if self.over == Over::All || self.over == Over::Asking && self.under_way.is_empty() {
                return None;
            }
            let (open, room) = (self.over == Over::Not, self.under_way.len() < S::MOST);
            let heard = tokio::select! {
                biased;
                () = &mut self.closing, if open || !S::LASTS => {
                    if S::LASTS {
                        self.over = Over::Asking;
                        continue;
                    }
                    Err(Status::unavailable("the node is stopping; ask another one"))
                }
                Some(step) = self.under_way.next() => {
                    let mut answered = self.go_on(step);
                    // What has ended meanwhile goes out with it.
                    while answered.len() < IN_MESSAGE_MAX
                        && let Some(Some(step)) = self.under_way.next().now_or_never()
                    {
                        answered.extend(self.go_on(step));
                    }
                    if answered.is_empty() {
                        continue;
                    }
                    return Some(Ok(self.speaker.say(answered)));
                }
                message = self.incoming.message(), if open && room => message,
            };
            let message = match heard {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.over = Over::Asking;
                    continue;
                }
                Err(status) => return self.fail(status),
            };
            if let Err(status) = self.service.keys.still_open_to(self.shown) {
                let Some(refused) = self.speaker.refused(message, &status) else { return self.fail(status) };
                self.over = Over::Asking;
                return Some(Ok(refused));
            }
            match self.take(message) {
                Ok(asked) => S::begin(&self.service, asked, |begun| self.under_way.push(begun)),
                Err(status) => return self.fail(status),
            }
        }
    }

    fn go_on(&mut self, step: Step<S::Said>) -> Vec<S::Said> {
        self.under_way.extend(step.later);
        step.answered
    }

    fn fail(&mut self, status: Status) -> Option<Result<S::Answered, Status>> {
        // Beyond the head nobody else counts it.
        self.service.api.counts.answered(status.code() as usize);
        self.over = Over::All;
        Some(Err(status))
    }

    fn take(&mut self, message: S::Asked) -> Result<Vec<S::One>, Status> {
        let asked = self.speaker.read(&self.service, message)?;
        if asked.len() > IN_MESSAGE_MAX {
            let (many, what) = (asked.len(), S::WHAT);
            return Err(Status::invalid_argument(format!("{many} {what} in one message; at most {IN_MESSAGE_MAX}")));
        }
        Ok(asked)
    }
}
