//! Commands on their way to the nodes, one after the other, and what their answers mean (as `daemon/servers.rs`).

use std::time::Duration;

use treelease_client::session::SessionCore;
use treelease_proto::command::{Answer, Command, Proposal};
use treelease_proto::id::RequestKey;
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::{BootTime, WallTime};

use super::{Job, Local, Out, Purpose, Rng, Side};

/// The pause before a session is opened again after a try that failed.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// A command without an answer is asked again after this time,
const ASK_AGAIN: Duration = Duration::from_millis(900);
/// at most so often: then its outcome is unknown.
const ASKS: u32 = 6;

impl Side {
    pub(super) fn job(&mut self, command: Command, purpose: Purpose, key: RequestKey) -> Job {
        self.next += 1;
        let proposal = Proposal { request_key: key, actor: self.name.to_string(), at: WallTime::UNKNOWN, command };
        Job { no: self.next, proposal, purpose, asked: 0 }
    }

    pub(super) fn send(&mut self, command: Command, purpose: Purpose, rng: &mut Rng) {
        self.send_keyed(command, purpose, rng.id());
    }

    pub(super) fn send_keyed(&mut self, command: Command, purpose: Purpose, key: RequestKey) {
        let job = self.job(command, purpose, key);
        self.wire.push_back(job);
        self.next_job();
    }

    pub(super) fn next_job(&mut self) {
        if !self.busy
            && let Some(job) = self.wire.front().cloned()
        {
            self.busy = true;
            self.ask(job);
        }
    }

    pub(super) fn ask(&mut self, job: Job) {
        self.outs.push(Out::Do(job.no, Box::new(job.proposal)));
        self.after(ASK_AGAIN, Local::AskAgain(job.no));
    }

    pub(super) fn asked(&mut self, no: u64) -> Option<&mut Job> {
        let front = self.wire.front_mut().filter(|job| job.no == no);
        front.or(self.session_job.as_mut().filter(|job| job.no == no))
    }

    pub(super) fn ask_again(&mut self, no: u64, now: BootTime) {
        let Some(job) = self.asked(no) else { return };
        job.asked += 1;
        if job.asked < ASKS {
            let job = job.clone();
            self.ask(job);
        } else {
            self.did(no, Err(Refusal::new(Code::OutcomeUnknown, "no lease server has answered in time")), now);
        }
    }

    /// A command has its answer, or its limit has passed (as `Daemon::handle_done`).
    pub(super) fn did(&mut self, no: u64, answer: Result<Answer, Refusal>, now: BootTime) {
        let Some(purpose) = self.asked(no).map(|job| job.purpose.clone()) else { return };
        if purpose == Purpose::Open {
            self.session_job = None;
            return self.opened(answer, now);
        }
        self.wire.pop_front();
        self.busy = false;
        match purpose {
            Purpose::Acquire(no) => self.tree.handle_acquire_answer(no, answer, now),
            Purpose::Owed(epoch) => self.tree.handle_owed_answer(epoch, answer.is_ok(), now),
            Purpose::Cancel if answer == Ok(Answer::Done) => self.tree.handle_cancelled(),
            Purpose::End(no) => self.tree.handle_end_answer(no, answer.map_err(|r| r.message), now),
            Purpose::Rest(number) => self.tree.handle_rest_answer(number, &answer, now),
            Purpose::Cancel | Purpose::Tell | Purpose::Open => {}
        }
        self.next_job();
    }

    pub(super) fn opened(&mut self, answer: Result<Answer, Refusal>, now: BootTime) {
        self.opening = false;
        match answer {
            Ok(Answer::Opened { session, incarnation, ttl, .. }) => {
                self.session_id = Some(session.clone());
                self.session = Some(SessionCore::new(session, incarnation, ttl, now));
                self.open_at = None;
                self.tree.set_incarnation(incarnation);
                self.tree.handle_session_opened(now);
            }
            _ => self.open_at = Some(now.after(OPEN_PAUSE)),
        }
    }
}
