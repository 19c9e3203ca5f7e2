//! `treelease tree raise-epoch`.

use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;

use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};
use crate::ui::span;

/// Lift a tree of a server that is older than the storage
///
/// For a server whose disk was put back to an earlier state: the storage has stamps of epochs that it does not know any more, so no
/// gate opens. The tree goes on above them, after the same waits as after a restore. It is recorded with your name.
#[derive(clap::Args, Debug)]
pub struct RaiseEpochArgs {
    /// The tree
    name: TreeName,
    /// The greatest epoch that the storage names (the refused side's message says it)
    #[arg(long, value_name = "N")]
    above: u64,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Lifts it.
pub async fn run(ctx: &Ctx, args: RaiseEpochArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.name)).await?;
    let tree = find(&status, &args.name)?;
    let (name, above) = (&tree.name, Epoch::from_raw(args.above));
    if above <= tree.epoch {
        let text = format!("\"{name}\" is at epoch {} already, which is not below {above}", tree.epoch);
        return Err(Failure::new(Code::EpochMoved, text).hint("the greatest stamp is the file .treelease-tree.EPOCH in the root"));
    }
    if args.dry.dry_run {
        ctx.ui.would(format!("lift \"{name}\" from epoch {} above {above}", tree.epoch));
        return Ok(0);
    }
    let command = Command::RaiseEpoch { tree: tree.id.clone(), above, reason: args.reason };
    ctx.change(&config, &servers, command).await?;
    let wait = status.ttl_max.get().saturating_add(tree.policy.grace);
    ctx.ui.say(format!("\"{name}\" goes on above epoch {above}. It is granted after {} at the earliest, and once somebody vouches that no old holder writes.", span(wait)));
    ctx.ui.hint(format!(
        "where nobody of before can write any more: `treelease fence confirm {name} --epoch {above} --reason TEXT`"
    ));
    Ok(0)
}
