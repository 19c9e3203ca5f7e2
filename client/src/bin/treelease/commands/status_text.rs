//! The status for people: a table, what waits and what holds below it, and the next thing to type.

use std::time::Duration;

use treelease_client::report::TreeReport;
use treelease_client::words::tree::{End, StateName};

use super::status::Seen;
use crate::ctx::{Ctx, state};
use crate::table::{Table, printable};
use crate::ui::{age, now, span};

/// Prints all of it.
pub fn print(ctx: &Ctx, seen: &Seen) {
    if let Some(line) = old(seen) {
        ctx.ui.warn(line);
    }
    if seen.report.trees.is_empty() {
        ctx.ui.say("There are no trees yet.");
    } else {
        let lines = table(&seen.report.trees, ctx.ui.wide);
        ctx.ui.data(ctx.ui.paint("1", &lines[0]));
        lines[1..].iter().for_each(|line| ctx.ui.data(line));
        seen.report.trees.iter().flat_map(details).for_each(|line| ctx.ui.data(line));
    }
    if ctx.ui.wide {
        wide(ctx, seen);
    }
    if seen.reachable && !seen.report.server.secure {
        ctx.ui.say("The server runs without TLS: a side's name is only claimed, and every caller is an operator.");
    }
    if let Some(next) = next(seen) {
        ctx.ui.hint(next);
    }
}

fn old(seen: &Seen) -> Option<String> {
    let when = seen.written_at.or(seen.report.server.as_of);
    match (seen.reachable, when) {
        (true, _) => None,
        (false, Some(at)) => Some(format!("no lease server answers; this was known {} ago", age(at, now()))),
        (false, None) => Some("no lease server answers, and none ever has".into()),
    }
}

fn table(trees: &[TreeReport], wide: bool) -> Vec<String> {
    let mut heading = vec!["TREE", "STATE", "HOLDER", "FOR", "RENEWED", "LAST END", "WAITING"];
    if wide {
        heading.extend(["EPOCH", "RUN", "TTL", "MODE", "MOUNTED AT"]);
    }
    let mut table = Table::new(&heading);
    for tree in trees {
        let holder = tree.holder.as_ref();
        let host = |h: &treelease_client::report::HolderReport| match h.host.as_str() {
            "" => h.side.clone(),
            host => format!("{} ({host})", h.side),
        };
        let dash = || "-".to_string();
        let mut row = vec![
            tree.name.clone(),
            state_word(tree),
            holder.map_or_else(dash, host),
            holder.map_or_else(dash, |h| age(h.since, now())),
            renewed(tree).unwrap_or_else(dash),
            if tree.last_end == End::None { dash() } else { tree.last_end.to_string() },
            if tree.waiters.is_empty() {
                dash()
            } else {
                tree.waiters.iter().map(|w| w.side.clone()).collect::<Vec<_>>().join(", ")
            },
        ];
        if wide {
            let at = tree.mounted_at.as_ref().map_or_else(dash, |at| at.display().to_string());
            let ttl = tree.ttl_ms.map_or_else(dash, |ms| span(Duration::from_millis(ms)));
            row.extend([tree.epoch.to_string(), tree.run_start.to_string(), ttl, mode(tree), at]);
        }
        table.row(row);
    }
    table.lines()
}

fn state_word(tree: &TreeReport) -> String {
    match (tree.state, tree.at_rest) {
        (StateName::Held, true) => format!("{}, at rest", state(tree)),
        _ => state(tree),
    }
}

/// From the time to live and what is left of it: when the holder's session was last heard of.
fn renewed(tree: &TreeReport) -> Option<String> {
    let (ttl, left) = (tree.ttl_ms?, tree.expires_in_ms?);
    (tree.state == StateName::Held).then(|| format!("{} ago", span(Duration::from_millis(ttl.saturating_sub(left)))))
}

fn mode(tree: &TreeReport) -> String {
    serde_json::to_value(tree.mode).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What does not fit into a row.
fn details(tree: &TreeReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |text: String| lines.push(format!("  {}: {}", tree.name, printable(&text)));
    if let Some(note) = tree.holder.as_ref().map(|h| &h.note).filter(|n| !n.is_empty()) {
        line(format!("held for: {note}"));
    }
    if !tree.why.is_empty() && tree.holder.is_none() {
        line(format!("{}: {}", tree.state.as_str(), tree.why));
    }
    match tree.fence.as_ref().and_then(|f| f.witness.as_deref()) {
        Some("asking") => {
            line("this side asks the storage whether the old holder is gone; nobody needs to do anything if it is".into())
        }
        Some("told") => line("the storage says that the old holder is gone; the servers are told".into()),
        Some(_) => line("a side that waits for it and has it mounted can ask the storage whether the old holder is gone".into()),
        None => {}
    }
    for fenced in &tree.fenced {
        let (side, epoch, agent) = (&fenced.side, fenced.epoch, &fenced.agent);
        line(match (fenced.unfencing, fenced.acting) {
            (true, _) => format!("the agent `{agent}` is giving {side}, fenced after epoch {epoch}, its access back"),
            (false, true) => format!("the agent `{agent}` may still act on {side}: it gets nothing until that has ended"),
            (false, false) => {
                format!("{side} was fenced by the agent `{agent}` after epoch {epoch}, and gets nothing until it is unfenced")
            }
        });
    }
    for waiter in &tree.waiters {
        let asks = if waiter.asked { ", and asks for it" } else { "" };
        let note = if waiter.note.is_empty() { String::new() } else { format!(", for: {}", waiter.note) };
        line(format!("{} waits for {}{asks}{note}", waiter.side, age(waiter.since, now())));
    }
    if let Some(why) = &tree.declined {
        line(format!("the holder declined to hand over: {why}"));
    }
    for hold in &tree.holds {
        let tty = hold.tty.as_ref().filter(|t| !t.is_empty()).map(|t| format!(", {t}")).unwrap_or_default();
        let note = if hold.note.is_empty() { String::new() } else { format!(", for: {}", hold.note) };
        let what = if hold.command.is_empty() { "treelease acquire" } else { &hold.command };
        line(format!("kept by `{what}` (pid {}{tty}) for {}{note}", hold.pid, age(hold.since, now())));
    }
    if let Some(past) = &tree.bypassed {
        let pid = past.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        let who = past.command.as_deref().unwrap_or("somebody");
        line(format!("the storage was written past the mount by {who}{pid} {} ago: {}", age(past.last, now()), past.path));
    }
    if !tree.not_enforced_by.is_empty() {
        line(format!("enforcing, not yet: {}", tree.not_enforced_by.join(", ")));
    }
    lines
}

fn wide(ctx: &Ctx, seen: &Seen) {
    let server = &seen.report.server;
    let leader = server.leader.as_deref().unwrap_or("none");
    let quorum = if server.quorum { "quorum" } else { "no quorum" };
    ctx.ui.data(format!("server: leader {leader}, {} node(s), {quorum}, revision {}", server.nodes, server.revision));
    if let Some(cluster) = &server.cluster {
        ctx.ui.data(format!("cluster: {cluster}"));
    }
    // A key of the daemon's that only this view shows.
    if let Some(trips) = seen.json["session"]["round_trips_ms"].as_array() {
        let trips: Vec<String> = trips.iter().map(|t| format!("{t} ms")).collect();
        ctx.ui.data(format!("last renewals took: {}", trips.join(", ")));
    }
}

/// The one thing that is most likely wanted now.
fn next(seen: &Seen) -> Option<String> {
    let trees = &seen.report.trees;
    if !seen.reachable && !seen.by_daemon {
        return Some("this side's daemon does not run; `treelease up` starts it, and an embedded server".into());
    }
    if !seen.reachable {
        return Some("`treelease logs` shows what daemon and embedded server say".into());
    }
    if let Some(tree) = trees.iter().find(|t| t.state == StateName::Fencing) {
        let epoch = tree.ended_epoch.unwrap_or(tree.epoch);
        let (side, name) = (tree.ended_side.as_deref().unwrap_or("the old holder"), &tree.name);
        let agent = tree.fence.as_ref().is_some_and(|f| f.needs == "agent");
        let or_else = if agent { "`treelease history` tells how its fence agent fares; or, " } else { "" };
        return Some(format!(
            "{or_else}once it is sure that {side} cannot write any more: `treelease fence confirm {name} --epoch {epoch} --reason TEXT`"
        ));
    }
    if let Some((tree, fenced)) = trees.iter().find_map(|t| Some((t, t.fenced.iter().find(|f| !f.unfencing && !f.acting)?))) {
        let (name, side) = (&tree.name, &fenced.side);
        return Some(format!(
            "once {side} was restarted, or has mounted the storage anew: `treelease fence unfence {name} {side} --reason TEXT`"
        ));
    }
    if let Some(tree) = trees.iter().find(|t| t.mine && t.requests.iter().any(|r| Some(&r.side) != seen.report.side.as_ref())) {
        return Some(format!("{} asks for it: hand it over with `treelease release {}`", tree.requests[0].side, tree.name));
    }
    if !seen.by_daemon {
        return Some("this side's daemon does not run; `treelease up` starts it".into());
    }
    if let Some(tree) = trees.iter().find(|t| t.holder.is_some() && !t.mine) {
        return Some(format!("ask for it with `treelease acquire {} --ask`", tree.name));
    }
    if let Some(tree) = trees.iter().find(|t| t.mine) {
        return Some(format!("hand it back with `treelease release {}`", tree.name));
    }
    if let Some(tree) = trees.iter().find(|t| t.state == StateName::Cooling) {
        return Some(format!("`treelease wait {}` waits until it is free", tree.name));
    }
    match trees.iter().find(|t| t.state == StateName::Free) {
        Some(tree) => Some(format!("run something under the lease with `treelease run --tree {} -- CMD`", tree.name)),
        None => Some("guard a directory with `treelease up DIR`".into()),
    }
}
