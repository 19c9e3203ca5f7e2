//! Real processes on loopback, three of them or more, as an operator starts them, and what can be done to them.
#![allow(dead_code)] // each test file uses a part

use std::fs::File;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::Status;
use treelease_proto::wire;

use crate::common::{Caller, until};

/// All that a cluster is founded with.
pub const ALL: [u64; 3] = [1, 2, 3];
/// Numbers, and addresses, that there are in all.
pub const MOST: usize = 6;
/// Quick, and still slow against a busy machine's disk.
pub const PACE: [&str; 4] = ["--heartbeat", "100ms", "--election-timeout", "500ms..900ms"];
/// The election time-out's upper end in [`PACE`].
pub const ELECTION_MAX: Duration = Duration::from_millis(900);
/// One call that may meet a stopped process.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Three nodes, and room for more; killed when dropped.
pub struct Nodes {
    dir: TempDir,
    ports: Vec<u16>,
    children: Vec<Option<Child>>,
    pub args: Vec<String>,
}

impl Nodes {
    /// None runs yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, ports: free_ports(MOST), children: (0..MOST).map(|_| None).collect(), args: Vec::new() }
    }

    /// All run and serve.
    pub async fn running() -> Self {
        let mut nodes = Self::new();
        ALL.iter().for_each(|id| nodes.start(*id));
        nodes.all_serve().await;
        nodes
    }

    pub fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    pub fn address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.ports[id as usize - 1])
    }

    pub fn caller(&self, id: u64) -> Caller {
        Caller::new(&self.address(id))
    }

    /// The command that starts a node; one above the first three lists those, as a node does that shall join them.
    pub fn program(&self, id: u64) -> Program {
        let peers: Vec<u64> = ALL.into_iter().filter(|peer| *peer != id).collect();
        self.program_at(id, &self.address(id), &peers)
    }

    /// The command that starts a node at this address, with these others listed.
    pub fn program_at(&self, id: u64, at: &str, peers: &[u64]) -> Program {
        let mut program = Program::new(env!("CARGO_BIN_EXE_treelease-server"));
        program.args(["--insecure", "--node-id", &id.to_string(), "--listen", at, "--data-dir"]);
        program.arg(self.data(id)).args(PACE).args(&self.args).env("TREELEASE_LOG", "info,openraft=off");
        for peer in peers {
            program.args(["--peer", &format!("{peer}={}", self.address(*peer))]);
        }
        let log = File::options().create(true).append(true).open(self.log_file(id)).unwrap();
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        program
    }

    pub fn start(&mut self, id: u64) {
        let program = self.program(id);
        self.start_as(id, program);
    }

    pub fn start_as(&mut self, id: u64, mut program: Program) {
        assert!(self.child(id).is_none(), "node {id} runs");
        self.children[id as usize - 1] = Some(program.spawn().unwrap());
    }

    pub fn kill_9(&mut self, id: u64) {
        let mut child = self.child(id).take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub async fn stop(&mut self, id: u64) {
        self.signal(id, Signal::TERM);
        assert_eq!(self.end(id).await, 0, "node {id}: {}", self.log(id));
    }

    /// The exit code of a node that ends by itself.
    pub async fn end(&mut self, id: u64) -> i32 {
        let child = std::cell::RefCell::new(self.child(id).take().unwrap());
        until("the process ends", || async { child.borrow_mut().try_wait().unwrap().is_some() }).await;
        child.into_inner().wait().unwrap().code().unwrap_or(-1)
    }

    pub fn signal(&mut self, id: u64, signal: Signal) {
        let pid = Pid::from_child(self.child(id).as_ref().unwrap());
        kill_process(pid, signal).unwrap();
        if signal == Signal::STOP {
            until_stopped(pid);
        }
    }

    pub fn wipe(&self, id: u64) {
        std::fs::remove_dir_all(self.data(id)).unwrap();
    }

    pub fn log(&self, id: u64) -> String {
        std::fs::read_to_string(self.log_file(id)).unwrap_or_default()
    }

    /// Status of a node, if it answers.
    pub async fn status(&self, id: u64) -> Result<wire::StatusAnswer, Status> {
        let asked = timeout(CALL_LIMIT, async { self.caller(id).try_status().await }).await;
        asked.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
    }

    /// Until the running nodes serve, with a quorum and one leader.
    pub async fn all_serve(&self) -> u64 {
        self.agree(&self.running_ids()).await
    }

    /// Which processes run.
    pub fn running_ids(&self) -> Vec<u64> {
        (1..=MOST as u64).filter(|id| self.children[*id as usize - 1].is_some()).collect()
    }

    /// Until these nodes name one leader among them.
    pub async fn agree(&self, among: &[u64]) -> u64 {
        let leader = std::cell::Cell::new(0);
        until("the nodes agree on a leader", || async {
            let mut named = Vec::new();
            for id in among {
                match self.status(*id).await {
                    Ok(status) if status.quorum => named.push(status.leader),
                    _ => return false,
                }
            }
            leader.set(named[0]);
            among.contains(&named[0]) && named.iter().all(|n| *n == named[0])
        })
        .await;
        leader.get()
    }

    fn child(&mut self, id: u64) -> &mut Option<Child> {
        &mut self.children[id as usize - 1]
    }

    fn log_file(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}.log"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // Only our children, and only those that still run.
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let all = (1..=MOST as u64).filter(|id| self.log_file(*id).exists());
            all.for_each(|id| eprintln!("--- node {id}\n{}", self.log(id)));
        }
    }
}

/// Ports that nobody listens on, below those that the kernel gives to outgoing connections, and that no other test process takes
/// before this one has ended: a node that was stopped finds its port free.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut found: Vec<TcpListener> = Vec::new();
    while found.len() < count {
        let n = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst));
        let port = 12_000 + (n % 18_000) as u16;
        // The kernel forgets the name with this process.
        let name = SocketAddr::from_abstract_name(format!("treelease-test-port-{port}")).unwrap();
        let Ok(taken) = UnixListener::bind_addr(&name) else { continue };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            found.push(listener);
            std::mem::forget(taken);
        }
    }
    found.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// A stop is one thread's to take, and on a busy machine the others run on until that has had its turn.
fn until_stopped(process: Pid) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    // The state comes after the name, which is in parentheses and may hold anything.
    let is_stopped = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    let runs = |task: std::io::Result<std::fs::DirEntry>| {
        task.is_ok_and(|task| std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| !is_stopped(stat)))
    };
    while std::fs::read_dir(&tasks).unwrap().any(runs) {
        assert!(tokio::time::Instant::now() < end, "{process:?} was told to stop, and runs");
        std::thread::sleep(Duration::from_millis(1));
    }
}
