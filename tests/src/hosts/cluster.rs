//! Three lease servers as processes, which form one cluster.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::processes::{Signal, signal};
use super::{executable, wait_for};

/// How long the nodes may take until they serve.
const START: Duration = Duration::from_secs(30);
/// Quick, and still slow against a busy machine's disk. The least time to live is 5850 ms then.
const PACE: [&str; 4] = ["--heartbeat", "100ms", "--election-timeout", "500ms..900ms"];

/// Nodes 1, 2 and 3. Killed when dropped.
pub struct Cluster {
    dir: PathBuf,
    ports: Vec<u16>,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts all three, with their data in `dir/data-N`, and waits until they serve.
    pub fn start(dir: PathBuf) -> Cluster {
        let mut cluster = Cluster { dir, ports: free_ports(3), children: vec![None, None, None] };
        (1..=3).for_each(|node| cluster.start_node(node));
        (1..=3).for_each(|node| cluster.wait_serving(node));
        cluster
    }

    /// Starts one that does not run.
    pub fn start_node(&mut self, node: usize) {
        assert!(self.children[node - 1].is_none(), "node {node} runs");
        let _ = std::fs::remove_file(self.address_file(node));
        let mut command = Command::new(executable("treelease-server"));
        command.args(["--insecure", "--node-id", &node.to_string(), "--listen", &self.address(node), "--data-dir"]);
        command.arg(self.data(node)).args(PACE).env("TREELEASE_TEST_WORLD", &self.dir);
        for peer in (1..=3).filter(|peer| *peer != node) {
            command.args(["--peer", &format!("{peer}={}", self.address(peer))]);
        }
        let log = self.dir.join(format!("server-{node}.log"));
        let log = File::options().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.children[node - 1] = Some(command.spawn().expect("treelease-server runs"));
    }

    /// Until it says where it serves.
    pub fn wait_serving(&self, node: usize) {
        wait_for(START, "the node serves", || self.address_file(node).exists());
    }

    /// kill -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node - 1].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self, node: usize) {
        if let Some(mut child) = self.children[node - 1].take() {
            signal(child.id(), Signal::TERM);
            wait_for(START, "the node stops", || child.try_wait().expect("our child").is_some());
        }
    }

    /// Stands still (SIGSTOP): it accepts connections, and never answers.
    pub fn pause(&self, node: usize) {
        signal(self.children[node - 1].as_ref().expect("it runs").id(), Signal::STOP);
    }

    /// Goes on.
    pub fn resume(&self, node: usize) {
        signal(self.children[node - 1].as_ref().expect("it runs").id(), Signal::CONT);
    }

    /// All three, as endpoints in a configuration.
    pub fn urls(&self) -> Vec<String> {
        (1..=3).map(|node| format!("http://{}", self.address(node))).collect()
    }

    fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node - 1])
    }

    fn data(&self, node: usize) -> PathBuf {
        self.dir.join(format!("data-{node}"))
    }

    fn address_file(&self, node: usize) -> PathBuf {
        self.data(node).join("address")
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (1..=3).for_each(|node| self.kill(node));
    }
}

/// Ports that nobody listens on, below those that the kernel gives to outgoing connections.
fn free_ports(count: usize) -> Vec<u16> {
    let mut found: Vec<TcpListener> = Vec::new();
    let start = std::process::id().wrapping_mul(41);
    for n in 0..18_000 {
        if found.len() == count {
            break;
        }
        let port = 12_000 + (start.wrapping_add(n) % 18_000) as u16;
        found.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    found.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}
