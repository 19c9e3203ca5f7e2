//! `treelease writers`.

use serde_json::Value;
use treelease_client::error::Failure;
use treelease_client::report::WritersReport;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;

use crate::ctx::Ctx;
use crate::table::Table;
use crate::ui::{age, now};

/// Which processes of this side wrote lately, or were refused
///
/// Under `mode=observe` nothing is refused, and REFUSED counts what would have been: look here before `mode=enforce`. PATH is
/// where a process was refused last; if it never was, where it wrote last. The guard remembers the last few hundred.
#[derive(clap::Args, Debug)]
pub struct WritersArgs {
    /// Only of this tree
    tree: Option<TreeName>,
}

/// Lists them, the latest first.
pub async fn run(ctx: &Ctx, args: WritersArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let Some(mut daemon) = ctx.running(&config).await? else {
        return Err(Failure::new(Code::Unreachable, "no daemon runs for this side, so nobody writes through a guard here")
            .hint("`treelease up` starts it"));
    };
    let text = daemon.writers(args.tree.as_ref().map_or("", TreeName::as_str)).await?;
    let unreadable = |e: serde_json::Error| Failure::new(Code::Internal, format!("the daemon's answer cannot be read: {e}"));
    if ctx.ui.json {
        ctx.ui.object(&serde_json::from_str::<Value>(&text).map_err(unreadable)?);
        return Ok(0);
    }
    let report: WritersReport = serde_json::from_str(&text).map_err(unreadable)?;
    if report.writers.is_empty() {
        ctx.ui.say("Nobody has written through a guard here lately.");
        return Ok(0);
    }
    let mut table = Table::new(&["TREE", "PID", "USER", "COMMAND", "WROTE", "REFUSED", "SINCE", "LAST", "PATH"]);
    for w in report.writers {
        let (count, refused) = (w.count.to_string(), w.refused.to_string());
        let (since, last) = (age(w.first, now()), age(w.last, now()));
        table.row([w.tree, w.pid.to_string(), w.uid.to_string(), w.command, count, refused, since, last, w.path]);
    }
    table.lines().iter().for_each(|line| ctx.ui.data(line));
    Ok(0)
}
