//! Several "hosts" on one machine: real servers and real sides over one directory.
//!
//! Two FUSE mounts have separate lock tables and page caches, as two hosts have, so two sides that mount one directory in two
//! places meet what two hosts on shared storage meet. A [`World`] promises to leave nothing behind: when it is dropped, also by
//! a panic, every process that was started under its directory is killed and every mount there is taken away.
//!
//! It talks to the executables only, by `CLI.md`. Sides differ in `TREELEASE_CONFIG`, `TREELEASE_STATE` and `TREELEASE_RUNTIME`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

mod cluster;
pub mod host;
mod output;
mod processes;
mod server;
mod side;
pub mod user;
mod violation;
mod writer;

pub use cluster::{Cluster, Pace, free_ports};
pub use host::Host;
pub use output::{Done, finish, finish_within};
pub use processes::{Signal, signal};
pub use server::Server;
pub use side::{Side, Stopped, Tool};
pub use user::User;
pub use violation::{directory as violations, violated};
pub use writer::Writer;

/// Waits until the condition holds; panics with `what` after `limit`. The one way to wait in a story.
pub fn wait_for(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    if !holds_within(limit, &mut condition) {
        panic!("not within {limit:?}: {what}");
    }
}

/// Whether the condition came to hold within the limit.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let timer = Timer::start();
    loop {
        if condition() {
            return true;
        }
        if timer.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Time in a test: nothing in treelease is decided by it.
#[derive(Debug, Clone, Copy)]
pub struct Timer(std::time::Instant);

impl Timer {
    /// From now on.
    #[allow(clippy::disallowed_methods)] // a test's own stop watch
    pub fn start() -> Self {
        Timer(std::time::Instant::now())
    }
    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The executable of that name, from the build that this test belongs to. Builds all of them once if it is missing;
/// `tests/run` builds them before, so that they are never older than the test.
pub fn executable(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a test has an executable");
    let dir =
        this.ancestors().find(|d| d.ends_with("debug") || d.ends_with("release")).expect("a test runs in a target directory");
    let path = dir.join(name);
    if !path.exists() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
        let built = Command::new("cargo").args(["build", "--workspace", "--bins"]).current_dir(workspace).status();
        assert!(built.is_ok_and(|s| s.success()), "cargo build --workspace --bins failed");
        assert!(path.exists(), "{} was not built", path.display());
    }
    path
}

/// An executable from crates.io that `tests/run` installs.
pub fn installed(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a test has an executable");
    let dir = this.ancestors().find(|d| d.ends_with("debug") || d.ends_with("release")).and_then(Path::parent);
    let path = dir.expect("a test runs in a target directory").join("tools/bin").join(name);
    assert!(path.exists(), "{} is missing: `./tests/run` installs it, whichever tests it is asked for", path.display());
    path
}

/// A directory with everything that one story needs, and nothing of it is left when it is dropped (`TREELEASE_TEST_KEEP=1` keeps
/// the files, with the logs).
pub struct World {
    dir: PathBuf,
}

impl World {
    /// An empty one. `TREELEASE_TEST_DIR` says on which disk; else `/var/tmp`, which is one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> World {
        assert!(Path::new("/dev/fuse").exists(), "stories mount: they need /dev/fuse (modprobe fuse)");
        let base = std::env::var_os("TREELEASE_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::Builder::new().prefix("treelease-story-").tempdir_in(base).expect("room for a story").keep();
        World { dir: dir.canonicalize().expect("it was just made") }
    }

    /// The world's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it, outside every tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in it, made if it is not there.
    pub fn directory(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).expect("a directory in our own");
        dir
    }

    /// A server that answers.
    pub fn server(&self) -> Server {
        Server::start(self.directory("server"))
    }

    /// Three nodes that answer.
    pub fn cluster(&self) -> Cluster {
        Cluster::start(self.directory("cluster"))
    }

    /// Three nodes that answer, each on its host.
    pub fn cluster_on(&self, hosts: [&Host; 3], pace: &Pace) -> Cluster {
        Cluster::start_on(self.directory("cluster"), hosts, pace)
    }

    /// A side of that server. Nothing runs yet.
    pub fn side(&self, name: &str, server: &Server) -> Side {
        Side::new(&self.dir, name, &[server.url()])
    }

    /// A side with other endpoints, or none.
    pub fn side_at(&self, name: &str, endpoints: &[String]) -> Side {
        Side::new(&self.dir, name, endpoints)
    }

    /// Two sides, `workstation` and `pod`, that mount one tree `dev` in two places; nobody holds it.
    pub fn two_hosts(&self, policy: &[&str]) -> (Server, Side, Side) {
        let server = self.server();
        let (workstation, pod) = (self.side("workstation", &server), self.side("pod", &server));
        self.tree(&workstation, "dev", policy);
        workstation.mount("dev", &self.lower("dev"));
        pod.mount("dev", &self.lower("dev"));
        (server, workstation, pod)
    }

    /// Registers a tree whose live root is [`Self::lower`].
    pub fn tree(&self, side: &Side, name: &str, policy: &[&str]) {
        let lower = self.directory(&format!("lower-{name}"));
        let mut args = vec!["tree", "add", name, "--root", lower.to_str().expect("our own path")];
        args.extend(policy);
        side.ok(&args);
    }

    /// Where a tree's files really lie.
    pub fn lower(&self, name: &str) -> PathBuf {
        self.dir.join(format!("lower-{name}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", processes::logs(&self.dir));
        }
        processes::clear(&self.dir);
        if std::env::var_os("TREELEASE_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
            return;
        }
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} is not removed: {e}", self.dir.display());
        }
    }
}

/// Policy that makes stories quick: little grace, little idle time, no `min_hold`.
pub const QUICK: [&str; 4] = ["grace=200ms", "idle=300ms", "min_hold=0s", "quiet=50ms"];

/// [`QUICK`] and more.
pub fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().chain(more).copied().collect()
}
