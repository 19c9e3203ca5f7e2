//! `treelease cluster`: the server's nodes.

use serde_json::{Value, json};
use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::ClusterStatus;

use crate::ctx::Ctx;
use crate::table::Table;

/// The server's nodes
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What can be done with them.
#[derive(clap::Subcommand, Debug)]
pub enum ClusterCommand {
    /// What each configured server says: whether it answers, who leads, whether it has a quorum
    Status(StatusArgs),
}

/// What each configured server says
#[derive(clap::Args, Debug)]
pub struct StatusArgs {}

type Said = (String, Result<ClusterStatus, String>);

/// Asks every endpoint by itself. 69 if none answers.
pub async fn run(ctx: &Ctx, args: ClusterArgs) -> Result<u8, Failure> {
    let ClusterCommand::Status(StatusArgs {}) = args.command;
    let config = ctx.config()?;
    let said = config.need_servers()?.each_status().await?;
    if ctx.ui.json {
        ctx.ui.object(&object(&said));
    } else {
        table(&said).lines().iter().for_each(|line| ctx.ui.data(line));
    }
    match said.iter().any(|(_, said)| said.is_ok()) {
        true => Ok(0),
        false => Ok(Code::Unreachable.exit()),
    }
}

/// The one whose word counts: it has a quorum; else whoever answered.
fn best(said: &[Said]) -> Option<&ClusterStatus> {
    let answers = || said.iter().filter_map(|(_, said)| said.as_ref().ok());
    answers().find(|status| status.quorum).or_else(|| answers().next())
}

fn object(said: &[Said]) -> Value {
    let endpoints: Vec<Value> = said
        .iter()
        .map(|(endpoint, said)| match said {
            Ok(status) => json!({
                "endpoint": endpoint, "reachable": true, "cluster": status.cluster.to_string(), "quorum": status.quorum,
                "leader": status.leader.map(|node| node.to_string()), "revision": status.revision, "why": null,
            }),
            Err(why) => json!({"endpoint": endpoint, "reachable": false, "why": why}),
        })
        .collect();
    let best = best(said);
    json!({
        "schema": 1,
        "cluster": best.map(|status| status.cluster.to_string()),
        "nodes": best.map(|status| status.nodes),
        "leader": best.and_then(|status| status.leader).map(|node| node.to_string()),
        "quorum": best.is_some_and(|status| status.quorum),
        "endpoints": endpoints,
    })
}

fn table(said: &[Said]) -> Table {
    let mut table = Table::new(&["SERVER", "LEADER", "QUORUM", "REVISION", "CLUSTER"]);
    for (endpoint, said) in said {
        match said {
            Ok(status) => {
                let leader = status.leader.map_or_else(|| "-".to_owned(), |node| node.to_string());
                let quorum = if status.quorum { "yes" } else { "no" };
                table.row([endpoint.clone(), leader, quorum.into(), status.revision.to_string(), status.cluster.to_string()]);
            }
            Err(why) => table.row([endpoint.clone(), "-".into(), "-".into(), "-".into(), why.clone()]),
        }
    }
    table
}
