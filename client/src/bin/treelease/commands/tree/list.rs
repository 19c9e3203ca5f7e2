//! `treelease tree list`.

use serde_json::{Value, json};
use treelease_client::error::Failure;
use treelease_client::report::tree_report;
use treelease_client::words::id::SideName;
use treelease_client::words::tree::TreeStatus;

use crate::ctx::{Ctx, state};
use crate::table::Table;

/// All trees that the server knows
#[derive(clap::Args, Debug)]
pub struct ListArgs {}

/// Lists them.
pub async fn run(ctx: &Ctx, _args: ListArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let status = config.need_servers()?.status().await?;
    let side = config.side().ok();
    if ctx.ui.json {
        let trees: Vec<Value> = status.trees.iter().map(|tree| object(tree, side.as_ref())).collect();
        ctx.ui.object(&json!({"schema": 1, "trees": trees}));
        return Ok(0);
    }
    if status.trees.is_empty() {
        ctx.ui.say("There are no trees yet.");
        ctx.ui.hint("guard a directory with `treelease up DIR`");
        return Ok(0);
    }
    let mut table = Table::new(&["TREE", "STATE", "MODE", "EPOCH", "ROOT"]);
    for tree in &status.trees {
        let report = tree_report(tree, side.as_ref(), None);
        let root = tree.roots.first().map_or("-", |r| r.path.as_str());
        let mode = tree.policy.get("mode").unwrap_or_default();
        table.row([tree.name.to_string(), state(&report), mode, tree.epoch.to_string(), root.to_owned()]);
    }
    table.lines().iter().for_each(|line| ctx.ui.data(line));
    Ok(0)
}

/// A tree as in `status`, with its policy.
pub fn object(tree: &TreeStatus, side: Option<&SideName>) -> Value {
    let mut object = json!(tree_report(tree, side, None));
    let policy: serde_json::Map<String, Value> = tree.policy.pairs().into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
    object["policy"] = Value::Object(policy);
    object
}
