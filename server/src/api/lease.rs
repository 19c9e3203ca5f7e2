//! Do and History: from the wire to a word, to the state, and back.
//!
//! Promises: what only the server itself may propose is refused here and never logged; a failed call says by its code
//! whether the command may have happened (see [`super`]). It decides nothing about leases.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Status;
use treelease_proto::command::{Answer, Command, Event, Proposal};
use treelease_proto::convert::TEXT_MAX;
use treelease_proto::id::{RequestKey, TreeId, TreeName};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::wire;
use treelease_proto::wire::forward_answer::Kind;
use treelease_proto::wire::forward_request::Call;

use super::Service;
use super::peers::Word;
use crate::consensus::proposer::ProposeError;
use crate::lease::State;
use crate::limits;

/// How long a forwarded command's caller waits, at most, until this node has applied what the leader has: so that whoever
/// asks this node next sees what it was just told.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(1);
/// Entries of a history, if the caller does not say how many.
const HISTORY_DEFAULT: usize = 100;
/// Entries of a history at most: what the state keeps.
const HISTORY_MAX: usize = 1_000;

impl Service {
    /// Here if this node leads, else at the leader's.
    pub(super) async fn do_command(&self, request: wire::DoRequest, limit: Duration) -> Result<wire::DoAnswer, Status> {
        let until = Instant::now() + limit;
        let call = request.clone();
        match self.propose(request, limit).await? {
            Ok(answer) => Ok(answer),
            Err(ProposeError::NotLeading { leader: Some(leader) }) => {
                let left = until.saturating_duration_since(Instant::now());
                match self.ask_leader(leader, Call::Do(call), left).await {
                    Word::Said(Kind::Done(done)) => {
                        self.catch_up(done.revision, until).await;
                        Ok(done)
                    }
                    Word::No(status) => Err(status),
                    Word::Said(_) => Err(status_of(&ProposeError::OutcomeUnknown("the answer is of another version".into()))),
                    Word::Unknown(why) => Err(status_of(&ProposeError::OutcomeUnknown(why))),
                }
            }
            Err(e) => Err(status_of(&e)),
        }
    }

    /// Another node has sent it here: carried out, or answered with a reason.
    pub(super) async fn do_here(&self, request: wire::DoRequest, limit: Duration) -> Result<wire::DoAnswer, Status> {
        self.ready()?;
        self.propose(request, limit.min(super::CALL_LIMIT)).await?.map_err(|e| status_of(&e))
    }

    async fn propose(&self, request: wire::DoRequest, limit: Duration) -> Result<Result<wire::DoAnswer, ProposeError>, Status> {
        self.same_cluster(&request.cluster)?;
        let request_key: RequestKey =
            request.request_key.parse().map_err(|e| Status::invalid_argument(format!("request_key: {e}")))?;
        let command = request.command.ok_or_else(|| Status::invalid_argument("command: it is missing"))?;
        let command = Command::try_from(command).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(name) = command.servers_own() {
            let refusal = Refusal::new(Code::Denied, format!("only a server proposes `{name}`"));
            return Ok(Ok(self.answer(&Answer::Refused(refusal))));
        }
        if let Some(name) = self.api.runner.agents().unknown_in(&command) {
            // The leader would run it, so its configuration counts.
            if !self.api.consensus.leads() {
                return Ok(Err(ProposeError::NotLeading { leader: self.api.consensus.leader_elsewhere() }));
            }
            return Ok(Ok(self.answer(&Answer::Refused(self.no_such_agent(name)))));
        }
        let until = Instant::now() + limit;
        match self.limited(&command, &request_key, limit).await {
            Ok(None) => {}
            Ok(Some(refusal)) => {
                self.api.counts.limited.add();
                return Ok(Ok(self.answer(&Answer::Refused(refusal))));
            }
            Err(e) => return Ok(Err(e)),
        }
        let limit = until.saturating_duration_since(Instant::now());
        let actor = request.actor.chars().take(TEXT_MAX).collect();
        let proposal = Proposal { request_key, actor, at: self.api.clock.wall(), command };
        let answer = self.api.consensus.propose(proposal, limit).await;
        if answer.is_ok() {
            self.api.counts.commands.add();
        }
        Ok(answer.map(|answer| self.answer(&answer)))
    }

    /// Why this node's limits do not let that command through, if it leads. As with agents the leader's count; who does not lead
    /// sends it on.
    async fn limited(&self, command: &Command, key: &RequestKey, limit: Duration) -> Result<Option<Refusal>, ProposeError> {
        let limits = self.api.limits.get();
        if !limits.concern(command) || !self.api.consensus.leads() {
            return Ok(None);
        }
        let look = || limits.refuses(command, key, &self.api.consensus.state());
        if look().is_none() {
            return Ok(None);
        }
        // Its own first try may be on its way.
        let (request_key, actor, at) = (RequestKey::random(), "the limits".to_owned(), self.api.clock.wall());
        self.api.consensus.propose(Proposal { request_key, actor, at, command: limits::nothing() }, limit).await?;
        Ok(look())
    }

    fn no_such_agent(&self, name: &str) -> Refusal {
        let (node, names) = (self.api.consensus.node(), self.api.runner.agents().names());
        let why = format!(
            "no fence agent is configured under the name `{name}` on node {node}, which leads (it has: {names}): give every node \
             [fence.{name}] in its configuration, or use fence=manual or fence=none"
        );
        Refusal::new(Code::Config, why)
    }

    async fn catch_up(&self, revision: u64, until: Instant) {
        let mut applied = self.api.consensus.applied();
        let until = until.min(Instant::now() + CATCH_UP_LIMIT);
        while self.api.consensus.state().revision() < revision {
            // Too slow is no failure: the answer is the leader's.
            if !matches!(timeout_at(until, applied.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    fn answer(&self, answer: &Answer) -> wire::DoAnswer {
        let mut message = wire::Answer::from(answer);
        // The state's answer to `OpenSession` does not carry the cluster: which one this is, is the node's to say (I8).
        if let Some(wire::answer::Kind::Opened(opened)) = &mut message.kind {
            opened.cluster = self.cluster().to_string();
        }
        let revision = self.api.consensus.state().revision();
        // Who made the answer leads, as a rule; of an answer that was passed on it is the leader's word.
        let leader_at = if self.api.consensus.leads() { self.api.consensus.own_address() } else { String::new() };
        wire::DoAnswer { answer: Some(message), cluster: self.cluster().to_string(), revision, leader_at }
    }

    pub(super) fn tree_history(&self, request: wire::HistoryRequest) -> Result<wire::HistoryAnswer, Status> {
        let limit = match request.limit as usize {
            0 => HISTORY_DEFAULT,
            n => n.min(HISTORY_MAX),
        };
        let standing = self.api.consensus.standing();
        let state = self.api.consensus.state();
        let tree = find_tree(&state, &request.tree)?;
        let (events, revision): (Vec<Event>, u64) = (state.history(&tree, limit), state.revision());
        drop(state);
        Ok(wire::HistoryAnswer {
            tree: tree.to_string(),
            entries: events.iter().map(wire::Event::from).collect(),
            revision,
            quorum: standing.quorum,
            age_ms: standing.age.map(|age| age.as_millis() as u64),
        })
    }
}

/// A tree by its id or its name.
fn find_tree(state: &State, text: &str) -> Result<TreeId, Status> {
    // Of a removed tree there is the history still.
    if let Ok(id) = text.parse::<TreeId>()
        && (state.tree(&id).is_some() || state.tombstone(&id).is_some())
    {
        return Ok(id);
    }
    let name: TreeName = text.parse().map_err(|e| Status::invalid_argument(format!("tree: {e}")))?;
    let id = state.tree_named(&name).or_else(|| state.removed_named(&name)).cloned();
    id.ok_or_else(|| Status::not_found(format!("there is no tree `{name}`; `treelease tree list` shows those that are")))
}

fn status_of(error: &ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::NotLeading { .. } | ProposeError::NoQuorum | ProposeError::Stopping => Status::unavailable(text),
        ProposeError::Overloaded => Status::resource_exhausted(text),
        ProposeError::TooLarge(_) | ProposeError::Unreadable(_) => Status::invalid_argument(text),
        ProposeError::OutcomeUnknown(_) => Status::deadline_exceeded(text),
    }
}
