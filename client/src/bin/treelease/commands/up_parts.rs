//! The parts of `up`, and of its neighbours: paths, the server for a directory, adding a mount, undoing, restarting.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use treelease_client::config::Config;
use treelease_client::error::Failure;
use treelease_client::local::start::{self, Embedded};
use treelease_client::local::wire::{AddMountAnswer, AddMountRequest};
use treelease_client::local::{LocalClient, lingering, start::server_pid};
use treelease_client::marker::{Found, Mismatch, mismatch_failure};
use treelease_client::place;
use treelease_client::rpc::Servers;
use treelease_client::words::id::{ClusterId, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::ClusterStatus;

use crate::ctx::Ctx;

/// How long the daemon may need to hear of a tree that was made a moment ago, or of its cluster after its start.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two looks while it does.
const LOOK: Duration = Duration::from_millis(50);
/// How long a mount may take to answer one question before it counts as hanging.
const ANSWER: Duration = Duration::from_secs(5);
/// How long an ended or killed daemon may take to be gone: the kernel ends its threads and mounts.
const GONE: Duration = Duration::from_secs(5);
/// How long an undone daemon may take to end; it holds nothing yet.
const UNDO: Duration = Duration::from_secs(5);
/// The most open files that are listed before a restart.
const LISTED: usize = 20;

/// A path from the root on. Links are resolved, except where a guarded mount is on the way: it may hang or be dead.
pub fn whole(path: &Path) -> Result<PathBuf, Failure> {
    let io = |e: &std::io::Error| Failure::io(format!("cannot look at {}", path.display()), e);
    let absolute = lexical(&std::path::absolute(path).map_err(|e| io(&e))?);
    if place::mount_of(&absolute).is_some_and(|m| m.is_guarded()) {
        return Ok(absolute);
    }
    match std::fs::canonicalize(&absolute) {
        Ok(real) => Ok(real),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(absolute),
        Err(e) => Err(io(&e)),
    }
}

fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Refuses a root that is seen through a guard: only the raw directory can be one.
pub fn raw(root: &Path) -> Result<(), Failure> {
    match place::mount_of(root).filter(|m| m.is_guarded()) {
        None => Ok(()),
        Some(mount) => {
            let tree = mount.guarded_tree().unwrap_or("?");
            Err(Failure::new(Code::Config, format!("{} is guarded itself, as the tree \"{tree}\"", root.display()))
                .hint(format!("name the directory on the storage, or `treelease umount {}` first", mount.at.display())))
        }
    }
}

/// A server with what it said when `up` looked.
pub struct Served {
    /// How to reach it.
    pub servers: Servers,
    /// What it said.
    pub status: ClusterStatus,
    /// The embedded one, if it is that.
    pub embedded: Option<Embedded>,
}

/// The server that is to guard directories with these markers: the configured one, else the embedded one.
///
/// Markers are compared before an embedded server is started: for a directory of another cluster none ever is (I8).
pub async fn server_for(config: &Config, markers: &[(PathBuf, Found)]) -> Result<Served, Failure> {
    if config.has_endpoints() {
        let servers = config.need_servers()?;
        let status = servers.status().await?;
        same_cluster(&status.cluster, &status.predecessors, markers)?;
        return Ok(Served { servers, status, embedded: None });
    }
    match embedded_cluster(config) {
        Some(cluster) => same_cluster(&cluster, &[], markers)?,
        None if !config.server_dir().join("address").exists() => no_cluster(markers)?,
        // Started before, by a version or in a run that did not note its cluster: it has to be asked.
        None => {}
    }
    let embedded = start::start_server(config).await?;
    let asked = async {
        let servers = config.need_servers()?;
        let status = servers.status().await?;
        same_cluster(&status.cluster, &status.predecessors, markers)?;
        Ok::<_, Failure>((servers, status))
    };
    match asked.await {
        Ok((servers, status)) => {
            note_cluster(config, &status.cluster);
            Ok(Served { servers, status, embedded: Some(embedded) })
        }
        Err(failure) => {
            if embedded.started_now {
                let _ = start::stop_server(config).await;
            }
            Err(failure)
        }
    }
}

/// A restored cluster's predecessors' markers may be its own: the daemon decides, by its user's word.
fn same_cluster(ours: &ClusterId, before: &[ClusterId], markers: &[(PathBuf, Found)]) -> Result<(), Failure> {
    match markers.iter().find(|(_, found)| found.marker.cluster != *ours && !before.contains(&found.marker.cluster)) {
        Some((dir, found)) => Err(foreign(dir, found)),
        None => Ok(()),
    }
}

/// No server was ever started here: every marker is another cluster's.
fn no_cluster(markers: &[(PathBuf, Found)]) -> Result<(), Failure> {
    match markers.first() {
        Some((dir, found)) => Err(foreign(dir, found)),
        None => Ok(()),
    }
}

fn foreign(dir: &Path, found: &Found) -> Failure {
    let failure = mismatch_failure(dir, found, &Mismatch::Foreign { cluster: found.marker.cluster.clone() });
    match found.marker.endpoints.as_slice() {
        [] => failure,
        list => failure.hint(format!(
            "where that cluster runs without TLS: `treelease up {} --endpoints {}`",
            dir.display(),
            list.join(",")
        )),
    }
}

fn cluster_file(config: &Config) -> PathBuf {
    config.state_dir.join("server.cluster")
}

/// The embedded server's cluster, noted when it was last started: known also while it does not run.
pub fn embedded_cluster(config: &Config) -> Option<ClusterId> {
    std::fs::read_to_string(cluster_file(config)).ok()?.trim().parse().ok()
}

fn note_cluster(config: &Config, cluster: &ClusterId) {
    let (path, temp) = (cluster_file(config), config.state_dir.join("server.cluster.new"));
    // A note only: without it the server is asked.
    if std::fs::write(&temp, format!("{cluster}\n")).is_ok() {
        let _ = std::fs::rename(temp, path);
    }
}

/// Adds a mount. A daemon that has only just started, or a tree that has only just been made, is waited for.
pub async fn add_mount(daemon: &mut LocalClient, request: AddMountRequest, new_tree: bool) -> Result<AddMountAnswer, Failure> {
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let missing = |f: &Failure| {
            f.code == Code::NotFound && new_tree && Path::new(&request.lower).exists() && Path::new(&request.at).exists()
        };
        match daemon.add_mount(request.clone()).await {
            Err(f) if (f.code == Code::Unreachable || missing(&f)) && tokio::time::Instant::now() < end => {
                tokio::time::sleep(LOOK).await;
            }
            other => return other,
        }
    }
}

/// Waits until the daemon has heard of a tree's root.
pub async fn knows_root(ctx: &Ctx, daemon: &mut LocalClient, tree: &TreeName) -> Result<(), Failure> {
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let told = ctx.told(daemon).await?;
        let known = told.report.trees.iter().any(|t| t.name == tree.as_str() && !t.roots.is_empty());
        if known || tokio::time::Instant::now() >= end {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the daemon's session lives.
pub async fn session_lives(ctx: &Ctx, daemon: &mut LocalClient) -> Result<(), Failure> {
    let end = tokio::time::Instant::now() + SETTLE;
    while !ctx.told(daemon).await?.reachable {
        if tokio::time::Instant::now() >= end {
            return Err(Failure::new(Code::Unreachable, "the daemon runs, but no lease server has answered it yet")
                .hint("`treelease logs` shows why"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// What a mount says to a first question, on a thread that may be lost: it can hang for ever.
async fn first_answer(at: &Path) -> Option<std::io::Result<()>> {
    let path = at.to_owned();
    let asked = tokio::task::spawn_blocking(move || std::fs::metadata(path).map(drop));
    tokio::time::timeout(ANSWER, asked).await.ok()?.ok()
}

/// Whether a new mount answers.
pub async fn answers(at: &Path) -> Result<(), Failure> {
    match first_answer(at).await {
        Some(Ok(())) => Ok(()),
        Some(Err(e)) => Err(Failure::io(format!("the new mount {} does not work", at.display()), &e)),
        None => Err(Failure::new(Code::Storage, format!("{} does not answer: is the storage reachable?", at.display()))),
    }
}

/// Whether a mount is left over from a daemon that is gone.
pub async fn is_dead(at: &Path) -> bool {
    matches!(first_answer(at).await, Some(Err(e)) if e.raw_os_error() == Some(nix::libc::ENOTCONN))
}

/// What `up` has done so far, to be undone if it fails half-way.
#[derive(Default)]
pub struct Undo {
    /// The embedded server was started.
    pub server: bool,
    /// The daemon was started.
    pub daemon: bool,
    /// This was mounted.
    pub mounted: Option<PathBuf>,
}

impl Undo {
    /// Undoes it, last thing first. What cannot be undone is said. A daemon that guards something stays, and its server with it.
    pub async fn run(self, ctx: &Ctx, config: &Config) {
        if (self.mounted.is_some() || self.daemon)
            && let Ok(Some(mut daemon)) = ctx.running(config).await
        {
            if let Some(at) = &self.mounted
                && let Err(failure) = daemon.remove_mount(&at.display().to_string(), true).await
            {
                ctx.ui.warn(format!("{} is still mounted: {}", at.display(), failure.message));
            }
            // What the configuration lists it has mounted at its start, perhaps where a dead mount kept the raw tree covered.
            let guards = ctx.told(&mut daemon).await.is_ok_and(|told| told.report.trees.iter().any(|t| t.mounted_at.is_some()));
            if self.daemon && guards {
                ctx.ui.warn("the daemon goes on, with the mounts of the configuration; `treelease down` ends it");
                return;
            }
            if self.daemon {
                let process = daemon_process(&mut daemon).await;
                let ended = match daemon.down(UNDO).await {
                    Ok(progress) => progress.finish(|_| {}).await.map(drop),
                    Err(failure) => Err(failure),
                };
                gone(process.as_ref()).await;
                if let Err(failure) = ended {
                    ctx.ui.warn(format!("the daemon still runs: {}", failure.message));
                }
            }
        }
        if self.server
            && let Err(failure) = start::stop_server(config).await
        {
            ctx.ui.warn(failure.message);
        }
    }
}

/// `--restart`: replaces embedded server and daemon by what is installed now. The session goes on: the new daemon proves with
/// the secret in the state directory that it is the old one restarted, so the lease stays here.
pub async fn restart(ctx: &Ctx, config: &Config) -> Result<(), Failure> {
    if let Some(mut daemon) = ctx.running(config).await? {
        let told = ctx.told(&mut daemon).await?;
        let mounts: Vec<PathBuf> = told.report.trees.iter().filter_map(|t| t.mounted_at.clone()).collect();
        let open = open_below(&mounts);
        if !open.is_empty() {
            ctx.ui.warn("these files and working directories on the guarded mounts end now:");
            open.iter().take(LISTED).for_each(|line| ctx.ui.say(format!("  {line}")));
            if open.len() > LISTED {
                ctx.ui.say(format!("  and {} more", open.len() - LISTED));
            }
        }
        // Pages that the kernel has not yet handed to the daemon would be lost with it.
        for at in mounts {
            let pushed = tokio::task::spawn_blocking(move || {
                let root = std::fs::File::open(at)?;
                rustix::fs::syncfs(&root).map_err(std::io::Error::from)
            });
            let _ = tokio::time::timeout(ANSWER, pushed).await;
        }
        kill(config, told.pid).await?;
    }
    if server_pid(config).is_some() {
        start::stop_server(config).await?;
        start::start_server(config).await?;
    }
    Ok(())
}

async fn kill(config: &Config, pid: u32) -> Result<(), Failure> {
    let is_guard = std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("treelease-guard")));
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| is_guard);
    let Some(pid) = pid else {
        return Err(Failure::new(Code::Internal, "the daemon's process cannot be found, so it was not replaced")
            .hint("end it with `treelease down`, then type `treelease up`"));
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    let _ = pidfd_send_signal(&process, Signal::KILL);
    if gone(Some(&process)).await {
        return Ok(());
    }
    if let Some(killed) = lingering::lingering(&config.state_dir) {
        killed.abort();
        if gone(Some(&process)).await {
            return Ok(());
        }
    }
    Err(Failure::new(Code::Busy, format!("the daemon (pid {}) does not end", pid.as_raw_nonzero()))
        .hint("a call on the storage may keep it: is the storage reachable?"))
}

/// The daemon's process, by a descriptor that names no other one later.
pub async fn daemon_process(daemon: &mut LocalClient) -> Option<OwnedFd> {
    let pid = i32::try_from(daemon.report().await.ok()?.pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until a process has ended, so that the next command does not meet it on its way out; false at the limit.
pub async fn gone(process: Option<&OwnedFd>) -> bool {
    let Some(process) = process else { return true };
    let end = tokio::time::Instant::now() + GONE;
    loop {
        let mut look = [PollFd::new(process, PollFlags::IN)];
        if poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0) {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Open files and working directories below these mounts, by the names that the kernel has for them; the mounts are not asked.
fn open_below(mounts: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let links = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        for link in links.chain([process.path().join("cwd")]) {
            let Ok(target) = std::fs::read_link(link) else { continue };
            if mounts.iter().any(|at| target.starts_with(at)) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.push(format!("{} (pid {pid}): {}", name.trim(), target.display()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_whole_without_being_looked_at() {
        assert_eq!(lexical(Path::new("/a/./b/../c")), Path::new("/a/c"));
        assert_eq!(lexical(Path::new("/../..")), Path::new("/"));
        assert_eq!(whole(Path::new("/nonexistent/x/../y")).unwrap(), Path::new("/nonexistent/y"));
    }
}
