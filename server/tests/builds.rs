//! Nodes of two builds that make different things of one log: they take no part in each other's agreement, and say why.

mod common;
#[path = "common/held.rs"]
mod held;
#[path = "common/nodes.rs"]
mod nodes;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use common::until;
use held::Held;
use nodes::{ALL, ELECTION_MAX, Nodes};
use tokio::time::{Instant, sleep, timeout};

/// For whatever happens by itself.
const LIMIT: Duration = Duration::from_secs(60);
/// A renewal through a node that is starting.
const ONE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_node_of_another_build_takes_no_part_and_is_back_with_the_build_of_the_others() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    let leader = nodes.all_serve().await;
    let other = ALL.into_iter().find(|id| *id != leader).unwrap();
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != other).collect();
    nodes.kill_9(other);
    start_another_build(&mut nodes, other);
    let (of_it, of_them) = (format!("node {other} is of another build than node"), "is of another build than node");
    stays_until(&nodes, &mut held, &rest, "each end says it of the other one", async || {
        rest.iter().any(|id| nodes.log(*id).contains(&of_it)) && nodes.log(other).contains(of_them)
    })
    .await;
    assert!(!serves(&nodes, other).await, "it counts with nobody");
    held.stays(&nodes, &rest).await;
    nodes.kill_9(other);
    nodes.start(other);
    stays_until(&nodes, &mut held, &rest, "it is back", async || serves(&nodes, other).await).await;
    held.stays(&nodes, &ALL).await;
}

#[tokio::test]
async fn a_cluster_whose_nodes_are_all_stopped_and_started_as_another_build_goes_on_with_its_leases() {
    let mut nodes = Nodes::running().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    held.stays(&nodes, &ALL).await;
    // In one moment, so that however slow this machine is, nobody is left who could decide that the session has expired.
    ALL.iter().for_each(|id| nodes.kill_9(*id));
    ALL.iter().for_each(|id| start_another_build(&mut nodes, *id));
    let (number, through) = (Cell::new(held.number), RefCell::new(BTreeSet::new()));
    until("the lease is renewed through each of them", || async {
        for id in ALL {
            number.set(number.get() + 1);
            if let Ok(Ok(answer)) = timeout(ONE, held.renew(&nodes.caller(id), number.get())).await {
                assert!(answer.alive, "{}", answer.why_not);
                assert_eq!((answer.pairs.len(), answer.pairs[0].epoch), (1, held.grant.epoch.get()));
                through.borrow_mut().insert(id);
            }
        }
        through.borrow().len() == ALL.len()
    })
    .await;
}

fn start_another_build(nodes: &mut Nodes, id: u64) {
    let mut program = nodes.program(id);
    program.env("TREELEASE_TEST_FAULT", "other_build");
    nodes.start_as(id, program);
}

async fn serves(nodes: &Nodes, id: u64) -> bool {
    nodes.status(id).await.is_ok_and(|status| status.quorum)
}

/// The holder renews all the while, however long it takes.
async fn stays_until(nodes: &Nodes, held: &mut Held, through: &[u64], what: &str, is_so: impl AsyncFn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        held.stays(nodes, through).await;
        sleep(ELECTION_MAX / 20).await;
    }
}
