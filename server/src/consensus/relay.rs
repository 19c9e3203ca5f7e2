//! Renewals on their way to the leader: those of all sides that asked this node, over one call that stays open.
//!
//! Promises: an answer is given only to the renewal whose tag it names, and only if the stamp on it is that of the member that was
//! asked (I7); no renewal is sent twice over the call. One whose call broke off, or that is not answered in its time, has no
//! outcome: nothing is logged by a renewal, so that is the same as not to have asked (I5). What lies in the queue at one moment
//! goes out in one message; nothing is held back for others to come. One that nobody waits for any more leaves the queue, is not sent,
//! and takes no room in it; the time that one has waited there is not its time at the leader. Another leader, another address or
//! directory of the same one, or another token to show is another call; what is under way on the last one may still be answered. To a
//! node that does not take this call, as one of an earlier version or one whose callers have taken all room for such, each goes as a
//! call of its own.
//!
//! It does not know what a renewal means, nor who leads: the caller says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use treelease_proto::id::NodeId;
use treelease_proto::tags::{NotAsked, Tags};
use treelease_proto::wire;
use treelease_proto::wire::forward_answer::Kind;
use treelease_proto::wire::forward_request::Call;
use treelease_proto::wire::renewal_answered::Word;

use super::network::{Lost, Network, NotOpened};
use crate::config::Token;
use crate::store::identity::Member;

/// Renewals that wait for the leader's word; more are turned away.
const WAITING_MAX: usize = 16_384;
/// Renewals in one message: some tens of kilobytes at most.
pub const IN_MESSAGE_MAX: usize = 256;
/// How long a call may take until it is open: that of one renewal.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// A leader that did not take the call is not asked for it for so long: there may be room, or a newer build, meanwhile.
const ALONE_FOR: Duration = Duration::from_secs(60);

/// See the module.
pub struct Relay {
    network: Network,
    line: Mutex<Option<Line>>,
}

/// The way to the leader that was asked last.
enum Line {
    Open(Open),
    /// It takes no such call.
    Alone(Way, Instant),
}

/// To whom a call goes, and what it shows.
#[derive(Clone, PartialEq, Eq)]
struct Way {
    leader: NodeId,
    member: Member,
    token: Option<Token>,
}

/// A call that is open, or is being opened.
#[derive(Clone)]
struct Open {
    way: Way,
    queue: Arc<Queue>,
    /// Tells that there is more in the queue; with the last of them the call ends.
    more: mpsc::Sender<()>,
    waiting: Arc<Waiting>,
}

/// Why a call has ended, or takes no renewal.
#[derive(Debug, Clone)]
enum End {
    /// The other end takes no such call.
    NotTaken,
    /// None of its renewals was sent.
    NotSent(String),
    /// Any of them may have been.
    Broke(String),
}

impl Relay {
    /// Nothing is open yet.
    pub fn new(network: Network) -> Self {
        Self { network, line: Mutex::default() }
    }

    /// Sends one renewal to that node, and waits for its word.
    pub async fn renew(&self, leader: NodeId, renewal: wire::RenewRequest, limit: Duration) -> Result<Word, Lost> {
        let member =
            self.network.peers().member(leader).ok_or_else(|| Lost::NotSent(format!("node {leader} is not known here")))?;
        let way = Way { leader, member, token: self.network.shown() };
        if let Some(open) = self.line(way)? {
            match open.renew(renewal.clone(), limit).await {
                Ok(word) => return Ok(word),
                Err(End::NotSent(why)) => return Err(Lost::NotSent(why)),
                Err(End::Broke(why)) => return Err(Lost::Perhaps(why)),
                Err(End::NotTaken) => *self.lock() = Some(Line::Alone(open.way, Instant::now() + ALONE_FOR)),
            }
        }
        match self.network.forward(leader, Call::Renew(renewal), limit).await? {
            Kind::Renewed(answer) => Ok(Word::Renewed(answer)),
            Kind::Failed(wire::ForwardFailed { code, message }) => Ok(Word::Failed(wire::CallFailed { code, message })),
            _ => Err(Lost::Perhaps("the leader's answer is of another version".into())),
        }
    }

    /// The call to take; none: it does not know one.
    fn line(&self, way: Way) -> Result<Option<Open>, Lost> {
        let mut line = self.lock();
        match &*line {
            Some(Line::Open(open)) if open.way == way && open.waiting.ended().is_none() => return Ok(Some(open.clone())),
            Some(Line::Alone(older, until)) if *older == way && Instant::now() < *until => return Ok(None),
            _ => {}
        }
        let open = Open::begin(&self.network, way)?;
        *line = Some(Line::Open(open.clone()));
        Ok(Some(open))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().expect("nothing panics while it holds the line")
    }
}

impl Open {
    fn begin(network: &Network, way: Way) -> Result<Self, Lost> {
        let stamp = network.peers().stamp(way.leader, &way.member.disk);
        let stamp = stamp.ok_or_else(|| Lost::NotSent("there is no cluster yet".into()))?;
        let (open, asked) = Self::new(way, stamp);
        tokio::spawn(converse(network.clone(), open.way.clone(), asked, open.waiting.clone()));
        Ok(open)
    }

    /// One that nobody has called yet, and what is to be said over it.
    fn new(way: Way, stamp: wire::Stamp) -> (Self, impl Stream<Item = wire::RenewalsForwarded> + Send + use<>) {
        let (more, wakes) = mpsc::channel(1);
        let queue = Arc::<Queue>::default();
        (Self { way, queue: queue.clone(), more, waiting: Arc::default() }, messages(queue, wakes, stamp))
    }

    async fn renew(&self, renewal: wire::RenewRequest, limit: Duration) -> Result<Word, End> {
        let (outcome, answer) = oneshot::channel();
        let under_way = self.waiting.ask(outcome, WAITING_MAX).map_err(|why| match why {
            NotAsked::Ended(end) => end,
            NotAsked::Full => End::NotSent(format!("more than {WAITING_MAX} renewals wait for the leader; try again later")),
        })?;
        // The leader ends it at its limit; this side waits a little longer, for its word.
        let grace = Duration::from_millis(100).min(limit / 4);
        let _queued = self.queue.put(under_way.tag(), Queued { renewal, until: Instant::now() + (limit - grace) });
        // A word that has not been heard yet stands for this one too.
        if let Err(TrySendError::Closed(())) = self.more.try_send(()) {
            return Err(End::NotSent("the call to the leader has just ended".into()));
        }
        match timeout(limit, answer).await {
            Ok(word) => word.unwrap_or_else(|_| Err(End::Broke("the call to the leader broke off".into()))),
            Err(_) => Err(End::Broke(format!("no answer within {} ms", limit.as_millis()))),
        }
    }
}

/// Renewals that are not sent yet, by their tags: each in the queue of somebody who waits for it, so no more than [`WAITING_MAX`].
#[derive(Default)]
struct Queue(Mutex<BTreeMap<u64, Queued>>);

struct Queued {
    renewal: wire::RenewRequest,
    /// When its time at the leader is over.
    until: Instant,
}

/// In the queue until it is sent or this is dropped.
struct InQueue<'a>(&'a Queue, u64);

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Queued>> {
        self.0.lock().expect("nothing panics while it holds the queue")
    }

    fn put(&self, tag: u64, queued: Queued) -> InQueue<'_> {
        self.lock().insert(tag, queued);
        InQueue(self, tag)
    }

    /// As many as fit into one message, the oldest first, each with what is left of its time; those that have none left are let go.
    fn take(&self) -> Vec<wire::RenewalAsked> {
        let (mut queue, mut asked, now) = (self.lock(), Vec::new(), Instant::now());
        while asked.len() < IN_MESSAGE_MAX
            && let Some((tag, Queued { renewal, until })) = queue.pop_first()
        {
            let limit_ms = until.saturating_duration_since(now).as_millis() as u64;
            if limit_ms > 0 {
                asked.push(wire::RenewalAsked { tag, limit_ms, renewal: Some(renewal) });
            }
        }
        asked
    }
}

/// What is in the queue, as messages; until nobody can put more into it.
fn messages(
    queue: Arc<Queue>,
    wakes: mpsc::Receiver<()>,
    stamp: wire::Stamp,
) -> impl Stream<Item = wire::RenewalsForwarded> + Send + use<> {
    stream::unfold((queue, wakes, stamp), |(queue, mut wakes, stamp)| async move {
        loop {
            let asked = queue.take();
            if !asked.is_empty() {
                return Some((wire::RenewalsForwarded { stamp: Some(stamp.clone()), asked }, (queue, wakes, stamp)));
            }
            wakes.recv().await?;
        }
    })
}

/// Opens the call and hands out its answers, until it ends.
async fn converse(
    network: Network,
    way: Way,
    asked: impl Stream<Item = wire::RenewalsForwarded> + Send + 'static,
    waiting: Arc<Waiting>,
) {
    let opened = timeout(OPEN_LIMIT, network.renewals(&way.member.addr, asked)).await;
    let mut answers = match opened {
        Ok(Ok(answers)) => answers,
        Ok(Err(NotOpened::NotTaken)) => return end(&waiting, End::NotTaken),
        Ok(Err(NotOpened::No(why))) => return end(&waiting, End::NotSent(why)),
        Err(_) => return end(&waiting, End::Broke(format!("not reached within {} s", OPEN_LIMIT.as_secs()))),
    };
    let why = loop {
        match answers.next().await {
            Some(Ok(returned)) => {
                let stamp = returned.stamp.as_ref();
                if let Err(why) = network.peers().check_answer(stamp, way.leader, &way.member.disk) {
                    break why;
                }
                hand_out(&waiting, returned.answered);
            }
            Some(Err(why)) => break why,
            None => break "it has ended the call".into(),
        }
    };
    end(&waiting, End::Broke(why));
}

/// The renewals of one call that are under way.
type Waiting = Tags<oneshot::Sender<Result<Word, End>>, End>;

/// Answers that nobody waits for, or that say nothing, are nobody's.
fn hand_out(waiting: &Waiting, answered: Vec<wire::RenewalAnswered>) {
    for wire::RenewalAnswered { tag, word } in answered {
        if let (Some(word), Some(outcome)) = (word, waiting.answered(tag)) {
            let _ = outcome.send(Ok(word));
        }
    }
}

fn end(waiting: &Waiting, end: End) {
    for outcome in waiting.end(end.clone()) {
        let _ = outcome.send(Err(end.clone()));
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
