//! What local commands ask: holds, ends of leases, mounts, the daemon's own end.

use std::time::Duration;

use tokio::sync::mpsc;
use treelease_client::error::Failure;
use treelease_client::local::to_local;
use treelease_client::words::id::{HoldId, SideName, TreeId};
use treelease_client::words::refusal::Code;
use treelease_client::words::time::BootTime;
use treelease_client::words::tree::StateName;
use treelease_client::words::wire::{
    Finished, GiveUpRequest, HandOverRequest, HoldAnswer, HoldRequest, Progress, hold_answer, progress,
};

use super::socket::Call;
use super::tree::{EndRequest, Hold, HoldKind, HoldState, TreeSide};
use super::{DOWN_LIMIT, Daemon};

/// How long a command may wait for the lease at most, whatever it says.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The most commands that wait for the end of one lease.
const ENDERS_MAX: usize = 64;

/// What to type next, for somebody who was refused.
pub(super) fn with_hint(failure: Failure, tree: &TreeSide) -> Failure {
    let name = &tree.name;
    match (failure.code, tree.table.as_ref().map(|t| (t.state, t.ended_epoch))) {
        (Code::Held, Some((StateName::Fencing | StateName::Cooling, Some(epoch)))) => failure.hint(format!(
            "if the old holder surely cannot write any more: `treelease fence confirm {name} --epoch {epoch} --reason TEXT`"
        )),
        (Code::Held, Some((StateName::Held, _))) => failure.hint(format!("ask for it with `treelease acquire {name} --ask`")),
        (Code::Declined, _) => failure.hint(format!("try again later, or see what is busy there: `treelease history {name}`")),
        (Code::Unreachable, _) => failure.hint("see whether the lease server runs; `treelease up` starts an embedded one"),
        _ => failure,
    }
}

fn refuse(who: &mpsc::Sender<Progress>, failure: &Failure) {
    let _ = who.try_send(Progress { kind: Some(progress::Kind::Refused(to_local(failure))) });
}

fn finish(who: &mpsc::Sender<Progress>, message: String) {
    let _ = who.try_send(Progress { kind: Some(progress::Kind::Finished(Finished { message, notes: Vec::new() })) });
}

/// A call that needs a table read after it came: the tree that it names may have been added a moment ago.
pub(super) struct Parked {
    call: Call,
    /// The number of the read that it waits for.
    read: u64,
    until: BootTime,
}

/// The most calls that wait for the table.
const PARKED_MAX: usize = 64;

impl Daemon {
    pub(super) fn handle_call(&mut self, call: Call, now: BootTime) {
        let named = match &call {
            // A handoff needs to know which sides have a session now: no event tells of one that has just come.
            // And who follows, which cluster is there.
            Call::AddMount(..) | Call::HandOver(..) | Call::Follow(..) => None,
            Call::Hold(_, request, _) => Some(request.tree.clone()),
            Call::GiveUp(request, _) => Some(request.tree.clone()),
            Call::Writers(request, _) if !request.tree.is_empty() => Some(request.tree.clone()),
            _ => return self.do_call(call, now),
        };
        if self.parked.len() >= PARKED_MAX || named.is_some_and(|name| self.find_tree(&name).is_ok()) {
            return self.do_call(call, now);
        }
        let read = self.read_table_soon(now);
        self.parked.push(Parked { call, read, until: now.after(self.config.request_timeout) });
    }

    /// Sees to the calls whose table has been read, or whose limit has passed.
    pub(super) fn unpark(&mut self, now: BootTime) {
        let read = self.link.reads;
        // Before the first session this side does not know which cluster it follows.
        let ready = self.session.is_some() || self.stranger.is_some();
        let (due, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|p| now >= p.until || (ready && p.read <= read));
        self.parked = wait;
        for parked in due {
            self.do_call(parked.call, now);
        }
    }

    /// When a parked call's limit passes.
    pub(super) fn parked_deadline(&self) -> Option<BootTime> {
        self.parked.iter().map(|p| p.until).min()
    }

    fn do_call(&mut self, call: Call, now: BootTime) {
        match call {
            Call::Report(answer) => {
                let _ = answer.send(self.report_answer());
            }
            Call::Holds(request, answer) => {
                // An unknown tree has no holds; the command itself says that there is no such tree.
                if let Ok(holds) = self.holds_answer(&request.tree).or_else(|_| self.holds_answer("")) {
                    let _ = answer.send(holds);
                }
            }
            Call::Writers(request, answer) => {
                let _ = answer.send(self.writers_answer(&request.tree));
            }
            Call::Hold(id, request, answers) => {
                if let Err(failure) = self.hold(&id, request, &answers, now) {
                    let _ = answers.try_send(HoldAnswer { kind: Some(hold_answer::Kind::Refused(to_local(&failure))) });
                }
            }
            Call::HoldGone(id) => self.hold_gone(&id, now),
            Call::GiveUp(request, who) => self.give_up(&request, who, now),
            Call::HandOver(request, who) => self.hand_over(request, who, now),
            Call::AddMount(request, answer) => self.add_mount(request, answer),
            Call::RemoveMount(request, answer) => self.remove_mount(request, answer),
            Call::Follow(request, answer) => self.follow_cluster(&request, answer, now),
            Call::Down(request, who) => {
                let within = if request.within_ms == 0 { DOWN_LIMIT } else { Duration::from_millis(request.within_ms) };
                self.begin_down(within, Some(who), now);
            }
        }
    }

    fn hold(
        &mut self,
        id: &HoldId,
        request: HoldRequest,
        answers: &mpsc::Sender<HoldAnswer>,
        now: BootTime,
    ) -> Result<(), Failure> {
        if self.ending.is_some() {
            return Err(Failure::new(Code::Unreachable, "the side daemon is ending"));
        }
        // The command has gone while its call waited for the table; that it has gone was told before there was a hold.
        if answers.is_closed() {
            return Ok(());
        }
        let kind = match request.kind.as_str() {
            "run" => HoldKind::Run,
            "acquire" => HoldKind::Acquire,
            other => return Err(Failure::new(Code::Usage, format!("there is no hold of kind `{other}`"))),
        };
        let tree_id = self.find_tree(&request.tree)?;
        let wait = Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        let hold = Hold {
            id: id.clone(),
            kind,
            command: request.command,
            pid: request.pid,
            tty: request.tty,
            note: request.note,
            since: self.clock.wall(),
            state: HoldState::Pending { until: now.after(wait.max(self.config.request_timeout)) },
            ask: request.ask,
            no_wait: wait.is_zero(),
            until: (request.for_ms > 0).then(|| now.after(Duration::from_millis(request.for_ms))),
        };
        let hold = if hold.no_wait { hold } else { Hold { state: HoldState::Pending { until: now.after(wait) }, ..hold } };
        let Some(tree) = self.trees.get_mut(&tree_id) else {
            return Err(Failure::new(Code::Internal, "the tree went away"));
        };
        if tree.unmounting {
            return Err(Failure::new(Code::Busy, format!("\"{}\" is being unmounted", tree.side.name)));
        }
        tree.hold_streams.insert(id.clone(), answers.clone());
        tree.side.handle_hold(hold, now);
        Ok(())
    }

    /// The stream of a hold has ended: a command's hold goes with it, and a person's that still waits.
    fn hold_gone(&mut self, id: &HoldId, now: BootTime) {
        for tree in self.trees.values_mut() {
            tree.hold_streams.remove(id);
            let claims = tree.side.holds.get(id).is_some_and(|h| h.kind == HoldKind::Run || h.pending());
            let goes = claims || tree.side.is_leaving(id);
            if goes {
                tree.side.handle_hold_gone(id, now);
            }
        }
    }

    fn give_up(&mut self, request: &GiveUpRequest, who: mpsc::Sender<Progress>, now: BootTime) {
        let id = match self.find_tree(&request.tree) {
            Ok(id) => id,
            Err(failure) => return refuse(&who, &failure),
        };
        let Some(tree) = self.trees.get_mut(&id) else { return };
        let dropped = tree.side.drop_acquired();
        tree.end_note.clear();
        if tree.side.is_ending() {
            tree.enders.push(who);
        } else if tree.side.is_open() {
            self.end(&id, EndRequest::Release { now: request.now }, who, now);
        } else {
            let name = &tree.side.name;
            let taken_back = if dropped > 0 { " (its hold was taken back)" } else { "" };
            finish(&who, format!("\"{name}\" is not held by {}{taken_back}.", self.side));
        }
    }

    fn hand_over(&mut self, request: HandOverRequest, who: mpsc::Sender<Progress>, now: BootTime) {
        let side: SideName = match request.to.parse() {
            Ok(side) => side,
            Err(error) => return refuse(&who, &Failure::from(error)),
        };
        let id = match self.find_tree(&request.tree) {
            Ok(id) => id,
            Err(failure) => return refuse(&who, &failure),
        };
        let known = self.table.as_ref().is_some_and(|(t, _)| t.sessions.iter().any(|s| s.side == side));
        let Some(tree) = self.trees.get_mut(&id) else { return };
        let name = tree.side.name.clone();
        if !tree.side.writes(now) {
            let mut failure = Failure::from(tree.side.why_not());
            failure.code = Code::Held;
            return refuse(
                &who,
                &failure.hint(format!("only its holder can hand it over; ask for it with `treelease acquire {name} --ask`")),
            );
        }
        if side == self.side {
            return finish(&who, format!("\"{name}\" is held by {side} already."));
        }
        if !known {
            return refuse(
                &who,
                &Failure::new(
                    Code::NotFound,
                    format!("side {side} has no session: its daemon does not run, or cannot reach the server"),
                )
                .hint(format!("free the tree for whoever comes first with `treelease release {name}`")),
            );
        }
        tree.side.drop_acquired();
        tree.end_note = request.note;
        self.end(&id, EndRequest::To { side, force: request.force }, who, now);
    }

    fn end(&mut self, id: &TreeId, request: EndRequest, who: mpsc::Sender<Progress>, now: BootTime) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        if tree.enders.len() >= ENDERS_MAX {
            return refuse(&who, &Failure::new(Code::Limit, "too many commands wait for this handoff already"));
        }
        tree.enders.push(who);
        tree.side.begin_end(request, now);
    }
}
