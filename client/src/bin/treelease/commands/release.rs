//! `treelease release`.

use treelease_client::error::Failure;
use treelease_client::words::id::TreeName;

use crate::cli::DryRun;
use crate::ctx::Ctx;

/// Hand a tree's lease back
///
/// Waits for a good moment, up to the policy's `handoff_wait`: no command under the lease and no unfinished work. If it is still
/// busy then, says what is (75). A tree that is not ours is no error.
#[derive(clap::Args, Debug)]
pub struct ReleaseArgs {
    /// The tree [default: the one of the working directory]
    tree: Option<TreeName>,
    /// Do not wait for a good moment: commands and transactions are cut off
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Hands it back.
pub async fn run(ctx: &Ctx, args: ReleaseArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let mut daemon = ctx.daemon(&config).await?;
    let tree = ctx.tree_here(args.tree.as_ref(), &mut daemon).await?;
    if args.dry.dry_run {
        ctx.ui.would(format!("release \"{tree}\""));
        return Ok(0);
    }
    let progress = daemon.give_up(tree.as_str(), args.now).await?;
    let done = super::follow(ctx, progress).await?;
    super::tell(ctx, done, || format!("\"{tree}\" was released"));
    Ok(0)
}
