//! The real process: its exit codes, its end by SIGTERM, and I7: kill -9 after acknowledged commands loses none of them.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use common::{Caller, until};
use treelease_proto::command::{Answer, Command};
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::wire;

const TTL: Duration = Duration::from_secs(600);

#[tokio::test]
async fn kill_9_loses_no_acknowledged_command() {
    killed_under_load("sled").await;
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_command_with_redb() {
    killed_under_load("redb").await;
}

async fn killed_under_load(store: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut session: Option<SessionId> = None;
    for round in 0..20u64 {
        let server = Server::start(dir.path(), &["--store", store]).await;
        let caller = Caller::new(&server.address);
        let known: Vec<String> = caller.status().await.trees.into_iter().map(|t| t.name).collect();
        for name in &acknowledged {
            assert!(known.contains(name), "round {round}: {name} was acknowledged and is lost");
        }
        let session = match &session {
            Some(session) => session.clone(),
            None => session.insert(caller.open("workstation", TTL).await).clone(),
        };
        assert!(caller.renew(&session, round + 1, 0).await.alive, "round {round}: the session was acknowledged and is lost");

        // Four callers at once; the process is killed while they are at it, at another moment in each round.
        let (said, mut heard) = tokio::sync::mpsc::channel(1_000);
        for n in 0..4 {
            let (caller, said) = (caller.clone(), said.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    let name = format!("r{round}-{n}-{i}");
                    let add =
                        Command::AddTree { name: name.parse().unwrap(), tree: TreeId::random(), policy: vec![], root: None };
                    match caller.try_command(&add).await {
                        Ok(Answer::TreeAdded { .. }) => drop(said.send(name).await),
                        Ok(other) => panic!("{other:?}"),
                        Err(_) => return,
                    }
                }
            });
        }
        drop(said);
        for _ in 0..(5 + round * 7) {
            acknowledged.push(heard.recv().await.expect("the server answers"));
        }
        server.kill_9();
        while let Some(name) = heard.recv().await {
            acknowledged.push(name);
        }
    }
    assert!(acknowledged.len() >= 1_000, "{}", acknowledged.len());
}

#[tokio::test]
async fn i7_a_full_disk_ends_the_node_with_a_word_that_helps_and_nothing_acknowledged_is_lost() {
    for store in ["sled", "redb"] {
        let disk = SmallDisk::new();
        let (dir, args) = (disk.0.path().join("node"), ["--store", store]);
        // Long, so that what the journal hands over at a time is more than a store has reserved of its file.
        let sides: Vec<String> = (0..64).map(|n| format!("{n:063}")).collect();
        let policy = vec![("sealed_read".to_owned(), "x".repeat(4_096)), ("takeover".to_owned(), sides.join(","))];
        let add = |n: usize| {
            let (name, tree) = (format!("tree-{n}").parse().unwrap(), TreeId::random());
            Command::AddTree { name, tree, policy: policy.clone(), root: None }
        };
        let mut server = Server::start(&dir, &args).await;
        let caller = Caller::new(&server.address);
        let mut acknowledged = 0;
        let mut filled = false;
        // The store has its part once: the journal takes some 85 of these.
        while let Ok(answer) = caller.try_command(&add(acknowledged)).await {
            assert!(matches!(answer, Answer::TreeAdded { .. }), "{answer:?}");
            acknowledged += 1;
            if acknowledged == 100 {
                disk.fill();
                filled = true;
            }
            assert!(acknowledged < 1_500, "{store}: its disk is full, and it goes on and on");
        }
        assert!(filled, "{store}: it ended while there was room");
        let (code, said) = end(&mut server.child).await;
        assert!(code == 74 && said.contains("No space left") && said.contains("space"), "{store}: {code}: {said}");

        // As long as it is full, it says so; what it has acknowledged stays where it is.
        disk.fill();
        let (code, said) = run(&dir, &["--insecure", "--listen", "127.0.0.1:0", "--store", store]).await;
        assert!(code == 74 && said.contains("make room and start again"), "{store}: {code}: {said}");

        disk.make_room();
        let server = Server::start(&dir, &args).await;
        let caller = Caller::new(&server.address);
        let mut known: Vec<String> = caller.status().await.trees.into_iter().map(|t| t.name).collect();
        known.sort();
        for n in 0..acknowledged {
            assert!(known.binary_search(&format!("tree-{n}")).is_ok(), "{store}: tree-{n} of {acknowledged} is lost");
        }
        assert!(known.len() <= acknowledged + 1, "{store}: besides, only the one that had no answer");
        assert!(matches!(caller.command(add(acknowledged + 1)).await, Answer::TreeAdded { .. }), "{store}: it goes on");
        server.kill_9();
    }
}

#[tokio::test]
async fn sigterm_ends_the_process_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]).await;
    let caller = Caller::new(&server.address);
    let _watch = caller.watch(0, &[]).await;
    server.signal(rustix::process::Signal::TERM);
    let (code, _) = end(&mut server.child).await;
    assert_eq!(code, 0);
    assert!(!dir.path().join("address").exists());
}

#[tokio::test]
async fn i3_a_server_that_stood_still_for_longer_than_a_ttl_expires_nobody_who_renews_when_it_goes_on() {
    let ttl = Duration::from_secs(5);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]).await;
    let caller = Caller::new(&server.address);
    let (eager, gone) = (caller.open("workstation", ttl).await, caller.open("pod", ttl).await);
    let (held, lost) = (caller.add_tree("dev").await, caller.add_tree("docs").await);
    let grant = caller.acquire(&held, &eager).await;
    caller.acquire(&lost, &gone).await;
    assert!(caller.renew(&eager, 1, 0).await.alive);

    server.signal(rustix::process::Signal::STOP);
    // What is tested is that so much time makes no difference.
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    server.signal(rustix::process::Signal::CONT);
    let caller = &Caller::new(&server.address);
    let (answered, session) = (&std::sync::Mutex::new(None), eager.to_string());
    let mut number = 1;
    until("a renewal is answered", || {
        number += 1;
        let renewal = wire::RenewRequest { session: session.clone(), incarnation: 1, number, ..Default::default() };
        async move {
            let answer = caller.try_renew(renewal).await.ok();
            *answered.lock().unwrap() = answer;
            answered.lock().unwrap().is_some()
        }
    })
    .await;
    let answer = answered.lock().unwrap().take().unwrap();
    assert!(answer.alive, "{}", answer.why_not);
    assert_eq!((answer.pairs.len(), answer.pairs[0].epoch), (1, grant.epoch.get()));
    // The control: who does not renew expires all the same, a full TTL later.
    let expired = |tree: &'static str| async move { caller.history(tree).await.iter().any(|e| e.event == "expired") };
    until("the other one expires", || {
        number += 1;
        let renewal = wire::RenewRequest { session: session.clone(), incarnation: 1, number, ..Default::default() };
        async move { caller.try_renew(renewal).await.is_ok_and(|answer| answer.alive) && expired("docs").await }
    })
    .await;
    assert!(!expired("dev").await);
}

#[tokio::test]
async fn a_taken_port_is_73_and_leaves_the_directory_empty_of_a_node() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(dir.path(), &["--insecure", "--listen", &taken.local_addr().unwrap().to_string()]).await;
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("--listen"), "{said}");
    assert!(!dir.path().join("identity").exists());
}

#[tokio::test]
async fn a_data_directory_in_use_is_73() {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::start(dir.path(), &[]).await;
    let (code, said) = run(dir.path(), &["--insecure", "--listen", "127.0.0.1:0"]).await;
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("lock"), "{said}");
}

#[tokio::test]
async fn a_damaged_data_directory_is_74_and_says_what_to_do() {
    for damage in DAMAGES {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), &["--store", damage.2]).await;
        Caller::new(&server.address).add_tree("dev").await;
        server.kill_9();
        (damage.1)(dir.path());
        let (code, said) = run(dir.path(), &["--insecure", "--listen", "127.0.0.1:0"]).await;
        assert_eq!(code, 74, "{}: {said}", damage.0);
        assert!(said.contains("backup"), "{}: {said}", damage.0);
    }
}

#[tokio::test]
async fn a_directory_that_another_store_wrote_is_78_and_opens_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--store", "redb"]).await;
    Caller::new(&server.address).add_tree("dev").await;
    server.kill_9();
    let (code, said) = run(dir.path(), &["--insecure", "--listen", "127.0.0.1:0", "--store", "sled"]).await;
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("--store redb"), "{said}");
    let server = Server::start(dir.path(), &[]).await;
    assert_eq!(Caller::new(&server.address).status().await.trees.len(), 1);
}

#[tokio::test]
async fn wrong_usage_is_2_and_a_wrong_configuration_78() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &[]).await.0, 78, "without --insecure");
    assert_eq!(run(dir.path(), &["--insecure", "--listen", "0.0.0.0:0"]).await.0, 78);
    assert_eq!(run(dir.path(), &["--nonsense"]).await.0, 2);
    let config = dir.path().join("server.toml");
    std::fs::write(&config, "insecure = true\n\nport = 1\n").unwrap();
    let (code, said) = run(dir.path(), &["--config", config.to_str().unwrap()]).await;
    assert_eq!(code, 78);
    assert!(said.contains("server.toml:3") && said.contains("`port`"), "{said}");
}

type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 10] = [
    ("no log", |dir| std::fs::remove_dir_all(dir.join("log")).unwrap(), "sled"),
    ("no identity", |dir| std::fs::remove_file(dir.join("identity")).unwrap(), "sled"),
    ("a wrong identity", |dir| std::fs::write(dir.join("identity"), b"nothing").unwrap(), "sled"),
    ("an empty database", |dir| std::fs::write(dir.join("log/db"), b"").unwrap(), "sled"),
    ("noise in the database", |dir| noise(&dir.join("log/db")), "sled"),
    ("noise in the database's settings", |dir| std::fs::write(dir.join("log/conf"), b"\x00\x01nothing").unwrap(), "sled"),
    ("no log of redb's", |dir| std::fs::remove_dir_all(dir.join("log")).unwrap(), "redb"),
    ("an empty database of redb's", |dir| std::fs::write(dir.join("log/redb"), b"").unwrap(), "redb"),
    ("noise in redb's database", |dir| noise(&dir.join("log/redb")), "redb"),
    ("half of redb's database", |dir| halve(&dir.join("log/redb")), "redb"),
];

fn noise(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    for byte in &mut bytes {
        *byte ^= 0x5a;
    }
    std::fs::write(path, bytes).unwrap();
}

fn halve(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    async fn start(dir: &Path, args: &[&str]) -> Self {
        // A killed process leaves its address behind: this one's must be a new file.
        let address_file = dir.join("address");
        let _ = std::fs::remove_file(&address_file);
        let child = program(dir).args(["--insecure", "--listen", "127.0.0.1:0"]).args(args).spawn().unwrap();
        let file = &address_file;
        until("the server serves", || async move { file.exists() }).await;
        let address = std::fs::read_to_string(address_file).unwrap().trim().to_owned();
        Self { child, address }
    }

    fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only this child, and only if it still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A filesystem of its own, with little room.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Program::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "treelease-test"]).arg(dir.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "it needs root and `mount`, for a small filesystem of its own");
        Self(dir)
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.path().join("filler")
    }

    /// To the last page.
    fn fill(&self) {
        let mut file = std::fs::File::options().append(true).create(true).open(self.filler()).unwrap();
        for block in [&[7; 1 << 20][..], &[7; 4_096], &[7; 1]] {
            while file.write_all(block).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may not be gone yet.
        let _ = Program::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn program(dir: &Path) -> Program {
    let mut program = Program::new(env!("CARGO_BIN_EXE_treelease-server"));
    program.args(["--node-id", "1", "--data-dir"]).arg(dir).env("TREELEASE_LOG", "warn");
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    program
}

async fn run(dir: &Path, args: &[&str]) -> (i32, String) {
    end(&mut program(dir).args(args).spawn().unwrap()).await
}

async fn end(child: &mut Child) -> (i32, String) {
    let mut status = None;
    for _ in 0..3_000 {
        status = child.try_wait().unwrap();
        if status.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Some(status) = status else {
        child.kill().unwrap();
        panic!("the process does not end");
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code().unwrap_or(-1), said)
}
