//! `treelease tree takeover`.
//!
//! The server hears of it first, and begins to cool the tree: nobody is granted it while the old authority may still have a
//! holder. Then the marker is replaced, and the old cluster's guards refuse the root from their next look on.

use std::os::fd::AsFd;
use std::path::PathBuf;

use treelease_client::error::Failure;
use treelease_client::marker::{self, Expected, Marker};
use treelease_client::words::command::Command;
use treelease_client::words::epoch::Epoch;
use treelease_client::words::id::{RootId, TreeId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Root, RootState};

use crate::cli::DryRun;
use crate::commands::up_parts::{raw, whole};
use crate::ctx::Ctx;
use crate::ui::span;

/// Make a root with another cluster's marker ours
///
/// Only where that cluster is gone for good, or this is a copy of its tree: while both guard one root there can be two holders.
/// The tree becomes a new one here, and its first lease waits as after a restore.
#[derive(clap::Args, Debug)]
pub struct TakeoverArgs {
    /// The root
    dir: PathBuf,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// The new tree's name [default: as its marker says]
    #[arg(long, value_name = "NAME")]
    tree: Option<TreeName>,
    #[command(flatten)]
    dry: DryRun,
}

/// Takes it over.
pub async fn run(ctx: &Ctx, args: TakeoverArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = servers.status().await?;
    let dir = whole(&args.dir)?;
    raw(&dir)?;
    let root = marker::open_root(&dir)?;
    marker::overlap(&dir, None)?;
    let (name, from) = match marker::read(root.as_fd()) {
        Ok(None) => {
            return Err(Failure::new(Code::Config, format!("{} has no marker: there is nothing to take over", dir.display()))
                .hint(format!("guard it with `treelease up {}`", dir.display())));
        }
        Ok(Some(found)) => {
            let marker = &found.marker;
            let known = status.trees.iter().find(|t| t.id == marker.tree);
            let expected = Expected { cluster: &status.cluster, tree: &marker.tree, root: None };
            if let (Some(tree), Ok(())) = (known, marker::check(&found, expected)) {
                return Err(Failure::new(
                    Code::Config,
                    format!("{} is this cluster's already, as the tree \"{}\"", dir.display(), tree.name),
                )
                .hint(format!("guard it with `treelease up {}`", dir.display())));
            }
            (args.tree.unwrap_or_else(|| marker.name.clone()), marker.cluster.to_string())
        }
        // Damaged beyond reading: then somebody has to say what it is called.
        Err(error) => {
            let failure = Failure::from(error);
            let name = args.tree.ok_or_else(|| failure.hint("name the new tree with --tree NAME"))?;
            (name, String::new())
        }
    };
    if status.trees.iter().any(|t| t.name == name) {
        return Err(Failure::new(Code::Config, format!("there is a tree called \"{name}\" already"))
            .hint("choose another name with --tree NAME"));
    }
    let above = marker::largest_stamp(root.as_fd())?.map_or(Epoch::ZERO, |s| s.epoch);
    marker::may_write(root.as_fd()).map_err(|e| Failure::io(format!("no marker can be written in {}", dir.display()), &e))?;
    if args.dry.dry_run {
        ctx.ui.would(format!("take {} over from cluster {from} as \"{name}\", with epochs above {above}", dir.display()));
        return Ok(0);
    }
    let (tree, id) = (TreeId::random(), RootId::random());
    let command = Command::Takeover {
        name: name.clone(),
        tree: tree.clone(),
        root: Root { id: id.clone(), path: dir.display().to_string(), state: RootState::Live },
        reason: args.reason,
        from_cluster: from,
        above,
    };
    ctx.change(&config, &servers, command).await?;
    let marker = Marker::new(status.cluster.clone(), tree, name.clone(), id, servers.endpoints());
    marker::replace(root.as_fd(), &marker).map_err(|e| {
        Failure::from(e).hint(format!("the tree \"{name}\" is registered, but its marker is still the old one: put that right, then type this again with another --tree"))
    })?;
    let wait = status.ttl_max.get() + treelease_client::words::policy::Policy::default().grace;
    ctx.ui.say(format!("{} is the root of \"{name}\" now. Its first lease is granted after {} at the earliest, and once somebody vouches that no old holder writes.", dir.display(), span(wait)));
    ctx.ui.hint(format!("guard it with `treelease up {}`", dir.display()));
    ctx.ui.hint(format!("where the old cluster surely is gone: `treelease fence confirm {name} --epoch {above} --reason TEXT`"));
    Ok(0)
}
