//! Status: any node answers, and one that is cut off marks its answer; then the others are asked whether they know better.

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::timeout;

use super::{CallError, Servers, not_understood};
use crate::words::tree::ClusterStatus;
use crate::words::wire;

impl Servers {
    /// All trees and sessions. Without a quorum only if no server has one.
    pub async fn status(&self) -> Result<ClusterStatus, CallError> {
        let answer = self
            .call(false, |mut target, limit| {
                let request = target.request(wire::StatusRequest {}, limit);
                async move { target.client.status(request).await }
            })
            .await?;
        let answer = if answer.quorum { answer } else { self.better_status(&answer).await.unwrap_or(answer) };
        answer.try_into().map_err(not_understood)
    }

    /// What each configured server says by itself, in the order of the configuration; why, where one does not answer.
    pub async fn each_status(&self) -> Result<Vec<(String, Result<ClusterStatus, String>)>, CallError> {
        let mut targets = self.targets()?;
        let order = self.endpoints();
        targets.sort_by_key(|target| order.iter().position(|address| *address == target.address));
        let limit = self.timeout;
        let asks = targets.into_iter().map(|mut target| async move {
            let request = target.request(wire::StatusRequest {}, limit);
            let said = match timeout(limit, target.client.status(request)).await {
                Ok(Ok(answer)) => ClusterStatus::try_from(answer.into_inner()).map_err(|e| e.to_string()),
                Ok(Err(status)) => Err(status.message().to_owned()),
                Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
            };
            (target.address, said)
        });
        Ok(join_all(asks).await)
    }

    /// Of a server of the same cluster that has a quorum, if there is one. The first of them to answer counts.
    async fn better_status(&self, marked: &wire::StatusAnswer) -> Option<wire::StatusAnswer> {
        let targets = self.targets().ok().filter(|targets| targets.len() > 1)?;
        let limit = self.timeout / targets.len() as u32;
        let mut asked: FuturesUnordered<_> = targets
            .into_iter()
            .map(|mut target| async move {
                let request = target.request(wire::StatusRequest {}, limit);
                let answer = timeout(limit, target.client.status(request)).await.ok()?.ok()?.into_inner();
                Some((target.address, answer))
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
