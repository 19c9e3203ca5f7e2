//! `treelease tree add`.

use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::json;
use treelease_client::error::Failure;
use treelease_client::marker::{self, Mismatch, mismatch_failure};
use treelease_client::words::command::Command;
use treelease_client::words::id::{RootId, TreeId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Root, RootState};

use crate::cli::DryRun;
use crate::commands::up::write_marker;
use crate::commands::up_parts::{Served, raw, whole};
use crate::ctx::Ctx;

/// Register a tree with its policy
///
/// A root that this machine sees gets its marker. `treelease up DIR` does this too, and mounts it.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// Its name
    name: TreeName,
    /// Where its files lie
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Policy that differs from the defaults, as in `idle=30s fence=none`
    #[arg(value_name = "KEY=VALUE")]
    policy: Vec<String>,
    #[command(flatten)]
    dry: DryRun,
}

/// Registers it.
pub async fn run(ctx: &Ctx, args: AddArgs) -> Result<u8, Failure> {
    let policy = super::policy(&args.policy)?;
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = servers.status().await?;
    let lower = args.root.as_deref().map(whole).transpose()?;
    let seen = lower.as_ref().filter(|path| path.is_dir());
    if let Some(path) = seen {
        raw(path)?;
        let root = marker::open_root(path)?;
        marker::overlap(path, None)?;
        match marker::read(root.as_fd())? {
            Some(found) if found.marker.cluster != status.cluster => {
                return Err(mismatch_failure(path, &found, &Mismatch::Foreign { cluster: found.marker.cluster.clone() }));
            }
            Some(found) => {
                return Err(Failure::new(
                    Code::Config,
                    format!("{} is the root of the tree \"{}\" already", path.display(), found.marker.name),
                )
                .hint(format!("guard it with `treelease up {}`", path.display())));
            }
            None => {}
        }
    }
    if args.dry.dry_run {
        ctx.ui.would(format!("register the tree \"{}\"", args.name));
        return Ok(0);
    }
    let tree = TreeId::random();
    let root = lower.as_ref().map(|path| Root { id: RootId::random(), path: path.display().to_string(), state: RootState::Live });
    let command = Command::AddTree { name: args.name.clone(), tree: tree.clone(), policy, root: root.clone() };
    match (seen, &root) {
        (Some(path), Some(root)) => {
            let served = Served { servers, status, embedded: None };
            write_marker(ctx, &config, &served, path, (args.name.clone(), tree.clone(), root.id.clone()), command).await?;
        }
        _ => {
            ctx.change(&config, &servers, command).await?;
        }
    }
    if ctx.ui.json {
        ctx.ui.object(
            &json!({"schema": 1, "tree": args.name, "id": tree, "root": root.as_ref().map(|r| &r.id), "marker": seen.is_some()}),
        );
    }
    ctx.ui.say(format!("The tree \"{}\" is registered.", args.name));
    match (&lower, seen) {
        (Some(path), None) => {
            ctx.ui.warn(format!("this machine does not see {}, so no marker was written there", path.display()));
            ctx.ui.hint(format!("where it is seen: `treelease mount {} --lower DIR --adopt`", args.name));
        }
        (Some(path), Some(_)) => ctx.ui.hint(format!("guard it with `treelease up {}`", path.display())),
        (None, _) => ctx.ui.hint(format!("guard a directory as this tree with `treelease up DIR --tree {}`", args.name)),
    }
    Ok(0)
}
