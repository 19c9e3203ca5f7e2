//! `treelease up`.
//!
//! The order matters: first what needs nobody (paths, marker, overlap), then the server (never started for a directory of
//! another cluster), then the daemon's checks, and only then what stays: the tree, its marker, the mount, the configuration. A
//! marker is never removed again, so it is made when every check has passed.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde_json::json;
use treelease_client::config::{Config, MountConfig};
use treelease_client::error::Failure;
use treelease_client::local::LocalClient;
use treelease_client::local::wire::AddMountRequest;
use treelease_client::marker::{self, Expected, Found, Marker};
use treelease_client::place;
use treelease_client::words::command::Command;
use treelease_client::words::id::{RootId, TreeId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{Root, RootState};

use super::up_parts::{self, Served, Undo, add_mount, server_for, whole};
use crate::cli::DryRun;
use crate::ctx::{Ctx, about, find};

/// Guard a directory, and start what that needs
///
/// The tree is the one of the directory's marker, else a new one. With no server configured an embedded one is started on this
/// machine. The mount is written to the configuration; without DIR all configured mounts are restored. Takes no lease.
#[derive(clap::Args, Debug)]
pub struct UpArgs {
    /// Where the guarded tree appears [default: all configured mounts, else the working directory]
    dir: Option<PathBuf>,
    /// The name of a new tree [default: the directory's last name]
    #[arg(long, value_name = "NAME")]
    tree: Option<TreeName>,
    /// Where the files lie on the shared storage [default: DIR itself, which is mounted over]
    #[arg(long, value_name = "DIR")]
    lower: Option<PathBuf>,
    /// Replace daemon and embedded server by the installed version; the lease is kept, open files on the mount end
    #[arg(long)]
    restart: bool,
    /// Go on although programs have files of the raw tree open for writing
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// A directory to guard.
struct Wish {
    at: PathBuf,
    lower: PathBuf,
    name: Option<TreeName>,
    force: bool,
}

/// Guards it.
pub async fn run(ctx: &Ctx, args: UpArgs) -> Result<u8, Failure> {
    let mut config = ctx.config()?;
    config.side()?;
    let all = args.dir.is_none() && args.tree.is_none() && args.lower.is_none() && !config.mounts.is_empty();
    let dir = args.dir.clone().unwrap_or_else(|| ".".into());
    if args.dry.dry_run {
        return dry(ctx, &config, all, &dir, &args);
    }
    if args.restart {
        up_parts::restart(ctx, &config).await?;
    }
    let mut undo = Undo::default();
    let done =
        if all { restore(ctx, &config, &mut undo, args.force).await } else { one(ctx, &mut config, &dir, args, &mut undo).await };
    if done.is_err() {
        undo.run(ctx, &config).await;
    }
    done.map(|()| 0)
}

fn dry(ctx: &Ctx, config: &Config, all: bool, dir: &Path, args: &UpArgs) -> Result<u8, Failure> {
    if all {
        let at: Vec<String> = config.mounts.iter().map(|m| m.at.display().to_string()).collect();
        ctx.ui.would(format!("restore the guarded mounts {}", at.join(", ")));
        return Ok(0);
    }
    let at = whole(dir)?;
    if let Some(mount) = place::mount_of(&at).filter(|m| m.is_guarded()) {
        ctx.ui.would(format!("find {} guarded already", mount.at.display()));
        return Ok(0);
    }
    let lower = lower_of(config, args, &at)?;
    let found = look(&lower)?;
    let name = found.map(|f| f.marker.name).map_or_else(|| new_name(args.tree.clone(), &at), Ok)?;
    let server = if config.has_endpoints() { "the configured server" } else { "the embedded server" };
    ctx.ui.would(format!("guard {} at {} as \"{name}\" with {server}", lower.display(), at.display()));
    Ok(0)
}

/// All configured mounts.
async fn restore(ctx: &Ctx, config: &Config, undo: &mut Undo, force: bool) -> Result<(), Failure> {
    let mut markers = Vec::new();
    for mount in &config.mounts {
        // Through a mount of ours no marker is seen; the daemon that made it has looked.
        let covered = place::mount_of(&mount.lower).is_some_and(|m| m.is_guarded());
        if let Some(found) = if covered { None } else { look(&mount.lower)? } {
            markers.push((mount.lower.clone(), found));
        }
    }
    let served = server_for(config, &markers).await?;
    undo.server = served.embedded.as_ref().is_some_and(|e| e.started_now);
    let mut daemon = start_daemon(ctx, config, undo).await?;
    let mut failed = None;
    for mount in &config.mounts {
        match add_mount(&mut daemon, request(mount, force, false), false).await {
            Ok(answer) => {
                answer.notes.iter().for_each(|note| ctx.ui.warn(note));
                summary(ctx, config, &served, mount, !answer.already || undo.daemon).await?;
            }
            Err(failure) if failed.is_none() => failed = Some(failure),
            Err(failure) => ctx.ui.warn(format!("{}: {}", mount.at.display(), failure.message)),
        }
    }
    if let Some(failure) = failed {
        // The other mounts are what the user has: they stay.
        *undo = Undo::default();
        return Err(failure);
    }
    up_parts::session_lives(ctx, &mut daemon).await?;
    next(ctx, config.mounts.iter().map(|m| m.at.as_path()));
    Ok(())
}

/// One directory.
async fn one(ctx: &Ctx, config: &mut Config, dir: &Path, args: UpArgs, undo: &mut Undo) -> Result<(), Failure> {
    let at = whole(dir)?;
    if let Some(mount) = place::mount_of(&at).filter(|m| m.is_guarded()) {
        return guarded(ctx, config, &mount, args, undo).await;
    }
    let lower = lower_of(config, &args, &at)?;
    for dir in [&lower, &at] {
        if !dir.is_dir() {
            return Err(Failure::new(Code::NotFound, format!("{}: there is no such directory", dir.display()))
                .hint("make it first, or mount the storage that it lies on"));
        }
    }
    config.about_to_guard(&at)?;
    let wish = Wish { at, lower, name: args.tree, force: args.force };
    let found = look(&wish.lower)?;
    let markers: Vec<(PathBuf, Found)> = found.clone().map(|f| (wish.lower.clone(), f)).into_iter().collect();
    let name = match &found {
        Some(found) => found.marker.name.clone(),
        None => new_name(wish.name.clone(), &wish.at)?,
    };
    config.notes.iter().for_each(|note| ctx.ui.warn(note));
    let served = server_for(config, &markers).await?;
    undo.server = served.embedded.as_ref().is_some_and(|e| e.started_now);
    let plan = plan(&wish, name, found.as_ref(), &served)?;
    let mut daemon = start_daemon(ctx, config, undo).await?;
    let mount = MountConfig { tree: plan.name().clone(), lower: wish.lower.clone(), at: wish.at.clone() };
    add_mount(&mut daemon, request(&mount, wish.force, true), false).await?;
    let new = !matches!(plan, Plan::Known(_));
    make(ctx, config, &wish, &served, plan).await?;
    let answer = add_mount(&mut daemon, request(&mount, wish.force, false), new).await?;
    undo.mounted = (!answer.already).then(|| wish.at.clone());
    answer.notes.iter().for_each(|note| ctx.ui.warn(note));
    up_parts::answers(&wish.at).await?;
    up_parts::session_lives(ctx, &mut daemon).await?;
    if !config.mounts.contains(&mount) {
        config.add_mount(&mount)?;
    }
    summary(ctx, config, &served, &mount, !answer.already || undo.daemon).await?;
    next(ctx, [wish.at.as_path()].into_iter());
    Ok(())
}

/// Where the files of DIR lie: as told, else as when it was last guarded, else in DIR itself.
fn lower_of(config: &Config, args: &UpArgs, at: &Path) -> Result<PathBuf, Failure> {
    match (&args.lower, config.mounts.iter().find(|m| m.at == at)) {
        (Some(lower), _) => whole(lower),
        (None, Some(mount)) => Ok(mount.lower.clone()),
        (None, None) => Ok(at.to_owned()),
    }
}

/// DIR lies in a guarded mount: nothing to do, unless the daemon that served it is gone.
async fn guarded(
    ctx: &Ctx,
    config: &mut Config,
    mount: &place::MountEntry,
    args: UpArgs,
    undo: &mut Undo,
) -> Result<(), Failure> {
    let at = mount.at.display();
    if let (Some(wanted), Some(is)) = (&args.tree, mount.guarded_tree())
        && wanted.as_str() != is
    {
        return Err(Failure::new(Code::Config, format!("{at} is guarded as the tree \"{is}\" already"))
            .hint(format!("`treelease umount {is}` first, or leave --tree out")));
    }
    let configured = config.mounts.iter().find(|m| m.at == mount.at).cloned();
    let ours = match ctx.running(config).await? {
        Some(mut daemon) => {
            let told = ctx.told(&mut daemon).await?;
            told.report.trees.into_iter().any(|t| t.mounted_at.as_deref() == Some(mount.at.as_path()))
        }
        None => false,
    };
    if !ours && !up_parts::is_dead(&mount.at).await {
        return Err(Failure::new(Code::Busy, format!("{at} is guarded by another side's daemon"))
            .hint("guard the lower directory at another place: `treelease up DIR --lower DIR`"));
    }
    let wanted = configured.or_else(|| {
        let tree = mount.guarded_tree()?.parse().ok()?;
        let lower = args.lower.as_deref().and_then(|l| whole(l).ok());
        Some(MountConfig { tree, lower: lower.unwrap_or_else(|| mount.at.clone()), at: mount.at.clone() })
    });
    let Some(wanted) = wanted else {
        return Err(Failure::new(Code::Config, format!("{at} is a dead guarded mount, and nothing says of which tree"))
            .hint(format!("remove it with `treelease umount {at}`, then type this again")));
    };
    let served = server_for(config, &[]).await?;
    undo.server = served.embedded.as_ref().is_some_and(|e| e.started_now);
    let mut daemon = start_daemon(ctx, config, undo).await?;
    let mut changed = false;
    if !ours {
        let answer = add_mount(&mut daemon, request(&wanted, args.force, false), false).await?;
        answer.notes.iter().for_each(|note| ctx.ui.warn(note));
        up_parts::answers(&wanted.at).await?;
        changed = !answer.already;
    }
    up_parts::session_lives(ctx, &mut daemon).await?;
    summary(ctx, config, &served, &wanted, changed).await?;
    next(ctx, [wanted.at.as_path()].into_iter());
    Ok(())
}

/// What there is to be made for a directory.
enum Plan {
    /// Nothing: marker and tree are there.
    Known(TreeName),
    /// A root for a tree that has none, and its marker.
    Root(TreeName, TreeId),
    /// All of it.
    Tree(TreeName),
}

impl Plan {
    fn name(&self) -> &TreeName {
        match self {
            Plan::Known(name) | Plan::Root(name, _) | Plan::Tree(name) => name,
        }
    }
}

/// The marker of a directory that may become a root; another tree's root above it is refused.
fn look(lower: &Path) -> Result<Option<Found>, Failure> {
    up_parts::raw(lower)?;
    let root = marker::open_root(lower)?;
    let found = marker::read(root.as_fd()).map_err(|e| {
        let failure = Failure::from(e);
        Failure { message: format!("{}: {}", lower.display(), failure.message), ..failure }
    })?;
    marker::overlap(lower, found.as_ref().map(|f| &f.marker.tree))?;
    Ok(found)
}

fn new_name(wanted: Option<TreeName>, at: &Path) -> Result<TreeName, Failure> {
    if let Some(name) = wanted {
        return Ok(name);
    }
    let last = at.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    last.parse().map_err(|e| Failure::from(e).hint(format!("name the tree: `treelease up {} --tree NAME`", at.display())))
}

fn plan(wish: &Wish, name: TreeName, found: Option<&Found>, served: &Served) -> Result<Plan, Failure> {
    let status = &served.status;
    let Some(found) = found else {
        return match status.trees.iter().find(|t| t.name == name) {
            None => Ok(Plan::Tree(name)),
            Some(tree) if tree.roots.is_empty() && wish.name.is_some() => Ok(Plan::Root(name, tree.id.clone())),
            Some(tree) => {
                let root = tree.roots.first().map(|r| format!(", with its root at {}", r.path)).unwrap_or_default();
                Err(Failure::new(
                    Code::Config,
                    format!("there is a tree called \"{name}\" already{root}; {} has no marker", wish.lower.display()),
                )
                .hint(format!("choose another name: `treelease up {} --tree NAME`", wish.at.display()))
                .hint(format!(
                    "if this surely is that tree's root: `treelease mount {name} --lower {} --at {} --adopt`",
                    wish.lower.display(),
                    wish.at.display()
                )))
            }
        };
    };
    let marker = &found.marker;
    let Some(tree) = status.trees.iter().find(|t| t.id == marker.tree) else {
        return Err(Failure::new(
            Code::Config,
            format!(
                "{}: its marker names tree \"{}\" of this cluster, but the server does not know that tree",
                wish.lower.display(),
                marker.name
            ),
        )
        .hint("was the server restored from a backup? `treelease tree list` shows what it knows")
        .hint(format!("register it anew: `treelease tree takeover {} --reason TEXT`", wish.lower.display())));
    };
    if let Some(wanted) = wish.name.as_ref().filter(|n| **n != tree.name) {
        return Err(Failure::new(
            Code::Config,
            format!("{} is the root of the tree \"{}\", not of \"{wanted}\"", wish.lower.display(), tree.name),
        )
        .hint("leave --tree out"));
    }
    let live = tree.roots.iter().find(|r| r.state == RootState::Live).map(|r| &r.id);
    let expected = Expected { cluster: &status.cluster, tree: &tree.id, root: live };
    // A predecessor's marker is the daemon's to take or not.
    let before = status.predecessors.iter().cloned().collect();
    marker::check_following(found, expected, &before)
        .map_err(|mismatch| marker::mismatch_failure(&wish.lower, found, &mismatch))?;
    Ok(Plan::Known(tree.name.clone()))
}

/// Registers tree or root, and writes the marker.
async fn make(ctx: &Ctx, config: &Config, wish: &Wish, served: &Served, plan: Plan) -> Result<(), Failure> {
    let root = Root { id: RootId::random(), path: wish.lower.display().to_string(), state: RootState::Live };
    let (name, tree, command) = match plan {
        Plan::Known(_) => return Ok(()),
        Plan::Root(name, tree) => (name, tree.clone(), Command::AddRoot { tree, root: root.clone() }),
        Plan::Tree(name) => {
            let tree = TreeId::random();
            let command =
                Command::AddTree { name: name.clone(), tree: tree.clone(), policy: Vec::new(), root: Some(root.clone()) };
            (name, tree, command)
        }
    };
    write_marker(ctx, config, served, &wish.lower, (name, tree, root.id), command).await
}

/// One change that registers a root, and then the root's marker.
pub async fn write_marker(
    ctx: &Ctx,
    config: &Config,
    served: &Served,
    lower: &Path,
    (name, tree, root): (TreeName, TreeId, RootId),
    command: Command,
) -> Result<(), Failure> {
    let fd = marker::open_root(lower)?;
    // What would fail is better known before the tree is registered.
    marker::may_write(fd.as_fd()).map_err(|e| Failure::io(format!("no marker can be written in {}", lower.display()), &e))?;
    ctx.change(config, &served.servers, command).await?;
    let marker = Marker::new(served.status.cluster.clone(), tree, name.clone(), root, served.servers.endpoints());
    marker::create(fd.as_fd(), &marker).map(drop).map_err(|e| {
        Failure::from(e).hint(format!(
            "the tree is registered; once that is put right: `treelease mount {name} --lower {} --adopt`",
            lower.display()
        ))
    })
}

fn request(mount: &MountConfig, force: bool, check_only: bool) -> AddMountRequest {
    AddMountRequest {
        tree: mount.tree.to_string(),
        lower: mount.lower.display().to_string(),
        at: mount.at.display().to_string(),
        adopt: false,
        force,
        check_only,
    }
}

async fn start_daemon(ctx: &Ctx, config: &Config, undo: &mut Undo) -> Result<LocalClient, Failure> {
    let running = ctx.running(config).await?;
    undo.daemon = running.is_none();
    let mut daemon = match running {
        Some(daemon) => daemon,
        None => LocalClient::connect_or_start(config).await?,
    };
    let told = ctx.told(&mut daemon).await?;
    let side = config.side()?;
    if let Some(other) = told.report.side.filter(|s| s != side.as_str()) {
        return Err(Failure::new(
            Code::Config,
            format!("the daemon that runs here is the side \"{other}\", the configuration says \"{side}\""),
        )
        .hint(
            "end it with `treelease down`; two sides on one machine differ in --config, TREELEASE_STATE and TREELEASE_RUNTIME",
        ));
    }
    Ok(daemon)
}

/// What is guarded now, and by whom.
async fn summary(ctx: &Ctx, config: &Config, served: &Served, mount: &MountConfig, changed: bool) -> Result<(), Failure> {
    let status = about(&served.servers, std::slice::from_ref(&mount.tree)).await?;
    let mode = json!(find(&status, &mount.tree)?.policy.mode);
    let mode = mode.as_str().unwrap_or_default();
    let server = match &served.embedded {
        Some(embedded) => format!("{} (embedded)", embedded.address),
        None => served.servers.endpoints().join(", "),
    };
    let side = config.side()?;
    if ctx.ui.json {
        ctx.ui.object(
            &json!({"schema": 1, "tree": mount.tree, "side": side, "server": server, "mode": mode, "secure": status.secure,
                              "mounted_at": mount.at, "lower": mount.lower, "changed": changed}),
        );
        return Ok(());
    }
    let unchanged = if changed { "" } else { " (unchanged)" };
    ctx.ui.data(format!("tree    {}", mount.tree));
    ctx.ui.data(format!("side    {side}"));
    ctx.ui.data(format!("server  {server}"));
    ctx.ui.data(format!("mode    {mode}"));
    ctx.ui.data(format!("at      {}{unchanged}", mount.at.display()));
    Ok(())
}

/// The next two things to type.
fn next<'a>(ctx: &Ctx, mut mounts: impl Iterator<Item = &'a Path>) {
    if std::env::current_dir().is_ok_and(|here| mounts.any(|at| here.starts_with(at))) {
        ctx.ui.hint("this shell still stands in the raw tree: `cd \"$PWD\"`");
    } else {
        ctx.ui.hint("run something under the lease: `treelease run -- CMD`");
    }
    ctx.ui.hint("see who holds what: `treelease status`");
}
