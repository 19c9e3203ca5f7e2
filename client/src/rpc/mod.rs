//! Calls to lease servers: which endpoint, how often, with what limit. The only module that names tonic's client for them.
//!
//! # Promises
//!
//! A change is sent again only under the same request key, so a retry after a lost answer does nothing twice. A change that
//! may have reached a server and brought no answer is [`CallError::Unknown`], never `Unreachable`: only a connection that was
//! never made proves that nothing happened. A renewal is never sent again by itself: its number and send time belong together
//! (I4), and [`crate::session`] decides when the next one goes out. An answer of another cluster is refused (I8).
//!
//! # Does not know
//!
//! What an answer means, and when to renew.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::BoxStream;
use prost::Message;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::words::command::{Answer, Command, Event};
use crate::words::convert::BadMessage;
use crate::words::id::{ClusterId, RequestKey, TreeId};
use crate::words::refusal::{Code, Refusal};
use crate::words::wire;
use crate::words::wire::lease_client::LeaseClient;

mod backup;
mod endpoint;
mod failed;
mod learned;
mod line;
pub mod members;
mod order;
mod renew;
mod status;
#[cfg(test)]
mod tests;
mod watch;

use failed::{Failed, classify};
use order::Order;

pub use endpoint::{DEFAULT_PORT, Endpoint};
pub use learned::LEARNED_MAX;
pub use watch::WatchItem;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// Pings on a connection, and how long one may go unanswered: a partition that healed shows within seconds (STACK 3.3).
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));
/// Pause after all servers were tried in vain: the first, and the longest after doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Rounds over all servers that a read makes before it says that none answers: people wait for it.
const READ_ROUNDS: u32 = 2;
/// The least time that one of several servers gets to answer before the next is tried.
const LEAST_TRY: Duration = Duration::from_millis(500);
/// Bytes of a command that may go over the call that stays open: half of what a server takes in one message. A longer one goes by itself.
const ON_LINE_MAX: usize = 32 * 1024;
/// Largest answer taken: a status of thousands of trees.
const ANSWER_MAX: usize = 16 << 20;

/// A call that brought no answer, or a refusal at the server's door (the state's own refusal is [`Answer::Refused`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// No server was reached; a change has not happened.
    Unreachable {
        /// Whom.
        tried: Vec<String>,
        /// How long.
        waited: Duration,
        /// The last thing that went wrong.
        last: String,
    },
    /// A change was sent and no answer came: it may have happened. Ask again with the same key.
    Unknown {
        /// How long.
        waited: Duration,
        /// The last thing that went wrong.
        last: String,
    },
    /// Denied, not authenticated, another cluster, not understood.
    Refused(Refusal),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Unreachable { tried, last, .. } if tried.is_empty() => f.write_str(last),
            CallError::Unreachable { tried, waited, last } => {
                write!(f, "no lease server answered within {:.1} s (tried {}): {last}", waited.as_secs_f32(), tried.join(", "))
            }
            CallError::Unknown { waited, last } => {
                write!(f, "the outcome is unknown: no answer came within {:.1} s ({last})", waited.as_secs_f32())
            }
            CallError::Refused(refusal) => fmt::Display::fmt(refusal, f),
        }
    }
}

impl std::error::Error for CallError {}

/// A command's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What the state says.
    pub answer: Answer,
    /// Which cluster says so.
    pub cluster: ClusterId,
    /// Of the state after it.
    pub revision: u64,
}

impl Done {
    /// The answer, or the state's refusal ([`Answer::Refused`]) as an error.
    pub fn accepted(self) -> Result<Answer, Refusal> {
        match self.answer {
            Answer::Refused(refusal) => Err(refusal),
            answer => Ok(answer),
        }
    }
}

/// How a connection is made: over this machine's network, unless something else is given.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(&tonic::transport::Endpoint) -> Channel + Send + Sync>);

impl Dial {
    /// Another way.
    pub fn new(connect: impl Fn(&tonic::transport::Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }
}

impl Default for Dial {
    fn default() -> Self {
        Self::new(tonic::transport::Endpoint::connect_lazy)
    }
}

/// The servers of one cluster. Cheap to clone; connects when first used.
#[derive(Clone)]
pub struct Servers {
    inner: Arc<Inner>,
    timeout: Duration,
}

struct Inner {
    source: Source,
    dial: Dial,
    /// One channel for each address ever used: a handful, and those of nodes that have come and gone.
    clients: Mutex<BTreeMap<String, LeaseClient<Channel>>>,
    /// One call for all renewals to one of them.
    renewals: line::Lines<line::Renewals>,
    /// And one for all commands.
    commands: line::Lines<line::Commands>,
    /// Which one is asked first.
    order: Mutex<Order>,
    learned: learned::Learned,
}

enum Source {
    Fixed { endpoints: Vec<Endpoint>, token: Option<String> },
    Embedded { dir: PathBuf },
}

/// A server as it is called now.
#[derive(Clone)]
struct Target {
    address: String,
    client: LeaseClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.endpoints()).finish()
    }
}

impl Servers {
    /// Servers at fixed addresses.
    pub fn new(endpoints: Vec<Endpoint>, token: Option<String>, timeout: Duration) -> Self {
        Self::dialled(endpoints, token, timeout, Dial::default())
    }

    /// The same over another network.
    pub fn dialled(endpoints: Vec<Endpoint>, token: Option<String>, timeout: Duration, dial: Dial) -> Self {
        Self::from(Source::Fixed { endpoints, token }, timeout, dial)
    }

    /// The embedded server of a state directory: address and token are read from its files at each call, since a restart may
    /// move it to another port.
    pub fn embedded(server_dir: PathBuf, timeout: Duration) -> Self {
        Self::from(Source::Embedded { dir: server_dir }, timeout, Dial::default())
    }

    fn from(source: Source, timeout: Duration, dial: Dial) -> Self {
        let inner = Inner {
            source,
            dial,
            clients: Mutex::default(),
            renewals: Default::default(),
            commands: Default::default(),
            order: Mutex::default(),
            learned: Default::default(),
        };
        Self { inner: Arc::new(inner), timeout }
    }

    /// The same servers and connections with another limit per call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { inner: self.inner.clone(), timeout }
    }

    /// The addresses, configured and learned, for messages and markers.
    pub fn endpoints(&self) -> Vec<String> {
        self.everybody().map(|(endpoints, _)| endpoints.iter().map(Endpoint::to_string).collect()).unwrap_or_default()
    }

    /// Whether this is the embedded server of this machine.
    pub fn is_embedded(&self) -> bool {
        matches!(self.inner.source, Source::Embedded { .. })
    }

    /// One change, with a new request key: retried under it until the limit.
    pub async fn do_command(&self, actor: &str, cluster: Option<&ClusterId>, command: Command) -> Result<Done, CallError> {
        self.do_keyed(&RequestKey::random(), actor, cluster, &command).await
    }

    /// One change under the caller's key, for callers that ask again after an unknown outcome.
    pub async fn do_keyed(
        &self,
        key: &RequestKey,
        actor: &str,
        cluster: Option<&ClusterId>,
        command: &Command,
    ) -> Result<Done, CallError> {
        let request = wire::DoRequest {
            request_key: key.to_string(),
            actor: actor.into(),
            cluster: cluster.map(ClusterId::to_string).unwrap_or_default(),
            command: Some(command.into()),
        };
        let answer = self
            .call_following(
                true,
                |answer: &wire::DoAnswer| &answer.leader_at,
                |target, limit| {
                    let (request, lines) = (request.clone(), &self.inner.commands);
                    async move {
                        // A message that is too long would end the call, and leave open what became of the others on it.
                        let answer = match request.encoded_len() <= ON_LINE_MAX {
                            true => lines.ask(&target, request, limit).await,
                            false => lines.ask_alone(&target, request, limit).await,
                        };
                        answer.map(tonic::Response::new)
                    }
                },
            )
            .await?;
        let done = Done {
            answer: answer.answer.ok_or_else(|| bad("answer", "it is missing"))?.try_into().map_err(not_understood)?,
            cluster: answer.cluster.parse().map_err(|e| bad("cluster", e))?,
            revision: answer.revision,
        };
        same_cluster(cluster, &done.cluster)?;
        Ok(done)
    }

    /// The audit trail of a tree, newest last.
    pub async fn history(&self, tree: &TreeId, limit: u32) -> Result<Vec<Event>, CallError> {
        let asked = wire::HistoryRequest { tree: tree.to_string(), limit };
        let answer = self
            .call(false, |mut target, limit| {
                let request = target.request(asked.clone(), limit);
                async move { target.client.history(request).await }
            })
            .await?;
        answer.entries.into_iter().map(|event| event.try_into().map_err(not_understood)).collect()
    }

    /// Events after `since` (0: from now on) of these trees (none named: all). An `Err` tells of an interruption: polled
    /// further, the stream connects again and goes on where it was. It ends after [`CallError::Refused`].
    pub fn watch(&self, since: u64, trees: Vec<TreeId>) -> BoxStream<'static, Result<WatchItem, CallError>> {
        watch::stream(self.clone(), since, trees)
    }

    /// Calls one server after the other until one answers, none will, or the limit has passed. `leader_at` is what an answer says of
    /// the leader's node, which is asked first from then on.
    async fn call_following<T, F>(
        &self,
        changes: bool,
        leader_at: impl Fn(&T) -> &str,
        mut one: impl FnMut(Target, Duration) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let began = Instant::now();
        let (mut pause, mut round, mut sent, mut last) = (BACK_OFF.0, 0, false, String::new());
        loop {
            let targets = match self.targets() {
                Ok(targets) => targets,
                // An embedded server that is being restarted has no address for a moment; a change waits for it.
                Err(e) if !changes || began.elapsed() + pause >= self.timeout => return Err(e),
                Err(_) => Vec::new(),
            };
            for target in &targets {
                let left = self.timeout.saturating_sub(began.elapsed());
                let share = (self.timeout / targets.len() as u32).max(LEAST_TRY);
                let limit = if targets.len() == 1 { left } else { share.min(left) };
                if limit.is_zero() {
                    break;
                }
                let failed = match tokio::time::timeout(limit, one(target.clone(), limit)).await {
                    Ok(Ok(answer)) => {
                        self.prefer_leader(leader_at(answer.get_ref()), &target.address);
                        return Ok(answer.into_inner());
                    }
                    Ok(Err(status)) => classify(&status),
                    Err(_) => {
                        self.doubt(&target.address);
                        Failed::Perhaps("no answer in time".into())
                    }
                };
                match failed {
                    // An earlier try may have been carried out: this refusal is of this try only.
                    Failed::Refused(refusal) if changes && sent => last = refusal.message,
                    Failed::Refused(refusal) => return Err(CallError::Refused(refusal)),
                    Failed::NotSent(text) => {
                        self.doubt(&target.address);
                        last = text;
                    }
                    Failed::Perhaps(text) => (sent, last) = (true, text),
                }
            }
            round += 1;
            let waited = began.elapsed();
            if waited + pause >= self.timeout || (!changes && round >= READ_ROUNDS) {
                return Err(match changes && sent {
                    true => CallError::Unknown { waited, last },
                    false => CallError::Unreachable { tried: targets.into_iter().map(|t| t.address).collect(), waited, last },
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// The servers to try, the leader's node first, as far as that is known; else the one that answered last.
    fn targets(&self) -> Result<Vec<Target>, CallError> {
        let (endpoints, token) =
            self.everybody().map_err(|last| CallError::Unreachable { tried: Vec::new(), waited: Duration::ZERO, last })?;
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose().map_err(|_| {
            CallError::Refused(Refusal::new(Code::Config, "the server's token cannot be sent: it is no plain text"))
        })?;
        let mut clients = self.inner.clients.lock().expect("no panic while the lock is held");
        let mut targets = Vec::new();
        for endpoint in endpoints {
            let address = endpoint.to_string();
            let client = match clients.get(&address) {
                Some(client) => client.clone(),
                None => clients.entry(address.clone()).or_insert(connect(&address, &self.inner.dial)?).clone(),
            };
            targets.push(Target { address, client, token: token.clone() });
        }
        let order = self.order();
        targets.sort_by_key(|target| !order.is_first(&target.address));
        Ok(targets)
    }
}

impl Source {
    fn read(&self) -> Result<(Vec<Endpoint>, Option<String>), String> {
        match self {
            Source::Fixed { endpoints, token } => Ok((endpoints.clone(), token.clone())),
            Source::Embedded { dir } => {
                let away = || format!("the embedded server does not run ({} is missing)", dir.join("address").display());
                let address = std::fs::read_to_string(dir.join("address")).map_err(|_| away())?;
                let endpoint = Endpoint::from_address(address.trim())?;
                let token = crate::config::read_token(&dir.join("token")).map_err(|f| f.message)?;
                Ok((vec![endpoint], Some(token)))
            }
        }
    }
}

impl Target {
    fn request<T>(&self, message: T, limit: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(limit);
        self.authorise(&mut request);
        request
    }

    fn authorise<T>(&self, request: &mut tonic::Request<T>) {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
    }
}

/// A channel that connects when first used, and again whenever it broke.
fn connect(address: &str, dial: &Dial) -> Result<LeaseClient<Channel>, CallError> {
    let endpoint = tonic::transport::Endpoint::from_shared(address.to_string())
        .map_err(|e| CallError::Refused(Refusal::new(Code::Config, format!("{address}: {e}"))))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(LeaseClient::new((dial.0)(&endpoint)).max_decoding_message_size(ANSWER_MAX))
}

/// I8: one storage, one authority. An answer of another cluster counts for nothing.
fn same_cluster(expected: Option<&ClusterId>, answered: &ClusterId) -> Result<(), CallError> {
    match expected {
        Some(expected) if expected != answered => Err(CallError::Refused(Refusal::new(
            Code::Config,
            format!("the server that answered is of cluster {answered}; this side follows cluster {expected}"),
        ))),
        _ => Ok(()),
    }
}

fn not_understood(e: BadMessage) -> CallError {
    CallError::Refused(Refusal::new(Code::Internal, format!("the server's answer was not understood: {e}")))
}

fn bad(field: &str, why: impl fmt::Display) -> CallError {
    CallError::Refused(Refusal::new(Code::Internal, format!("the server's answer was not understood: `{field}`: {why}")))
}
