//! A side of its own for each test: private directories, no configuration from outside, and the built command in it.
#![allow(dead_code, missing_docs)] // each test file uses its part of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long any command of these tests may take before it counts as hanging.
const LIMIT: Duration = Duration::from_secs(60);

/// A side in a temporary directory.
pub struct Side {
    pub dir: tempfile::TempDir,
}

/// How a command went.
#[derive(Debug)]
pub struct Went {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Side {
    pub fn new() -> Self {
        let side = Self { dir: tempfile::Builder::new().prefix("tl").tempdir().unwrap() };
        std::fs::create_dir(side.path("work")).unwrap();
        side
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the side's configuration.
    pub fn configure(&self, text: &str) -> PathBuf {
        let file = self.path("config/treelease/config.toml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    /// The runtime directory, made as the daemon makes it.
    pub fn runtime(&self) -> PathBuf {
        let dir = self.path("run/treelease");
        std::fs::create_dir_all(&dir).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&dir, private).unwrap();
        dir
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_treelease"));
        command.args(args).env_clear().current_dir(self.path("work")).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).env("TREELEASE_SIDE", "here");
        command.env("XDG_CONFIG_HOME", self.path("config"));
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs `treelease` here.
    pub fn run(&self, args: &[&str]) -> Went {
        went(self.command(args))
    }
}

/// Runs a command to its end, within the limit.
pub fn went(mut command: Command) -> Went {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let output: Output = match told.recv_timeout(LIMIT) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL);
            panic!("{command:?} has not ended within {LIMIT:?}");
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Went { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Waits for something that another process does.
#[track_caller]
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    #[allow(clippy::disallowed_methods)] // a test's limit
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        #[allow(clippy::disallowed_methods)] // as above
        let now = Instant::now();
        assert!(now < end, "{what}: not so within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a file is there and has a whole line.
pub fn has_line(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
}
