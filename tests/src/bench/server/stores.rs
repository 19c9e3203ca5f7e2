//! The two stores beside each other, under the same load.

use std::time::Duration;

use super::super::stats::{Samples, Unit};
use super::super::table::Table;
use super::super::{Ground, Settings, say};
use super::failover;
use super::load::{self, Loaded, Task};
use super::treelease::Treelease;

/// Names in the table, and what a node is told.
const STORES: [(&str, &[&str]); 2] = [("sled", &["--store", "sled"]), ("redb", &["--store", "redb"])];

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (length, clients) =
        (Duration::from_millis(settings.size(1_000, 100) as u64), if settings.quick { &[2][..] } else { &[1, 16, 64] });
    let mut head = vec!["what".to_owned(), "nodes".into()];
    for (name, _) in STORES {
        head.extend([name.to_owned(), "half / 99 % within".into()]);
    }
    let mut table = Table::new(head.into_iter().chain(["redb's : sled's rate".into()]));
    for nodes in settings.nodes.iter().copied() {
        let start = |(name, extra)| Treelease::start_with(ground, &format!("store-{name}-{nodes}"), nodes, extra);
        let services = STORES.into_iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        let mut found = vec![[Vec::new(), Vec::new()]; clients.len()];
        runtime.block_on(async {
            for service in &services {
                failover::leader(service).await?;
            }
            for round in 0..settings.rounds {
                for (n, clients) in clients.iter().enumerate() {
                    for turn in 0..STORES.len() {
                        let at = (turn + n + round) % STORES.len();
                        found[n][at].push(load::run(&services[at], Task::OwnTrees, *clients, length).await?);
                    }
                }
                say(format!("round {} of {} of the stores, {nodes} nodes", round + 1, settings.rounds));
            }
            anyhow::Ok(())
        })?;
        for (clients, rounds) in clients.iter().zip(&found) {
            let mut cells = vec![Task::OwnTrees.name(*clients), nodes.to_string()];
            let of = |rounds: &[Loaded], what: fn(&Loaded) -> f64| Samples::of(rounds.iter().map(what));
            for rounds in rounds {
                let (half, most) = (of(rounds, |round| round.half_within), of(rounds, |round| round.most_within));
                cells.push(of(rounds, |round| round.per_second).show(Unit::PerSecond));
                cells.push(format!("{} / {}", Unit::Time.show(half.median()), Unit::Time.show(most.median())));
            }
            let rate = |rounds: &[Loaded]| of(rounds, |round| round.per_second);
            cells.push(rate(&rounds[1]).ratio(&rate(&rounds[0])).show(Unit::Ratio));
            table.row(cells);
        }
    }
    Ok(table.to_string())
}
