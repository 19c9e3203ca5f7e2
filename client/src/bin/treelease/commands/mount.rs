//! `treelease mount`.

use std::path::PathBuf;

use treelease_client::error::Failure;
use treelease_client::local::wire::AddMountRequest;
use treelease_client::words::command::Command;
use treelease_client::words::id::{RootId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Root, RootState};

use super::up_parts::{add_mount, whole};
use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};

/// Add a guarded mount to the running daemon
///
/// Where the tree lies comes from the configuration, else from its live root. `treelease up DIR` is the usual way: it writes the
/// configuration too, so that the mount comes back after a restart.
#[derive(clap::Args, Debug)]
pub struct MountArgs {
    /// The tree, by name
    tree: TreeName,
    /// Its live root on the shared storage
    #[arg(long, value_name = "DIR")]
    lower: Option<PathBuf>,
    /// Where the guarded tree appears [default: over the lower directory]
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Write a marker where none is: only if this surely is the tree's root
    #[arg(long)]
    adopt: bool,
    /// Go on although programs have files of the raw tree open for writing
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Mounts it.
pub async fn run(ctx: &Ctx, args: MountArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let configured = config.mounts.iter().find(|m| m.tree == args.tree);
    let servers = config.need_servers()?;
    let mut fresh = false;
    let lower = match (args.lower, configured) {
        (Some(lower), _) => whole(&lower)?,
        (None, Some(mount)) => mount.lower.clone(),
        (None, None) => {
            let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
            let live =
                find(&status, &args.tree)?.roots.iter().find(|r| r.state == RootState::Live).map(|r| PathBuf::from(&r.path));
            live.filter(|path| path.is_absolute()).ok_or_else(|| {
                Failure::new(Code::Usage, format!("nothing says where the files of \"{}\" lie", args.tree))
                    .hint(format!("`treelease mount {} --lower DIR`", args.tree))
            })?
        }
    };
    let at = match (args.at, configured) {
        (Some(at), _) => whole(&at)?,
        (None, Some(mount)) if mount.lower == lower => mount.at.clone(),
        (None, _) => lower.clone(),
    };
    if args.dry.dry_run {
        ctx.ui.would(format!("guard {} at {} as \"{}\"", lower.display(), at.display(), args.tree));
        return Ok(0);
    }
    if args.adopt {
        // A tree that was added without a root gets this one: the marker to be written has to name it.
        let status = about(&servers, std::slice::from_ref(&args.tree)).await?;
        let tree = find(&status, &args.tree)?;
        if tree.roots.is_empty() {
            let root = Root { id: RootId::random(), path: lower.display().to_string(), state: RootState::Live };
            ctx.change(&config, &servers, Command::AddRoot { tree: tree.id.clone(), root }).await?;
            fresh = true;
        }
    }
    let mut daemon = ctx.daemon(&config).await?;
    if fresh {
        // The daemon has to hear of the new root before it writes a marker that names it.
        super::up_parts::knows_root(ctx, &mut daemon, &args.tree).await?;
    }
    let request = AddMountRequest {
        tree: args.tree.to_string(),
        lower: lower.display().to_string(),
        at: at.display().to_string(),
        adopt: args.adopt,
        force: args.force,
        check_only: false,
    };
    let answer = add_mount(&mut daemon, request, true).await?;
    answer.notes.iter().for_each(|note| ctx.ui.warn(note));
    let already = if answer.already { "was guarded already" } else { "is guarded" };
    ctx.ui.say(format!("\"{}\" {already} at {}.", args.tree, answer.at));
    if !config.mounts.iter().any(|m| m.at == at) && !ctx.ui.json {
        ctx.ui.hint(format!("this mount ends with the daemon; `treelease up {}` keeps it", at.display()));
    }
    Ok(0)
}
