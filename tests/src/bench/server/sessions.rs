//! A thousand sessions that are kept alive: how many renewals a second, and what one costs the nodes.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::super::stats::{Samples, Unit};
use super::super::table::Table;
use super::super::{Ground, Rival, Settings, say};
use super::service::{Caller, Service};
use super::{Pair, SESSION, cost, failover};
use crate::hosts::Timer;

/// How often a session with the default time to live of 15 s is renewed.
const PACE: Duration = Duration::from_secs(3);
/// Sessions that are opened at once.
const AT_ONCE: usize = 32;

/// To whom, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Each session to one of the nodes, and again as soon as it is answered.
    InTurn,
    /// All to the leader's node.
    Leader,
    /// Each to one of the nodes, at the pace of a daemon.
    Paced,
}

/// One round.
#[derive(Debug, Clone, Copy)]
struct Round {
    per_second: f64,
    half_within: f64,
    most_within: f64,
    /// Seconds of the nodes' processors for each.
    cost: f64,
}

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let nodes = settings.most_nodes();
    let (runtime, pair) = (tokio::runtime::Runtime::new()?, Pair::start(ground, "sessions", nodes, settings)?);
    runtime.block_on(async {
        pair.lead().await?;
        let sessions = settings.size(1_000, 20);
        let mut ours = open(&pair.ours, sessions).await?;
        let mut theirs = match &pair.etcd {
            Some(etcd) => open(etcd, sessions).await?,
            None => Vec::new(),
        };
        let ways = [Way::InTurn, Way::Leader, Way::Paced];
        let mut found = ways.map(|_| [Vec::new(), Vec::new()]);
        for n in 0..settings.rounds {
            for (at, way) in ways.into_iter().enumerate() {
                // Who begins changes from way to way and from round to round.
                for turn in 0..2 {
                    match ((turn + n + at) % 2, &pair.etcd) {
                        (0, _) => found[at][0].push(round(&pair.ours, &mut ours, way, settings).await?),
                        (_, Some(etcd)) => found[at][1].push(round(etcd, &mut theirs, way, settings).await?),
                        _ => {}
                    }
                }
            }
            say(format!("round {} of {} of {sessions} sessions", n + 1, settings.rounds));
        }
        let names = ways.map(|way| match way {
            Way::InTurn => format!("renewals, {sessions} sessions, each at one of the nodes"),
            Way::Leader => format!("renewals, {sessions} sessions, all at the leader's node"),
            Way::Paced => format!("renewals, {sessions} sessions, each every {} s at one of the nodes", PACE.as_secs()),
        });
        Ok(table(settings, nodes, &names, &found))
    })
}

async fn open<S: Service>(service: &S, sessions: usize) -> anyhow::Result<Vec<S::Caller>> {
    let opened = (0..sessions).map(|n| service.caller(n % service.nodes(), SESSION));
    futures::stream::iter(opened).buffered(AT_ONCE).try_collect().await
}

async fn round<S: Service>(service: &S, callers: &mut Vec<S::Caller>, way: Way, settings: &Settings) -> anyhow::Result<Round> {
    let pace = if settings.quick { PACE / 15 } else { PACE };
    let length = if way == Way::Paced { pace } else { Duration::from_millis(settings.size(2_000, 200) as u64) };
    let leader = failover::leader(service).await?;
    let (sessions, nodes) = (callers.len(), service.nodes());
    let begin = Arc::new(Barrier::new(sessions + 1));
    let mut all = JoinSet::new();
    for (n, mut caller) in std::mem::take(callers).into_iter().enumerate() {
        caller.at(if way == Way::Leader { leader } else { n % nodes });
        let begin = begin.clone();
        all.spawn(async move {
            // Its connection is there before the time begins.
            caller.renew().await?;
            begin.wait().await;
            let (timer, mut took) = (Timer::start(), Vec::new());
            if way == Way::Paced {
                tokio::time::sleep(pace * n as u32 / sessions as u32).await;
            }
            while took.is_empty() || (way != Way::Paced && timer.elapsed() < length) {
                let one = Timer::start();
                caller.renew().await?;
                took.push(one.elapsed().as_secs_f64());
            }
            anyhow::Ok((n, caller, took))
        });
    }
    begin.wait().await;
    let (timer, before) = (Timer::start(), cost::cpu(&service.processes())?);
    let (mut took, mut back) = (Vec::new(), Vec::new());
    while let Some(one) = all.join_next().await {
        let (n, caller, times) = one??;
        took.extend(times);
        back.push((n, caller));
    }
    let (seconds, spent) = (timer.elapsed().as_secs_f64(), cost::cpu(&service.processes())? - before);
    back.sort_by_key(|(n, _)| *n);
    callers.extend(back.into_iter().map(|(_, caller)| caller));
    let (count, took) = (took.len() as f64, Samples::of(took));
    Ok(Round { per_second: count / seconds, half_within: took.median(), most_within: took.percentile(99.0), cost: spent / count })
}

fn table(settings: &Settings, nodes: usize, names: &[String], found: &[[Vec<Round>; 2]]) -> String {
    let beside = settings.beside(Rival::Etcd);
    let mut head = vec!["what", "nodes", "treelease", "half / 99 % within", "the nodes' processors, each"];
    if beside {
        head.extend(["etcd", "half / 99 % within", "the nodes' processors, each", "etcd's : treelease's rate", "goal"]);
        head.extend(["treelease's : etcd's processors", "goal"]);
    }
    let mut table = Table::new(head);
    let of = |rounds: &[Round], what: fn(&Round) -> f64| Samples::of(rounds.iter().map(what));
    for (name, [ours, theirs]) in names.iter().zip(found) {
        let mut cells = vec![name.clone(), nodes.to_string()];
        for rounds in [ours, theirs].into_iter().take(1 + usize::from(beside)) {
            let (half, most) = (of(rounds, |round| round.half_within), of(rounds, |round| round.most_within));
            cells.push(of(rounds, |round| round.per_second).show(Unit::PerSecond));
            cells.push(format!("{} / {}", Unit::Time.show(half.median()), Unit::Time.show(most.median())));
            cells.push(of(rounds, |round| round.cost).show(Unit::Micros));
        }
        if beside {
            let paced = name == &names[2];
            let rate = of(theirs, |round| round.per_second).ratio(&of(ours, |round| round.per_second));
            let cost = of(ours, |round| round.cost).ratio(&of(theirs, |round| round.cost));
            // At the pace of a daemon both do what they are asked.
            cells.push(if paced { "".into() } else { rate.show(Unit::Ratio) });
            cells.push(if paced { "" } else { "< 1" }.into());
            cells.push(cost.show(Unit::Ratio));
            cells.push("< 1".into());
        }
        table.row(cells);
    }
    table.to_string()
}
