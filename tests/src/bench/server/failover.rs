//! The leader killed, until a client has its next grant.

use std::time::Duration;

use anyhow::{Context, bail};

use super::service::{Caller, Service};
use super::{CALL_LIMIT, SESSION, START};
use crate::hosts::Timer;

/// How long a client waits for one node before it tries the next one.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until one node leads.
pub async fn leader(service: &impl Service) -> anyhow::Result<usize> {
    let timer = Timer::start();
    while timer.elapsed() < START {
        if let Some(leader) = service.leader().await {
            return Ok(leader);
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("{}: no node leads within {START:?}", service.name())
}

/// Kills the leader, and returns how many seconds later a client, which tries the other nodes in turn, had a free tree; the
/// nodes are whole again afterwards.
pub async fn once<S: Service>(service: &mut S, n: usize) -> anyhow::Result<f64> {
    let tree = format!("failover-{n}");
    service.trees(std::slice::from_ref(&tree), Duration::ZERO).await?;
    let killed = leader(service).await?;
    let others: Vec<usize> = (0..service.nodes()).filter(|node| *node != killed).collect();
    let mut caller = service.caller(others[0], SESSION).await?;
    // Connections to both others, made before.
    for node in &others {
        caller.at(*node);
        caller.acquire(&tree).await?;
        caller.release(&tree).await?;
    }
    service.kill(killed);
    let timer = Timer::start();
    let mut turns = others.iter().cycle();
    let took = loop {
        caller.at(*turns.next().context("there are others")?);
        if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, caller.acquire(&tree)).await {
            break timer.elapsed().as_secs_f64();
        }
        if timer.elapsed() > START + CALL_LIMIT {
            bail!("{}: no grant after the leader was killed", service.name());
        }
        tokio::time::sleep(PAUSE).await;
    };
    caller.release(&tree).await?;
    service.start_again(killed)?;
    leader(service).await?;
    Ok(took)
}
