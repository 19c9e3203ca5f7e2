//! `treelease tree retire` and `treelease tree rm`.

use treelease_client::error::Failure;
use treelease_client::words::command::Command;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::RootState;

use super::seal::pick;
use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};

/// End a tree's life, for ever
///
/// Nobody is granted its lease any more, and its roots are sealed; its files stay where they are. Only a free tree can be retired.
/// Asks for the tree's name, unless `--yes` is given.
#[derive(clap::Args, Debug)]
pub struct RetireArgs {
    /// Its name
    name: TreeName,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Remove a retired tree from the server, or first a sealed root
///
/// A retired tree can be removed when it has no roots any more, and a tree's last root when it is retired. Its name may be used again; its id never is, because its marker may
/// still lie in a directory somewhere. Its files are not touched, and its history stays.
#[derive(clap::Args, Debug)]
pub struct RmArgs {
    /// Its name
    name: TreeName,
    /// Forget this sealed root, by path or id, instead of the tree
    #[arg(long, value_name = "ROOT")]
    root: Option<String>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    dry: DryRun,
}

/// Retires.
pub async fn retire(ctx: &Ctx, args: RetireArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.name)).await?;
    let tree = find(&status, &args.name)?;
    let name = &tree.name;
    if args.dry.dry_run {
        ctx.ui.would(format!("retire \"{name}\", for ever"));
        return Ok(0);
    }
    if !args.yes {
        match ctx.ui.ask(&format!("\"{name}\" will never be granted again. Type its name to retire it:")) {
            Some(answer) if answer == name.as_str() => {}
            Some(_) => return Err(Failure::new(Code::Usage, "that is not the tree's name: nothing was changed")),
            None => {
                return Err(Failure::new(Code::Usage, "there is no terminal to ask on: nothing was changed")
                    .hint(format!("`treelease tree retire {name} --reason TEXT --yes`")));
            }
        }
    }
    let command = Command::Retire { tree: tree.id.clone(), epoch: tree.epoch, reason: args.reason };
    ctx.change(&config, &servers, command).await?;
    ctx.ui.say(format!("\"{name}\" is retired. Its files are where they were."));
    Ok(0)
}

/// Removes.
pub async fn remove(ctx: &Ctx, args: RmArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = about(&servers, std::slice::from_ref(&args.name)).await?;
    let tree = find(&status, &args.name)?;
    let (id, name, reason) = (tree.id.clone(), &tree.name, args.reason);
    let (command, what) = match &args.root {
        Some(text) => {
            let root = pick(tree, Some(text), RootState::Sealed)?;
            (Command::RemoveRoot { tree: id, root: root.id.clone(), reason }, format!("the root of \"{name}\" at {}", root.path))
        }
        None => (Command::RemoveTree { tree: id, reason }, format!("the tree \"{name}\"")),
    };
    if args.dry.dry_run {
        ctx.ui.would(format!("remove {what} from the server"));
        return Ok(0);
    }
    ctx.change(&config, &servers, command).await?;
    ctx.ui.say(format!("Removed from the server: {what}. Its files are where they were."));
    Ok(0)
}
