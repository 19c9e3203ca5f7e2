//! `treelease side`: which sides there are. Identities come with TLS; until then one can only be let go.

use clap::Subcommand;
use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::id::SideName;
use treelease_client::words::refusal::Code;

use super::later::{self, LaterArgs};
use crate::cli::DryRun;
use crate::ctx::Ctx;

/// Sides: let go of one that is gone for good
#[derive(clap::Args, Debug)]
pub struct SideArgs {
    #[command(subcommand)]
    command: SideCommand,
}

#[derive(Subcommand, Debug)]
enum SideCommand {
    Rm(RmArgs),
    #[command(hide = true)]
    Add(LaterArgs),
    #[command(hide = true)]
    List(LaterArgs),
    #[command(hide = true)]
    Token(LaterArgs),
}

/// Let go of a side that is gone for good
///
/// No tree waits any more for its guard to say that it obeys: after a change to `mode=enforce`, status names every side that ever mounted
/// the tree and has not said so, this one for ever. Refused (75) while its daemon runs. A side that comes back all the same is named again.
/// It changes nothing about leases, and lets nobody in whom a fence agent has cut off. It is recorded with your name.
#[derive(clap::Args, Debug)]
pub struct RmArgs {
    /// The side
    name: SideName,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Carries it out.
pub async fn run(ctx: &Ctx, args: SideArgs) -> Result<u8, Failure> {
    match args.command {
        SideCommand::Rm(args) => rm(ctx, args).await,
        SideCommand::Add(_) | SideCommand::List(_) | SideCommand::Token(_) => {
            later::refuse("side add|list|token", "identities of sides need TLS")
        }
    }
}

async fn rm(ctx: &Ctx, args: RmArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = servers.status().await?;
    let RmArgs { name, reason, dry } = args;
    let mounted = || status.trees.iter().filter(|tree| tree.guards.iter().any(|guard| guard.side == name));
    let trees: Vec<String> = mounted().map(|tree| format!("\"{}\"", tree.name)).collect();
    if trees.is_empty() {
        return Err(Failure::new(Code::NotFound, format!("there is no side {name} that ever mounted a tree of this server"))
            .hint("`treelease status` names those that have not confirmed a tree's mode"));
    }
    if dry.dry_run {
        ctx.ui.would(format!("let go of the side {name}, which has mounted {}", trees.join(", ")));
        return Ok(0);
    }
    ctx.change(&config, &servers, Command::ForgetSide { side: name.clone(), reason }).await?;
    ctx.ui.say(format!("No tree waits for the side {name} any more. It had mounted {}.", trees.join(", ")));
    Ok(0)
}
