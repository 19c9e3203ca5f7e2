//! The side's configuration (CLI.md, "Configuration"): flag or variable, then file, then default.
//!
//! In two steps: what was written ([`written`]) becomes what was checked ([`Config`]). After that nobody asks again whether a
//! name, a path or an address can be right. An unknown key, and every bad value, is an error that names key, file and line.
//! Loading makes nothing and asks nobody; the directories are made by [`Config::ensure_state_dir`] and its sister.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Failure;
use crate::rpc::{Endpoint, Servers};
use crate::words::id::{SideName, TreeName};
use crate::words::refusal::Code;
use crate::words::time::Ttl;

mod dirs;
mod edit;
pub mod nodes;
#[cfg(test)]
mod tests;
pub mod written;

/// How long one call to a server may take by default (CLI.md, `--request-timeout`).
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest path of a Unix socket, by the kernel (`sun_path`, with its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// What flags and variables say, before any file. (clap's `env` fills variables in; [`Overrides::from_env`] does it for
/// programs without.)
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    pub side: Option<String>,
    pub endpoints: Vec<String>,
    pub state_dir: Option<PathBuf>,
    pub runtime_dir: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub request_timeout: Option<Duration>,
}

impl Overrides {
    /// From `TREELEASE_CONFIG`, `_SIDE`, `_ENDPOINTS`, `_STATE`, `_RUNTIME`, `_TOKEN_FILE`. An empty variable says nothing.
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            config: path("TREELEASE_CONFIG"),
            side: text("TREELEASE_SIDE"),
            endpoints: text("TREELEASE_ENDPOINTS")
                .map(|list| list.split(',').map(|one| one.trim().to_string()).filter(|one| !one.is_empty()).collect())
                .unwrap_or_default(),
            state_dir: path("TREELEASE_STATE"),
            runtime_dir: path("TREELEASE_RUNTIME"),
            token_file: path("TREELEASE_TOKEN_FILE"),
            request_timeout: None,
        }
    }
}

/// What the surroundings say: home, XDG directories, user, host name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Env {
    pub home: Option<PathBuf>,
    pub xdg_config_home: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
    pub xdg_runtime_dir: Option<PathBuf>,
    pub system_config: PathBuf,
    pub hostname: Option<String>,
    /// In a container the host name changes with each start: it is no default for the side.
    pub container: bool,
    pub uid: u32,
}

impl Env {
    /// Of this process.
    pub fn from_process() -> Self {
        // The XDG rules: a path that is not absolute is as if it were not there.
        let dir = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let container = ["/.dockerenv", "/run/.containerenv"].iter().any(|p| Path::new(p).exists())
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        Self {
            home: dir("HOME"),
            xdg_config_home: dir("XDG_CONFIG_HOME"),
            xdg_state_home: dir("XDG_STATE_HOME"),
            xdg_runtime_dir: dir("XDG_RUNTIME_DIR"),
            system_config: PathBuf::from("/etc/treelease/config.toml"),
            hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|s| s.trim().to_string()),
            container,
            uid: rustix::process::geteuid().as_raw(),
        }
    }
}

/// One `[[mount]]`; paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MountConfig {
    pub tree: TreeName,
    pub lower: PathBuf,
    pub at: PathBuf,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Origin {
    /// A flag or a variable.
    Given,
    File,
    Default,
}

/// The checked configuration of a side.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// The file that `add_mount` writes.
    pub write_to: PathBuf,
    /// Flag, variable or file. Use [`Config::side`], which knows the host name too.
    pub side_written: Option<SideName>,
    pub endpoints: Vec<Endpoint>,
    pub ttl: Ttl,
    pub token_file: Option<PathBuf>,
    pub mounts: Vec<MountConfig>,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub request_timeout: Duration,
    /// Things that `up` says.
    pub notes: Vec<String>,
    /// By key: side, endpoints, ttl, token_file, state_dir, runtime_dir.
    pub origins: BTreeMap<&'static str, Origin>,
    /// As given (paths absolute), for the environment of the daemon.
    pub given: Overrides,
    pub env: Env,
}

impl Config {
    /// Finds, reads and checks everything. Makes nothing.
    pub fn load(given: &Overrides, env: &Env) -> Result<Config, Failure> {
        let given = absolute(given)?;
        let mut notes = Vec::new();
        let (file, write_to) = find_file(&given, env, &mut notes)?;
        let written = match &file {
            Some(path) => written::read(path)?,
            None => written::Checked::default(),
        };
        let mut origins = BTreeMap::new();
        let mut origin = |key, is_given: bool, in_file: bool| {
            let from = match (is_given, in_file) {
                (true, _) => Origin::Given,
                (_, true) => Origin::File,
                _ => Origin::Default,
            };
            origins.insert(key, from);
        };
        origin("side", given.side.is_some(), written.side.is_some());
        origin("endpoints", !given.endpoints.is_empty(), !written.endpoints.is_empty());
        origin("ttl", false, written.ttl.is_some());
        origin("token_file", given.token_file.is_some(), written.token_file.is_some());
        origin("state_dir", given.state_dir.is_some(), false);
        origin("runtime_dir", given.runtime_dir.is_some(), false);

        let side_written = match &given.side {
            Some(name) => Some(name.parse::<SideName>()?),
            None => written.side,
        };
        let endpoints = match given.endpoints.as_slice() {
            [] => written.endpoints,
            list => list.iter().map(|text| written::endpoint(text, "--endpoints")).collect::<Result<_, _>>()?,
        };
        let state_dir = dirs::state(&given, env, &written.mounts, &mut notes);
        let runtime_dir = dirs::runtime(&given, env);
        let config = Config {
            file,
            write_to,
            side_written,
            endpoints,
            ttl: written.ttl.unwrap_or(Ttl::DEFAULT),
            token_file: given.token_file.clone().or(written.token_file),
            mounts: written.mounts,
            state_dir,
            runtime_dir,
            request_timeout: given.request_timeout.unwrap_or(REQUEST_TIMEOUT),
            notes,
            origins,
            given,
            env: env.clone(),
        };
        let socket = config.socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Failure::new(
                Code::Config,
                format!(
                    "the socket's path {} is longer than the {SOCKET_PATH_MAX} bytes that the kernel takes",
                    socket.display()
                ),
            )
            .hint("set TREELEASE_RUNTIME to a shorter path"));
        }
        Ok(config)
    }

    /// This side's name: flag, variable, file, host name; in a container no default.
    pub fn side(&self) -> Result<SideName, Failure> {
        if let Some(side) = &self.side_written {
            return Ok(side.clone());
        }
        let how = format!("set `side = \"NAME\"` in {}, or TREELEASE_SIDE, or pass --side NAME", self.write_to.display());
        if self.env.container {
            let why = "this side has no name: in a container the host name is none, because it changes with every start";
            return Err(Failure::new(Code::Config, why).hint(how));
        }
        let host = self.env.hostname.as_deref().unwrap_or_default();
        host.parse().map_err(|e| {
            Failure::new(Code::Config, format!("this side has no name, and the host's cannot be one: {e}")).hint(how)
        })
    }

    /// The configured servers, and the nodes that were heard of through them; else the embedded one if it was ever started here, else none.
    pub fn servers(&self) -> Result<Option<Servers>, Failure> {
        if self.has_endpoints() {
            let token = self.token_file.as_deref().map(read_token).transpose()?;
            let servers = Servers::new(self.endpoints.clone(), token, self.request_timeout);
            servers.learn(&nodes::noted(&self.state_dir, &self.endpoints));
            return Ok(Some(servers));
        }
        let dir = self.server_dir();
        Ok(dir.join("token").exists().then(|| Servers::embedded(dir, self.request_timeout)))
    }

    /// The same, or 69 with what to type.
    pub fn need_servers(&self) -> Result<Servers, Failure> {
        self.servers()?.ok_or_else(|| {
            Failure::new(Code::Unreachable, "no lease server is configured, and none was ever started here").hint(format!(
                "start one on this machine by guarding a directory: `treelease up DIR`, or set `endpoints` in {}",
                self.write_to.display()
            ))
        })
    }

    /// Whether servers are configured (not embedded).
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Makes the state directory (0700) if it is missing; another user's is 77.
    pub fn ensure_state_dir(&self) -> Result<&Path, Failure> {
        dirs::ensure(&self.state_dir, self.env.uid, "state directory", "TREELEASE_STATE")?;
        Ok(&self.state_dir)
    }

    /// Makes the runtime directory (0700) if it is missing; another user's is 77.
    pub fn ensure_runtime_dir(&self) -> Result<&Path, Failure> {
        dirs::ensure(&self.runtime_dir, self.env.uid, "runtime directory", "TREELEASE_RUNTIME")?;
        Ok(&self.runtime_dir)
    }

    /// Whether an existing runtime directory, and an existing socket in it, are this user's: 77 if not.
    pub fn check_runtime_owner(&self) -> Result<(), Failure> {
        dirs::check(&self.runtime_dir, self.env.uid, "runtime directory", "TREELEASE_RUNTIME")?;
        dirs::check_owner(&self.socket(), self.env.uid, "socket", "TREELEASE_RUNTIME")
    }

    /// `runtime_dir/socket`.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join("socket")
    }

    /// `runtime_dir/status.json`.
    pub fn status_file(&self) -> PathBuf {
        self.runtime_dir.join("status.json")
    }

    /// `state_dir/log`.
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir.join("log")
    }

    /// `state_dir/server`: the embedded server's data directory, its `address` and `token`.
    pub fn server_dir(&self) -> PathBuf {
        self.state_dir.join("server")
    }

    /// A directory is about to be guarded: moves the default state directory out of it, with a note. Refuses (78) if something
    /// lies in it already, which would be left behind.
    pub fn about_to_guard(&mut self, at: &Path) -> Result<(), Failure> {
        if self.given.state_dir.is_some() || !self.state_dir.starts_with(at) {
            return Ok(());
        }
        if std::fs::read_dir(&self.state_dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::new(
                Code::Config,
                format!("the state directory {} lies in {}, which shall be guarded", self.state_dir.display(), at.display()),
            )
            .hint("stop what runs with `treelease down`, then choose another place: TREELEASE_STATE=/var/tmp/treelease"));
        }
        self.state_dir = dirs::fallback_state(self.env.uid);
        self.notes.push(dirs::moved_note(&self.state_dir, &format!("the usual place lies in {}", at.display())));
        Ok(())
    }

    /// Writes a `[[mount]]` into the side's file (replacing one of the same tree), keeping all the rest. Makes the file.
    pub fn add_mount(&mut self, mount: &MountConfig) -> Result<(), Failure> {
        edit::add_mount(self, mount)
    }

    /// Takes the tree's `[[mount]]` out of the side's file; false if there was none.
    pub fn remove_mount(&mut self, tree: &TreeName) -> Result<bool, Failure> {
        edit::remove_mount(self, tree)
    }
}

/// A token: the file's first line.
pub fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let why = crate::error::plain(&e);
        Failure::new(Code::Config, format!("cannot read the token file {}: {why}", path.display()))
            .hint("`token_file` (TREELEASE_TOKEN_FILE) names the file that holds the server's token")
    })?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::new(Code::Config, format!("the token file {} holds no token in its first line", path.display())));
    }
    Ok(token.to_string())
}

/// Paths of flags and variables are relative to the working directory, now: the daemon runs elsewhere.
fn absolute(given: &Overrides) -> Result<Overrides, Failure> {
    let mut given = given.clone();
    for path in [&mut given.config, &mut given.state_dir, &mut given.runtime_dir, &mut given.token_file].into_iter().flatten() {
        *path = std::path::absolute(&*path)
            .map_err(|e| Failure::new(Code::Usage, format!("`{}` cannot be a path: {e}", path.display())))?;
    }
    Ok(given)
}

/// The file to read, if any, and the one that changes go to.
fn find_file(given: &Overrides, env: &Env, notes: &mut Vec<String>) -> Result<(Option<PathBuf>, PathBuf), Failure> {
    if let Some(path) = &given.config {
        if path.exists() {
            return Ok((Some(path.clone()), path.clone()));
        }
        // `up` makes it; but where even the directory is missing, the name is a slip.
        if path.parent().is_some_and(Path::is_dir) {
            notes.push(format!("the configuration {} does not exist yet", path.display()));
            return Ok((None, path.clone()));
        }
        return Err(Failure::new(Code::Config, format!("the configuration {} does not exist", path.display()))
            .hint("check --config (TREELEASE_CONFIG), or make its directory first"));
    }
    let home = env.xdg_config_home.clone().or_else(|| env.home.as_ref().map(|home| home.join(".config")));
    let own = home.map(|dir| dir.join("treelease/config.toml"));
    match own {
        Some(own) if own.exists() => Ok((Some(own.clone()), own)),
        Some(own) if env.system_config.exists() => Ok((Some(env.system_config.clone()), own)),
        Some(own) => Ok((None, own)),
        None => Ok((env.system_config.exists().then(|| env.system_config.clone()), env.system_config.clone())),
    }
}
