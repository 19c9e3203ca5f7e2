//! `treelease history`.

use std::time::Duration;

use treelease_client::error::Failure;
use treelease_client::report::HistoryReport;
use treelease_client::words::command::EventKind;
use treelease_client::words::id::TreeName;
use treelease_client::words::time::{WallTime, parse_duration};

use crate::ctx::Ctx;
use crate::table::Table;
use crate::ui::{age, now, span};

/// The most entries that are asked for at once; a server keeps fewer for each tree.
const MOST: u32 = 100_000;

/// The audit trail of a tree: grants, ends, breaks, fences, with actor and reason
#[derive(clap::Args, Debug)]
pub struct HistoryArgs {
    /// The tree [default: the one of the working directory]
    tree: Option<TreeName>,
    /// How many entries, the newest ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    number: u32,
    /// Only what happened since then: `2h`, or a time as in RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Since>,
}

/// A length of time back from now, or a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Since {
    Ago(Duration),
    At(WallTime),
}

fn parse_since(text: &str) -> Result<Since, String> {
    match text.parse().map(WallTime) {
        Ok(at) => Ok(Since::At(at)),
        Err(_) => {
            let bad = |_| format!("`{text}` is no time: write how long ago (2h) or a moment (2026-01-31T09:00:00Z)");
            parse_duration(text).map(Since::Ago).map_err(bad)
        }
    }
}

impl Since {
    fn includes(self, at: WallTime, now: WallTime) -> bool {
        match self {
            Since::At(from) => at >= from,
            Since::Ago(d) => Duration::try_from(now.0.duration_since(at.0)).unwrap_or_default() <= d,
        }
    }
}

/// Shows it.
pub async fn run(ctx: &Ctx, args: HistoryArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let (status, tree) = ctx.tree_there(args.tree.as_ref(), &servers).await?;
    if !status.quorum {
        let age = status.age.map_or_else(|| "of unknown age".to_owned(), |age| format!("{} old", span(age)));
        ctx.ui.warn(format!("no server has a quorum: what follows is {age}, as of revision {}", status.revision));
    }
    let limit = if args.since.is_some() { MOST } else { args.number };
    let mut events = servers.history(&tree.id, limit).await?;
    if let Some(since) = args.since {
        events.retain(|e| since.includes(e.at, now()));
    }
    let first = events.len().saturating_sub(args.number as usize);
    let report = HistoryReport::new(tree.name.as_str(), &events[first..]);
    if ctx.ui.json {
        ctx.ui.object(&report);
        return Ok(0);
    }
    if report.entries.is_empty() {
        ctx.ui.say(format!("Nothing has happened to \"{}\" in that time.", tree.name));
        return Ok(0);
    }
    let mut table = Table::new(&["AGO", "EVENT", "SIDE", "EPOCH", "BY", "WHAT"]);
    for entry in &report.entries {
        let event = &entry.event;
        let mut what = vec![event.reason.clone()];
        what.push(match (event.event, entry.clean) {
            // Of a grant it says how the lease before it ended.
            (EventKind::Granted, Some(false)) => "after an unclean end".into(),
            (EventKind::Granted, _) => String::new(),
            (_, Some(true)) => format!("clean, {} file(s), {} bytes", entry.files, entry.bytes),
            (_, Some(false)) => "unclean".into(),
            (_, None) if entry.count > 0 => format!("{} times", entry.count),
            (_, None) => String::new(),
        });
        what.retain(|w| !w.is_empty());
        let epoch = if event.epoch == 0 { "-".into() } else { event.epoch.to_string() };
        let side = event.side.clone().unwrap_or_else(|| "-".into());
        table.row([age(event.at, now()), event.event.as_str().into(), side, epoch, entry.actor.clone(), what.join("; ")]);
    }
    table.lines().iter().for_each(|line| ctx.ui.data(line));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_an_age_or_a_moment() {
        assert_eq!(parse_since("2h"), Ok(Since::Ago(Duration::from_secs(7200))));
        let at = WallTime::parse("2026-01-31T09:00:00Z");
        assert_eq!(parse_since("2026-01-31T09:00:00Z"), Ok(Since::At(at)));
        assert!(parse_since("yesterday").is_err());
        let now = WallTime::parse("2026-01-31T10:00:00Z");
        assert!(Since::Ago(Duration::from_secs(3600)).includes(at, now));
        assert!(!Since::Ago(Duration::from_secs(3599)).includes(at, now));
    }
}
