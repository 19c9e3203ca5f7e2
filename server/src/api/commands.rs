//! Commands of a side over one call that stays open ([`super::talk`]).
//!
//! Promises: each command is what a call of its own would be ([`super::lease`]): a failed one says by its code whether it may have
//! happened, and no other command is failed with it. When the node ends, those under way are answered before the call is: else nobody could
//! say what became of them. *Why the calls:* one of its own costs caller and server as much as the agreement (headers, a
//! task, its end), and a daemon has many.
//!
//! It does not know what a command means.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;
use tonic::Status;
use treelease_proto::wire;
use treelease_proto::wire::command_answered::Word;

use super::talk::{Speaker, Step};
use super::{Service, time_given};
use crate::limits::Seats;

/// Commands of one call that are worked on at the same time; more wait in the caller's window.
const UNDER_WAY_MAX: usize = 256;

/// A side.
pub(super) struct Commands;

impl Speaker for Commands {
    type Asked = wire::CommandsAsked;
    type Answered = wire::CommandsAnswered;
    type One = wire::CommandAsked;
    type Said = wire::CommandAnswered;
    const MOST: usize = UNDER_WAY_MAX;
    const WHAT: &'static str = "commands";
    const LASTS: bool = true;

    fn seats(service: &Service) -> &Arc<Seats> {
        &service.api.counts.command_streams
    }

    fn read(&mut self, _: &Service, message: Self::Asked) -> Result<Vec<wire::CommandAsked>, Status> {
        Ok(message.asked)
    }

    fn begin(
        service: &Arc<Service>,
        asked: Vec<wire::CommandAsked>,
        mut begun: impl FnMut(BoxFuture<'static, Step<wire::CommandAnswered>>),
    ) {
        asked.into_iter().for_each(|one| begun(service.clone().command_asked(one).boxed()));
    }

    fn say(&self, answered: Vec<wire::CommandAnswered>) -> Self::Answered {
        wire::CommandsAnswered { answered }
    }

    /// Each of them is told that it did not happen: a call that just ended would leave that open.
    fn refused(&self, message: Self::Asked, status: &Status) -> Option<Self::Answered> {
        let failed = |one: wire::CommandAsked| answered(one.tag, Err(status.clone()));
        Some(self.say(message.asked.into_iter().map(failed).collect()))
    }
}

impl Service {
    async fn command_asked(self: Arc<Self>, asked: wire::CommandAsked) -> Step<wire::CommandAnswered> {
        let wire::CommandAsked { tag, limit_ms, command } = asked;
        let limit = time_given(limit_ms);
        let said = match command {
            Some(command) => timeout(limit, self.do_command(command, limit)).await.unwrap_or_else(|_| Err(too_late())),
            None => Err(Status::invalid_argument("command: it is missing")),
        };
        if let Err(status) = &said {
            // As a call of its own would be.
            self.api.counts.answered(status.code() as usize);
        }
        Step { answered: vec![answered(tag, said)], later: Vec::new() }
    }
}

fn answered(tag: u64, said: Result<wire::DoAnswer, Status>) -> wire::CommandAnswered {
    let word = match said {
        Ok(done) => Word::Done(done),
        Err(status) => Word::Failed(wire::CallFailed { code: status.code() as u32, message: status.message().into() }),
    };
    wire::CommandAnswered { tag, word: Some(word) }
}

/// It may have happened.
fn too_late() -> Status {
    Status::deadline_exceeded("the caller's time is over")
}
