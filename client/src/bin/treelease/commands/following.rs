//! `treelease follow`.

use treelease_client::error::Failure;
use treelease_client::words::id::ClusterId;

use crate::cli::DryRun;
use crate::ctx::Ctx;

/// Let this side follow a cluster that was restored from a backup
///
/// Only when no node of the old cluster runs any more: two clusters that guard one directory can have two holders. From then on
/// this side takes the old cluster's markers for the new one's.
#[derive(clap::Args, Debug)]
pub struct FollowArgs {
    /// The new cluster's id (`treelease cluster status` names it)
    cluster: ClusterId,
    /// Why, for this side's log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Follows it.
pub async fn run(ctx: &Ctx, args: FollowArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let side = config.side()?;
    if args.dry.dry_run {
        ctx.ui.would(format!("let {side} follow cluster {}", args.cluster));
        return Ok(0);
    }
    let mut daemon = ctx.daemon(&config).await?;
    let from = daemon.follow(args.cluster.as_str(), &args.reason).await?;
    let before = if from.is_empty() { String::new() } else { format!(", and cluster {from} no more") };
    let before = if from == args.cluster.as_str() { ", as before, and takes its predecessors' markers".into() } else { before };
    ctx.ui.say(format!("{side} follows cluster {}{before}.", args.cluster));
    Ok(0)
}
