//! `treelease acquire`.

use std::time::Duration;

use serde_json::json;
use treelease_client::error::Failure;
use treelease_client::words::id::TreeName;
use treelease_client::words::time::{format_duration, parse_duration};

use super::taking::{self, Taken};
use crate::cli::{DryRun, WaitArgs};
use crate::ctx::{Ctx, by_signal};

/// Take a tree's lease by hand and keep it until released
///
/// It is kept until `treelease release`, `--for` or `treelease down`, whatever the policy says about idling. Use `treelease run`
/// instead where a command's life says how long the lease is needed.
#[derive(clap::Args, Debug)]
pub struct AcquireArgs {
    /// The tree [default: the one of the working directory]
    tree: Option<TreeName>,
    #[command(flatten)]
    wait: WaitArgs,
    /// Ask the holder to hand over, instead of waiting for it to finish
    #[arg(long)]
    ask: bool,
    /// Give it back by itself after so long
    #[arg(long = "for", value_name = "DUR", value_parser = parse_duration)]
    hold_for: Option<Duration>,
    /// What for: others see it while they wait
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Takes the lease.
pub async fn run(ctx: &Ctx, args: AcquireArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let mut daemon = ctx.daemon(&config).await?;
    let tree = ctx.tree_here(args.tree.as_ref(), &mut daemon).await?;
    if args.dry.dry_run {
        ctx.ui.would(format!("acquire \"{tree}\""));
        return Ok(0);
    }
    let mut request = taking::request(&tree, "acquire", args.wait.limit(), args.ask);
    request.note = args.note;
    request.for_ms = args.hold_for.map_or(0, |d| (d.as_millis() as u64).max(1));
    let held = match taking::take(ctx, &mut daemon, &tree, request).await? {
        Taken::Held(held, _) => held,
        Taken::Interrupted(n) => return Ok(by_signal(n)),
    };
    if ctx.ui.json {
        ctx.ui.object(&json!({"schema": 1, "tree": held.tree_name, "epoch": held.epoch, "side": held.side, "hold": held.hold,
                              "mounted_at": some(&held.mounted_at), "already": held.already}));
    }
    let until = args.hold_for.map_or("until `treelease release`".into(), |d| format!("for {}", format_duration(d)));
    let yours = if held.already { "was yours already; it stays so" } else { "is yours" };
    ctx.ui.say(format!("\"{tree}\" {yours}, epoch {}, {until}.", held.epoch));
    Ok(0)
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}
