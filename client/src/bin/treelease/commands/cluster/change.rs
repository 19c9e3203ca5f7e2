//! `treelease cluster add` and `treelease cluster remove`.
//!
//! One call to the servers goes as far as its time allows; this asks again until it is done, and says what it waits for.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use treelease_client::error::Failure;
use treelease_client::rpc::CallError;
use treelease_client::rpc::members::{MembersChange, MembersSaid, add_node, node_at, remove_node};
use treelease_client::words::refusal::Code;
use treelease_client::words::time::parse_duration;

use crate::cli::DryRun;
use crate::ctx::{Ctx, actor};
use crate::ui::span;

/// Add a node, or give one another address
///
/// Start the new node with an empty data directory, a number that was never used, and the others as its --peer, before or after
/// this. It gets the log first, and then votes. For a node that is a member, started elsewhere with the data directory that it had:
/// its new address. Safe to repeat, also after whoever did it was killed half-way; sides should list the new address as an endpoint.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// Its number, and where the other nodes reach it
    #[arg(value_name = "ID=HOST:PORT")]
    node: String,
    #[command(flatten)]
    how: How,
}

/// Remove a node, also one that is gone for good
///
/// Its number is never given again. The leader can be removed: another node leads first. Refused while the nodes that remain could not
/// agree on anything, because too few of them answer. Stop the removed node then; its data directory is of no use any more.
#[derive(clap::Args, Debug)]
pub struct RemoveArgs {
    /// Its number
    #[arg(value_name = "ID")]
    node: u64,
    #[command(flatten)]
    how: How,
}

/// How a change is made.
#[derive(clap::Args, Debug)]
struct How {
    /// How long it may take [default: 5m]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    dry: DryRun,
}

/// How long a change may take that is not told otherwise: a new node has to be started, and to get all of the log.
const WAIT: Duration = Duration::from_secs(5 * 60);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(300);

/// Adds it.
pub async fn add(ctx: &Ctx, args: AddArgs) -> Result<u8, Failure> {
    let (node, addr) = node_at(&args.node)?;
    let would = format!("add node {node} at {addr}, or move it there");
    change(ctx, &args.how, &would, add_node(node, addr)).await
}

/// Removes it.
pub async fn remove(ctx: &Ctx, args: RemoveArgs) -> Result<u8, Failure> {
    change(ctx, &args.how, &format!("remove node {}", args.node), remove_node(args.node)).await
}

async fn change(ctx: &Ctx, how: &How, would: &str, change: MembersChange) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    // Whichever cluster answers first is meant, to the end.
    let cluster = servers.status().await?.cluster;
    if how.dry.dry_run {
        ctx.ui.would(would);
        return Ok(0);
    }
    let (actor, until) = (actor(&config), Instant::now() + how.wait.unwrap_or(WAIT));
    let mut waits = String::new();
    loop {
        let said = match servers.change_members(&actor, Some(&cluster), &change).await {
            Ok(MembersSaid::Done(said)) => {
                if ctx.ui.json {
                    ctx.ui.object(&json!({"schema": 1, "done": true, "message": said}));
                } else {
                    ctx.ui.say(format!("{}.", sentence(&said)));
                }
                return Ok(0);
            }
            Ok(MembersSaid::Waits(said)) => said,
            Err(CallError::Refused(refusal)) => return Err(refusal.into()),
            // An election may be under way, of our own making too.
            Err(e) => e.to_string(),
        };
        if waits != said {
            ctx.ui.say(format!("{} …", sentence(&said)));
            waits = said;
        }
        if Instant::now() >= until {
            let limit = span(how.wait.unwrap_or(WAIT));
            return Err(Failure::new(Code::Unreachable, format!("not done within {limit}: {waits}")).hint(
                "what was done stays; the same command goes on from there, and `treelease cluster status` shows how it stands",
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// With a capital letter.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
