//! `treelease tree set`.

use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::id::TreeName;

use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};

/// Change a tree's policy: all of the keys, or none
#[derive(clap::Args, Debug)]
pub struct SetArgs {
    /// Its name
    name: TreeName,
    /// What to change, as in `mode=observe idle=30s`
    #[arg(value_name = "KEY=VALUE", required = true)]
    policy: Vec<String>,
    #[command(flatten)]
    dry: DryRun,
}

/// Changes it.
pub async fn run(ctx: &Ctx, args: SetArgs) -> Result<u8, Failure> {
    let policy = super::policy(&args.policy)?;
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.name)).await?;
    let tree = find(&status, &args.name)?;
    if args.dry.dry_run {
        let was = |key: &str| tree.policy.get(key).unwrap_or_default();
        let changes: Vec<String> = policy.iter().map(|(key, value)| format!("{key} from {} to {value}", was(key))).collect();
        ctx.ui.would(format!("set, of \"{}\", {}", tree.name, changes.join(", ")));
        return Ok(0);
    }
    ctx.change(&config, &servers, Command::SetPolicy { tree: tree.id.clone(), policy }).await?;
    ctx.ui.say(format!("The policy of \"{}\" is changed: {}.", tree.name, args.policy.join(" ")));
    Ok(0)
}
