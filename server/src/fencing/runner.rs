//! Runs one agent, behind its watchdog, and says how it ended.
//!
//! Promises: an end is told for every run, soon after its deadline at the latest. What could not be started, or says so by exit code
//! 75, has done nothing; 0 is success; all else may have done something. The agent gets nothing of this process but what is listed
//! here: no descriptor, no variable. It does not know whether the attempt still counts: the replicated state does.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout, timeout_at};
use treelease_proto::clock::{Clock, SideClock};
use treelease_proto::command::Outcome;
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{NodeId, SideName, TreeId, TreeName};

use super::agents::{Agents, usable};
use super::watchdog::{ARGUMENT, Word};
use crate::lease::{FenceDue, TrialDue};

/// By this exit code an agent says that it did nothing (EX_TEMPFAIL; also `fence still-wanted`'s "no").
pub const NOTHING_DONE: i32 = 75;
/// How long a watchdog may take, beyond the deadline, to kill and to say so.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What is kept of an agent's output: its last lines.
const TAIL_MAX: usize = 4096;
/// How long its output is still read when it has ended: something else may hold its descriptors.
const TAIL_LIMIT: Duration = Duration::from_millis(500);
/// Most of its last line that the history keeps, in characters.
const DETAIL_MAX: usize = 200;
/// Variables of ours that an agent gets too.
const PASSED_ON: [&str; 5] = ["HOME", "LANG", "LC_ALL", "TZ", "TREELEASE_LOG"];
/// Where programs are looked for, if this process does not know.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Run {
    /// Which agent.
    pub agent: String,
    /// What it is to do.
    pub verb: &'static str,
    /// On which tree.
    pub tree: TreeId,
    /// Its name.
    pub name: TreeName,
    /// Against whom.
    pub side: SideName,
    /// That side's host, as its daemon said.
    pub host: String,
    /// Whose unclean end.
    pub epoch: Epoch,
    /// Of the attempt; 0 for a trial.
    pub attempt: u32,
}

impl From<&FenceDue> for Run {
    fn from(due: &FenceDue) -> Self {
        let of = due.attempt.clone();
        let (agent, name, host) = (due.agent.clone(), due.name.clone(), due.host.clone());
        Self { agent, verb: due.verb.as_str(), tree: of.tree, name, side: of.side, host, epoch: of.epoch, attempt: of.number }
    }
}

impl From<&TrialDue> for Run {
    fn from(due: &TrialDue) -> Self {
        let due = due.clone();
        let (tree, name, side, epoch) = (due.tree, due.name, due.side, due.epoch);
        Self { agent: due.agent, verb: "test", tree, name, side, host: String::new(), epoch, attempt: 0 }
    }
}

/// What this node runs agents with.
#[derive(Debug)]
pub struct Runner {
    configured: RwLock<Configured>,
    node: NodeId,
    endpoint: String,
}

/// What of it may change while the node runs. A run goes on with what it began with.
#[derive(Debug, Clone)]
struct Configured {
    agents: Arc<Agents>,
    token_file: Option<PathBuf>,
}

impl Runner {
    /// Agents of this node. `endpoint`: where this node can be asked whether an attempt still stands, as HOST:PORT.
    pub fn new(agents: Agents, node: NodeId, endpoint: String, token_file: Option<PathBuf>) -> Self {
        let configured = Configured { agents: Arc::new(agents), token_file };
        Self { configured: RwLock::new(configured), node, endpoint }
    }

    /// From now on these.
    pub fn change(&self, agents: Agents, token_file: Option<PathBuf>) {
        let configured = Configured { agents: Arc::new(agents), token_file };
        *self.configured.write().expect("nothing panics while it holds what is configured") = configured;
    }

    fn configured(&self) -> Configured {
        self.configured.read().expect("nothing panics while it holds what is configured").clone()
    }

    /// What this node can run.
    pub fn agents(&self) -> Arc<Agents> {
        self.configured().agents
    }

    /// How long an attempt may take; zero, where there is nothing to run.
    pub fn deadline(&self, agent: &str) -> Duration {
        self.agents().get(agent).map_or(Duration::ZERO, |agent| agent.deadline)
    }

    /// The moment that is so far away, on the clock of watchdogs. Read it before the attempt is proposed.
    pub fn until(&self, deadline: Duration) -> Duration {
        SideClock::new().now().elapsed.saturating_add(deadline)
    }

    /// Runs it; how it ended, and a word for people.
    pub async fn run(&self, due: &Run, until: Duration) -> (Outcome, String) {
        let node = self.node;
        let Configured { agents, token_file } = self.configured();
        let Some(agent) = agents.get(&due.agent) else {
            let names = agents.names();
            let why =
                format!("node {node} has no agent of that name (it has: {names}): its configuration needs [fence.{}]", due.agent);
            return (Outcome::Untouched, why);
        };
        if let Err(why) = usable(&agent.program) {
            return (Outcome::Untouched, format!("on node {node}, {why}"));
        }
        let left = until.saturating_sub(SideClock::new().now().elapsed);
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).arg(until.as_micros().to_string()).arg(&agent.program).args(&agent.args);
        command.env_clear().envs(self.environment(due, left, token_file)).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => return (Outcome::Untouched, format!("on node {node}, its watchdog cannot be started: {e}")),
        };
        let (said, output) = (child.stdout.take(), child.stderr.take());
        let limit = Instant::now() + left + KILL_LIMIT;
        let word = tokio::spawn(tail(said));
        let output = tokio::spawn(tail(output));
        if timeout_at(limit, child.wait()).await.is_err() {
            return (Outcome::Failed, format!("on node {node}, it could not be killed at its deadline"));
        }
        let heard = |task| async move { timeout(TAIL_LIMIT, task).await.ok().and_then(Result::ok).unwrap_or_default() };
        let (word, output) = (heard(word).await, heard(output).await);
        for line in output.lines() {
            tracing::info!(tree = %due.name, side = %due.side, verb = due.verb, attempt = due.attempt, "{}: {line}", due.agent);
        }
        judged(Word::parse(&word), &output, node, agent.deadline)
    }

    /// Everything that an agent is told.
    fn environment(&self, due: &Run, left: Duration, token_file: Option<PathBuf>) -> Vec<(String, String)> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut path = variable("PATH").unwrap_or_else(|| PATH.into());
        // The command line lies beside the server: an agent asks with it whether it is still wanted.
        if let Some(dir) = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.display().to_string())) {
            path = format!("{path}:{dir}");
        }
        let mut all: Vec<(String, String)> =
            PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), variable(name)?))).collect();
        let ours = [
            ("PATH", path),
            ("TREELEASE_FENCE_VERB", due.verb.to_owned()),
            ("TREELEASE_FENCE_TREE", due.name.to_string()),
            ("TREELEASE_FENCE_TREE_ID", due.tree.to_string()),
            ("TREELEASE_FENCE_SIDE", due.side.to_string()),
            ("TREELEASE_FENCE_HOST", due.host.clone()),
            ("TREELEASE_FENCE_EPOCH", due.epoch.to_string()),
            ("TREELEASE_FENCE_ATTEMPT", due.attempt.to_string()),
            ("TREELEASE_FENCE_DEADLINE", left.as_secs().max(1).to_string()),
            ("TREELEASE_FENCE_NODE", self.node.to_string()),
            ("TREELEASE_ENDPOINTS", format!("http://{}", self.endpoint)),
        ];
        all.extend(ours.map(|(name, value)| (name.to_owned(), value)));
        if let Some(file) = token_file {
            all.push(("TREELEASE_TOKEN_FILE".into(), file.display().to_string()));
        }
        all
    }
}

/// What an agent's end means.
fn judged(word: Option<Word>, output: &str, node: NodeId, deadline: Duration) -> (Outcome, String) {
    let last: String =
        output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().chars().take(DETAIL_MAX).collect();
    let said = |what: String| match last.is_empty() {
        true => what,
        false => format!("{what} ({last})"),
    };
    match word {
        Some(Word::Exited(0)) => (Outcome::Succeeded, said(format!("on node {node}"))),
        Some(Word::Exited(NOTHING_DONE)) => (Outcome::Untouched, said(format!("on node {node}, exit code {NOTHING_DONE}"))),
        Some(Word::Exited(code)) => (Outcome::Failed, said(format!("on node {node}, exit code {code}"))),
        Some(Word::Signalled(signal)) => (Outcome::Failed, said(format!("on node {node}, ended by signal {signal}"))),
        Some(Word::Deadline) => {
            let length = treelease_proto::time::format_duration(deadline);
            (Outcome::Failed, said(format!("on node {node}, killed at its deadline, {length}")))
        }
        Some(Word::Late) => (Outcome::Untouched, format!("on node {node}, its deadline had passed before it could begin")),
        Some(Word::Cannot(why)) => (Outcome::Untouched, format!("on node {node}, {why}")),
        None => (Outcome::Failed, said(format!("on node {node}, its watchdog was killed"))),
    }
}

/// The last of what comes, until it ends.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept: Vec<u8> = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..n]);
        if kept.len() > 2 * TAIL_MAX {
            kept.drain(..kept.len() - TAIL_MAX);
        }
    }
    let from = kept.len().saturating_sub(TAIL_MAX);
    String::from_utf8_lossy(&kept[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exit_code_0_is_success_and_only_what_certainly_did_nothing_is_untouched() {
        let judge = |word| judged(word, "first\nlast words\n\n", 1, Duration::from_secs(30));
        assert_eq!(judge(Some(Word::Exited(0))), (Outcome::Succeeded, "on node 1 (last words)".into()));
        for untouched in [Word::Exited(75), Word::Late, Word::Cannot("it is not there".into())] {
            assert_eq!(judge(Some(untouched.clone())).0, Outcome::Untouched, "{untouched:?}");
        }
        for failed in [Some(Word::Exited(1)), Some(Word::Signalled(15)), Some(Word::Deadline), None] {
            assert_eq!(judge(failed.clone()).0, Outcome::Failed, "{failed:?}");
        }
        assert!(judge(Some(Word::Deadline)).1.contains("30s"));
    }

    #[tokio::test]
    async fn of_a_long_output_the_end_is_kept() {
        let long = "x".repeat(100_000) + "\nthe end";
        let kept = tail(Some(long.as_bytes())).await;
        assert!(kept.len() <= TAIL_MAX && kept.ends_with("the end"), "{}", kept.len());
    }
}
