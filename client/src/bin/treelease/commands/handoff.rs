//! `treelease handoff`.

use treelease_client::error::Failure;
use treelease_client::local::wire::HandOverRequest;
use treelease_client::words::id::{SideName, TreeName};
use treelease_client::words::refusal::Code;

use crate::cli::DryRun;
use crate::ctx::Ctx;

/// Give the lease to another side
///
/// For the holder only. Returns when the other side has been granted the lease, or when it failed.
#[derive(clap::Args, Debug)]
pub struct HandoffArgs {
    /// The tree [default: the one of the working directory]
    tree: Option<TreeName>,
    /// The side that gets it; its daemon must run
    #[arg(long, value_name = "SIDE")]
    to: SideName,
    /// Do not wait for a good moment: commands and transactions are cut off
    #[arg(long)]
    force: bool,
    /// What for, for the history
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Gives it away.
pub async fn run(ctx: &Ctx, args: HandoffArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let mut daemon = ctx.daemon(&config).await?;
    let tree = ctx.tree_here(args.tree.as_ref(), &mut daemon).await?;
    let to = args.to;
    if args.dry.dry_run {
        ctx.ui.would(format!("hand \"{tree}\" over to {to}"));
        return Ok(0);
    }
    let request = HandOverRequest { tree: tree.to_string(), to: to.to_string(), force: args.force, note: args.note };
    let progress = daemon.hand_over(request).await?;
    match super::follow(ctx, progress).await {
        Ok(done) => super::tell(ctx, done, || format!("\"{tree}\" was handed over to {to}")),
        Err(failure) if failure.code == Code::Held => {
            let mine = config.side()? == to;
            let failure = ctx.explain(&tree, Failure { hints: Vec::new(), ..failure }, &mut daemon).await;
            let ask = format!("only the holder can hand over; to get it: `treelease acquire {tree} --ask`");
            return Err(if mine || failure.hints.is_empty() { Failure { hints: vec![ask], ..failure } } else { failure });
        }
        Err(failure) => return Err(failure),
    }
    Ok(0)
}
