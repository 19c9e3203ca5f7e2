//! `treelease cluster backup` and `restore`: the cluster's state as a file.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use treelease_client::error::{Failure, plain};
use treelease_client::words::backup::{BACKUP_MAX, open};
use treelease_client::words::refusal::Code;

use crate::cli::DryRun;
use crate::ctx::{Ctx, actor};
use crate::ui::{age, now, span};

/// Write the cluster's whole state to a file
///
/// Trees, policies, epochs and history, as new as everything that was acknowledged before. Keep it where only operators can
/// read it. Its use is `cluster restore`, when all nodes of this cluster are lost.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The file; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Bring a backup into a new and empty cluster
///
/// Only when the old cluster is gone for good: start the nodes with empty data directories, then type this. The new cluster has an
/// id of its own; every epoch goes on far above the old ones; no session lives, and every tree waits for the largest time
/// to live and grace, then for `fence confirm`: who held it after the backup was made is unknown. Each side then follows the
/// new cluster with `treelease follow`.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The file that `cluster backup` has written
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    dry: DryRun,
}

/// Written beside its place, synced, and put there as a whole, or not at all.
pub async fn backup(ctx: &Ctx, args: BackupArgs) -> Result<u8, Failure> {
    let file = args.file.as_path();
    let exists = || Failure::new(Code::CannotCreate, format!("{} is there already", file.display())).hint("choose another name");
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let config = ctx.config()?;
    let (about, text) = config.need_servers()?.backup().await?;
    let mut partial = file.as_os_str().to_owned();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    let written = write_whole(&partial, file, text.as_bytes());
    if let Err(e) = written {
        // What is half written is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
        return Err(match e.kind() {
            ErrorKind::AlreadyExists => exists(),
            _ => Failure::new(Code::CannotCreate, format!("cannot write {}: {}", file.display(), plain(&e))),
        });
    }
    if ctx.ui.json {
        ctx.ui.object(&json!({
            "schema": 1, "file": file, "cluster": about.cluster.to_string(), "revision": about.revision, "trees": about.trees,
            "history": about.history,
        }));
        return Ok(0);
    }
    let (cluster, revision) = (&about.cluster, about.revision);
    ctx.ui.say(format!("{} has the state of cluster {cluster} at revision {revision}: {} trees.", file.display(), about.trees));
    if let Some(newest) = about.history {
        ctx.ui.say(format!(
            "Of each tree's history it has the newest {newest} events: with more it would have over {BACKUP_MAX} bytes, the most that a backup takes."
        ));
    }
    Ok(0)
}

/// Never over a file that is there: linked into place, then the first name goes.
fn write_whole(partial: &Path, file: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(partial)?;
    out.write_all(content)?;
    out.sync_all()?;
    std::fs::hard_link(partial, file)?;
    std::fs::remove_file(partial)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Checks the file, and hands it over.
pub async fn restore(ctx: &Ctx, args: RestoreArgs) -> Result<u8, Failure> {
    let file = args.file.display();
    let cannot = |e: std::io::Error| Failure::io(format_args!("cannot read {file}"), &e);
    let len = std::fs::metadata(&args.file).map_err(cannot)?.len();
    if len > BACKUP_MAX as u64 {
        let why = format!("{file} cannot be used: it has {len} bytes, and no backup has more than {BACKUP_MAX}");
        return Err(Failure::new(Code::Storage, why).hint("take another backup; nothing was changed"));
    }
    let bytes = std::fs::read(&args.file).map_err(cannot)?;
    let bad = |why: String| {
        Failure::new(Code::Storage, format!("{file} cannot be used: {why}")).hint("take another backup; nothing was changed")
    };
    let text = String::from_utf8(bytes).map_err(|_| bad("it is no text, so it was altered or is damaged".into()))?;
    let about = open(&text).map_err(|why| bad(why.to_string()))?.0;
    let config = ctx.config()?;
    let servers = config.need_servers()?;
    let status = servers.status().await?;
    if !status.trees.is_empty() {
        let (cluster, trees) = (&status.cluster, status.trees.len());
        return Err(Failure::new(Code::CannotCreate, format!("cluster {cluster} is not empty: it has {trees} trees"))
            .hint("start new nodes with empty data directories, and name them with --endpoints"));
    }
    if status.cluster == about.cluster {
        return Err(Failure::new(Code::Config, format!("{file} is this very cluster's backup ({})", about.cluster))
            .hint("a backup is restored into a new cluster: start new nodes with empty data directories"));
    }
    let (new, from, made) = (&status.cluster, &about.cluster, age(about.at, now()));
    let trees = about.trees;
    if args.dry.dry_run {
        ctx.ui.would(format!("bring {trees} trees of cluster {from}, as they were {made} ago, into cluster {new}"));
        return Ok(0);
    }
    servers.restore(&actor(&config), new, &text).await??;
    let after = servers.status().await?;
    let tree = |tree: &treelease_client::words::tree::TreeStatus| json!({"name": tree.name.as_str(), "epoch": tree.epoch.get()});
    if ctx.ui.json {
        ctx.ui.object(&json!({
            "schema": 1, "cluster": new.to_string(), "from": from.to_string(),
            "trees": after.trees.iter().map(tree).collect::<Vec<_>>(),
        }));
        return Ok(0);
    }
    let wait = span(after.ttl_max.get());
    ctx.ui.say(format!("Cluster {new} has the {trees} trees of cluster {from}, as they were {made} ago. Each waits for {wait} and its grace, and then until somebody vouches that no old holder writes."));
    ctx.ui.hint(format!(
        "make sure that no node of cluster {from} runs any more, then on each side: `treelease follow {new} --reason TEXT`"
    ));
    if let Some(first) = after.trees.first() {
        let epoch = first.epoch;
        ctx.ui.hint(format!(
            "where nobody of before can write any more: `treelease fence confirm {} --epoch {epoch} --reason TEXT`",
            first.name
        ));
    }
    Ok(0)
}
