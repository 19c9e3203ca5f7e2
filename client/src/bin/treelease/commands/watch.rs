//! `treelease watch`.

use futures::StreamExt;
use serde_json::json;
use treelease_client::error::Failure;
use treelease_client::report::{EventLine, EventReport};
use treelease_client::rpc::{CallError, WatchItem};
use treelease_client::words::id::TreeName;
use treelease_client::words::time::WallTime;

use crate::ctx::{Ctx, about, find, interrupted};
use crate::table::printable;
use crate::ui::now;

/// Events as they happen, one line each, until ctrl-c
#[derive(clap::Args, Debug)]
pub struct WatchArgs {
    /// Only of these trees
    trees: Vec<TreeName>,
    /// Begin after this revision instead of now
    #[arg(long, value_name = "REV", default_value_t = 0, hide_default_value = true)]
    since: u64,
}

/// Follows them.
pub async fn run(ctx: &Ctx, args: WatchArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, &args.trees).await?;
    let ids = args.trees.iter().map(|name| find(&status, name).map(|t| t.id.clone())).collect::<Result<Vec<_>, _>>()?;
    let mut items = servers.watch(args.since, ids);
    let signal = interrupted();
    tokio::pin!(signal);
    let mut away = false;
    loop {
        let item = tokio::select! {
            item = items.next() => item,
            _ = &mut signal => return Ok(0),
        };
        match item {
            Some(Ok(item)) => {
                if std::mem::take(&mut away) {
                    ctx.ui.say("The server answers again.");
                }
                show(ctx, item);
            }
            Some(Err(CallError::Refused(refusal))) => return Err(refusal.into()),
            Some(Err(error)) => {
                if !std::mem::replace(&mut away, true) {
                    ctx.ui.say(format!("Lost the server ({error}); trying again."));
                }
            }
            None => return Ok(0),
        }
    }
}

fn show(ctx: &Ctx, item: WatchItem) {
    match item {
        WatchItem::Event(event) if ctx.ui.json => ctx.ui.object(&EventLine::from(&event)),
        WatchItem::Event(event) => ctx.ui.data(line(&EventReport::from(&event))),
        WatchItem::Lagged(revision) if ctx.ui.json => ctx.ui.object(&json!({
            "schema": 1, "revision": revision, "at": now().to_string(), "tree": null, "event": "lagged", "side": null, "epoch": 0,
            "reason": "events before this revision were missed: read the status anew"
        })),
        WatchItem::Lagged(revision) => {
            ctx.ui.say(format!("Events before revision {revision} were missed; `treelease status` shows how things stand."));
        }
        WatchItem::Watching(_) => {}
    }
}

fn line(event: &EventReport) -> String {
    let side = event.side.as_deref().map(|s| format!(" {s}")).unwrap_or_default();
    let epoch = if event.epoch == 0 { String::new() } else { format!(" epoch {}", event.epoch) };
    let reason = if event.reason.is_empty() { String::new() } else { format!(": {}", event.reason) };
    printable(&format!("{} {} {}{side}{epoch}{reason}", clock(event.at), event.tree, event.event.as_str()))
}

/// The time of day here: of something that happens now no age would be of use.
fn clock(at: WallTime) -> String {
    at.0.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string()
}
