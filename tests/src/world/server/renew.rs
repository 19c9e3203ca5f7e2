//! Renewals at a node (I5): a round of confirmation, then `look` and `acknowledge` as the server's api has them.

use std::time::Duration;

use treelease_client::session::{Answered, Renewal};
use treelease_proto::id::NodeId;
use treelease_server::api::nonce::{Arrival, Verdict};

use super::{AtNode, Between, Fault, OUTCOME_LIMIT, Out, Rng, Round, Servers, Word};

impl Servers {
    pub(super) fn renew(&mut self, n: usize, side: usize, renewal: Renewal, alone: bool, now: Duration, rng: &mut Rng) {
        let at = self.nodes[n].machine.now(now);
        let believes = self.nodes[n].believes;
        let term = believes.unwrap_or_default();
        let round = Round { node: n, term, side, renewal, alone, at, asked: None, confirmed: false };
        if believes.is_none() {
            return self.fail(&round);
        }
        if self.fault == Fault::AckUnconfirmed {
            return self.answer(round, now);
        }
        let id = self.next;
        self.next += 1;
        let (there, back) = (rng.ms(1, 15), if rng.chance(5) { rng.ms(15, 1_900) } else { rng.ms(1, 15) });
        self.outs.push(Out::Between(there, Between::Quorum(id)));
        self.outs.push(Out::At(n, there + back, AtNode::Confirmed(id)));
        self.rounds.insert(id, round);
    }

    pub(super) fn fail(&mut self, round: &Round) {
        if round.alone {
            self.outs.push(Out::Say(round.node, round.side, Word::Failed(round.renewal.session.clone(), round.renewal.number)));
        }
    }

    pub(super) fn look_again(&mut self, n: usize, now: Duration) {
        for round in std::mem::take(&mut self.nodes[n].waiting) {
            self.answer(round, now);
        }
    }

    /// Leadership was confirmed: `look`, then `acknowledge`.
    pub(super) fn answer(&mut self, round: Round, now: Duration) {
        let (n, id) = (round.node, &round.renewal.session);
        let node = &mut self.nodes[n];
        let state = node.behind.as_ref().unwrap_or(&self.truth);
        let leadership = match state.leadership() {
            Some((leadership, who)) if who == n as NodeId + 1 && node.timers.leading() == Some(leadership) => leadership,
            _ => return self.fail(&round),
        };
        let ended = |why: &str| Answered {
            number: round.renewal.number,
            nonce: 0,
            ttl: treelease_proto::time::Ttl::new(Duration::ZERO),
            alive: false,
            pairs: Vec::new(),
            server_elapsed: None,
            why_not: why.to_owned(),
            given_up: false,
        };
        let Some(session) = state.session(id).filter(|s| s.incarnation() == round.renewal.incarnation) else {
            return self.outs.push(Out::Say(n, round.side, Word::Renewed(id.clone(), ended("the session has ended"))));
        };
        let clock = node.machine.now(now);
        if !node.timers.is_doomed(id) && !node.timers.renewed(id, clock) {
            node.timers.follow(state, clock);
            node.timers.renewed(id, clock);
        }
        if node.timers.is_doomed(id) {
            if clock.since(round.at) < OUTCOME_LIMIT {
                node.waiting.push(round);
                return;
            }
            return self.fail(&round);
        }
        let Renewal { incarnation, number, nonce, .. } = round.renewal;
        let arrival = Arrival { incarnation, number, nonce, at: round.at, ttl: session.ttl() };
        let (nonce, server_elapsed, given_up) = match node.nonces.arrive(leadership, id, arrival) {
            Verdict::Fine { nonce, elapsed } => (nonce, elapsed, false),
            Verdict::GivenUp { nonce } => (nonce, None, true),
            Verdict::Over => return self.fail(&round),
            // Nobody is copied in this world: the end of it shows that an honest side was accused.
            Verdict::Copied => return self.outs.push(Out::Accused(id.clone())),
        };
        let pairs = if given_up { Vec::new() } else { state.held_by(id) };
        let answered =
            Answered { number, nonce, ttl: session.ttl(), alive: true, pairs, server_elapsed, why_not: String::new(), given_up };
        if !given_up {
            self.outs.push(Out::Acknowledged(id.clone(), round.asked.unwrap_or(now)));
        }
        self.outs.push(Out::Say(n, round.side, Word::Renewed(id.clone(), answered)));
    }
}
