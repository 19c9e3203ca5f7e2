//! A caller of one node, and the few words that most tests say.
#![allow(dead_code)] // each test file uses a part

use std::future::Future;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Status};
use treelease_proto::command::{Acquire, Answer, Command, Grant, LeaseRef, OpenSession, Release};
use treelease_proto::id::{RequestKey, SessionId, SideName, TreeId};
use treelease_proto::time::Ttl;
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_proto::wire::members_request::Change;

/// Longest wait of any test for anything.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Polls until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + WAIT_MAX;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "not in {WAIT_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A caller.
#[derive(Clone)]
pub struct Caller {
    client: LeaseClient<Channel>,
    token: Option<String>,
}

impl Caller {
    pub fn new(address: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().connect_timeout(Duration::from_secs(2));
        let client = LeaseClient::new(endpoint.connect_lazy()).max_decoding_message_size(64 << 20);
        Self { client, token: None }
    }

    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }

    pub async fn ask(&self, request: wire::DoRequest) -> Result<Answer, Status> {
        let request = self.request(request);
        let done = self.client.clone().r#do(request).await?.into_inner();
        Ok(Answer::try_from(done.answer.unwrap()).unwrap())
    }

    pub async fn try_command(&self, command: &Command) -> Result<Answer, Status> {
        self.ask(do_request(command)).await
    }

    pub async fn command(&self, command: Command) -> Answer {
        self.try_command(&command).await.unwrap()
    }

    pub async fn try_renew(&self, request: wire::RenewRequest) -> Result<wire::RenewAnswer, Status> {
        Ok(self.client.clone().renew(self.request(request)).await?.into_inner())
    }

    pub async fn renew(&self, session: &SessionId, number: u64, nonce: u64) -> wire::RenewAnswer {
        let session = session.to_string();
        self.try_renew(wire::RenewRequest { session, incarnation: 1, number, nonce, ..Default::default() }).await.unwrap()
    }

    pub async fn status(&self) -> wire::StatusAnswer {
        self.client.clone().status(self.request(wire::StatusRequest {})).await.unwrap().into_inner()
    }

    pub async fn try_status(&self) -> Result<wire::StatusAnswer, Status> {
        Ok(self.client.clone().status(self.request(wire::StatusRequest {})).await?.into_inner())
    }

    pub async fn status_in_pieces(&self, bytes: u32) -> tonic::Streaming<wire::StatusPiece> {
        let request = self.request(wire::StatusPiecesRequest { bytes, trees: Vec::new() });
        self.client.clone().status_in_pieces(request).await.unwrap().into_inner()
    }

    /// All pieces, of these trees alone if there are any.
    pub async fn status_of(&self, trees: &[&str]) -> Result<Vec<wire::StatusPiece>, Status> {
        let trees = trees.iter().map(ToString::to_string).collect();
        let request = self.request(wire::StatusPiecesRequest { bytes: 0, trees });
        let mut pieces = self.client.clone().status_in_pieces(request).await?.into_inner();
        let mut told = Vec::new();
        while let Some(piece) = pieces.message().await? {
            told.push(piece);
        }
        Ok(told)
    }

    pub async fn history(&self, tree: &str) -> Vec<wire::Event> {
        let request = self.request(wire::HistoryRequest { tree: tree.into(), limit: 0 });
        self.client.clone().history(request).await.unwrap().into_inner().entries
    }

    /// One call: as far as it gets.
    pub async fn change_members(&self, change: &Change) -> Result<wire::MembersAnswer, Status> {
        let request = wire::MembersRequest { actor: "a test".into(), change: Some(change.clone()), ..Default::default() };
        let mut request = self.request(request);
        request.set_timeout(Duration::from_secs(5));
        Ok(self.client.clone().change_members(request).await?.into_inner())
    }

    pub async fn watch(&self, since: u64, trees: &[&str]) -> tonic::Streaming<wire::WatchAnswer> {
        let request = wire::WatchRequest { since, trees: trees.iter().map(ToString::to_string).collect() };
        self.client.clone().watch(self.request(request)).await.unwrap().into_inner()
    }

    pub async fn try_watch(&self) -> Result<tonic::Streaming<wire::WatchAnswer>, Status> {
        let request = self.request(wire::WatchRequest { since: 0, trees: vec![] });
        Ok(self.client.clone().watch(request).await?.into_inner())
    }

    pub async fn open(&self, side: &str, ttl: Duration) -> SessionId {
        match self.command(open_session(side, ttl)).await {
            Answer::Opened { session, resumed: false, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    pub async fn add_tree(&self, name: &str) -> TreeId {
        let tree = TreeId::random();
        let command = Command::AddTree { name: name.parse().unwrap(), tree: tree.clone(), policy: vec![], root: None };
        assert!(matches!(self.command(command).await, Answer::TreeAdded { .. }));
        tree
    }

    pub async fn acquire(&self, tree: &TreeId, session: &SessionId) -> Grant {
        match self.command(acquire(tree, session)).await {
            Answer::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    pub async fn release(&self, tree: &TreeId, session: &SessionId, grant: &Grant) -> Answer {
        self.command(release(tree, session, grant)).await
    }
}

pub fn do_request(command: &Command) -> wire::DoRequest {
    wire::DoRequest {
        request_key: RequestKey::random().to_string(),
        actor: "a test".into(),
        cluster: String::new(),
        command: Some(command.into()),
    }
}

pub fn open_session(side: &str, ttl: Duration) -> Command {
    Command::OpenSession(OpenSession {
        side: side.parse::<SideName>().unwrap(),
        host: "host".into(),
        ttl: Ttl::new(ttl),
        new_session: SessionId::random(),
        new_secret_digest: vec![7; 32],
        resume: None,
        boot: "boot".into(),
        machine: String::new(),
    })
}

pub fn acquire(tree: &TreeId, session: &SessionId) -> Command {
    Command::Acquire(Acquire {
        tree: tree.clone(),
        session: session.clone(),
        ask: false,
        first_write: false,
        no_wait: false,
        note: "for a test".into(),
        place: None,
    })
}

pub fn release(tree: &TreeId, session: &SessionId, grant: &Grant) -> Command {
    let lease = LeaseRef { tree: tree.clone(), session: session.clone(), epoch: grant.epoch };
    Command::Release(Release { lease, files: 3, bytes: 4096, late_refused: 0, to: None, note: "done".into() })
}

/// `cluster add`.
pub fn add_node(node: u64, addr: &str) -> Change {
    Change::Add(wire::AddNode { node, addr: addr.into() })
}

/// `cluster remove`.
pub fn remove_node(node: u64) -> Change {
    Change::Remove(wire::RemoveNode { node })
}
