//! Many trees: what one costs in memory, and whether an operation takes longer because of the others.
//!
//! One node. The memory is read twice: after the operations, when what it took to make the trees has left its traces in the log and
//! in the allocator; and after a restart, when there is nothing but the trees. An entry of the log takes about as much memory after a
//! restart as a tree does, so each row's node is killed soon after its log was cut: what a row has beyond the first is its trees.

use std::time::Duration;

use super::super::material::Seeded;
use super::super::stats::{Samples, Unit, thousands, three_digits};
use super::super::table::Table;
use super::super::{Ground, Settings, say};
use super::service::{Caller, Service};
use super::treelease::Treelease;
use super::{SESSION, cost, failover};
use crate::hosts::Timer;

/// Trees.
const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];
/// Pairs of operations: each is two entries, and the log is cut after 5,000 of them, to the last 1,000.
const PAIRS: usize = 3_500;
/// Pairs after which the log has been cut once more: with up to 10,000 trees it is after 5,000 entries. With more that takes long, and
/// then its entries are few beside the trees.
const CUT_AFTER: usize = 2_600;
/// Pairs until the store has forgotten what was cut off: a purge goes with the next entries, and to the store behind the journal with
/// some 256 of them. Else the restart has it done, which takes some megabytes.
const AFTER_THE_CUT: usize = 300;
/// Memory of a tree, at most.
const GOAL: &str = "≤ 2,048 bytes";

/// Measures, and returns the table.
pub fn measure(settings: &Settings, ground: &Ground) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut service = Treelease::start(ground, "many", 1)?;
    runtime.block_on(async {
        failover::leader(&service).await?;
        let mut table = Table::new([
            "trees",
            "acquire and release, 1 client: half within",
            "99 % within",
            "the longest",
            "the node's processors, each",
            "memory",
            "after a restart",
            "of it for each tree beyond the first",
            "goal",
        ]);
        let sizes = if settings.quick { &[10, 40][..] } else { &SIZES };
        let (mut names, mut first) = (Vec::new(), None);
        let mut caller = service.caller(0, SESSION).await?;
        for size in sizes.iter().copied() {
            let new: Vec<String> = (names.len()..size).map(|n| format!("many-{n}")).collect();
            service.trees(&new, Duration::ZERO).await?;
            names.extend(new);
            let (took, spent) = operations(&service, &mut caller, &names, settings.size(PAIRS, 20)).await?;
            let grown = cost::memory(service.processes()[0])?;
            until_cut(&service, &mut caller, &names, settings).await?;
            service.kill(0);
            service.start_again(0)?;
            // Asked by a command: a status of so many trees is larger than what a client takes.
            caller.acquire(&names[0]).await?;
            caller.release(&names[0]).await?;
            let memory = cost::memory(service.processes()[0])?;
            let (trees_before, memory_before) = *first.get_or_insert((size, memory));
            let each = (memory - memory_before) / (size - trees_before).max(1) as f64;
            table.row([
                thousands(size as u64),
                Unit::Time.show(took.median()),
                Unit::Time.show(took.percentile(99.0)),
                Unit::Time.show(took.percentile(100.0)),
                Unit::Micros.show(spent),
                format!("{} MB", three_digits(grown / 1e6)),
                format!("{} MB", three_digits(memory / 1e6)),
                if size == trees_before { String::new() } else { format!("{} bytes", thousands(each.max(0.0) as u64)) },
                if size == trees_before { "" } else { GOAL }.into(),
            ]);
            say(format!("{size} trees"));
        }
        Ok(table.to_string())
    })
}

/// Goes on until the log was cut: it has its last entries then.
async fn until_cut(
    service: &Treelease,
    caller: &mut <Treelease as Service>::Caller,
    names: &[String],
    settings: &Settings,
) -> anyhow::Result<()> {
    let before = service.snapshot(0);
    let mut left = settings.size(CUT_AFTER, 5);
    for name in names.iter().cycle() {
        if service.snapshot(0) != before {
            left = left.min(AFTER_THE_CUT);
        }
        if left == 0 {
            break;
        }
        caller.acquire(name).await?;
        caller.release(name).await?;
        left -= 1;
    }
    Ok(())
}

/// One client, at trees here and there: how long each pair took, and what it cost the node.
async fn operations<S: Service>(
    service: &S,
    caller: &mut S::Caller,
    names: &[String],
    pairs: usize,
) -> anyhow::Result<(Samples, f64)> {
    let before = cost::cpu(&service.processes())?;
    let mut took = Vec::new();
    for at in Seeded::new(names.len() as u64).shuffled(names.len() as u64).into_iter().cycle().take(pairs) {
        let (tree, one) = (&names[at as usize], Timer::start());
        caller.acquire(tree).await?;
        caller.release(tree).await?;
        took.push(one.elapsed().as_secs_f64());
    }
    Ok((Samples::of(took), (cost::cpu(&service.processes())? - before) / pairs as f64))
}
