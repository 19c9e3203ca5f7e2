//! Fence agents as real programs, run by real servers: success, failure, a hang, a leader that dies beside its agent, a person's word
//! meanwhile, and the way back of who was fenced (I2; DESIGN 3, Fences).

mod common;
#[path = "common/nodes.rs"]
mod nodes;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use common::{Caller, acquire, until};
use nodes::{ALL, Nodes};
use tempfile::TempDir;
use treelease_proto::command::{Answer, AttemptRef, Command, Grant, Leadership, Outcome};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{SessionId, TreeId};
use treelease_proto::refusal::Code;
use treelease_proto::wire;

/// The shortest; the holder never renews.
const SHORT: Duration = Duration::from_secs(2);
/// Just above what three nodes at the pace of `nodes` take.
const SHORT_OF_THREE: Duration = Duration::from_secs(6);
/// Of the waiter, which never renews either.
const LONG: Duration = Duration::from_secs(3000);

#[tokio::test]
async fn i2_the_agents_success_is_what_lets_the_next_side_in() {
    let agent = Agent::new("test -e \"$DIR/reachable\" || { echo 'no answer from the storage'; exit 1; }", "60s");
    let server = Server::start(&agent).await;
    let scene = Scene::at(&server.caller(), SHORT).await;
    // The control: the grace is long over, the agent was run, and nobody is let in.
    until("it was tried twice", || async { agent.calls().len() >= 2 }).await;
    let tree = scene.tree().await;
    assert_eq!((tree.state.as_str(), tree.holder), ("fencing", None));
    assert!(tree.why.contains("fence confirm"), "{}", tree.why);
    agent.make("reachable");
    scene.pod_is_granted().await;
    let calls = agent.calls();
    let expected: Vec<String> = (1..=calls.len()).map(|n| format!("fence workstation 1 {n} 1 host")).collect();
    assert_eq!(calls, expected, "verb, side, epoch, attempt, node, host");
    assert!(scene.told("fencing", "failed (fence workstation): on node 1, exit code 1 (no answer from the storage)").await);
    assert!(scene.told("fenced", "has fenced workstation").await);
    let history = scene.caller.history("dev").await;
    assert!(history.iter().filter(|e| e.event == "fenced").all(|e| e.actor == "server node 1"), "{history:?}");
}

#[tokio::test]
async fn what_hangs_is_killed_at_its_deadline_with_all_that_it_started() {
    let script = "sleep 3000 & echo $! >> \"$DIR/pids\"; setsid sleep 3000 & echo $! >> \"$DIR/pids\"\n\
                  echo $$ >> \"$DIR/pids\"; wait; exit 0";
    let agent = Agent::new(script, "1s");
    let server = Server::start(&agent).await;
    let scene = Scene::at(&server.caller(), SHORT).await;
    until("it was killed", || async { scene.told("fencing", "killed at its deadline, 1s").await }).await;
    let first: Vec<String> = agent.read("pids").lines().take(3).map(str::to_owned).collect();
    assert_eq!(first.len(), 3);
    until("its processes are gone", || async { first.iter().all(|pid| !Path::new("/proc").join(pid).exists()) }).await;
    assert_eq!(scene.tree().await.state, "fencing");
}

#[tokio::test]
async fn an_agent_is_killed_at_its_deadline_though_its_server_is_gone() {
    let agent = Agent::new("echo $$ > \"$DIR/pid\"; while :; do sleep 1; done", "4s");
    let server = Server::start(&agent).await;
    let _scene = Scene::at(&server.caller(), SHORT).await;
    until("the agent runs", || async { agent.read("pid").ends_with('\n') }).await;
    let pid = agent.read("pid").trim().to_owned();
    server.kill_9();
    until("the agent is gone", || async { !Path::new("/proc").join(&pid).exists() }).await;
    assert_eq!(agent.calls().len(), 1);
}

#[tokio::test]
async fn i2_a_second_leader_does_it_anew_and_the_first_ones_late_success_changes_nothing() {
    a_second_leader_does_it_anew(|nodes, leader| nodes.kill_9(leader), |_, _| false).await;
}

#[tokio::test]
async fn i2_a_leader_that_stood_still_beside_its_agent_has_nothing_to_say_when_it_goes_on() {
    let stop = |nodes: &mut Nodes, leader| nodes.signal(leader, rustix::process::Signal::STOP);
    let resume = |nodes: &mut Nodes, leader| {
        nodes.signal(leader, rustix::process::Signal::CONT);
        true
    };
    a_second_leader_does_it_anew(stop, resume).await;
}

async fn a_second_leader_does_it_anew(lose: impl FnOnce(&mut Nodes, u64), back: impl FnOnce(&mut Nodes, u64) -> bool) {
    // Each attempt waits until it is let go on.
    let agent = Agent::new(
        "touch \"$DIR/began-$TREELEASE_FENCE_ATTEMPT\"\n\
         while ! test -e \"$DIR/go-$TREELEASE_FENCE_ATTEMPT\"; do sleep 0.1; done\n\
         touch \"$DIR/done-$TREELEASE_FENCE_ATTEMPT\"",
        "300s",
    );
    let mut nodes = Nodes::new();
    nodes.args = vec!["--config".into(), agent.config().display().to_string()];
    ALL.iter().for_each(|id| nodes.start(*id));
    let leader = nodes.all_serve().await;
    let scene = Scene::at(&nodes.caller(leader), SHORT_OF_THREE).await;
    until("the agent runs", || async { agent.has("began-1") }).await;
    assert!(scene.stands(1).await);

    lose(&mut nodes, leader);
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    let next = nodes.agree(&rest).await;
    let scene = scene.seen_from(&nodes.caller(next));
    until("the next leader does it anew", || async { agent.has("began-2") }).await;
    assert_eq!(agent.calls(), [format!("fence workstation 1 1 {leader} host"), format!("fence workstation 1 2 {next} host")]);
    assert!(scene.stands(2).await && !scene.stands(1).await);

    agent.make("go-1");
    until("the first one ends, with 0", || async { agent.has("done-1") }).await;
    if back(&mut nodes, leader) {
        nodes.agree(&ALL).await;
    }
    // Nobody can say so either: results are the leader's own word.
    let late = Command::FenceResult {
        attempt: scene.attempt(1),
        outcome: Outcome::Succeeded,
        detail: String::new(),
        decided_under: Leadership(1),
    };
    assert_eq!(refused(scene.caller.command(late).await), Code::Denied);
    let tree = scene.tree().await;
    assert_eq!((tree.state.as_str(), tree.holder), ("fencing", None));
    // On a busy machine yet another leader may have begun meanwhile.
    assert!(tree.attempt >= 2, "{}", tree.attempt);
    (2..10).for_each(|n| agent.make(&format!("go-{n}")));
    scene.pod_is_granted().await;
}

#[tokio::test]
async fn an_agent_that_asks_is_told_that_a_person_has_vouched_meanwhile() {
    let agent = Agent::new("touch \"$DIR/began\"; while ! test -e \"$DIR/go\"; do sleep 0.1; done", "300s");
    let server = Server::start(&agent).await;
    let scene = Scene::at(&server.caller(), SHORT).await;
    until("the agent runs", || async { agent.has("began") }).await;
    assert!(scene.stands(1).await, "the control: before, it is wanted");
    let (tree, epoch) = (scene.tree.clone(), Epoch::from_raw(1));
    let confirm = Command::FenceConfirm { tree, epoch, reason: "I pulled its plug".into() };
    assert_eq!(scene.caller.command(confirm).await, Answer::Done);
    scene.pod_is_granted().await;
    assert!(!scene.stands(1).await);
    // This one did not ask. It is not forgotten, and vouches for nothing.
    agent.make("go");
    until("its end is told", || async { scene.told("fencing", "though that was not wanted any more").await }).await;
    assert!(!scene.told("fenced", "the agent `nas`").await);
    assert_eq!(scene.tree().await.fenced.len(), 1);
}

#[tokio::test]
async fn i2_a_fenced_side_gets_nothing_until_its_agent_has_unfenced_it() {
    let agent = Agent::new("test \"$TREELEASE_FENCE_VERB\" = fence || test -e \"$DIR/open\" || exit 1", "60s");
    let server = Server::start(&agent).await;
    let scene = Scene::at(&server.caller(), SHORT).await;
    let pod = scene.pod_is_granted().await;
    let again = scene.caller.open("workstation", LONG).await;
    assert!(matches!(scene.caller.command(acquire(&scene.tree, &again)).await, Answer::Queued { place: 1, .. }));
    scene.release(&pod).await;
    assert_eq!(scene.tree().await.state, "free", "it waits, and is passed over");

    let (tree, side, epoch) = (scene.tree.clone(), "workstation".parse().unwrap(), Epoch::from_raw(1));
    let unfence = Command::Unfence { tree, side, epoch, reason: "it was switched off and on".into(), by_hand: false };
    assert_eq!(scene.caller.command(unfence).await, Answer::Done);
    until("the agent fails to unfence it", || async { agent.calls().len() >= 2 }).await;
    assert_eq!(agent.calls()[1], "unfence workstation 1 2 1 host");
    until("that is told", || async { scene.told("fencing", "failed (unfence workstation)").await }).await;
    assert_eq!(scene.tree().await.state, "free", "it has no access yet");
    agent.make("open");
    until("it is granted", || async { scene.tree().await.holder.is_some_and(|h| h.side == "workstation") }).await;
    assert!(scene.told("unfenced", "given workstation its access back").await);
    assert!(scene.tree().await.fenced.is_empty());
}

#[tokio::test]
async fn an_agent_is_tried_without_a_fence() {
    let agent = Agent::new("echo 'it would work'", "60s");
    let server = Server::start(&agent).await;
    let caller = server.caller();
    let tree = caller.add_tree("dev").await;
    assert_eq!(caller.command(Command::SetPolicy { tree: tree.clone(), policy: pair("fence", "exec:nas") }).await, Answer::Done);
    let session = caller.open("workstation", LONG).await;
    let grant = caller.acquire(&tree, &session).await;
    let test = Command::FenceTest { tree: tree.clone(), side: "workstation".parse().unwrap() };
    assert_eq!(caller.command(test).await, Answer::Done);
    until("its end is told", || async {
        let history = caller.history("dev").await;
        history.iter().any(|e| e.event == "fencing" && e.reason == "test: the agent succeeded: on node 1 (it would work)")
    })
    .await;
    assert_eq!(agent.calls(), ["test workstation 1 0 1 "]);
    assert_eq!(caller.release(&tree, &session, &grant).await, Answer::Done, "its holder has not noticed");
}

#[tokio::test]
async fn an_agent_that_is_not_configured_is_refused_where_it_is_named_and_said_where_it_is_missing() {
    let agent = Agent::new("exit 0", "60s");
    let server = Server::start(&agent).await;
    let caller = server.caller();
    let set = |tree: &TreeId, value: &str| Command::SetPolicy { tree: tree.clone(), policy: pair("fence", value) };
    let tree = caller.add_tree("docs").await;
    let Answer::Refused(refusal) = caller.command(set(&tree, "exec:other")).await else { panic!("there is none") };
    assert_eq!(refusal.code, Code::Config);
    assert!(refusal.message.contains("`other`") && refusal.message.contains("it has: nas"), "{refusal}");
    let name = "more".parse().unwrap();
    let add = Command::AddTree { name, tree: TreeId::random(), policy: pair("fence", "exec:other"), root: None };
    assert_eq!(refused(caller.command(add).await), Code::Config);
    assert_eq!(caller.command(set(&tree, "exec:nas")).await, Answer::Done);

    // The policy stays, the agent's file does not: nobody fences, and each attempt says why, with growing pauses between them.
    std::fs::remove_file(agent.path("agent")).unwrap();
    let scene = Scene::at(&caller, SHORT).await;
    let timer = tokio::time::Instant::now();
    until("it was tried three times", || async {
        scene.caller.history("dev").await.iter().filter(|e| e.reason.contains("cannot be found")).count() >= 3
    })
    .await;
    assert!(timer.elapsed() >= Duration::from_secs(3), "a pause of 1 s, and one of 2 s");
    let tree = scene.tree().await;
    assert_eq!((tree.state.as_str(), tree.fenced.len()), ("fencing", 0), "and nothing was done to anybody");
}

fn pair(key: &str, value: &str) -> Vec<(String, String)> {
    vec![(key.into(), value.into())]
}

fn refused(answer: Answer) -> Code {
    match answer {
        Answer::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

/// A program that writes down how it was called, and then does what the test says; and a configuration that names it `nas`.
struct Agent(TempDir);

impl Agent {
    fn new(script: &str, deadline: &str) -> Self {
        let agent = Self(tempfile::tempdir().unwrap());
        let (path, dir) = (agent.path("agent"), agent.0.path().display().to_string());
        let log = "echo \"$TREELEASE_FENCE_VERB $TREELEASE_FENCE_SIDE $TREELEASE_FENCE_EPOCH $TREELEASE_FENCE_ATTEMPT \
                   $TREELEASE_FENCE_NODE $TREELEASE_FENCE_HOST\" >> \"$DIR/calls\"";
        std::fs::write(&path, format!("#!/bin/sh\nDIR='{dir}'\n{log}\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!("[fence.nas]\ncommand = [\"{}\"]\ndeadline = \"{deadline}\"\n", path.display());
        std::fs::write(agent.config(), config).unwrap();
        agent
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn config(&self) -> PathBuf {
        self.path("server.toml")
    }
    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }
    fn make(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }
    fn calls(&self) -> Vec<String> {
        self.read("calls").lines().map(str::to_owned).collect()
    }
}

/// `workstation` held the tree and is not heard of any more; `pod` waits; the agent `nas` is to fence.
struct Scene {
    caller: Caller,
    tree: TreeId,
    pod: SessionId,
}

impl Scene {
    async fn at(caller: &Caller, ttl: Duration) -> Self {
        let tree = caller.add_tree("dev").await;
        let policy = vec![("fence".into(), "exec:nas".into()), ("grace".into(), "100ms".into())];
        assert_eq!(caller.command(Command::SetPolicy { tree: tree.clone(), policy }).await, Answer::Done);
        let workstation = caller.open("workstation", ttl).await;
        assert_eq!(caller.acquire(&tree, &workstation).await.epoch.get(), 1);
        let pod = caller.open("pod", LONG).await;
        assert!(matches!(caller.command(acquire(&tree, &pod)).await, Answer::Queued { .. }));
        Self { caller: caller.clone(), tree, pod }
    }

    fn seen_from(self, caller: &Caller) -> Self {
        Self { caller: caller.clone(), ..self }
    }

    async fn tree(&self) -> wire::Tree {
        self.caller.status().await.trees.into_iter().find(|tree| tree.name == "dev").unwrap()
    }

    async fn told(&self, event: &str, words: &str) -> bool {
        self.caller.history("dev").await.iter().any(|e| e.event == event && e.reason.contains(words))
    }

    async fn pod_is_granted(&self) -> Grant {
        until("the pod is granted", || async { self.tree().await.holder.is_some_and(|h| h.side == "pod") }).await;
        self.caller.acquire(&self.tree, &self.pod).await
    }

    async fn release(&self, grant: &Grant) {
        assert_eq!(self.caller.release(&self.tree, &self.pod, grant).await, Answer::Done);
    }

    fn attempt(&self, number: u32) -> AttemptRef {
        let (tree, side) = (self.tree.clone(), "workstation".parse().unwrap());
        AttemptRef { tree, side, epoch: Epoch::from_raw(1), number }
    }

    /// As an agent asks.
    async fn stands(&self, number: u32) -> bool {
        match self.caller.command(Command::FenceStands { attempt: self.attempt(number) }).await {
            Answer::Done => true,
            Answer::Ignored { .. } => false,
            other => panic!("{other:?}"),
        }
    }
}

/// One node, as a process.
struct Server {
    child: Child,
    address: String,
    _dir: TempDir,
}

impl Server {
    async fn start(agent: &Agent) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Program::new(env!("CARGO_BIN_EXE_treelease-server"));
        program.args(["--node-id", "1", "--insecure", "--listen", "127.0.0.1:0", "--config"]).arg(agent.config());
        program.arg("--data-dir").arg(dir.path()).env("TREELEASE_LOG", "info,openraft=off");
        let child = program.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let file = &dir.path().join("address");
        until("the server serves", || async move { file.exists() }).await;
        let address = std::fs::read_to_string(file).unwrap().trim().to_owned();
        Self { child, address, _dir: dir }
    }

    fn caller(&self) -> Caller {
        Caller::new(&self.address)
    }

    fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only this child, and only if it still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
