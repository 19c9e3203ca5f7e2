//! A lease server as a process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::processes::{Signal, signal};
use super::{Done, executable, finish, wait_for};

/// How long a server may take until it serves.
const START: Duration = Duration::from_secs(20);

/// One node, which is a whole server. Killed when it is dropped.
pub struct Server {
    dir: PathBuf,
    address: String,
    child: Option<Child>,
}

impl Server {
    /// Starts one with its data in `dir/data`, on a port of its choice, and waits until it serves.
    pub fn start(dir: PathBuf) -> Server {
        let mut server = Server { dir, address: "127.0.0.1:0".into(), child: None };
        server.restart();
        server
    }

    /// The same at an address where another one was.
    pub fn start_at(dir: PathBuf, address: &str) -> Server {
        let mut server = Server { dir, address: address.into(), child: None };
        server.restart();
        server
    }

    /// How it is started; with `dir/server.toml`, if a story has written one.
    pub fn command(dir: &Path, listen: &str) -> Command {
        let mut command = Command::new(executable("treelease-server"));
        command.args(["--node-id", "1", "--insecure", "--listen", listen, "--data-dir"]).arg(dir.join("data"));
        command.env("TREELEASE_TEST_WORLD", dir);
        // Written by a story before the server is started.
        let config = dir.join("server.toml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        command
    }

    /// A server that is expected to end by itself, with a reason.
    pub fn fails(dir: &Path, listen: &str) -> Done {
        finish(Self::command(dir, listen))
    }

    /// Starts it again where it was, after [`Self::kill`] or [`Self::stop`].
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let file = self.dir.join("data/address");
        let _ = std::fs::remove_file(&file);
        let log = File::options().create(true).append(true).open(self.dir.join("server.log")).expect("a log");
        let mut command = Self::command(&self.dir, &self.address);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn();
        let mut child = child.expect("treelease-server runs");
        wait_for(START, "the server serves", || {
            assert!(child.try_wait().expect("our child").is_none(), "the server ended at its start");
            file.exists()
        });
        self.address = std::fs::read_to_string(file).expect("the address").trim().to_owned();
        self.child = Some(child);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), Signal::TERM);
            wait_for(START, "the server stops", || child.try_wait().expect("our child").is_some());
        }
    }

    /// Stands still, as a partition looks from outside.
    pub fn pause(&self) {
        signal(self.child.as_ref().expect("it runs").id(), Signal::STOP);
    }

    /// Goes on.
    pub fn resume(&self) {
        signal(self.child.as_ref().expect("it runs").id(), Signal::CONT);
    }

    /// As an endpoint in a configuration.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its files lie; the data is in `data`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
