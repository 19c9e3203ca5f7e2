//! `treelease break`.

use std::time::Duration;

use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Holder, TreeStatus};

use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};
use crate::ui::{age, now, span};

/// End a lease by force
///
/// Says what is at risk and what would be safer, and asks for the tree's name. The waits that protect the storage are kept; then
/// the head of the queue is granted. Refused (75) if the tree has moved on from the epoch.
#[derive(clap::Args, Debug)]
pub struct BreakArgs {
    /// The tree, by name
    tree: TreeName,
    /// Why, for the history and for the holder
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// The epoch that you looked at (`treelease status -o wide`)
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// Do not ask
    #[arg(long, requires = "epoch")]
    yes: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Breaks it.
pub async fn run(ctx: &Ctx, args: BreakArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
    let tree = find(&status, &args.tree)?;
    let Some(holder) = &tree.holder else {
        return Err(Failure::new(Code::EpochMoved, format!("\"{}\" is not held: it is {}", tree.name, tree.state.as_str()))
            .hint("look again with `treelease status`"));
    };
    if let Some(epoch) = args.epoch.filter(|e| *e != tree.epoch.get()) {
        let (name, side) = (&tree.name, &holder.side);
        return Err(Failure::new(
            Code::EpochMoved,
            format!("\"{name}\" has moved on from epoch {epoch}: it is held by {side}, epoch {}", tree.epoch),
        )
        .held_by(holder.clone())
        .hint("look again with `treelease status`"));
    }
    say_the_risk(ctx, tree, holder);
    if args.dry.dry_run {
        ctx.ui.would(format!("break the lease of {} on \"{}\", epoch {}", holder.side, tree.name, tree.epoch));
        return Ok(0);
    }
    if !args.yes {
        match ctx.ui.ask(&format!("Type the tree's name to break the lease of {} (epoch {}):", holder.side, tree.epoch)) {
            Some(answer) if answer == tree.name.as_str() => {}
            Some(_) => return Err(Failure::new(Code::Usage, "that is not the tree's name: nothing was changed")),
            None => {
                return Err(Failure::new(Code::Usage, "there is no terminal to ask on: nothing was changed")
                    .hint(format!("`treelease break {} --reason TEXT --epoch {} --yes`", tree.name, tree.epoch)));
            }
        }
    }
    let epoch = Epoch::from_raw(args.epoch.unwrap_or(tree.epoch.get()));
    ctx.change(&config, &servers, Command::Break { tree: tree.id.clone(), epoch, reason: args.reason }).await?;
    let waits = tree.ttl.map(|t| t.get()).unwrap_or_default() + tree.policy.grace;
    ctx.ui.say(format!(
        "The lease of {} on \"{}\" is broken. The next side is granted after {} at the latest{}.",
        holder.side,
        tree.name,
        span(waits),
        fence(tree)
    ));
    ctx.ui.hint("watch it with `treelease watch`");
    Ok(0)
}

fn say_the_risk(ctx: &Ctx, tree: &TreeStatus, holder: &Holder) {
    let name = &tree.name;
    let host = if holder.host.is_empty() { String::new() } else { format!(" (host {})", holder.host) };
    ctx.ui.say(format!("\"{name}\" is held by {}{host} for {}, epoch {}.", holder.side, age(holder.since, now()), tree.epoch));
    if tree.at_rest {
        ctx.ui.say(
            "It is at rest: the storage has confirmed all that was written. Programs there meet errors on their next write.",
        );
    } else {
        ctx.ui.say(format!(
            "It is active: what {} has written in its last moments may be lost, and a program may be cut off midway.",
            holder.side
        ));
    }
    if let Some(left) = tree.remaining.filter(|_| tree.state.as_str() == "held") {
        let left = span(Duration::from_secs(left.as_secs()));
        ctx.ui.say(format!("If that machine is gone, the lease expires by itself in {left}."));
    }
    ctx.ui.hint(format!("safer: ask for it with `treelease acquire {name} --ask`"));
}

fn fence(tree: &TreeStatus) -> &'static str {
    use treelease_client::words::policy::Fence;
    match tree.policy.fence {
        _ if tree.at_rest => "",
        Fence::None => "",
        Fence::Manual => ", and somebody has to vouch for the old holder first (`treelease fence confirm`)",
        Fence::Exec(_) => ", and its fence has to succeed first",
    }
}
