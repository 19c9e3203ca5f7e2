//! What the lease server does in a second, beside etcd's lock: the same code drives both.
//!
//! | what | where |
//! |---|---|
//! | what a lock service can be asked | [`service`] |
//! | its nodes as processes | [`nodes`] |
//! | treelease, by the client's own library | [`treelease`] |
//! | etcd, by its gRPC | [`etcd`] |
//! | many clients at once | [`load`] |
//! | the leader killed | [`failover`] |
//! | a thousand sessions that are kept alive | [`sessions`], [`cost`] |
//! | holders that die at rest | [`ends`] |
//! | many trees | [`many`] |
//! | the two stores | [`stores`] |
//!
//! # Promises
//!
//! Both run on the same disk, at the same time, with the same heartbeat, and both let a leader be silent for about a second before another node may replace it
//! (least and most are said in `tests/BENCHMARKS.md`); each client has a
//! connection of its own, to the nodes in turn. While one is measured the other one only beats.
//!
//! # Does not know
//!
//! How either would do with its clients on other machines: here all share the processors.

pub mod cost;
pub mod ends;
pub mod etcd;
pub mod failover;
pub mod load;
pub mod many;
pub mod nodes;
pub mod service;
pub mod sessions;
pub mod stores;
pub mod treelease;

use std::time::Duration;

use super::stats::{Samples, Unit};
use super::table::Table;
use super::{Ground, Rival, Settings, say};
use etcd::Etcd;
use load::{Loaded, Task};
use service::Service;
use treelease::Treelease;

/// How often a leader speaks, in both.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// etcd's election time-out: the least silence of a leader after which it is replaced. The most is twice that, and cannot be set.
pub const ETCD_ELECTION: Duration = Duration::from_secs(1);
/// treelease's shortest election time-out. openraft lets a leader be silent for the longest one and then one more
/// (STACK 1.5): so 1,050 to 1,200 ms, against etcd's 1,000 to 2,000.
pub const LEAST_ELECTION: Duration = Duration::from_millis(450);
/// The longest.
pub const MOST_ELECTION: Duration = Duration::from_millis(600);
/// How long sessions live without a renewal: nothing expires while we measure something else.
pub const SESSION: Duration = Duration::from_secs(1800);
/// How long one call may take.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long nodes may take until one leads.
pub const START: Duration = Duration::from_secs(60);

/// A part of what is measured of the lease server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Acquire and release, a tree each
    OwnTrees,
    /// Acquire and release, all in line for one tree
    OneTree,
    /// Renewals
    Renewals,
    /// Leaders killed
    Kills,
}

/// What is measured, and with how many clients at once.
fn cells(settings: &Settings) -> Vec<(Task, &'static [usize])> {
    let (own, one, renewals): (&[usize], &[usize], &[usize]) = match settings.quick {
        false => (&[1, 16, 64], &[2, 8, 32], &[1, 16, 64]),
        true => (&[1, 3], &[3], &[3]),
    };
    let all =
        [(Part::OwnTrees, Task::OwnTrees, own), (Part::OneTree, Task::OneTree, one), (Part::Renewals, Task::Renewals, renewals)];
    all.into_iter().filter(|(part, ..)| settings.tasks.contains(part)).map(|(_, task, clients)| (task, clients)).collect()
}

/// Both lock services with so many nodes; only one of them, if etcd is not compared with.
struct Pair {
    ours: Treelease,
    etcd: Option<Etcd>,
}

impl Pair {
    /// Starts them; they serve soon.
    fn start(ground: &Ground, name: &str, nodes: usize, settings: &Settings) -> anyhow::Result<Pair> {
        let etcd = || Etcd::start(ground, &format!("{name}-etcd-{nodes}"), nodes);
        Ok(Pair {
            ours: Treelease::start(ground, &format!("{name}-treelease-{nodes}"), nodes)?,
            etcd: settings.beside(Rival::Etcd).then(etcd).transpose()?,
        })
    }

    /// Waits until both are led.
    async fn lead(&self) -> anyhow::Result<()> {
        failover::leader(&self.ours).await?;
        match &self.etcd {
            Some(etcd) => failover::leader(etcd).await.map(drop),
            None => Ok(()),
        }
    }
}

/// One row: the rounds of each, ours first.
struct Row {
    what: String,
    nodes: usize,
    goal: &'static str,
    rounds: Vec<Vec<Loaded>>,
}

/// Measures, and returns the tables.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut rows = Vec::new();
    let mut kills = Vec::new();
    for nodes in settings.nodes.iter().copied() {
        let pair = Pair::start(ground, "load", nodes, settings)?;
        runtime.block_on(pair.lead())?;
        rows.extend(runtime.block_on(loads(settings, &pair, nodes))?);
        // With one of three nodes dead, two are a quorum; with one of one there is none.
        if nodes >= 3 && settings.tasks.contains(&Part::Kills) {
            kills = runtime.block_on(leaders_killed(settings, pair))?;
        }
    }
    Ok(tables(settings, &rows, &kills))
}

async fn loads(settings: &Settings, pair: &Pair, nodes: usize) -> anyhow::Result<Vec<Row>> {
    let length = Duration::from_millis(settings.size(2_000, 200) as u64);
    let mut rows = Vec::new();
    for (task, clients) in cells(settings) {
        for clients in clients {
            let what = task.name(*clients);
            let goal = task.goal(*clients).filter(|_| nodes == 3).unwrap_or_default();
            let rounds = vec![Vec::new(); 1 + usize::from(pair.etcd.is_some())];
            rows.push((task, *clients, Row { what, nodes, goal, rounds }));
        }
    }
    for round in 0..settings.rounds {
        for (n, (task, clients, row)) in rows.iter_mut().enumerate() {
            // Who begins changes from cell to cell and from round to round.
            for turn in 0..row.rounds.len() {
                let at = (turn + n + round) % row.rounds.len();
                let loaded = match &pair.etcd {
                    Some(etcd) if at == 1 => load::run(etcd, *task, *clients, length).await?,
                    _ => load::run(&pair.ours, *task, *clients, length).await?,
                };
                row.rounds[at].push(loaded);
            }
        }
        say(format!("round {} of {} of the server, {nodes} nodes", round + 1, settings.rounds));
    }
    Ok(rows.into_iter().map(|(_, _, row)| row).collect())
}

async fn leaders_killed(settings: &Settings, pair: Pair) -> anyhow::Result<Vec<(&'static str, Samples)>> {
    let Pair { mut ours, mut etcd } = pair;
    let mut found = vec![(ours.name(), Samples::default())];
    found.extend(etcd.iter().map(|etcd| (etcd.name(), Samples::default())));
    let times = settings.size(20, 1);
    for n in 0..times {
        found[0].1.push(failover::once(&mut ours, n).await?);
        if let Some(etcd) = &mut etcd {
            found[1].1.push(failover::once(etcd, n).await?);
        }
        say(format!("leader killed {} of {times} times", n + 1));
    }
    Ok(found)
}

fn tables(settings: &Settings, rows: &[Row], kills: &[(&'static str, Samples)]) -> String {
    let beside = settings.beside(Rival::Etcd);
    let mut head = vec!["what", "nodes", "treelease", "half / 99 % within"];
    if beside {
        head.extend(["etcd", "half / 99 % within", "etcd's : treelease's rate", "goal"]);
    }
    let mut table = Table::new(head);
    for row in rows {
        let mut cells = vec![row.what.clone(), row.nodes.to_string()];
        let rate = |rounds: &[Loaded]| Samples::of(rounds.iter().map(|round| round.per_second));
        for rounds in &row.rounds {
            let half = Samples::of(rounds.iter().map(|round| round.half_within)).median();
            let most = Samples::of(rounds.iter().map(|round| round.most_within)).median();
            cells.push(rate(rounds).show(Unit::PerSecond));
            cells.push(format!("{} / {}", Unit::Time.show(half), Unit::Time.show(most)));
        }
        if beside {
            cells.push(rate(&row.rounds[1]).ratio(&rate(&row.rounds[0])).show(Unit::Ratio));
            cells.push(row.goal.into());
        }
        table.row(cells);
    }
    let mut text = table.to_string();
    if kills.is_empty() {
        return text;
    }
    let mut table =
        Table::new(["leader of three killed (kill -9), until the next grant", "median (lowest–highest)", "goal", "times"]);
    for (at, (name, samples)) in kills.iter().enumerate() {
        let goal = if at == 0 && beside { "median and highest below etcd's" } else { "" };
        table.row([(*name).to_owned(), samples.show(Unit::Time), goal.into(), samples.len().to_string()]);
    }
    text += &format!("\n{table}");
    text
}
