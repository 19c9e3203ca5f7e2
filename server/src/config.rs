//! Flags and file to one checked configuration, in two steps: first what was written and where, then what it means.
//!
//! Promises: whatever is wrong is named with where it was written (flag, or file and line) and what would be right, before
//! anything is opened. A flag beats the file, the file beats the default. It opens nothing but the files it is told of.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use treelease_proto::id::NodeId;
use treelease_proto::refusal::Code;
use treelease_proto::time::parse_duration;

use crate::consensus::Pace;
use crate::failure::{Failure, Result};
use crate::fencing::agents::{Agents, Written};
use crate::formation::MEMBERS_MAX;
use crate::limits::Limits;
use crate::store::{Kind, kind};

/// Where a node listens if nothing is said.
const LISTEN: &str = "127.0.0.1:7420";
/// Largest token file that is read, in bytes: a token or a few.
const TOKEN_MAX: u64 = 1024;
/// Largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// A node of the treelease lease server. One node is a whole server; three survive the loss of one.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "treelease-server", version, about, long_about = None)]
pub struct Flags {
    /// Configuration file (TOML); its keys are the flags' names with `_`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's number, 1 or more, never used again in this cluster
    #[arg(long, value_name = "N")]
    pub node_id: Option<NodeId>,
    /// Where this node keeps its log; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to listen; `:0` picks a port, `DIR/address` says which [default: 127.0.0.1:7420]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where others reach this node, if elsewhere
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Run without TLS, on loopback only
    #[arg(long)]
    pub insecure: bool,
    /// Run without TLS beyond loopback too: every caller is an operator
    #[arg(long)]
    pub insecure_remote: bool,
    /// How often a leader speaks [default: 200ms]
    #[arg(long, value_name = "DUR")]
    pub heartbeat: Option<String>,
    /// The silence after which another node tries to lead [default: 1000ms..1500ms]
    #[arg(long, value_name = "MIN..MAX")]
    pub election_timeout: Option<String>,
    /// Another node of the cluster (repeat it); all nodes are started with the same set, in any order
    #[arg(long, value_name = "ID=HOST:PORT")]
    pub peer: Vec<String>,
    /// Which database keeps log and vote [default: what the directory has, else sled]
    #[arg(long, value_name = "sled|redb")]
    pub store: Option<String>,
    /// Mebibytes of that database's pages that are kept in memory [default: 1]
    #[arg(long, value_name = "MIB")]
    pub store_cache: Option<u64>,
    /// Plain HTTP for health and metrics (/healthz, /readyz, /metrics); no names, no token
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// A file with the tokens of which every caller must show one, a line each; this node shows the first to the others
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Tell callers with a token which calls there are (gRPC reflection)
    #[arg(long)]
    pub reflection: bool,
    /// What is logged, as a tracing filter [default: info,openraft=off,sled=warn]
    #[arg(long, value_name = "FILTER", env = "TREELEASE_LOG", hide_env_values = true)]
    pub log: Option<String>,
}

/// What a file may say.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node_id: Option<NodeId>,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    insecure_remote: bool,
    heartbeat: Option<String>,
    election_timeout: Option<String>,
    #[serde(default)]
    peer: Vec<String>,
    store: Option<String>,
    store_cache: Option<u64>,
    admin: Option<String>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    fence: BTreeMap<String, Written>,
    #[serde(default)]
    limits: BTreeMap<String, toml::Value>,
    #[serde(default)]
    reflection: bool,
    log: Option<String>,
}

/// A node's configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node_id: NodeId,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where others reach it, if elsewhere.
    pub advertise: Option<String>,
    /// The other nodes of the cluster that it is to form, by their numbers.
    pub peers: BTreeMap<NodeId, String>,
    /// Where health and metrics are told, over plain HTTP; empty: nowhere.
    pub admin: Vec<SocketAddr>,
    /// The token that this node shows to the others, and that callers may show.
    pub token: Option<Token>,
    /// Where it was read from, for fence agents that ask this node.
    pub token_file: Option<PathBuf>,
    /// Others that callers may show, too: while a token is being replaced on all nodes and sides.
    pub more_tokens: Vec<Token>,
    /// The fence agents of this node.
    pub agents: Agents,
    /// How much callers may take.
    pub limits: Limits,
    /// Whether callers are told which calls there are.
    pub reflection: bool,
    /// What is logged; none: what is always logged.
    pub log: Option<String>,
    /// The pace of the agreement.
    pub pace: Pace,
    /// Which backend keeps log and vote; not said: what the directory has, else the default.
    pub store: Option<Kind>,
}

/// A secret that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Config {
    /// Every token that opens the door.
    pub fn tokens(&self) -> Vec<Token> {
        self.token.iter().chain(&self.more_tokens).cloned().collect()
    }

    /// One node on loopback without TLS, on a port of its own choice: for tests.
    pub fn alone(data_dir: &Path) -> Self {
        Self {
            node_id: 1,
            data_dir: data_dir.to_owned(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            advertise: None,
            peers: BTreeMap::new(),
            admin: Vec::new(),
            token: None,
            token_file: None,
            more_tokens: Vec::new(),
            agents: Agents::default(),
            limits: Limits::default(),
            reflection: false,
            log: None,
            pace: Pace::default(),
            store: None,
        }
    }

    /// From flags and the file that they name.
    pub fn load(flags: Flags) -> Result<Self> {
        let file = flags.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        Self::check(flags, file)
    }

    fn check(flags: Flags, file: File) -> Result<Self> {
        let store = flags.store.as_deref().or(file.store.as_deref()).map(store).transpose()?;
        let node_id =
            flags.node_id.or(file.node_id).ok_or_else(|| usage("which node is this? Pass --node-id N (1 for a single node)"))?;
        if node_id == 0 {
            return Err(usage("--node-id 0: node ids begin at 1"));
        }
        let data_dir =
            flags.data_dir.or(file.data_dir).ok_or_else(|| usage("where should it keep its log? Pass --data-dir DIR"))?;
        let listen_text = flags.listen.or(file.listen).unwrap_or_else(|| LISTEN.into());
        let listen = resolve("listen", &listen_text)?;
        check_insecure(&listen_text, &listen, flags.insecure || file.insecure, flags.insecure_remote || file.insecure_remote)?;
        let mut advertise = flags.advertise.or(file.advertise);
        let mut peers = peers(if flags.peer.is_empty() { &file.peer } else { &flags.peer })?;
        if let Some(own) = peers.remove(&node_id) {
            // The same list for every node is convenient: this node's own line says where the others reach it.
            if advertise.as_ref().is_some_and(|text| *text != own) {
                return Err(Failure::config(format!(
                    "--peer {node_id}={own} is this node, and --advertise says another address"
                )));
            }
            advertise = Some(own);
        }
        if let Some(text) = &advertise {
            host_port("advertise", text)?;
        }
        check_reachable(&peers, &listen, &listen_text, advertise.as_deref())?;
        if !peers.is_empty() && advertise.is_none() {
            // As it was written, so that it is the text that the other nodes list.
            advertise = Some(listen_text);
        }
        let mut pace = pace(flags.heartbeat.or(file.heartbeat), flags.election_timeout.or(file.election_timeout))?;
        pace.store_cache = flags.store_cache.or(file.store_cache).map_or(Ok(kind::CACHE), store_cache)?;
        let admin = flags.admin.or(file.admin).map(|text| resolve("admin", &text)).transpose()?.unwrap_or_default();
        let token_file = flags.token_file.or(file.token_file);
        let mut tokens = token_file.as_deref().map(read_tokens).transpose()?.unwrap_or_default().into_iter();
        let (token, more_tokens) = (tokens.next(), tokens.collect());
        let token_file = token_file.and_then(|file| std::path::absolute(file).ok());
        let agents = Agents::check(file.fence).map_err(Failure::config)?;
        let limits = Limits::check(&file.limits).map_err(Failure::config)?;
        let (reflection, log) = (flags.reflection || file.reflection, flags.log.or(file.log));
        if let Some(Err(e)) = log.as_ref().map(|filter| filter.parse::<EnvFilter>()) {
            let filter = log.unwrap_or_default();
            return Err(Failure::config(format!("--log {filter}: {e}; write it like info,openraft=warn")));
        }
        Ok(Self {
            node_id,
            data_dir,
            listen,
            advertise,
            peers,
            admin,
            token,
            token_file,
            more_tokens,
            agents,
            limits,
            reflection,
            log,
            pace,
            store,
        })
    }
}

fn store_cache(mib: u64) -> Result<u64> {
    let most = kind::CACHE_MOST >> 20;
    let fits = Some(mib).filter(|mib| (kind::CACHE_LEAST >> 20..=most).contains(mib));
    fits.map(|mib| mib << 20)
        .ok_or_else(|| Failure::config(format!("--store-cache {mib}: it must be within 1 and {most} mebibytes")))
}

fn store(name: &str) -> Result<Kind> {
    let known = Kind::ALL.map(Kind::as_str).join(" or ");
    Kind::parse(name).ok_or_else(|| Failure::config(format!("--store {name}: there is no such store; use {known}")))
}

/// The nodes that `--peer` names.
fn peers(written: &[String]) -> Result<BTreeMap<NodeId, String>> {
    let mut peers = BTreeMap::new();
    for peer in written {
        let (id, address) =
            peer.split_once('=').ok_or_else(|| Failure::config(format!("--peer {peer}: write it as ID=HOST:PORT")))?;
        let bad = || Failure::config(format!("--peer {peer}: `{id}` is not a node's number, 1 or more"));
        let id: NodeId = id.parse().map_err(|_| bad())?;
        if id == 0 {
            return Err(bad());
        }
        if host_port("peer", address)?.1 == 0 {
            return Err(Failure::config(format!("--peer {peer}: it needs the port that the node listens on")));
        }
        if peers.values().any(|other| other == address) || peers.insert(id, address.to_owned()).is_some() {
            return Err(Failure::config(format!("--peer {peer}: this number or this address is listed twice")));
        }
    }
    // This node is one of them.
    let others = MEMBERS_MAX - 1;
    if peers.len() > others {
        return Err(Failure::config(format!("--peer: {} other nodes are listed, {others} are the most", peers.len())));
    }
    Ok(peers)
}

/// The other nodes must know how to reach this one before it runs.
fn check_reachable(peers: &BTreeMap<NodeId, String>, listen: &[SocketAddr], text: &str, advertise: Option<&str>) -> Result<()> {
    if peers.is_empty() || advertise.is_some() {
        return Ok(());
    }
    if listen.iter().any(|a| a.port() == 0 || a.ip().is_unspecified()) {
        return Err(Failure::config(format!(
            "--listen {text} does not say where the other nodes reach this one: pass --advertise HOST:PORT, as their --peer has it"
        )));
    }
    Ok(())
}

fn check_insecure(text: &str, listen: &[SocketAddr], insecure: bool, insecure_remote: bool) -> Result<()> {
    let loopback = listen.iter().all(|a| a.ip().is_loopback());
    match (loopback, insecure, insecure_remote) {
        (_, _, true) | (true, true, _) => Ok(()),
        (true, false, false) => Err(Failure::config(
            "TLS is not in this version: pass --insecure to run without it on loopback (any local user can call it; --token-file asks for a token)",
        )),
        (false, _, false) => Err(Failure::config(format!(
            "--listen {text} is reachable from other machines, and TLS is not in this version: pass --insecure-remote if you \
             trust that network (every caller is an operator), or listen on 127.0.0.1"
        ))),
    }
}

fn host_port<'a>(key: &str, text: &'a str) -> Result<(&'a str, u16)> {
    let bad = || Failure::config(format!("--{key} {text}: write it as HOST:PORT, like 127.0.0.1:7420"));
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    if host.is_empty() {
        return Err(bad());
    }
    Ok((host, port.parse().map_err(|_| bad())?))
}

fn resolve(key: &str, text: &str) -> Result<Vec<SocketAddr>> {
    host_port(key, text)?;
    let found: Vec<_> = text
        .to_socket_addrs()
        .map_err(|e| Failure::config(format!("--{key} {text}: the host's address is not known ({e}); check the name")))?
        .collect();
    if found.is_empty() {
        return Err(Failure::config(format!("--{key} {text}: the host has no address")));
    }
    Ok(found)
}

/// As it is; a test's server makes snapshots more often (debug builds only), so that it need not write for minutes.
fn often() -> Pace {
    let wanted = std::env::var("TREELEASE_TEST_SNAPSHOT_AFTER").ok().filter(|_| cfg!(debug_assertions));
    match wanted.and_then(|text| text.parse().ok()) {
        Some(entries) => Pace { snapshot_after: entries, log_kept: entries / 4, ..Pace::default() },
        None => Pace::default(),
    }
}

fn pace(heartbeat: Option<String>, election: Option<String>) -> Result<Pace> {
    let mut pace = often();
    let duration = |key: &str, text: &str| parse_duration(text).map_err(|e| Failure::config(format!("--{key}: {e}")));
    if let Some(text) = heartbeat {
        pace.heartbeat = duration("heartbeat", &text)?;
    }
    if let Some(text) = election {
        let (min, max) = text
            .split_once("..")
            .ok_or_else(|| Failure::config(format!("--election-timeout {text}: write it as MIN..MAX, like 1s..1500ms")))?;
        pace.election_min = duration("election-timeout", min)?;
        pace.election_max = duration("election-timeout", max)?;
    }
    if pace.heartbeat < Duration::from_millis(10) {
        return Err(Failure::config("--heartbeat: 10ms is the least"));
    }
    if pace.election_min < 3 * pace.heartbeat || pace.election_max <= pace.election_min {
        return Err(Failure::config(format!(
            "--election-timeout: MIN must be at least three heartbeats ({} ms) and MAX more than MIN",
            3 * pace.heartbeat.as_millis()
        )));
    }
    Ok(pace)
}

fn read_file(path: &Path) -> Result<File> {
    let text = read_small(path, FILE_MAX, "configuration")?;
    let mut file: File = toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Failure::config(format!("{}:{line}: {}", path.display(), e.message().replace("unknown field", "unknown key")))
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    for relative in [&mut file.data_dir, &mut file.token_file].into_iter().flatten() {
        *relative = base.join(&*relative);
    }
    Ok(file)
}

fn read_tokens(path: &Path) -> Result<Vec<Token>> {
    let text = read_small(path, TOKEN_MAX, "token")?;
    let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if tokens.is_empty() || !tokens.iter().all(|token| token.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(Failure::config(format!(
            "the token file {} must hold lines of printable ASCII without spaces, such as 32 random bytes in hex; mostly one",
            path.display()
        )));
    }
    Ok(tokens.into_iter().map(Token::new).collect())
}

fn read_small(path: &Path, max: u64, what: &str) -> Result<String> {
    let cannot = |e: &dyn std::fmt::Display| Failure::config(format!("cannot read the {what} file {}: {e}", path.display()));
    let len = std::fs::metadata(path).map_err(|e| cannot(&e))?.len();
    if len > max {
        return Err(cannot(&format!("it has {len} bytes, at most {max} are taken")));
    }
    std::fs::read_to_string(path).map_err(|e| cannot(&e))
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, message)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
