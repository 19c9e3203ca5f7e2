//! Many clients at once, each doing the same thing again and again for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::super::stats::Samples;
use super::SESSION;
use super::service::{Caller, Service};
use crate::hosts::Timer;

/// What every client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Acquires and releases a tree of its own.
    OwnTrees,
    /// Acquires and releases the one tree that all want.
    OneTree,
    /// Renews its session.
    Renewals,
}

impl Task {
    /// In tables.
    pub fn name(self, clients: usize) -> String {
        let s = if clients == 1 { "" } else { "s" };
        match self {
            Task::OwnTrees => format!("acquire and release, {clients} client{s}, a tree each"),
            Task::OneTree => format!("acquire and release, {clients} client{s} in line for one tree"),
            Task::Renewals => format!("renewals, {clients} client{s}"),
        }
    }

    /// What etcd's rate by treelease's is to be at most, with three nodes each; none: nothing is asked for.
    pub fn goal(self, clients: usize) -> Option<&'static str> {
        match self {
            Task::OwnTrees if clients == 64 => Some("≤ 0.333"),
            Task::OwnTrees | Task::OneTree => Some("< 1"),
            Task::Renewals => None,
        }
    }
}

/// What one round has found.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Completed, by all clients.
    pub per_second: f64,
    /// Seconds within which half of them were done.
    pub half_within: f64,
    /// Seconds within which 99 % of them were done.
    pub most_within: f64,
}

/// Runs so many clients for so long. What began within the time counts, and is waited for.
pub async fn run<S: Service>(service: &S, task: Task, clients: usize, length: Duration) -> anyhow::Result<Loaded> {
    let names: Vec<String> = match task {
        Task::OwnTrees => (0..clients).map(|n| name(&format!("own{clients}-{n}"))).collect(),
        Task::OneTree => vec![name(&format!("one{clients}"))],
        Task::Renewals => Vec::new(),
    };
    service.trees(&names, Duration::ZERO).await?;
    let begin = Arc::new(Barrier::new(clients + 1));
    let mut all = JoinSet::new();
    for n in 0..clients {
        let mut caller = service.caller(n % service.nodes(), SESSION).await?;
        let tree = names.get(n).or(names.first()).cloned().unwrap_or_default();
        if task == Task::OneTree {
            caller.follow(&tree).await?;
        } else {
            once(&mut caller, task, &tree).await?;
        }
        let begin = begin.clone();
        all.spawn(async move {
            begin.wait().await;
            let (timer, mut took) = (Timer::start(), Vec::new());
            while timer.elapsed() < length {
                let one = Timer::start();
                once(&mut caller, task, &tree).await?;
                took.push(one.elapsed().as_secs_f64());
            }
            anyhow::Ok(took)
        });
    }
    begin.wait().await;
    let timer = Timer::start();
    let mut took = Vec::new();
    while let Some(one) = all.join_next().await {
        took.extend(one??);
    }
    let seconds = timer.elapsed().as_secs_f64();
    let per_second = took.len() as f64 / seconds;
    let took = Samples::of(took);
    Ok(Loaded { per_second, half_within: took.median(), most_within: took.percentile(99.0) })
}

async fn once(caller: &mut impl Caller, task: Task, tree: &str) -> anyhow::Result<()> {
    match task {
        Task::Renewals => caller.renew().await,
        Task::OwnTrees | Task::OneTree => {
            caller.acquire(tree).await?;
            caller.release(tree).await
        }
    }
}

/// A name that no earlier round has used.
fn name(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
