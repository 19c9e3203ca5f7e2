//! `treelease tree seal` and `treelease tree unseal`.

use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Root, RootState, TreeStatus};

use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};

/// Let nobody write to a tree until it is unsealed
///
/// Its root takes no writes any more: nobody is granted the lease. Only a free tree can be sealed.
#[derive(clap::Args, Debug)]
pub struct SealArgs {
    #[command(flatten)]
    what: Which,
}

/// Let a sealed tree be written again
///
/// Makes a sealed root the live one: the only one, or the one that is named.
#[derive(clap::Args, Debug)]
pub struct UnsealArgs {
    #[command(flatten)]
    what: Which,
}

#[derive(clap::Args, Debug)]
struct Which {
    /// The tree, by name
    name: TreeName,
    /// Which of its roots, by path or id (`treelease tree show` lists them)
    #[arg(long, value_name = "ROOT")]
    root: Option<String>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Seals.
pub async fn seal(ctx: &Ctx, args: SealArgs) -> Result<u8, Failure> {
    set(ctx, args.what, RootState::Live, RootState::Sealed).await
}

/// Unseals.
pub async fn unseal(ctx: &Ctx, args: UnsealArgs) -> Result<u8, Failure> {
    set(ctx, args.what, RootState::Sealed, RootState::Live).await
}

async fn set(ctx: &Ctx, which: Which, from: RootState, to: RootState) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&which.name)).await?;
    let tree = find(&status, &which.name)?;
    let root = pick(tree, which.root.as_deref(), from)?;
    if which.dry.dry_run {
        ctx.ui.would(format!("make the root of \"{}\" at {} {}", tree.name, root.path, to.as_str()));
        return Ok(0);
    }
    let (tree_id, id, epoch, reason) = (tree.id.clone(), root.id.clone(), tree.epoch, which.reason);
    ctx.change(&config, &servers, Command::SetRoot { tree: tree_id, root: id, epoch, state: to, reason }).await?;
    ctx.ui.say(match to {
        RootState::Sealed => format!("\"{}\" is sealed: nobody writes to {} through treelease.", tree.name, root.path),
        RootState::Live => format!("\"{}\" may be written again, at {}.", tree.name, root.path),
    });
    Ok(0)
}

/// The root that is named, or the only one that is as expected.
pub(super) fn pick<'a>(tree: &'a TreeStatus, named: Option<&str>, state: RootState) -> Result<&'a Root, Failure> {
    let fitting: Vec<&Root> = match named {
        Some(text) => tree.roots.iter().filter(|root| root.path == text || root.id.as_str() == text).collect(),
        None => tree.roots.iter().filter(|root| root.state == state).collect(),
    };
    let lists = format!("`treelease tree show {}` lists its roots", tree.name);
    match (fitting.as_slice(), named) {
        ([root], _) => Ok(root),
        ([], Some(text)) => Err(Failure::new(Code::NotFound, format!("\"{}\" has no root {text}", tree.name)).hint(lists)),
        ([], None) => Err(Failure::new(Code::NotFound, format!("\"{}\" has no {} root", tree.name, state.as_str())).hint(lists)),
        _ => {
            Err(Failure::new(Code::Usage, format!("\"{}\" has several such roots: name one with --root", tree.name)).hint(lists))
        }
    }
}
