//! What every command has at hand: flags, configuration, the daemon, the servers, and the words for a refusal.

use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use treelease_client::config::{Config, Env, Overrides};
use treelease_client::error::Failure;
use treelease_client::local::LocalClient;
use treelease_client::report::{Report, TreeReport};
use treelease_client::rpc::{CallError, Servers};
use treelease_client::words::command::{Answer, Command};
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::tree::{ClusterStatus, TreeStatus};

use crate::cli::Global;
use crate::ui::{Ui, age, now, span};
use crate::which;

/// The surroundings of one command.
pub struct Ctx {
    /// Flags of every command.
    pub global: Global,
    /// Where to write.
    pub ui: Ui,
}

/// The daemon's report, as it came and as it is read.
pub struct Told {
    /// Word for word, with keys that this version does not know.
    pub json: Value,
    /// What this version reads of it.
    pub report: Report,
    /// Whether the servers answer the daemon.
    pub reachable: bool,
    /// The daemon's process.
    pub pid: u32,
}

impl Ctx {
    /// For these flags.
    pub fn new(global: Global) -> Self {
        let ui = Ui::new(&global);
        Self { global, ui }
    }

    /// This side's configuration, checked.
    pub fn config(&self) -> Result<Config, Failure> {
        let global = &self.global;
        let given = Overrides {
            config: global.config.clone(),
            side: global.side.clone(),
            endpoints: global.endpoints.iter().map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect(),
            state_dir: global.state_dir.clone(),
            runtime_dir: global.runtime_dir.clone(),
            request_timeout: global.request_timeout,
            token_file: std::env::var_os("TREELEASE_TOKEN_FILE").filter(|v| !v.is_empty()).map(Into::into),
        };
        Config::load(&given, &Env::from_process())
    }

    /// The daemon, started if there is anything that it could serve.
    pub async fn daemon(&self, config: &Config) -> Result<LocalClient, Failure> {
        if !config.mounts.is_empty() || config.servers()?.is_some() {
            return LocalClient::connect_or_start(config).await;
        }
        let nothing = || {
            Failure::new(Code::Unreachable, "nothing is set up here: no server is configured and no daemon runs")
                .hint("guard a directory with `treelease up DIR`")
        };
        self.running(config).await?.ok_or_else(nothing)
    }

    /// The daemon, if it runs.
    pub async fn running(&self, config: &Config) -> Result<Option<LocalClient>, Failure> {
        match LocalClient::connect(config).await {
            Ok(daemon) => Ok(Some(daemon)),
            Err(failure) if failure.code == Code::Unreachable => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The daemon's report.
    pub async fn told(&self, daemon: &mut LocalClient) -> Result<Told, Failure> {
        let answer = daemon.report().await?;
        let other_version = |e: serde_json::Error| {
            let (theirs, ours) = (&answer.daemon_version, env!("CARGO_PKG_VERSION"));
            Failure::new(
                Code::Internal,
                format!("the daemon (version {theirs}) and this command ({ours}) do not understand each other: {e}"),
            )
            .hint("replace the daemon by the installed version with `treelease up --restart`")
        };
        let json: Value = serde_json::from_str(&answer.json).map_err(other_version)?;
        let report = serde_json::from_value(json.clone()).map_err(other_version)?;
        Ok(Told { json, report, reachable: answer.server_reachable, pid: answer.pid })
    }

    /// Which tree is meant, asking the daemon for the only one.
    pub async fn tree_here(&self, named: Option<&TreeName>, daemon: &mut LocalClient) -> Result<TreeName, Failure> {
        match which::named(named)? {
            Some(name) => Ok(name),
            None => which::only(&self.told(daemon).await?.report.trees.into_iter().map(|t| t.name).collect::<Vec<_>>()),
        }
    }

    /// Which tree is meant, asking the servers for the only one.
    pub async fn tree_there(&self, named: Option<&TreeName>, servers: &Servers) -> Result<(ClusterStatus, TreeStatus), Failure> {
        let name = which::named(named)?;
        let status = about(servers, name.as_slice()).await?;
        let name = match name {
            Some(name) => name,
            None => which::only(&status.trees.iter().map(|t| t.name.to_string()).collect::<Vec<_>>())?,
        };
        let tree = find(&status, &name)?.clone();
        Ok((status, tree))
    }

    /// One change asked of the servers. An ignored command is a refusal: what it named is not current any more.
    pub async fn change(&self, config: &Config, servers: &Servers, command: Command) -> Result<Answer, Failure> {
        match servers.do_command(&actor(config), None, command).await?.accepted()? {
            Answer::Ignored { why } => {
                Err(Failure::new(Code::EpochMoved, format!("nothing was changed: {why}"))
                    .hint("look again with `treelease status`"))
            }
            answer => Ok(answer),
        }
    }

    /// A refusal with all that a person needs: the holder, since when, when it would expire, and what to type.
    pub async fn explain(&self, tree: &TreeName, mut failure: Failure, daemon: &mut LocalClient) -> Failure {
        if !matches!(failure.code, Code::Held | Code::Declined | Code::Busy | Code::Limit) {
            return failure;
        }
        let known = match self.told(daemon).await {
            Ok(told) => told.report.trees.into_iter().find(|t| t.name == tree.as_str()),
            Err(_) => None,
        };
        if failure.code == Code::Held
            && let Some(known) = known.as_ref().filter(|t| t.holder.is_some() && !t.mine)
        {
            failure.message = format!("{}.", standing(known));
        }
        let asks = failure.code == Code::Held || failure.code == Code::Limit;
        if failure.hints.is_empty() && asks && known.is_some_and(|t| t.holder.is_some() && !t.mine) {
            failure = failure.hint(format!("ask for it with `treelease acquire {tree} --ask`"));
        }
        failure
    }
}

/// Who asks, for the history: a person, not a side.
pub fn actor(config: &Config) -> String {
    let uid = rustix::process::getuid();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid.as_raw())).ok().flatten();
    let name = user.map_or_else(|| format!("uid {}", uid.as_raw()), |u| u.name);
    let host = config.env.hostname.clone().unwrap_or_else(|| "unknown".into());
    format!("operator {name} (host {host})")
}

/// The tree of that name.
pub fn find<'a>(status: &'a ClusterStatus, name: &TreeName) -> Result<&'a TreeStatus, Failure> {
    status.trees.iter().find(|t| t.name == *name).ok_or_else(|| no_tree(name, status.trees.iter().map(|t| t.name.to_string())))
}

/// These trees as the servers have them, and perhaps others; with no name, all. All too where one is missing: then the refusal names
/// those that there are.
pub async fn about(servers: &Servers, trees: &[TreeName]) -> Result<ClusterStatus, CallError> {
    let status = servers.status_of(trees).await?;
    let there = |name: &TreeName| status.trees.iter().any(|tree| tree.name == *name);
    if trees.iter().all(there) { Ok(status) } else { servers.status().await }
}

/// There is no tree of that name, but these.
pub fn no_tree(name: &TreeName, trees: impl Iterator<Item = String>) -> Failure {
    let known: Vec<String> = trees.collect();
    let failure = Failure::new(Code::NotFound, format!("there is no tree \"{name}\""));
    if known.is_empty() {
        failure.hint("guard a directory with `treelease up DIR`")
    } else {
        failure.hint(format!("the trees are: {}", known.join(", ")))
    }
}

/// One sentence on how a tree stands, without its full stop.
pub fn standing(tree: &TreeReport) -> String {
    let name = &tree.name;
    match &tree.holder {
        Some(holder) => {
            let host = if holder.host.is_empty() { String::new() } else { format!(" (host {})", holder.host) };
            let note = if holder.note.is_empty() { String::new() } else { format!(", for: {}", holder.note) };
            let expiry = tree
                .expires_in_ms
                .map(|ms| format!(", expires in {} unless renewed", span(Duration::from_millis(ms / 1000 * 1000))));
            let since = age(holder.since, now());
            format!(
                "\"{name}\" is held by {}{host} for {since}, epoch {}{}{note}",
                holder.side,
                tree.epoch,
                expiry.unwrap_or_default()
            )
        }
        None if tree.why.is_empty() => format!("\"{name}\" is {}", state(tree)),
        None => format!("\"{name}\" is {}: {}", state(tree), tree.why),
    }
}

/// A tree's state in a word or two.
pub fn state(tree: &TreeReport) -> String {
    use treelease_client::words::tree::StateName;
    let left =
        tree.expires_in_ms.map(|ms| format!(" ({} left)", span(Duration::from_millis(ms / 1000 * 1000)))).unwrap_or_default();
    match tree.state {
        StateName::Held if tree.mine => "held here".into(),
        StateName::Cooling => format!("cooling{left}"),
        other => other.as_str().into(),
    }
}

/// Resolves at the first signal that asks us to end, with its number. From this call on, not only from the first poll.
pub fn interrupted() -> impl Future<Output = i32> {
    let [mut int, mut term, mut hup] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(|kind| signal(kind).ok());
    async move {
        tokio::select! {
            () = received(&mut int) => SignalKind::interrupt().as_raw_value(),
            () = received(&mut term) => SignalKind::terminate().as_raw_value(),
            () = received(&mut hup) => SignalKind::hangup().as_raw_value(),
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The exit code after such a signal.
pub fn by_signal(n: i32) -> u8 {
    128u8.saturating_add(u8::try_from(n).unwrap_or(127))
}
