//! `treelease fence`.

use clap::Subcommand;
use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::TreeName;

use crate::cli::DryRun;
use crate::ctx::{Ctx, find};

/// Vouch that an old holder cannot write any more
#[derive(clap::Args, Debug)]
pub struct FenceArgs {
    #[command(subcommand)]
    command: FenceCommand,
}

#[derive(Subcommand, Debug)]
enum FenceCommand {
    /// Vouch that the old holder cannot write any more
    ///
    /// Only after its machine is off, its mount is gone, or its export is withdrawn: the next holder is granted at once, and
    /// pages that the old one still sends would land on top of its work. It is recorded with your name.
    Confirm(ConfirmArgs),
}

#[derive(clap::Args, Debug)]
struct ConfirmArgs {
    /// The tree, by name
    tree: TreeName,
    /// The epoch whose unclean end is waited out (`treelease status` names it)
    #[arg(long, value_name = "N")]
    epoch: u64,
    /// Why that is sure, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Vouches.
pub async fn run(ctx: &Ctx, args: FenceArgs) -> Result<u8, Failure> {
    let FenceCommand::Confirm(args) = args.command;
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = servers.status().await?;
    let tree = find(&status, &args.tree)?;
    let side = tree.ended_side.as_ref().map_or("the old holder", |s| s.as_str());
    if args.dry.dry_run {
        ctx.ui.would(format!("vouch that {side} cannot write to \"{}\" any more (epoch {})", tree.name, args.epoch));
        return Ok(0);
    }
    let command = Command::FenceConfirm { tree: tree.id.clone(), epoch: Epoch::from_raw(args.epoch), reason: args.reason };
    ctx.change(&config, &servers, command).await?;
    ctx.ui.say(format!("Recorded: {side} cannot write to \"{}\" any more. The next side is granted now.", tree.name));
    Ok(0)
}
