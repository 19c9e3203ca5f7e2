//! `treelease holds`.

use serde_json::Value;
use treelease_client::error::Failure;
use treelease_client::report::HoldsReport;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;

use crate::ctx::Ctx;
use crate::table::Table;
use crate::ui::{age, now};

/// What keeps the lease here: command, pid, terminal, since
#[derive(clap::Args, Debug)]
pub struct HoldsArgs {
    /// Only of this tree
    tree: Option<TreeName>,
}

/// Lists them.
pub async fn run(ctx: &Ctx, args: HoldsArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let Some(mut daemon) = ctx.running(&config).await? else {
        return Err(Failure::new(Code::Unreachable, "no daemon runs for this side, so nothing keeps a lease here")
            .hint("`treelease up` starts it"));
    };
    let text = daemon.holds(args.tree.as_ref().map_or("", TreeName::as_str)).await?;
    let unreadable = |e: serde_json::Error| Failure::new(Code::Internal, format!("the daemon's answer cannot be read: {e}"));
    if ctx.ui.json {
        ctx.ui.object(&serde_json::from_str::<Value>(&text).map_err(unreadable)?);
        return Ok(0);
    }
    let report: HoldsReport = serde_json::from_str(&text).map_err(unreadable)?;
    if report.holds.is_empty() {
        ctx.ui.say("Nothing keeps a lease here.");
        return Ok(0);
    }
    let mut table = Table::new(&["TREE", "KIND", "PID", "TERMINAL", "FOR", "COMMAND", "NOTE"]);
    for hold in report.holds {
        let since = age(hold.since, now());
        table.row([hold.tree, hold.kind, hold.pid.to_string(), hold.tty.unwrap_or_default(), since, hold.command, hold.note]);
    }
    table.lines().iter().for_each(|line| ctx.ui.data(line));
    Ok(0)
}
