//! One call for many renewals, as a test makes it.
#![allow(dead_code)] // each test file uses a part

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use treelease_proto::id::SessionId;
use treelease_proto::wire;
use treelease_proto::wire::lease_client::LeaseClient;
use treelease_proto::wire::renewal_answered::Word;

/// Longest wait for an answer: nothing here is a matter of speed.
const LIMIT: Duration = Duration::from_secs(60);

/// An open call.
pub struct Renewing {
    asks: mpsc::Sender<wire::RenewalsAsked>,
    answers: Streaming<wire::RenewalsAnswered>,
    tag: u64,
}

impl Renewing {
    /// Opens one, over a connection of its own.
    pub async fn to(address: &str, token: Option<&str>) -> Result<Self, Status> {
        Self::over(&connection(address), token).await
    }

    /// Over this connection.
    pub async fn over(client: &LeaseClient<Channel>, token: Option<&str>) -> Result<Self, Status> {
        let (asks, queue) = mpsc::channel(1_024);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let answers = client.clone().renewals(request).await?.into_inner();
        Ok(Self { asks, answers, tag: 0 })
    }

    /// Puts them on their way, in one message.
    pub fn say(&self, asked: Vec<wire::RenewalAsked>) {
        self.asks.try_send(wire::RenewalsAsked { asked }).expect("the call is open");
    }

    /// Puts one on its way, with a tag of its own.
    pub fn ask(&mut self, renewal: wire::RenewRequest, limit: Duration) -> u64 {
        self.tag += 1;
        self.say(vec![wire::RenewalAsked { tag: self.tag, limit_ms: limit.as_millis() as u64, renewal: Some(renewal) }]);
        self.tag
    }

    /// What comes next: answers, or how the call ends.
    pub async fn next(&mut self) -> Result<Vec<wire::RenewalAnswered>, Status> {
        let next = timeout(LIMIT, self.answers.message()).await.unwrap_or_else(|_| panic!("nothing came within {LIMIT:?}"))?;
        next.map(|message| message.answered).ok_or_else(|| Status::ok("the end"))
    }

    /// The answer with that tag; what comes before it has been given up.
    pub async fn answer(&mut self, tag: u64) -> Result<wire::RenewAnswer, Status> {
        loop {
            let answered = self.next().await?;
            if let Some(one) = answered.into_iter().find(|one| one.tag == tag) {
                return said(one);
            }
        }
    }

    /// One renewal.
    pub async fn renew(&mut self, renewal: wire::RenewRequest) -> Result<wire::RenewAnswer, Status> {
        let tag = self.ask(renewal, Duration::ZERO);
        self.answer(tag).await
    }
}

/// A connection that several calls can share.
pub fn connection(address: &str) -> LeaseClient<Channel> {
    LeaseClient::new(Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy())
}

/// What was said of one.
pub fn said(answered: wire::RenewalAnswered) -> Result<wire::RenewAnswer, Status> {
    match answered.word.expect("a word") {
        Word::Renewed(answer) => Ok(answer),
        Word::Failed(failed) => Err(Status::new(Code::from(failed.code as i32), failed.message)),
    }
}

/// A session's own, without a nonce.
pub fn of(session: &SessionId, number: u64) -> wire::RenewRequest {
    wire::RenewRequest { session: session.to_string(), incarnation: 1, number, ..Default::default() }
}
