//! Status: any node answers, and one that is cut off marks its answer; then the others are asked whether they know better.
//! It comes in pieces, as many as there are trees for; whole from a server that knows no pieces. Who wants some trees only names them; a
//! server of an earlier version sends all the same, so that whoever asked finds his among all.

use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout};
use tonic::{Code as Grpc, Response, Status, Streaming};

use super::{CallError, Failed, READ_ROUNDS, Servers, Target, classify, not_understood};
use crate::words::id::TreeName;
use crate::words::tree::ClusterStatus;
use crate::words::wire;

/// A status may take so many times as long as a call.
const WHOLE_LIMIT: u32 = 20;
/// The most trees, and the most sessions, that are taken: more than a cluster has by its own limits.
const MOST: usize = 1_000_000;

/// So many trees are named at most, as servers take it; of more than these all are asked for.
const NAMED_MAX: usize = 1_024;

/// What a server begins to say.
enum Said {
    InPieces(Box<Streaming<wire::StatusPiece>>),
    Whole(Box<wire::StatusAnswer>),
}

impl Target {
    async fn begin_status(&mut self, trees: &[String], limit: Duration) -> Result<Response<Said>, Status> {
        // No time limit in the request: it would end the stream.
        let mut request = tonic::Request::new(wire::StatusPiecesRequest { bytes: 0, trees: trees.to_vec() });
        self.authorise(&mut request);
        match self.client.status_in_pieces(request).await {
            Ok(pieces) => Ok(Response::new(Said::InPieces(Box::new(pieces.into_inner())))),
            // Of an earlier version, whose answer is one message.
            Err(status) if status.code() == Grpc::Unimplemented => {
                let request = self.request(wire::StatusRequest {}, limit);
                let whole = self.client.status(request).await?;
                Ok(Response::new(Said::Whole(Box::new(whole.into_inner()))))
            }
            Err(status) => Err(status),
        }
    }

    /// From begin to end; `limit` is for the begin, and for each piece.
    async fn status(mut self, trees: &[String], limit: Duration) -> Result<wire::StatusAnswer, Status> {
        let begun = timeout(limit, self.begin_status(trees, limit)).await.unwrap_or_else(|_| Err(silent(limit)))?;
        begun.into_inner().read(limit).await
    }
}

impl Said {
    /// All of it. A server that falls silent is not waited for for ever.
    async fn read(self, limit: Duration) -> Result<wire::StatusAnswer, Status> {
        let mut pieces = match self {
            Said::Whole(answer) => return Ok(*answer),
            Said::InPieces(pieces) => pieces,
        };
        let mut all: Option<wire::StatusAnswer> = None;
        let end = Instant::now() + limit * WHOLE_LIMIT;
        loop {
            if Instant::now() > end {
                return Err(silent(limit * WHOLE_LIMIT));
            }
            let piece = timeout(limit, pieces.message()).await.unwrap_or_else(|_| Err(silent(limit)))?;
            let piece = piece.ok_or_else(|| Status::unavailable("the server ended its status half-way"))?;
            let part = piece.part.unwrap_or_default();
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    all.trees.extend(part.trees);
                    all.sessions.extend(part.sessions);
                    if all.trees.len().max(all.sessions.len()) > MOST {
                        return Err(Status::out_of_range(format!("the server's status has more than {MOST} trees or sessions")));
                    }
                }
            }
            if !piece.more {
                return Ok(all.unwrap_or_default());
            }
        }
    }
}

fn silent(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {} ms", limit.as_millis()))
}

impl Servers {
    /// All trees and sessions. Without a quorum only if no server has one.
    pub async fn status(&self) -> Result<ClusterStatus, CallError> {
        self.status_among(&[]).await
    }

    /// These trees, as far as they exist; perhaps others too, and no session that counts. Else as [`Self::status`].
    pub async fn status_of(&self, trees: &[TreeName]) -> Result<ClusterStatus, CallError> {
        let names: Vec<String> = trees.iter().map(ToString::to_string).collect();
        self.status_among(if names.len() > NAMED_MAX { &[] } else { &names }).await
    }

    /// With no name, all.
    async fn status_among(&self, trees: &[String]) -> Result<ClusterStatus, CallError> {
        let began = Instant::now();
        let mut round = 1;
        let answer = loop {
            let said = self.call(false, |mut target, limit| async move { target.begin_status(trees, limit).await }).await?;
            let last = match said.read(self.timeout).await {
                Ok(answer) => break answer,
                Err(status) => match classify(&status) {
                    Failed::Refused(refusal) => return Err(CallError::Refused(refusal)),
                    Failed::NotSent(last) | Failed::Perhaps(last) => last,
                },
            };
            if round >= READ_ROUNDS {
                return Err(CallError::Unreachable { tried: self.endpoints(), waited: began.elapsed(), last });
            }
            round += 1;
        };
        let answer = if answer.quorum { answer } else { self.better_status(&answer, trees).await.unwrap_or(answer) };
        answer.try_into().map_err(not_understood)
    }

    /// What each configured server says by itself, in the order of the configuration; why, where one does not answer.
    pub async fn each_status(&self) -> Result<Vec<(String, Result<ClusterStatus, String>)>, CallError> {
        let mut targets = self.targets()?;
        let order = self.endpoints();
        targets.sort_by_key(|target| order.iter().position(|address| *address == target.address));
        let limit = self.timeout;
        let asks = targets.into_iter().map(|target| async move {
            let address = target.address.clone();
            let said = match target.status(&[], limit).await {
                Ok(answer) => ClusterStatus::try_from(answer).map_err(|e| e.to_string()),
                Err(status) => Err(status.message().to_owned()),
            };
            (address, said)
        });
        Ok(join_all(asks).await)
    }

    /// Of a server of the same cluster that has a quorum, if there is one. The first of them to answer counts.
    async fn better_status(&self, marked: &wire::StatusAnswer, trees: &[String]) -> Option<wire::StatusAnswer> {
        let targets = self.targets().ok().filter(|targets| targets.len() > 1)?;
        let limit = self.timeout / targets.len() as u32;
        let mut asked: FuturesUnordered<_> = targets
            .into_iter()
            .map(|target| async move {
                let address = target.address.clone();
                target.status(trees, limit).await.ok().map(|answer| (address, answer))
            })
            .collect();
        while let Some(answered) = asked.next().await {
            if let Some((address, answer)) = answered
                && answer.quorum
                && answer.cluster == marked.cluster
            {
                self.prefer_leader("", &address);
                return Some(answer);
            }
        }
        None
    }
}
