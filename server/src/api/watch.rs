//! Watch: events from a revision on, as they happen.
//!
//! Promises: what was missed since `since` comes first, or `lagged` if it is gone; then `watching` with the revision up to
//! which all has been said; then each event once, in order, or `lagged` where a slow caller missed some (it reads status
//! anew). A watch ends with UNAVAILABLE when the node does. Filtered by tree, if trees are named (by id or name). It holds
//! up nobody: a caller that does not read loses events, not the server's memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use treelease_proto::command::Event;
use treelease_proto::wire;
use treelease_proto::wire::watch_answer::Kind;

use super::Service;
use crate::consensus::Consensus;
use crate::consensus::events::{Notice, Subscription};
use crate::limits::Seat;

/// Messages to one caller that wait for the transport.
const WAITING_MAX: usize = 256;
/// Trees that one watch may name.
const TREES_MAX: usize = 1_000;

type Message = Result<wire::WatchAnswer, Status>;

/// The stream of one watch.
pub type Watch = ReceiverStream<Message>;

impl Service {
    pub(super) fn start_watch(&self, request: wire::WatchRequest) -> Result<Watch, Status> {
        let most = self.api.limits.get().watches;
        let seat = self.watches.take(most).ok_or_else(|| {
            Status::resource_exhausted(format!("{most} watches run on this node; end one, or ask another node"))
        })?;
        if request.trees.len() > TREES_MAX {
            return Err(Status::invalid_argument(format!("trees: at most {TREES_MAX} can be named; name none to watch all")));
        }
        let (out, watch) = mpsc::channel(WAITING_MAX);
        let task = Feed {
            subscription: self.api.consensus.events().subscribe(request.since),
            trees: request.trees.into_iter().collect(),
            out,
            consensus: self.api.consensus.clone(),
            closing: self.api.closing.clone(),
            _seat: seat,
        };
        tokio::spawn(task.run());
        Ok(ReceiverStream::new(watch))
    }
}

struct Feed {
    subscription: Subscription,
    trees: BTreeSet<String>,
    out: mpsc::Sender<Message>,
    consensus: Arc<Consensus>,
    closing: CancellationToken,
    _seat: Seat,
}

/// The caller has gone, or has been told that the node ends.
struct Ended;

impl Feed {
    async fn run(mut self) {
        let closing = self.closing.clone();
        let out = self.out.clone();
        tokio::select! {
            _ = self.feed() => {}
            () = out.closed() => {}
            () = closing.cancelled() => {
                // Full or gone: the transport's own end tells the caller.
                let _ = out.try_send(Err(Status::unavailable("the node is stopping; watch again from the last revision")));
            }
        }
    }

    async fn feed(&mut self) -> Result<(), Ended> {
        let revision = self.subscription.revision;
        if self.subscription.lagged {
            self.say(Kind::Lagged(wire::Lagged { revision })).await?;
        }
        for event in std::mem::take(&mut self.subscription.backlog) {
            self.tell(&event).await?;
        }
        self.say(Kind::Watching(wire::Watching { revision })).await?;
        loop {
            match self.subscription.live.recv().await {
                Ok(Notice::Event(event)) => self.tell(&event).await?,
                Ok(Notice::Reset { revision }) => self.say(Kind::Lagged(wire::Lagged { revision })).await?,
                Err(RecvError::Lagged(_)) => {
                    let revision = self.consensus.state().revision();
                    self.say(Kind::Lagged(wire::Lagged { revision })).await?;
                }
                Err(RecvError::Closed) => return Err(Ended),
            }
        }
    }

    async fn tell(&self, event: &Event) -> Result<(), Ended> {
        if self.trees.is_empty() || self.trees.contains(event.tree.as_str()) || self.trees.contains(event.name.as_str()) {
            self.say(Kind::Event(wire::Event::from(event))).await?;
        }
        Ok(())
    }

    async fn say(&self, kind: Kind) -> Result<(), Ended> {
        self.out.send(Ok(wire::WatchAnswer { kind: Some(kind) })).await.map_err(|_| Ended)
    }
}
