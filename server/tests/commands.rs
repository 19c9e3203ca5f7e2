//! Commands over one call that stays open: each of them is what a call of its own would be.

#[path = "common/alone.rs"]
mod alone;
mod common;
#[path = "common/http.rs"]
mod http;

use std::time::Duration;

use alone::{metric, node, tokens};
use common::{Caller, acquire, do_request, open_session, until};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use treelease_proto::command::Command;
use treelease_proto::id::{ClusterId, SessionId, TreeId};
use treelease_proto::wire;
use treelease_proto::wire::command_answered::Word;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_server::config::Config;
use treelease_server::limits::Limits;

/// Longest wait for an answer: nothing here is a matter of speed.
const LIMIT: Duration = Duration::from_secs(60);
/// Nothing ends by itself.
const TTL: Duration = Duration::from_secs(600);

/// An open call.
struct Commanding {
    asks: mpsc::Sender<wire::CommandsAsked>,
    answers: Streaming<wire::CommandsAnswered>,
}

impl Commanding {
    async fn to(address: &str, token: Option<&str>) -> Result<Self, Status> {
        let (asks, queue) = mpsc::channel(1_024);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = LeaseClient::connect(format!("http://{address}")).await.unwrap();
        Ok(Self { asks, answers: client.commands(request).await?.into_inner() })
    }

    fn say(&self, commands: Vec<Option<wire::DoRequest>>) {
        let asked = (1..).zip(commands).map(|(tag, command)| wire::CommandAsked { tag, limit_ms: 0, command }).collect();
        self.asks.try_send(wire::CommandsAsked { asked }).expect("the call is open");
    }

    /// What comes next; none: the call has ended in order.
    async fn next(&mut self) -> Result<Option<Vec<wire::CommandAnswered>>, Status> {
        let next = timeout(LIMIT, self.answers.message()).await.unwrap_or_else(|_| panic!("nothing came within {LIMIT:?}"))?;
        Ok(next.map(|message| message.answered))
    }

    /// So many answers, in the order of their tags: what each was failed with, or whether its answer was a refusal.
    async fn answers(&mut self, many: usize) -> Vec<Result<bool, Code>> {
        let mut all = Vec::new();
        while all.len() < many {
            all.extend(self.next().await.unwrap().expect("the call goes on"));
        }
        all.sort_by_key(|one| one.tag);
        assert!(all.iter().map(|one| one.tag).eq(1..=many as u64), "one answer for each");
        let said = |one: wire::CommandAnswered| match one.word.expect("a word") {
            Word::Failed(failed) => Err(Code::from(failed.code as i32)),
            Word::Done(done) => Ok(matches!(done.answer.unwrap().kind, Some(wire::answer::Kind::Refused(_)))),
        };
        all.into_iter().map(said).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_of_an_open_call_is_answered_or_fails_by_itself_and_is_counted() {
    let (_dir, _, node) = node(|config| config).await;
    let caller = Caller::new(node.address());
    let (session, tree) = (caller.open("workstation", TTL).await, caller.add_tree("dev").await);
    let mut call = Commanding::to(node.address(), None).await.unwrap();
    let name = "treelease_failed_calls_total{code=\"failed_precondition\"}";
    assert_eq!(metric(&node, name).await, 0.0);
    let stranger =
        wire::DoRequest { cluster: ClusterId::random().to_string(), ..do_request(&acquire(&tree, &SessionId::random())) };
    let lead = do_request(&Command::Lead { node: 1 });
    let no_word = wire::DoRequest { request_key: String::new(), ..do_request(&acquire(&tree, &session)) };
    call.say(vec![
        Some(do_request(&acquire(&tree, &session))),
        None,
        Some(stranger),
        Some(lead),
        Some(no_word),
        Some(do_request(&acquire(&TreeId::random(), &session))),
        Some(do_request(&open_session("pod", TTL))),
    ]);
    let bad = Err(Code::InvalidArgument);
    assert_eq!(call.answers(7).await, [Ok(false), bad, Err(Code::FailedPrecondition), Ok(true), bad, Ok(true), Ok(false)]);
    assert_eq!(metric(&node, name).await, 1.0);
    assert_eq!(caller.status().await.trees[0].state, "held");

    // The same once more, under its key, is the same.
    let again = do_request(&acquire(&tree, &session));
    call.say(vec![Some(again.clone()), Some(again)]);
    assert_eq!(call.answers(2).await, [Ok(false), Ok(false)]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_a_token_that_is_taken_out_are_told_so_each_and_not_carried_out() {
    let (_dir, config, mut node) = node(|config| tokens(config, ["old", "new"])).await;
    assert_eq!(Commanding::to(node.address(), None).await.err().unwrap().code(), Code::Unauthenticated);
    let mut old = Commanding::to(node.address(), Some("old")).await.unwrap();
    old.say(vec![Some(do_request(&open_session("workstation", TTL)))]);
    assert_eq!(old.answers(1).await, [Ok(false)]);
    node.reload(tokens(config, ["new", "newer"])).unwrap();
    old.say(vec![Some(do_request(&open_session("pod", TTL))), Some(do_request(&open_session("laptop", TTL)))]);
    assert_eq!(old.answers(2).await, [Err(Code::Unauthenticated); 2]);
    assert_eq!(old.next().await.unwrap(), None, "and the call has ended");
    let sessions = Caller::new(node.address()).with_token("new").status().await.sessions;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_in_a_message_ends_the_call_and_calls_beyond_the_limit_are_refused() {
    let (_dir, _, node) = node(|config| Config { limits: Limits { connections: 32, ..Limits::default() }, ..config }).await;
    let mut call = Commanding::to(node.address(), None).await.unwrap();
    call.say(vec![None; 257]);
    assert_eq!(call.next().await.unwrap_err().code(), Code::InvalidArgument);
    drop(call);
    until("nothing is left of it", || async { metric(&node, "treelease_command_streams").await == 0.0 }).await;
    let mut client = LeaseClient::connect(format!("http://{}", node.address())).await.unwrap();
    let (mut open, mut queues) = (Vec::new(), Vec::new());
    let refused = loop {
        let (asks, queue) = mpsc::channel(1);
        queues.push(asks);
        match client.commands(Request::new(ReceiverStream::new(queue))).await {
            Ok(answers) => open.push(answers),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), open.len()), (Code::ResourceExhausted, 32));
    let own = client.r#do(do_request(&open_session("pod", TTL))).await;
    assert!(own.is_ok(), "those of their own go on: {own:?}");
    drop((open, queues, client));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_end_answers_what_is_under_way_and_ends_the_call_in_order() {
    let (_dir, _, node) = node(|config| config).await;
    let mut call = Commanding::to(node.address(), None).await.unwrap();
    call.say(vec![Some(do_request(&open_session("pod", TTL)))]);
    assert_eq!(call.answers(1).await, [Ok(false)]);
    let stopped = tokio::spawn(node.stop());
    assert_eq!(call.next().await.unwrap(), None, "a broken call would leave open what became of a command");
    stopped.await.unwrap();
}
