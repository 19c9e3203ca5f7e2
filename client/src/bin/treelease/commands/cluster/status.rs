//! `treelease cluster status`.

use serde_json::{Value, json};
use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{ClusterStatus, NodeStatus};

use crate::ctx::Ctx;
use crate::table::Table;
use crate::ui::span;

/// What each configured server says, and the cluster's nodes
///
/// A change of the nodes that was left half done (a leader that was killed in the middle) is shown: repeat it, or do any other one, to
/// finish it. A server that has no quorum is marked; what it shows is as old as it says.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {}

type Said = (String, Result<ClusterStatus, String>);

/// Asks every endpoint by itself. 69 if none answers.
pub async fn run(ctx: &Ctx, StatusArgs {}: StatusArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let said = config.need_servers()?.each_status().await?;
    if ctx.ui.json {
        ctx.ui.object(&object(&said));
    } else {
        table(&said).lines().iter().for_each(|line| ctx.ui.data(line));
        if let Some(best) = best(&said).filter(|best| !best.members.is_empty()) {
            ctx.ui.data("");
            nodes(best).lines().iter().for_each(|line| ctx.ui.data(line));
            if best.joint {
                ctx.ui.data("");
                ctx.ui.data(
                    "A change of the nodes was left half done: repeat it (`treelease cluster add` or `remove`) to finish it.",
                );
            }
        }
    }
    match said.iter().any(|(_, said)| said.is_ok()) {
        true => Ok(0),
        false => Ok(Code::Unreachable.exit()),
    }
}

/// The one whose word counts: it leads, else it has a quorum, else whoever answered.
fn best(said: &[Said]) -> Option<&ClusterStatus> {
    let answers = || said.iter().filter_map(|(_, said)| said.as_ref().ok());
    let leads = |status: &&ClusterStatus| status.quorum && status.members.iter().any(|node| node.reached.is_some());
    answers().find(leads).or_else(|| answers().find(|status| status.quorum)).or_else(|| answers().next())
}

fn object(said: &[Said]) -> Value {
    let endpoints: Vec<Value> = said
        .iter()
        .map(|(endpoint, said)| match said {
            Ok(status) => json!({
                "endpoint": endpoint, "reachable": true, "cluster": status.cluster.to_string(), "quorum": status.quorum,
                "leader": status.leader.map(|node| node.to_string()), "revision": status.revision, "why": null,
                "age_ms": status.age.map(|age| age.as_millis() as u64),
            }),
            Err(why) => json!({"endpoint": endpoint, "reachable": false, "why": why}),
        })
        .collect();
    let best = best(said);
    json!({
        "schema": 1,
        "cluster": best.map(|status| status.cluster.to_string()),
        "predecessors": best.map(|status| status.predecessors.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "nodes": best.map(|status| status.nodes),
        "leader": best.and_then(|status| status.leader).map(|node| node.to_string()),
        "quorum": best.is_some_and(|status| status.quorum),
        "joint": best.is_some_and(|status| status.joint),
        "members": best.map(|status| status.members.iter().map(member).collect::<Vec<_>>()),
        "endpoints": endpoints,
    })
}

fn member(node: &NodeStatus) -> Value {
    json!({
        "id": node.id.to_string(), "address": node.addr, "role": node.role.as_str(), "reached": node.reached, "behind": node.behind,
    })
}

/// The nodes, by the word of the one whose word counts; who is reached is known to the leader only.
fn nodes(status: &ClusterStatus) -> Table {
    let mut table = Table::new(&["NODE", "ADDRESS", "ROLE", "REACHED", "BEHIND"]);
    for node in &status.members {
        let role = match status.leader == Some(node.id) {
            true => "leader".to_owned(),
            false => node.role.as_str().to_owned(),
        };
        let reached = node.reached.map_or("-", |reached| if reached { "yes" } else { "no" });
        let behind = node.behind.map_or_else(|| "-".to_owned(), |behind| behind.to_string());
        table.row([node.id.to_string(), node.addr.clone(), role, reached.into(), behind]);
    }
    table
}

fn table(said: &[Said]) -> Table {
    let mut table = Table::new(&["SERVER", "LEADER", "QUORUM", "REVISION", "CLUSTER"]);
    for (endpoint, said) in said {
        match said {
            Ok(status) => {
                let leader = status.leader.map_or_else(|| "-".to_owned(), |node| node.to_string());
                let quorum = match (status.quorum, status.age) {
                    (true, _) => "yes".to_owned(),
                    (false, Some(age)) => format!("no, for {}", span(age)),
                    (false, None) => "no".to_owned(),
                };
                table.row([endpoint.clone(), leader, quorum, status.revision.to_string(), status.cluster.to_string()]);
            }
            Err(why) => table.row([endpoint.clone(), "-".into(), "-".into(), "-".into(), why.clone()]),
        }
    }
    table
}
