//! A side: its own configuration, state and runtime directory, its daemon, its mounts.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::processes::{self, Signal, signal};
use super::user::User;
use super::{Done, Host, executable, finish, wait_for};

/// How long a daemon may take to come or go.
const DAEMON: Duration = Duration::from_secs(20);

/// One side.
pub struct Side {
    name: String,
    dir: PathBuf,
    endpoints: Vec<String>,
    ttl: String,
    fault: Option<String>,
    machine: Option<String>,
    host: Option<Host>,
    user: Option<User>,
}

impl Side {
    pub(super) fn new(world: &Path, name: &str, endpoints: &[String]) -> Side {
        let dir = world.join(format!("side-{name}"));
        for sub in ["", "state", "run", "home", "mnt"] {
            std::fs::create_dir_all(dir.join(sub)).expect("a directory in our own");
        }
        for private in ["state", "run"] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(dir.join(private), std::fs::Permissions::from_mode(0o700)).expect("ours");
        }
        let side = Side {
            name: name.to_owned(),
            dir,
            endpoints: endpoints.to_vec(),
            ttl: "2s".into(),
            fault: None,
            machine: None,
            host: None,
            user: None,
        };
        side.write_config();
        side
    }

    /// With another time to live than 2 s. Before anything of it runs.
    #[must_use]
    pub fn ttl(mut self, ttl: &str) -> Side {
        self.ttl = ttl.to_owned();
        self.write_config();
        self
    }

    /// With a rule switched off in its guard, for a positive control: `no_stale`, `hold_back_events`,
    /// `gate_open`, `no_lock`, `only_says_locked`, `resume_awake`, `guards_told`, `seeds_only`, `no_write_back`. Only debug builds know them. Before its daemon
    /// runs.
    #[must_use]
    pub fn fault(mut self, fault: &str) -> Side {
        self.fault = Some(fault.to_owned());
        self
    }

    /// On the machine with that id, in the boot with that one: by its daemon's word, for nothing here can be restarted. Before its daemon
    /// runs, and again before it runs in another boot. Only debug builds listen.
    pub fn boots(&mut self, machine: &str, boot: &str) {
        self.machine = Some(format!("{machine}/{boot}"));
    }

    /// On a host of its own. Before anything of it runs.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Side {
        self.host = Some(host.clone());
        self
    }

    /// As another user than root: all that it runs, and all that is its own. Before anything of it runs.
    #[must_use]
    pub fn as_user(mut self, user: User) -> Side {
        user.let_in(self.dir.parent().expect("a side lies in its world"));
        user.own(&self.dir);
        self.user = Some(user);
        self
    }

    /// Stops its guard at a place named in `fuse-guard/src/failpoint.rs`, until the answer is dropped.
    pub fn stop_at(&self, place: &str) -> Stopped {
        let dir = self.dir.join("failpoints");
        std::fs::create_dir_all(&dir).expect("ours");
        std::fs::write(dir.join(place), b"").expect("ours");
        Stopped { stop: dir.join(place), reached: dir.join(format!("{place}.reached")) }
    }

    fn write_config(&self) {
        let endpoints = self.endpoints.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join(", ");
        let mut text = format!("side = {:?}\nttl = {:?}\n", self.name, self.ttl);
        if !self.endpoints.is_empty() {
            text += &format!("endpoints = [{endpoints}]\n");
        }
        std::fs::write(self.config(), text).expect("its configuration");
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// A command with this side's environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.host {
            Some(host) => host.command(program),
            None => match &self.user {
                Some(user) => user.command(program),
                None => Command::new(program),
            },
        };
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("TREELEASE_") {
                command.env_remove(key);
            }
        }
        let home = self.dir.join("home");
        command
            .env("TREELEASE_CONFIG", self.config())
            .env("TREELEASE_STATE", self.dir.join("state"))
            .env("TREELEASE_RUNTIME", self.dir.join("run"))
            .env("TREELEASE_LOG", std::env::var("TREELEASE_TEST_LOG").unwrap_or_else(|_| "info".into()))
            .env("TREELEASE_FAILPOINTS", self.dir.join("failpoints"))
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join(".config"))
            .env("XDG_STATE_HOME", home.join(".local/state"))
            .env("GIT_CONFIG_GLOBAL", home.join(".gitconfig"))
            .env("GIT_AUTHOR_NAME", &self.name)
            .env("GIT_AUTHOR_EMAIL", "story@example.org")
            .env("GIT_COMMITTER_NAME", &self.name)
            .env("GIT_COMMITTER_EMAIL", "story@example.org")
            .env("NO_COLOR", "1")
            .current_dir(&self.dir);
        if let Some(fault) = &self.fault {
            command.env("TREELEASE_TEST_FAULT", fault);
        }
        if let Some(machine) = &self.machine {
            command.env("TREELEASE_TEST_MACHINE", machine);
        }
        command
    }

    /// `treelease ARGS…`, not yet started.
    pub fn treelease(&self, args: &[&str]) -> Command {
        let program = match self.user {
            // Where the tests were built another user may not be let in.
            Some(_) => super::user::lent(self.dir.parent().expect("a side lies in its world"), "treelease"),
            None => executable("treelease"),
        };
        let mut command = self.command(program);
        command.args(args);
        command
    }

    /// Runs `treelease ARGS…` to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        finish(self.treelease(args))
    }

    /// The same; panics unless it ends with 0.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Done {
        self.run(args).expect(0)
    }

    /// Runs a program (not treelease) with this side's environment to its end.
    pub fn tool(&self, program: &str, args: &[&str]) -> Done {
        let program = if program == "ledger" { executable("ledger").into_os_string() } else { program.into() };
        let mut command = self.command(program);
        command.args(args);
        finish(command)
    }

    /// Where this side mounts a tree.
    pub fn at(&self, tree: &str) -> PathBuf {
        self.dir.join("mnt").join(tree)
    }

    /// A path in a mounted tree, as text for arguments.
    pub fn file(&self, tree: &str, name: &str) -> String {
        self.at(tree).join(name).to_str().expect("our own path").to_owned()
    }

    /// Mounts a tree; starts the daemon if none runs.
    pub fn mount(&self, tree: &str, lower: &Path) {
        self.try_mount(tree, lower, &[]).expect(0);
    }

    /// The same with more flags, whatever comes out.
    pub fn try_mount(&self, tree: &str, lower: &Path, more: &[&str]) -> Done {
        let at = self.at(tree);
        std::fs::create_dir_all(&at).expect("a mount point");
        if let Some(user) = &self.user {
            user.own(&at);
        }
        let (lower, at) = (lower.to_str().expect("our own path"), at.to_str().expect("our own path"));
        let mut args = vec!["mount", tree, "--lower", lower, "--at", at];
        args.extend(more);
        self.run(&args)
    }

    /// Writes the mount into its configuration, so that `up` restores it.
    pub fn configure_mount(&self, tree: &str, lower: &Path) {
        let mut text = std::fs::read_to_string(self.config()).expect("its configuration");
        text += &format!("[[mount]]\ntree = {tree:?}\nlower = {lower:?}\nat = {:?}\n", self.at(tree));
        std::fs::write(self.config(), text).expect("its configuration");
    }

    /// Of `status -o json`, whatever its exit code.
    pub fn status(&self) -> serde_json::Value {
        self.run(&["status", "-o", "json"]).json()
    }

    /// One tree of the status.
    #[track_caller]
    pub fn tree_status(&self, tree: &str) -> serde_json::Value {
        let status = self.status();
        let trees = status["trees"].as_array().unwrap_or_else(|| panic!("no trees in {status}"));
        trees.iter().find(|t| t["name"] == tree).unwrap_or_else(|| panic!("no tree {tree} in {status}")).clone()
    }

    /// Whether this side has the lease now, by `status --check`.
    pub fn holds(&self, tree: &str) -> bool {
        self.run(&["status", "--check", tree]).code == 0
    }

    /// Its daemon's process, if it runs.
    pub fn daemon(&self) -> Option<u32> {
        let running = match &self.host {
            Some(host) => host.processes(Some("treelease-guard")),
            None => processes::naming(&self.dir, Some("treelease-guard")),
        };
        running.first().copied()
    }

    /// kill -9 of the daemon.
    pub fn kill_daemon(&self) {
        let pid = self.daemon().expect("a daemon runs");
        signal(pid, Signal::KILL);
        wait_for(DAEMON, "the daemon is gone", || self.daemon().is_none());
    }

    /// Stops (SIGSTOP) or continues the daemon.
    pub fn signal_daemon(&self, what: Signal) {
        signal(self.daemon().expect("a daemon runs"), what);
    }

    /// `ledger serve` on a database of this side: one connection that stays open.
    pub fn serve(&self, db: &str, ack: &Path, journal: &str) -> Tool {
        let mut command = self.command(executable("ledger"));
        command.args(["serve", db]).arg(ack).args(["--journal", journal]);
        Tool::start(command)
    }
}

/// A tool that answers lines: `ledger serve`. Killed when it is dropped.
pub struct Tool {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Tool {
    fn start(mut command: Command) -> Tool {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the tool runs");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut tool = Tool { input: child.stdin.take(), child, output };
        assert_eq!(tool.line(), "ready");
        tool
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("text");
        line.trim().to_owned()
    }

    /// Says a line and hears the answer.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().expect("it listens"), "{line}").expect("it listens");
        self.line()
    }

    /// Ends it in order, and says how it ended.
    pub fn quit(mut self) -> std::process::ExitStatus {
        drop(self.input.take());
        self.child.wait().expect("our child")
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A place in a guard at which whoever comes waits.
pub struct Stopped {
    stop: PathBuf,
    reached: PathBuf,
}

impl Stopped {
    /// Whether somebody waits there.
    pub fn reached(&self) -> bool {
        self.reached.exists()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.stop);
    }
}
