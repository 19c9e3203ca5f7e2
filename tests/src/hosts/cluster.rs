//! Three lease servers as processes, which form one cluster.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Host, Signal, executable, signal, wait_for};

/// How long the nodes may take until they serve.
const START: Duration = Duration::from_secs(60);
/// On a host of its own every node has this port.
const PORT: u16 = 7420;

/// How fast the nodes agree, as their flags say it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// `--heartbeat`.
    pub heartbeat: &'static str,
    /// `--election-timeout`.
    pub election: &'static str,
}

impl Default for Pace {
    /// Quick, and still slow against a busy machine's disk. The least time to live is 5850 ms then.
    fn default() -> Self {
        Pace { heartbeat: "100ms", election: "500ms..900ms" }
    }
}

/// Nodes 1, 2 and 3, and those that come later. Killed when dropped.
pub struct Cluster {
    dir: PathBuf,
    addresses: Vec<String>,
    hosts: Vec<Option<Host>>,
    pace: Pace,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts all three, with their data in `dir/data-N`, and waits until they serve.
    pub fn start(dir: PathBuf) -> Cluster {
        let addresses = free_ports(3).into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Self::start_all(dir, addresses, vec![None, None, None], Pace::default())
    }

    /// The same, each node on a host of its own.
    pub fn start_on(dir: PathBuf, hosts: [&Host; 3], pace: &Pace) -> Cluster {
        let addresses = hosts.iter().map(|host| format!("{}:{PORT}", host.address())).collect();
        Self::start_all(dir, addresses, hosts.into_iter().cloned().map(Some).collect(), *pace)
    }

    fn start_all(dir: PathBuf, addresses: Vec<String>, hosts: Vec<Option<Host>>, pace: Pace) -> Cluster {
        let mut cluster = Cluster { dir, addresses, hosts, pace, children: vec![None, None, None] };
        (1..=3).for_each(|node| cluster.start_node(node));
        (1..=3).for_each(|node| cluster.wait_serving(node));
        cluster
    }

    /// Starts one that does not run.
    pub fn start_node(&mut self, node: usize) {
        assert!(self.children[node - 1].is_none(), "node {node} runs");
        let _ = std::fs::remove_file(self.address_file(node));
        let program = executable("treelease-server");
        let (mut command, insecure) = match &self.hosts[node - 1] {
            Some(host) => (host.command(program), "--insecure-remote"),
            None => (Command::new(program), "--insecure"),
        };
        command.args([insecure, "--node-id", &node.to_string(), "--listen", &self.address(node), "--data-dir"]);
        command.arg(self.data(node)).args(["--heartbeat", self.pace.heartbeat, "--election-timeout", self.pace.election]);
        command.env("TREELEASE_TEST_WORLD", &self.dir);
        // A short journal: the store behind it has its part in each story, and a node whose disk is full notices soon.
        command.env("TREELEASE_TEST_FAULT", "small_journal");
        for peer in (1..=3).filter(|peer| *peer != node) {
            command.args(["--peer", &format!("{peer}={}", self.address(peer))]);
        }
        let log = self.dir.join(format!("server-{node}.log"));
        let log = File::options().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.children[node - 1] = Some(command.spawn().expect("treelease-server runs"));
    }

    /// Starts one more, empty, which waits to be taken in. Its number. On loopback only.
    pub fn start_newcomer(&mut self) -> usize {
        self.addresses.push(format!("127.0.0.1:{}", free_ports(1)[0]));
        self.hosts.push(None);
        self.children.push(None);
        let node = self.children.len();
        self.start_node(node);
        node
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

    /// Whether it runs. One that has ended by itself is forgotten, so that it can be started again.
    pub fn runs(&mut self, node: usize) -> bool {
        let child = &mut self.children[node - 1];
        if child.as_mut().is_some_and(|c| c.try_wait().expect("our child").is_some()) {
            *child = None;
        }
        child.is_some()
    }

    /// SIGTERM, SIGSTOP, SIGCONT; nothing to one that does not run.
    pub fn signal(&self, node: usize, what: Signal) {
        if let Some(child) = &self.children[node - 1] {
            signal(child.id(), what);
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self, node: usize) {
        self.signal(node, Signal::TERM);
        wait_for(START, "the node stops", || !self.runs(node));
    }

    /// Stands still (SIGSTOP): it accepts connections, and never answers.
    pub fn pause(&self, node: usize) {
        self.signal(node, Signal::STOP);
    }

    /// Goes on.
    pub fn resume(&self, node: usize) {
        self.signal(node, Signal::CONT);
    }

    /// The first three, as endpoints in a configuration.
    pub fn urls(&self) -> Vec<String> {
        (1..=3).map(|node| format!("http://{}", self.address(node))).collect()
    }

    /// Where the others reach a node.
    pub fn address(&self, node: usize) -> String {
        self.addresses[node - 1].clone()
    }

    /// Where a node keeps its data.
    pub fn data(&self, node: usize) -> PathBuf {
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
        (1..=self.children.len()).for_each(|node| self.kill(node));
    }
}

/// Ports that nobody listens on, below those that the kernel gives to outgoing connections. None is given twice by one process:
/// whoever got it may not listen yet.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut found: Vec<TcpListener> = Vec::new();
    let start = std::process::id().wrapping_mul(41);
    for _ in 0..18_000 {
        if found.len() == count {
            break;
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (start.wrapping_add(n) % 18_000) as u16;
        found.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    found.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}
