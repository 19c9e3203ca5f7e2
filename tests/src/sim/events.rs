//! What comes from the nodes and from the sides, followed: each event and each answer is looked at by the properties.

use std::time::Duration;

use treelease_proto::command::{Answer, Command, Event, EventKind, Proposal};
use treelease_proto::id::RequestKey;
use treelease_proto::tree::End;

use super::callers::{Call, Told};
use super::nodes::Order;
use super::plan::Fault;
use super::properties::{self, Broken, Granted};
use super::{Asked, What, World};
use crate::world::server::Word;
use crate::world::side::{self, Local};
use crate::world::storage::Flight;

impl World {
    // ---- nodes ----

    pub(super) fn look_at_nodes(&mut self) -> Result<(), Broken> {
        for n in 0..self.nodes.len() {
            if let Some(failure) = self.nodes[n].failure() {
                return Err(format!("node {} ended by itself: {failure}", n + 1));
            }
            for event in self.nodes[n].applied()? {
                if properties::one_history::check(&self.past, &event)? {
                    self.past.note(&event, self.now);
                    self.happened(&event)?;
                }
            }
        }
        Ok(())
    }

    /// An event was applied for the first time.
    fn happened(&mut self, event: &Event) -> Result<(), Broken> {
        self.count(event.kind.as_str());
        let whose = event.session.as_ref().and_then(|session| self.sessions.get(session)).copied();
        self.say(|_| format!("==> {} {:?} epoch {} {}", event.kind.as_str(), event.side, event.epoch, event.reason));
        let Some(tree) = self.trees.iter().position(|id| *id == event.tree) else { return Ok(()) };
        properties::nobody_is_accused::check(event)?;
        let (ttl, grace) = (self.plan.side.ttl.get(), self.plan.side.policy.grace);
        let followed = &mut self.followed[tree];
        followed.waits.check(event, whose, ttl, grace, self.now)?;
        match event.kind {
            EventKind::Added => followed.added = true,
            EventKind::Granted => {
                properties::epochs_grow::check(followed.granted.as_ref(), event.epoch)?;
                let side = whose.ok_or("a grant to nobody")?;
                let before = followed.granted.replace(Granted { epoch: event.epoch, side, at: self.now });
                if before.is_some_and(|before| before.side != side) {
                    self.count("turns");
                }
            }
            EventKind::Expired => {
                let session = event.session.as_ref().ok_or("an expiry of no session")?;
                self.acknowledged.check(session, ttl, self.now)?;
            }
            EventKind::Released if event.end == End::Clean => {
                if let Some(n) = whose {
                    let side = &mut self.daemons[n].side;
                    let admits = side.machine.runs() && side.admits(self.now);
                    properties::clean_means_shut::check(n, event.epoch, side.epoch(), admits, side.gate.in_flight())?;
                }
            }
            EventKind::Broken => followed.broken_last = true,
            EventKind::Cooling if self.fault == Fault::BreakWithoutWait && followed.broken_last => {
                followed.broken_last = false;
                for node in &self.nodes {
                    node.order(Order::EndGrace(event.tree.clone(), event.epoch));
                }
            }
            EventKind::Fencing => {
                let after = self.rng.ms(100, 4_000);
                self.after(after, What::Vouch(tree, event.epoch));
            }
            _ => {}
        }
        Ok(())
    }

    // ---- sides ----

    /// Something happens on a side whose process runs.
    pub(super) fn act(&mut self, n: usize, local: Local) -> Result<(), Broken> {
        let (now, daemon) = (self.now, &mut self.daemons[n]);
        if matches!(local, Local::Wake(wish) if !daemon.side.is_latest(wish)) {
            return Ok(());
        }
        daemon.side.at(local, now, &mut daemon.rng);
        for out in daemon.side.outs() {
            self.follow(n, out)?;
        }
        self.check_gates()
    }

    fn follow(&mut self, n: usize, out: side::Out) -> Result<(), Broken> {
        let host = self.daemons[n].host;
        match out {
            side::Out::After(after, local) => self.after(after, What::Side(n, local)),
            side::Out::Renew(renewal) => {
                self.renewals.insert((renewal.session.clone(), renewal.number), self.now);
                self.call(host, Call::Renew(renewal));
            }
            side::Out::Do(job, proposal) => {
                self.ask(n, &proposal);
                self.call(host, Call::Do(job, proposal));
            }
            side::Out::Admitted { epoch, write, .. } => {
                self.count("writes");
                let deluded = self.daemons[n].side.deluded.is_some();
                self.daemons[n].flights.insert(write, Flight { epoch, begun: self.now, deluded });
            }
            side::Out::Ended { write, late } => {
                let daemon = &mut self.daemons[n];
                let flight = daemon.flights.remove(&write).ok_or("a write ended twice")?;
                let interrupted = daemon.halted >= flight.begun;
                let granted = self.followed[daemon.tree].granted;
                properties::one_gate::check_end(n, late, interrupted, granted.as_ref())?;
            }
            side::Out::Uncovered => self.count("clocks found wrong"),
            side::Out::End(_) => self.count("ends asked for"),
        }
        Ok(())
    }

    /// A question is asked, perhaps again under the same key.
    fn ask(&mut self, n: usize, proposal: &Proposal) {
        let (mut session, mut released, mut tree) = (None, None, None);
        match &proposal.command {
            Command::OpenSession(open) => {
                self.sessions.insert(open.new_session.clone(), n);
            }
            Command::Acquire(acquire) => (session, tree) = (Some(acquire.session.clone()), Some(acquire.tree.clone())),
            Command::Release(release) => {
                let lease = &release.lease;
                (session, released, tree) = (Some(lease.session.clone()), Some(lease.epoch), Some(lease.tree.clone()));
            }
            _ => return,
        }
        let asked = Asked { at: self.now, session, released, tree };
        self.asked.entry(proposal.request_key.clone()).or_insert(asked);
    }

    /// What has come for the sides.
    pub(super) fn hear(&mut self) -> Result<(), Broken> {
        // In an order of their own: which of two tasks of a host is woken first in one step is tokio's choice.
        let mut post: Vec<_> = self.post.lock().expect("nothing panics while it holds the post").drain(..).collect();
        post.sort_by_key(|(host, told)| (*host, told.rank()));
        for (host, told) in post {
            let Some(n) = self.daemons.iter().position(|daemon| daemon.host == host) else { continue };
            let word = match told {
                Told::Renewed(session, answered) => {
                    self.say(|_| {
                        format!(
                            "side {n}: renewal {} acknowledged: {}, {} pairs",
                            answered.number,
                            answered.alive,
                            answered.pairs.len()
                        )
                    });
                    self.count(if answered.alive { "renewals acknowledged" } else { "renewals of an ended session" });
                    let sent = self.renewals.remove(&(session.clone(), answered.number)).unwrap_or(self.now);
                    let tree = &self.trees[self.daemons[n].tree];
                    if !answered.given_up
                        && let Some(past) = self.past.tree(tree)
                    {
                        let says = answered.pairs.iter().find(|pair| pair.tree == *tree).map(|pair| pair.epoch);
                        properties::linear::renewed(past, &session, says, sent)?;
                    }
                    if answered.alive && !answered.given_up {
                        self.acknowledged.note(&session, sent);
                    }
                    Word::Renewed(session, answered)
                }
                Told::Failed(session, number) => {
                    self.say(|_| format!("side {n}: renewal {number} has no answer"));
                    self.count("renewals without an answer");
                    self.renewals.remove(&(session.clone(), number));
                    Word::Failed(session, number)
                }
                Told::Did(job, key, answer) => {
                    self.check_answer(&key, &answer)?;
                    self.say(|_| format!("side {n}: job {job}: {}", kind_of(&answer)));
                    self.count("commands answered");
                    Word::Did { job, answer }
                }
                Told::Refused(why) => return Err(format!("a call of side {n} was turned away: {why}")),
                Told::Status(status) => {
                    properties::linear::shown(&self.past, &status)?;
                    self.count(if status.quorum { "tables read" } else { "tables read without a quorum" });
                    let tree = &self.trees[self.daemons[n].tree];
                    let Some(tree) = status.trees.into_iter().find(|status| status.id == *tree) else { continue };
                    Word::Table(Box::new(tree))
                }
            };
            self.after(Duration::ZERO, What::Side(n, Local::Heard(word)));
        }
        Ok(())
    }

    fn check_answer(&mut self, key: &RequestKey, answer: &Answer) -> Result<(), Broken> {
        let Some(asked) = self.asked.get(key) else { return Ok(()) };
        let (Some(session), Some(tree)) = (&asked.session, &asked.tree) else { return Ok(()) };
        match self.past.tree(tree) {
            Some(past) => properties::linear::did(past, session, asked.released, answer, asked.at),
            None => Ok(()),
        }
    }

    // ---- gates ----

    pub(super) fn check_gates(&mut self) -> Result<(), Broken> {
        let now = self.now;
        for tree in 0..self.trees.len() {
            let mut admit = Vec::new();
            for n in 0..self.daemons.len() {
                let daemon = &mut self.daemons[n];
                if daemon.tree != tree {
                    continue;
                }
                let admits = daemon.side.machine.runs() && daemon.side.admits(now);
                if admits {
                    admit.push(n);
                }
                if std::mem::replace(&mut daemon.admitted, admits) != admits {
                    self.say(|_| format!("--> the gate of side {n} {}", if admits { "admits" } else { "is shut" }));
                }
            }
            properties::one_gate::check(&admit, self.followed[tree].granted.as_ref())?;
        }
        Ok(())
    }
}

/// Without ids, which are not the same in each run.
fn kind_of(answer: &Answer) -> String {
    match answer {
        Answer::Granted(grant) => format!("granted epoch {}", grant.epoch),
        Answer::Queued { place, .. } => format!("queued at {place}"),
        Answer::Opened { incarnation, .. } => format!("opened, run {incarnation}"),
        Answer::Ignored { why } => format!("ignored: {why}"),
        Answer::Refused(refusal) => format!("refused: {}", refusal.code),
        Answer::Done => "done".into(),
        Answer::TreeAdded { .. } => "added".into(),
    }
}
