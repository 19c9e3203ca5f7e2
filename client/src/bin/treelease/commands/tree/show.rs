//! `treelease tree show`.

use serde_json::json;
use treelease_client::error::Failure;
use treelease_client::report::tree_report;
use treelease_client::words::id::TreeName;

use crate::ctx::{Ctx, standing};
use crate::table::printable;

/// One tree: its state, its roots, every key of its policy
#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    /// Its name [default: the one of the working directory]
    name: Option<TreeName>,
}

/// Shows it.
pub async fn run(ctx: &Ctx, args: ShowArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let (_, tree) = ctx.tree_there(args.name.as_ref(), &servers).await?;
    let side = config.side().ok();
    if ctx.ui.json {
        ctx.ui.object(&json!({"schema": 1, "tree": super::list::object(&tree, side.as_ref())}));
        return Ok(0);
    }
    ctx.ui.data(format!("{}.", standing(&tree_report(&tree, side.as_ref(), None))));
    ctx.ui.data(format!("id = {}", tree.id));
    for root in &tree.roots {
        ctx.ui.data(printable(&format!("root = {} ({}, {})", root.path, root.state.as_str(), root.id)));
    }
    let default = treelease_client::words::policy::Policy::default();
    for (key, value) in tree.policy.pairs() {
        let changed = if default.get(key).as_deref() == Some(&value) { "" } else { "    # not the default" };
        ctx.ui.data(format!("{key} = {value}{changed}"));
    }
    Ok(0)
}
