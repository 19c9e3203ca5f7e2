//! `treelease umount`.

use std::path::{Path, PathBuf};
use std::process::Command;

use treelease_client::error::{Failure, plain};
use treelease_client::place;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;

use super::up_parts::{is_dead, whole};
use crate::cli::DryRun;
use crate::ctx::Ctx;

/// Remove a guarded mount from the running daemon
///
/// The path is unguarded then: what writes there goes past the lease. A mount in use is refused (75), naming who uses it.
#[derive(clap::Args, Debug)]
pub struct UmountArgs {
    /// The tree by name, or the directory where it is mounted
    #[arg(value_name = "TREE|DIR")]
    what: String,
    /// Also while it is in use: the path is free at once, open files end
    #[arg(long)]
    lazy: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Unmounts it.
pub async fn run(ctx: &Ctx, args: UmountArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let what = match args.what.parse::<TreeName>() {
        Ok(name) if !args.what.starts_with('.') => name.to_string(),
        _ => whole(Path::new(&args.what))?.display().to_string(),
    };
    if args.dry.dry_run {
        ctx.ui.would(format!("unmount {what}"));
        return Ok(0);
    }
    let unguarded = match ctx.running(&config).await? {
        Some(mut daemon) => daemon.remove_mount(&what, args.lazy).await?,
        None => vec![dead_mount(&what, args.lazy).await?],
    };
    for path in &unguarded {
        ctx.ui.say(format!("{path} is unguarded now: what writes there goes past the lease."));
        if config.mounts.iter().any(|m| m.at == Path::new(path)) {
            ctx.ui.hint("the configuration still lists it: `treelease up` mounts it again");
        }
    }
    Ok(0)
}

/// Without a daemon there can only be the dead mount of one that was killed; a living one belongs to another side's daemon.
async fn dead_mount(what: &str, lazy: bool) -> Result<String, Failure> {
    let ours = |m: &place::MountEntry| m.is_guarded() && (m.at == Path::new(what) || m.guarded_tree() == Some(what));
    let Some(mount) = place::mounts().into_iter().rev().find(ours) else {
        return Err(Failure::new(Code::Unreachable, format!("no daemon runs for this side, and nothing of `{what}` is mounted"))
            .hint("`treelease up` starts the daemon"));
    };
    if !is_dead(&mount.at).await {
        return Err(Failure::new(Code::Busy, format!("{} is served by another side's daemon", mount.at.display()))
            .hint("unmount it with that side's configuration: `treelease --config FILE umount …`"));
    }
    let at: PathBuf = mount.at;
    let tools: [&[&str]; 3] = [&["umount"], &["fusermount3", "-u"], &["fusermount", "-u"]];
    let mut why = String::from("no program to unmount with was found");
    for tool in tools {
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]);
        if lazy {
            command.arg(if tool[0] == "umount" { "-l" } else { "-z" });
        }
        match command.arg(&at).output() {
            Ok(done) if done.status.success() => return Ok(at.display().to_string()),
            Ok(done) => why = String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => why = plain(&e),
        }
    }
    Err(Failure::new(Code::Busy, format!("the dead mount {} cannot be removed: {why}", at.display()))
        .hint("end what uses it, or use --lazy"))
}
