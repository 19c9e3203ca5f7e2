//! Events as they happen, over as many connections as it takes: after each interruption the stream resumes from the last
//! revision that it has seen, so that nothing is missed unless the server says so ([`WatchItem::Lagged`]).

use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tonic::Streaming;

use super::{BACK_OFF, CallError, Failed, Servers, classify, not_understood};
use crate::words::command::Event;
use crate::words::id::TreeId;
use crate::words::wire;
use crate::words::wire::watch_answer::Kind;

/// The longest pause between two tries to watch again: a server that is away for an hour is asked every five seconds.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a watch brings. Nearly all items are events: the size of one is the size of the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)]
pub enum WatchItem {
    /// Something happened.
    Event(Event),
    /// Events before this revision were missed: read the status anew.
    Lagged(u64),
    /// The watch is live from this revision on.
    Watching(u64),
}

struct Watch {
    servers: Servers,
    since: u64,
    trees: Vec<TreeId>,
    stream: Option<Streaming<wire::WatchAnswer>>,
    pause: Duration,
    over: bool,
}

pub(super) fn stream(servers: Servers, since: u64, trees: Vec<TreeId>) -> BoxStream<'static, Result<WatchItem, CallError>> {
    let first = Watch { servers, since, trees, stream: None, pause: Duration::ZERO, over: false };
    stream::unfold(first, |mut watch| async move {
        let item = watch.next().await?;
        watch.over = matches!(item, Err(CallError::Refused(_)));
        Some((item, watch))
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> Option<Result<WatchItem, CallError>> {
        if self.over {
            return None;
        }
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).clamp(BACK_OFF.0, PAUSE_MAX);
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(e) => return Some(Err(e)),
                }
                continue;
            };
            let item = match stream.message().await {
                Ok(Some(answer)) => self.take(answer),
                Ok(None) => self.broke("the server ended the watch".into()),
                Err(status) => match classify(&status) {
                    Failed::Refused(refusal) => Err(CallError::Refused(refusal)),
                    Failed::NotSent(last) | Failed::Perhaps(last) => self.broke(last),
                },
            };
            return Some(item);
        }
    }

    fn take(&mut self, answer: wire::WatchAnswer) -> Result<WatchItem, CallError> {
        self.pause = Duration::ZERO;
        let (item, revision) = match answer.kind {
            Some(Kind::Event(event)) => {
                let event: Event = event.try_into().map_err(not_understood)?;
                let revision = event.revision;
                (WatchItem::Event(event), revision)
            }
            Some(Kind::Lagged(lagged)) => (WatchItem::Lagged(lagged.revision), lagged.revision),
            // It may come before the events that are made up for: only who begins now takes the revision from it.
            Some(Kind::Watching(watching)) => {
                let since = if self.since == 0 { watching.revision } else { self.since };
                (WatchItem::Watching(watching.revision), since)
            }
            None => return Err(super::bad("kind", "it is missing, or of a later version")),
        };
        self.since = revision;
        Ok(item)
    }

    fn broke(&mut self, last: String) -> Result<WatchItem, CallError> {
        self.stream = None;
        Err(CallError::Unreachable { tried: self.servers.endpoints(), waited: Duration::ZERO, last })
    }

    async fn open(&self) -> Result<Streaming<wire::WatchAnswer>, CallError> {
        let trees: Vec<String> = self.trees.iter().map(TreeId::to_string).collect();
        let since = self.since;
        self.servers
            .call(false, |mut target, _| {
                // No time limit in the request: it would end the stream.
                let mut request = tonic::Request::new(wire::WatchRequest { since, trees: trees.clone() });
                target.authorise(&mut request);
                async move { target.client.watch(request).await }
            })
            .await
    }
}
