//! The nodes: the real lease state, the real timers and nonces, over a modelled log.
//!
//! The log is one order of entries. Only the true leader adds to it; a node that was replaced may go on believing that it leads,
//! over the state as it was then, and answer what it may. What it had proposed either made it into the log before the next
//! `Lead`, or did not; its expiries may come later still, as if some node had forwarded them.
//!
//! A round of confirmation (I5) asks the quorum at one moment between its begin and its end: another leader may have begun when
//! the answer is used. Renewals are answered in `renew`, as the server's api does.

use std::collections::BTreeMap;
use std::time::Duration;

use treelease_client::session::{Answered, Renewal};
use treelease_proto::command::{Answer, Command, Event, Proposal};
use treelease_proto::id::{NodeId, SessionId, TreeId};
use treelease_proto::time::{BootTime, WallTime};
use treelease_proto::tree::TreeStatus;
use treelease_server::api::nonce::Nonces;
use treelease_server::expiry::Timers;
use treelease_server::lease::{Entry, State};

use super::clock::{Kind, Machine};
use super::plan::{Fault, Plan};
use super::rng::Rng;

mod renew;

/// How long the outcome of an expiry may stay unknown before a new leadership voids it (as `leader.rs`).
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);
/// The leader looks at its timers at least so often: often enough that it sees no gap.
const TICK: Duration = Duration::from_millis(900);

/// What happens at a node.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // `side` and `node` by number, the rest by name
pub enum AtNode {
    /// A renewal has arrived; `alone`: no other node was asked.
    Renew { side: usize, renewal: Renewal, alone: bool },
    /// A command has arrived.
    Do { side: usize, job: u64, proposal: Box<Proposal> },
    /// A side reads the table.
    Read { side: usize },
    /// Time to look at the timers; only the latest such wish counts.
    Tick(u64),
    /// The quorum has had its say about a round.
    Confirmed(u64),
}

/// What happens between the nodes.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // as above
pub enum Between {
    /// A proposal may be committed.
    Commit(u64),
    /// The quorum is asked.
    Quorum(u64),
    /// The outcome of a proposal is not known in time.
    OutcomeLimit(u64),
    /// A node learns that it leads no more.
    StepDown { node: usize, term: u64 },
    /// What an old leader had decided arrives, forwarded.
    Late(Box<Proposal>),
}

/// What a node says to a side.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // as above
pub enum Word {
    /// To a renewal.
    Renewed(SessionId, Answered),
    /// A renewal failed, and no other node was asked.
    Failed(SessionId, u64),
    /// To a command.
    Did { job: u64, answer: Answer },
    /// The tree, as this node knows it.
    Table(Box<TreeStatus>),
}

/// What the world is to do for the nodes.
#[derive(Debug)]
pub enum Out {
    /// This happens at that node after that time.
    At(usize, Duration, AtNode),
    /// This happens between them.
    Between(Duration, Between),
    /// A word for a side.
    Say(usize, usize, Word),
    /// An entry was committed.
    Committed(Vec<Event>),
    /// A renewal of that session was acknowledged, by a leader that was confirmed at that true time.
    Acknowledged(SessionId, Duration),
    /// That session was taken for one that two machines renew; there are no copies in this world.
    Accused(SessionId),
    /// A node leads.
    Leads(usize),
    /// A decision of an earlier leadership came late and was ignored.
    Voided,
}

#[derive(Debug, Clone)]
enum Origin {
    Client { side: usize, job: u64 },
    Timer,
    Lead,
    Operator,
}

#[derive(Debug, Clone)]
struct Pending {
    node: usize,
    term: u64,
    proposal: Proposal,
    from: Origin,
}

#[derive(Debug, Clone)]
struct Round {
    node: usize,
    term: u64,
    side: usize,
    renewal: Renewal,
    alone: bool,
    at: BootTime,
    /// When the quorum was asked.
    asked: Option<Duration>,
    confirmed: bool,
}

/// One node.
pub struct Node {
    /// Where it runs.
    pub machine: Machine,
    /// What came while it did not run.
    pub inbox: Vec<AtNode>,
    /// No other node hears it.
    pub cut: bool,
    /// It believes to lead, since that term.
    pub believes: Option<u64>,
    /// What it knew when it was left behind; the true leader, and who follows it, know all.
    behind: Option<State>,
    timers: Timers,
    nonces: Nonces,
    /// Renewals that wait for the outcome of an expiry.
    waiting: Vec<Round>,
    tick_wish: u64,
}

/// All nodes.
pub struct Servers {
    /// Each of them.
    pub nodes: Vec<Node>,
    /// What is committed.
    pub truth: State,
    /// The one tree.
    pub tree: TreeId,
    /// Who may add to the log.
    pub leader: usize,
    term: u64,
    index: u64,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    rounds: BTreeMap<u64, Round>,
    fault: Fault,
    outs: Vec<Out>,
}

impl Servers {
    /// A founded cluster with one tree; node 0 leads.
    pub fn new(plan: &Plan, fault: Fault, centre: i64, rng: &mut Rng) -> Self {
        let node = |rng: &mut Rng| Node {
            machine: Machine::new(Kind::Server, centre, rng),
            inbox: Vec::new(),
            cut: false,
            believes: None,
            behind: None,
            timers: Timers::new(),
            nonces: Nonces::default(),
            waiting: Vec::new(),
            tick_wish: 0,
        };
        let mut servers = Self {
            nodes: (0..plan.nodes).map(|_| node(rng)).collect(),
            truth: State::new(),
            tree: rng.id(),
            leader: 0,
            term: 1,
            index: 0,
            next: 0,
            pending: BTreeMap::new(),
            rounds: BTreeMap::new(),
            fault,
            outs: Vec::new(),
        };
        let found = Command::Found { cluster: rng.id(), ttl_min: plan.ttl, ttl_max: plan.ttl };
        let (name, tree) = ("dev".parse().expect("a name"), servers.tree.clone());
        let policy = super::side::policy_as_text(&plan.policy);
        for command in [found, Command::AddTree { name, tree, policy, root: None }] {
            let answer = servers.append(proposal(command, rng));
            assert!(!matches!(answer, Answer::Refused(_)), "{answer:?}");
        }
        servers.nodes[0].believes = Some(1);
        servers.begin_to_lead(0, rng);
        servers
    }

    /// The next thing to do for the nodes.
    pub fn outs(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.outs)
    }

    // ---- what happens ----

    /// Something happens at a node, which runs.
    pub fn at_node(&mut self, n: usize, what: AtNode, now: Duration, rng: &mut Rng) {
        match what {
            AtNode::Renew { side, renewal, alone } => self.renew(n, side, renewal, alone, now, rng),
            AtNode::Do { side, job, proposal } if self.nodes[n].believes.is_some() => {
                self.propose(n, *proposal, Origin::Client { side, job }, rng);
            }
            // Sent on to the leader, if one is heard.
            AtNode::Do { side, job, proposal } if !self.nodes[n].cut => {
                self.outs.push(Out::At(self.leader, rng.ms(1, 20), AtNode::Do { side, job, proposal }));
            }
            AtNode::Do { .. } => {}
            AtNode::Read { side } => {
                if let Some(status) = self.state(n).tree_status(&self.tree) {
                    self.outs.push(Out::Say(n, side, Word::Table(Box::new(status))));
                }
            }
            AtNode::Tick(wish) if wish == self.nodes[n].tick_wish => self.tick(n, now, rng),
            AtNode::Tick(_) => {}
            AtNode::Confirmed(id) => {
                if let Some(round) = self.rounds.remove(&id) {
                    match round.confirmed {
                        true => self.answer(round, now),
                        false => self.fail(&round),
                    }
                }
            }
        }
    }

    /// Something happens between the nodes.
    pub fn between(&mut self, what: Between, now: Duration, rng: &mut Rng) {
        match what {
            Between::Commit(id) => {
                let Some(pending) = self.pending.get(&id) else { return };
                let (node, current) = (&self.nodes[pending.node], pending.term == self.term && pending.node == self.leader);
                if !current {
                    self.pass_over(id, rng);
                } else if node.cut || !node.machine.runs() {
                    self.outs.push(Out::Between(rng.ms(100, 300), Between::Commit(id)));
                } else {
                    self.commit(id, now, rng);
                }
            }
            Between::Quorum(id) => {
                if let Some(round) = self.rounds.get_mut(&id).filter(|r| r.asked.is_none()) {
                    round.asked = Some(now);
                    round.confirmed = round.node == self.leader && round.term == self.term && !self.nodes[round.node].cut;
                }
            }
            Between::OutcomeLimit(id) => {
                let Some(node) = self.pending.get(&id).map(|p| p.node) else { return };
                if self.nodes[node].machine.runs() && self.nodes[node].believes.is_some() {
                    self.begin_to_lead(node, rng);
                }
            }
            Between::StepDown { node, term } => {
                if self.nodes[node].believes != Some(term) || term == self.term {
                    return;
                }
                if self.nodes[node].cut || !self.nodes[node].machine.runs() {
                    self.outs.push(Out::Between(rng.ms(1, 300), Between::StepDown { node, term }));
                    return;
                }
                let n = &mut self.nodes[node];
                (n.believes, n.behind, n.nonces) = (None, None, Nonces::default());
                n.timers.demote();
                for round in std::mem::take(&mut n.waiting) {
                    self.fail(&round);
                }
            }
            Between::Late(late) => {
                let late = if self.fault == Fault::ExpiryUnbound { self.rebound(*late) } else { *late };
                if let Answer::Ignored { .. } = self.append(late) {
                    self.outs.push(Out::Voided);
                }
                self.look_again(self.leader, now);
            }
        }
    }

    /// Another node is elected (or the same one anew, with one node: a restart). The old leader may not hear of it for a while.
    pub fn elect(&mut self, to: usize, rng: &mut Rng) {
        let old = self.leader;
        // What the new leader's log had of the old one's: committed with it, before its `Lead`.
        let had: Vec<u64> = self.pending.iter().filter(|(_, p)| p.node == old).map(|(id, _)| *id).collect();
        for id in had {
            if rng.chance(40)
                && let Some(pending) = self.pending.remove(&id)
            {
                let answer = self.append(pending.proposal);
                if let Origin::Client { side, job } = pending.from {
                    self.outs.push(Out::Say(to, side, Word::Did { job, answer }));
                }
            } else {
                self.pass_over(id, rng);
            }
        }
        if to != old {
            self.nodes[old].behind = Some(self.truth.clone());
            if let Some(term) = self.nodes[old].believes {
                self.outs.push(Out::Between(rng.ms(1, 1_000), Between::StepDown { node: old, term }));
            }
        }
        self.term += 1;
        self.leader = to;
        let term = self.term;
        let node = &mut self.nodes[to];
        (node.believes, node.behind, node.nonces) = (Some(term), None, Nonces::default());
        self.begin_to_lead(to, rng);
    }

    /// The leader's leadership ends and it begins another one in the same term.
    pub fn lead_anew(&mut self, rng: &mut Rng) {
        self.begin_to_lead(self.leader, rng);
    }

    /// An operator does this.
    pub fn operate(&mut self, command: Command, rng: &mut Rng) {
        let proposal = proposal(command, rng);
        self.propose(self.leader, proposal, Origin::Operator, rng);
    }

    /// What that node knows.
    fn state(&self, n: usize) -> &State {
        self.nodes[n].behind.as_ref().unwrap_or(&self.truth)
    }

    // ---- the log ----

    fn propose(&mut self, n: usize, proposal: Proposal, from: Origin, rng: &mut Rng) {
        let (id, term) = (self.next, self.nodes[n].believes.unwrap_or(self.term));
        self.next += 1;
        let slow = if rng.chance(4) { rng.ms(500, 4_000) } else { rng.ms(2, 40) };
        self.outs.push(Out::Between(slow, Between::Commit(id)));
        if matches!(from, Origin::Timer) {
            self.outs.push(Out::Between(OUTCOME_LIMIT, Between::OutcomeLimit(id)));
        }
        self.pending.insert(id, Pending { node: n, term, proposal, from });
    }

    fn append(&mut self, proposal: Proposal) -> Answer {
        self.index += 1;
        let applied = self.truth.apply(&Entry { index: self.index, proposal });
        self.outs.push(Out::Committed(applied.events));
        applied.answer
    }

    fn commit(&mut self, id: u64, now: Duration, rng: &mut Rng) {
        let Some(Pending { node, term, proposal, from }) = self.pending.remove(&id) else { return };
        let command = proposal.command.clone();
        let answer = self.append(proposal);
        match from {
            Origin::Client { side, job } => self.outs.push(Out::Say(node, side, Word::Did { job, answer })),
            Origin::Operator => {}
            Origin::Timer => {
                if matches!(answer, Answer::Ignored { .. }) {
                    self.outs.push(Out::Voided);
                }
                match command {
                    Command::ExpireSession { session, .. } if answer != Answer::Done => self.nodes[node].timers.undoom(&session),
                    Command::EndGrace { tree, .. } if answer != Answer::Done => self.nodes[node].timers.ungrace(&tree),
                    _ => {}
                }
            }
            Origin::Lead if answer == Answer::Done && self.nodes[node].believes == Some(term) => self.promote(node, now),
            Origin::Lead => {}
        }
        self.look_again(node, now);
        if self.nodes[node].timers.leading().is_some() {
            self.tick(node, now, rng);
        }
    }

    /// It was in no log that counts. What a timer decided may still be forwarded by somebody.
    fn pass_over(&mut self, id: u64, rng: &mut Rng) {
        let Some(pending) = self.pending.remove(&id) else { return };
        if matches!(pending.from, Origin::Timer) {
            self.outs.push(Out::Between(rng.ms(1, 5_000), Between::Late(Box::new(pending.proposal))));
        }
    }

    /// Control: the decision of an old leader is taken for the present one's.
    fn rebound(&self, mut proposal: Proposal) -> Proposal {
        if let (Command::ExpireSession { decided_under, .. } | Command::EndGrace { decided_under, .. }, Some((present, _))) =
            (&mut proposal.command, self.truth.leadership())
        {
            *decided_under = present;
        }
        proposal
    }

    // ---- leading ----

    fn begin_to_lead(&mut self, n: usize, rng: &mut Rng) {
        self.nodes[n].timers.demote();
        let lead = proposal(Command::Lead { node: n as NodeId + 1 }, rng);
        self.propose(n, lead, Origin::Lead, rng);
    }

    fn promote(&mut self, n: usize, now: Duration) {
        let Some((leadership, _)) = self.truth.leadership().filter(|(_, node)| *node == n as NodeId + 1) else { return };
        let node = &mut self.nodes[n];
        let clock = node.machine.now(now);
        if self.fault == Fault::TimersGoOn {
            let ttl = self.truth.sessions().map(|(_, s)| s.ttl().get()).max().unwrap_or_default();
            let mut then = BootTime { elapsed: clock.elapsed.saturating_sub(ttl * 3 / 4), ..clock };
            node.timers.promote(&self.truth, leadership, then);
            while then.elapsed + TICK < clock.elapsed {
                then = then.after(TICK);
                node.timers.tick(then);
            }
        } else {
            node.timers.promote(&self.truth, leadership, clock);
        }
        self.outs.push(Out::Leads(n));
        self.tick_after(n, Duration::ZERO);
    }

    fn tick(&mut self, n: usize, now: Duration, rng: &mut Rng) {
        let Some(leadership) = self.nodes[n].timers.leading() else { return };
        if self.state(n).leadership() != Some((leadership, n as NodeId + 1)) {
            // Another leadership has begun: maybe this node's own, whose `Lead` was committed after it was given up on.
            return match n == self.leader {
                true => self.promote(n, now),
                false => self.nodes[n].timers.demote(),
            };
        }
        let node = &mut self.nodes[n];
        let clock = node.machine.now(now);
        node.timers.follow(node.behind.as_ref().unwrap_or(&self.truth), clock);
        let due = node.timers.due(clock);
        let next = node.timers.next_deadline().map_or(TICK, |at| at.since(clock).min(TICK));
        let after = node.machine.true_length(next);
        self.tick_after(n, after);
        for command in due {
            let proposal = proposal(command, rng);
            self.propose(n, proposal, Origin::Timer, rng);
        }
    }

    fn tick_after(&mut self, n: usize, after: Duration) {
        self.nodes[n].tick_wish += 1;
        self.outs.push(Out::At(n, after, AtNode::Tick(self.nodes[n].tick_wish)));
    }
}

/// A command with what a server adds to it.
pub fn proposal(command: Command, rng: &mut Rng) -> Proposal {
    Proposal { request_key: rng.id(), actor: "world".into(), at: WallTime::UNKNOWN, command }
}
