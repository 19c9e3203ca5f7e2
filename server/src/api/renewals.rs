//! Renewals over calls that stay open: a side's own, and those that another node passes on to the leader.
//!
//! Promises: each renewal is what a call of its own would be ([`super::renew`]): confirmed after it arrived (I5), within its own time,
//! answered or failed by itself, counted. What the caller showed at the begin of its call is looked at again with every message,
//! and so is the stamp of a node's: a token that was taken out of the file, and a node that was removed, are turned away at once.
//! A message that is none, or has more than [`IN_MESSAGE_MAX`] in it, ends the call. While as many messages as the caller may have under
//! way are worked on, no more is read: it waits in the caller's own window; those that wait for an expiry to be decided do not count
//! to them ([`super::under_way`]), so they hold up nobody whose session lives. A node that passes on is answered here or told
//! why not; nothing is passed on twice. Whoever ends its call ends what is under way on it; the node's end ends the call.
//!
//! It does not know what a renewal means.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Status, Streaming};
use treelease_proto::wire;

use super::Service;
use super::auth::Shown;
use super::peers::turned_away;
use super::renew::Step;
use super::under_way::{Heard, Most, UnderWay};
use crate::consensus::relay::IN_MESSAGE_MAX;
use crate::fault::Fault;
use crate::limits::Seat;

/// Of a side: a daemon has at most five renewals under way, and one session.
const OF_A_SIDE: Most = Most { messages: 16, later: 16 };
/// Of a node: each message brings what lay in its queue. So many sessions as may wait do not end at once where all is well; each of
/// them looks again after every applied entry, some milliseconds for all.
const OF_A_NODE: Most = Most { messages: 256, later: 4_096 };

/// The answers of one call.
pub type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Who calls, and how its messages are read and answered.
pub(super) trait Speaker: Send + 'static {
    type Asked: Send + 'static;
    type Answered: Send + 'static;
    /// What is worked on at the same time.
    const MOST: Most;
    fn read(&mut self, service: &Service, message: Self::Asked) -> Result<Vec<wire::RenewalAsked>, Status>;
    /// Carries it out, here or elsewhere.
    fn begin(service: &Arc<Service>, asked: Vec<wire::RenewalAsked>, begun: impl FnMut(BoxFuture<'static, Step>));
    fn say(&self, answered: Vec<wire::RenewalAnswered>) -> Self::Answered;
}

/// A side.
pub(super) struct OfASide;

impl Speaker for OfASide {
    type Asked = wire::RenewalsAsked;
    type Answered = wire::RenewalsAnswered;
    const MOST: Most = OF_A_SIDE;

    fn read(&mut self, _: &Service, message: Self::Asked) -> Result<Vec<wire::RenewalAsked>, Status> {
        Ok(message.asked)
    }

    fn begin(service: &Arc<Service>, asked: Vec<wire::RenewalAsked>, mut begun: impl FnMut(BoxFuture<'static, Step>)) {
        match service.api.consensus.leader_elsewhere() {
            None => begun(service.clone().renew_together(asked).boxed()),
            Some(_) => asked.into_iter().for_each(|one| begun(service.clone().renew_elsewhere(one).boxed())),
        }
    }

    fn say(&self, answered: Vec<wire::RenewalAnswered>) -> Self::Answered {
        wire::RenewalsAnswered { answered }
    }
}

/// Another node.
#[derive(Default)]
pub(super) struct OfANode {
    /// For the answers, by what its last message said.
    stamp: Option<wire::Stamp>,
}

impl Speaker for OfANode {
    type Asked = wire::RenewalsForwarded;
    type Answered = wire::RenewalsReturned;
    const MOST: Most = OF_A_NODE;

    fn read(&mut self, service: &Service, message: Self::Asked) -> Result<Vec<wire::RenewalAsked>, Status> {
        self.stamp = Some(service.api.consensus.let_in(message.stamp.as_ref()).map_err(turned_away)?);
        Ok(message.asked)
    }

    fn begin(service: &Arc<Service>, asked: Vec<wire::RenewalAsked>, mut begun: impl FnMut(BoxFuture<'static, Step>)) {
        begun(service.clone().renew_together(asked).boxed());
    }

    fn say(&self, answered: Vec<wire::RenewalAnswered>) -> Self::Answered {
        wire::RenewalsReturned { stamp: self.stamp.clone(), answered }
    }
}

impl Service {
    pub(super) fn start_renewals<S: Speaker>(
        self: Arc<Self>,
        request: Request<Streaming<S::Asked>>,
        speaker: S,
    ) -> Result<Answers<S::Answered>, Status> {
        if self.api.consensus.faults().has(Fault::OlderNode) {
            return Err(Status::unimplemented(""));
        }
        // One for each connection is what our own callers have.
        let most = self.api.limits.get().connections;
        let seat = self.api.counts.renewal_streams.take(most).ok_or_else(|| {
            Status::resource_exhausted(format!("{most} calls for renewals are open on this node; renew by calls of their own"))
        })?;
        let shown = request.extensions().get::<Shown>().copied().unwrap_or_default();
        let closing = Box::pin(self.api.closing.clone().cancelled_owned());
        let talk = Talk {
            incoming: request.into_inner(),
            speaker,
            shown,
            under_way: UnderWay::new(S::MOST),
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
    /// The caller says no more; what is under way is answered.
    Asking,
    All,
}

struct Talk<S: Speaker> {
    incoming: Streaming<S::Asked>,
    speaker: S,
    shown: Shown,
    under_way: UnderWay,
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
            let reads = self.over == Over::Not && self.under_way.has_room();
            let heard = tokio::select! {
                biased;
                () = &mut self.closing => Err(Status::unavailable("the node is stopping; ask another one")),
                Some(heard) = self.under_way.next() => {
                    let answered = self.answered(heard);
                    if answered.is_empty() {
                        continue;
                    }
                    return Some(Ok(self.speaker.say(answered)));
                }
                message = self.incoming.message(), if reads => message,
            };
            let asked = match heard {
                Ok(Some(message)) => self.take(message),
                Ok(None) => {
                    self.over = Over::Asking;
                    continue;
                }
                Err(status) => Err(status),
            };
            match asked {
                Ok(asked) => S::begin(&self.service, asked, |begun| self.under_way.begin(begun)),
                Err(status) => {
                    // Beyond the head nobody else counts it.
                    self.service.api.counts.answered(status.code() as usize);
                    self.over = Over::All;
                    return Some(Err(status));
                }
            }
        }
    }

    /// With those that would have to wait, and have no room.
    fn answered(&self, Heard { mut answered, no_room }: Heard) -> Vec<wire::RenewalAnswered> {
        let why =
            || Status::unavailable(format!("more than {} renewals wait for the outcome of expiries; ask again", S::MOST.later));
        answered.extend(no_room.into_iter().map(|tag| self.service.answered(tag, Err(why()))));
        answered
    }

    fn take(&mut self, message: S::Asked) -> Result<Vec<wire::RenewalAsked>, Status> {
        self.service.keys.still_open_to(self.shown)?;
        let asked = self.speaker.read(&self.service, message)?;
        if asked.len() > IN_MESSAGE_MAX {
            let many = asked.len();
            return Err(Status::invalid_argument(format!("{many} renewals in one message; at most {IN_MESSAGE_MAX}")));
        }
        Ok(asked)
    }
}
