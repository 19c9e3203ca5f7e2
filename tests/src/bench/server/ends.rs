//! Holders that die at rest, each with its tree, until the one who waits for that tree is granted it.

use std::time::Duration;

use futures::future::try_join_all;

use super::super::stats::{Samples, Unit};
use super::super::table::Table;
use super::super::{Ground, Settings};
use super::service::{Caller, Service};
use super::{Pair, SESSION};
use crate::hosts::Timer;

/// What a death may cost beyond TTL and grace, 95 times of 100.
const GOAL: Duration = Duration::from_millis(300);

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let nodes = settings.most_nodes();
    let (runtime, pair) = (tokio::runtime::Runtime::new()?, Pair::start(ground, "ends", nodes, settings)?);
    // The least TTL of three nodes at this pace is above four seconds.
    let ttl = Duration::from_secs(if settings.quick && nodes == 1 { 2 } else { 5 });
    let grace = Duration::from_secs(if settings.quick { 1 } else { 5 });
    let times = settings.size(20, 2);
    runtime.block_on(async {
        pair.lead().await?;
        let mut head = vec![format!("holder killed at rest, TTL {} s, until the next waiter is granted", ttl.as_secs())];
        head.extend(
            ["grace", "median (lowest–highest)", "95 % within", "TTL + grace, and so much", "goal", "times"].map(Into::into),
        );
        let mut table = Table::new(head);
        let found = all(&pair.ours, times, ttl, grace).await?;
        table.row(row("treelease", &found, ttl, Some(grace)));
        if let Some(etcd) = &pair.etcd {
            table.row(row("etcd", &all(etcd, times, ttl, grace).await?, ttl, None));
        }
        Ok(table.to_string())
    })
}

fn row(name: &str, found: &Samples, ttl: Duration, grace: Option<Duration>) -> [String; 7] {
    let most = found.percentile(95.0);
    let more = most - (ttl + grace.unwrap_or_default()).as_secs_f64();
    [
        name.into(),
        grace.map_or("none".into(), |grace| format!("{} s", grace.as_secs())),
        found.show(Unit::Time),
        Unit::Time.show(most),
        format!("{:.0} ms", more * 1e3),
        grace.map_or(String::new(), |_| format!("≤ {} ms", GOAL.as_millis())),
        found.len().to_string(),
    ]
}

/// All at once: each with a tree, a holder and a waiter of its own.
async fn all<S: Service>(service: &S, times: usize, ttl: Duration, grace: Duration) -> anyhow::Result<Samples> {
    let names: Vec<String> = (0..times).map(|n| format!("end-{n}")).collect();
    service.trees(&names, grace).await?;
    let took = try_join_all(names.iter().enumerate().map(|(n, tree)| one(service, n, times, tree, ttl)));
    Ok(Samples::of(took.await?))
}

async fn one<S: Service>(service: &S, n: usize, times: usize, tree: &str, ttl: Duration) -> anyhow::Result<f64> {
    let mut holder = service.caller(n % service.nodes(), ttl).await?;
    let mut waiter = service.caller((n + 1) % service.nodes(), SESSION).await?;
    waiter.follow(tree).await?;
    holder.acquire(tree).await?;
    holder.rest(tree).await?;
    let timer = Timer::start();
    let name = tree.to_owned();
    let granted = tokio::spawn(async move {
        waiter.acquire(&name).await?;
        anyhow::Ok(timer.elapsed())
    });
    // They die at moments of their own, spread over a while, and right after a renewal: the longest that it can take.
    let lives = ttl / 5 + ttl / 2 * n as u32 / times as u32;
    while timer.elapsed() < lives {
        holder.renew().await?;
        tokio::time::sleep((ttl / 5).min(lives.saturating_sub(timer.elapsed()))).await;
    }
    holder.renew().await?;
    let died = timer.elapsed();
    drop(holder);
    Ok((granted.await?? - died).as_secs_f64())
}
