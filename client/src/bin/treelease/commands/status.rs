//! `treelease status`.
//!
//! It only looks: it starts no daemon and touches no mount. The daemon's word comes first, since it knows what this side does; a
//! machine without one asks the servers; what was last known is shown when neither answers, with its age and 69.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};
use treelease_client::config::Config;
use treelease_client::error::Failure;
use treelease_client::exit::Exit;
use treelease_client::report::{Report, StatusFile, TreeReport};
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::time::WallTime;

use super::status_text;
use crate::ctx::{Ctx, about, interrupted, no_tree};
use crate::ui::now;
use crate::which;

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_millis(500);

/// Who holds what, since when, and what to type next
///
/// If no server answers, shows what was last known, with its age, and ends with 69.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// Only these trees
    trees: Vec<TreeName>,
    /// Show it again whenever it changes, until ctrl-c
    #[arg(long)]
    watch: bool,
    /// Print nothing: 0 if the tree is held here, 75 if not, 69 if that is unknown
    #[arg(long, conflicts_with = "watch")]
    check: bool,
}

/// What was learned, and from whom.
pub struct Seen {
    /// As it goes out with `-o json`.
    pub json: Value,
    /// The same, read.
    pub report: Report,
    /// Whether a server stands behind it right now.
    pub reachable: bool,
    /// When it was written, if it is old.
    pub written_at: Option<WallTime>,
    /// Whether this side's daemon said so.
    pub by_daemon: bool,
}

/// Shows it.
pub async fn run(ctx: &Ctx, args: StatusArgs) -> Result<u8, Failure> {
    if args.check {
        return Ok(check(ctx, &args).await.unwrap_or_else(|failure| failure.exit().code()));
    }
    let config = ctx.config()?;
    if !args.watch {
        return Ok(show(ctx, look(ctx, &config, &args.trees).await?));
    }
    let mut last = Value::Null;
    let signal = interrupted();
    tokio::pin!(signal);
    loop {
        let seen = look(ctx, &config, &args.trees).await?;
        // Times that run on are no change.
        let mut essence = seen.json.clone();
        for tree in essence["trees"].as_array_mut().into_iter().flatten() {
            tree["expires_in_ms"] = Value::Null;
            tree["writes_until"] = Value::Null;
        }
        essence["server"]["as_of"] = Value::Null;
        let live = std::io::stdout().is_terminal() && !ctx.ui.json;
        if live || essence != last {
            if live {
                ctx.ui.data("\x1b[H\x1b[2J\x1b[3J");
            }
            show(ctx, seen);
        }
        last = essence;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut signal => return Ok(0),
        }
    }
}

fn show(ctx: &Ctx, seen: Seen) -> u8 {
    if ctx.ui.json {
        ctx.ui.object(&seen.json);
    } else {
        status_text::print(ctx, &seen);
    }
    if seen.reachable { 0 } else { Exit::Unreachable.code() }
}

/// Asks daemon, servers, and the state file, in this order.
pub async fn look(ctx: &Ctx, config: &Config, trees: &[TreeName]) -> Result<Seen, Failure> {
    let seen = match ctx.running(config).await? {
        Some(mut daemon) => {
            let told = ctx.told(&mut daemon).await?;
            Seen { json: told.json, report: told.report, reachable: told.reachable, written_at: None, by_daemon: true }
        }
        None => without_daemon(config, trees).await?,
    };
    only(seen, trees)
}

async fn without_daemon(config: &Config, trees: &[TreeName]) -> Result<Seen, Failure> {
    let Some(servers) = config.servers()? else {
        return last_known(config).ok_or_else(|| {
            Failure::new(Code::Unreachable, "nothing is set up here: no server is configured and no daemon runs")
                .hint("guard a directory with `treelease up DIR`")
        });
    };
    match about(&servers, trees).await {
        Ok(status) => {
            let report = Report::new(&status, config.side().ok().as_ref(), now(), |_| None);
            Ok(Seen { json: json!(report), report, reachable: true, written_at: None, by_daemon: false })
        }
        Err(error) => last_known(config).ok_or_else(|| error.into()),
    }
}

/// What the daemon last wrote to its state file.
fn last_known(config: &Config) -> Option<Seen> {
    let file: StatusFile = serde_json::from_slice(&std::fs::read(config.status_file()).ok()?).ok()?;
    let mut report = file.report;
    report.server.reachable = false;
    for tree in &mut report.trees {
        // The daemon that could keep these promises is gone.
        tree.expires_in_ms = None;
        tree.writes_until = None;
        tree.holds.clear();
    }
    let json = json!(StatusFile { report: report.clone(), written_at: file.written_at });
    Some(Seen { json, report, reachable: false, written_at: Some(file.written_at), by_daemon: false })
}

fn only(mut seen: Seen, trees: &[TreeName]) -> Result<Seen, Failure> {
    let known = |name: &TreeName| seen.report.trees.iter().any(|t| t.name == name.as_str());
    if let Some(missing) = trees.iter().find(|name| !known(name)) {
        let failure = no_tree(missing, seen.report.trees.iter().map(|t| t.name.clone()));
        return Err(if seen.reachable { failure } else { Failure { code: Code::Unreachable, ..failure } });
    }
    if !trees.is_empty() {
        let wanted = |name: &str| trees.iter().any(|t| t.as_str() == name);
        seen.report.trees.retain(|t| wanted(&t.name));
        if let Some(list) = seen.json["trees"].as_array_mut() {
            list.retain(|t| t["name"].as_str().is_some_and(wanted));
        }
    }
    Ok(seen)
}

/// 0, 75 or 69. While the servers are away a tree is still ours for as long as we may write.
async fn check(ctx: &Ctx, args: &StatusArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let name = which::named(args.trees.first())?;
    let seen = look(ctx, &config, name.as_slice()).await?;
    let name = match name {
        Some(name) => name,
        None => which::only(&seen.report.trees.iter().map(|t| t.name.clone()).collect::<Vec<_>>())?,
    };
    let tree = seen.report.trees.iter().find(|t| t.name == name.as_str());
    Ok(verdict(tree, seen.reachable, now()).code())
}

fn verdict(tree: Option<&TreeReport>, reachable: bool, now: WallTime) -> Exit {
    match tree {
        Some(tree) if tree.mine && (reachable || tree.writes_until.is_some_and(|until| until > now)) => Exit::Done,
        _ if !reachable => Exit::Unreachable,
        Some(_) => Exit::NotNow,
        None => Exit::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(mine: bool) -> TreeReport {
        serde_json::from_value(json!({
            "name": "dev", "id": "x", "state": "held", "mode": "enforce", "mounted_at": null, "holder": null, "mine": mine,
            "at_rest": false, "epoch": 1, "run_start": 1, "ttl_ms": 15000, "expires_in_ms": null, "writes_until": null,
            "last_end": "clean", "waiters": [], "requests": [], "holds": [], "not_enforced_by": [], "fence": null, "roots": []
        }))
        .unwrap()
    }

    #[test]
    fn a_check_says_mine_not_mine_or_unknown() {
        let now = WallTime::parse("2026-01-01T00:00:00Z");
        assert_eq!(verdict(Some(&tree(true)), true, now), Exit::Done);
        assert_eq!(verdict(Some(&tree(false)), true, now), Exit::NotNow);
        assert_eq!(verdict(Some(&tree(false)), false, now), Exit::Unreachable);
        assert_eq!(verdict(Some(&tree(true)), false, now), Exit::Unreachable, "the deadline may have passed");
        let later = Some(WallTime::parse("2026-01-01T00:00:05Z"));
        assert_eq!(verdict(Some(&TreeReport { writes_until: later, ..tree(true) }), false, now), Exit::Done);
        assert_eq!(verdict(None, true, now), Exit::NotFound);
    }

    #[test]
    fn a_tree_that_the_report_lacks_is_66_and_one_that_it_has_is_shown_alone() {
        let report =
            Report { trees: vec![tree(false), TreeReport { name: "other".into(), ..tree(false) }], ..Report::unknown(None) };
        let seen = || Seen { json: json!(report), report: report.clone(), reachable: true, written_at: None, by_daemon: true };
        let one = only(seen(), &["dev".parse().unwrap()]).unwrap();
        assert_eq!((one.report.trees.len(), one.json["trees"].as_array().unwrap().len()), (1, 1));
        assert_eq!(only(seen(), &["nope".parse().unwrap()]).err().unwrap().exit(), Exit::NotFound);
    }
}
