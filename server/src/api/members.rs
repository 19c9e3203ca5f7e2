//! ChangeMembers: the steps of [`crate::membership`], done at the leader as far as the caller's time goes.
//!
//! Promises: one change at a time on a leader; each step is looked at anew, so a call that ends early, a caller that gives up
//! and a leader that is killed all leave something that the same call finishes. An answer that is neither done nor refused says
//! what it waits for. It decides nothing itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use treelease_proto::command::Command;
use treelease_proto::refusal::Refusal;
use treelease_proto::time::Ttl;
use treelease_proto::wire;
use treelease_proto::wire::forward_answer::Kind;
use treelease_proto::wire::forward_request::Call;
use treelease_proto::wire::members_request::Change as Asked;

use super::Service;
use super::peers::Word;
use crate::consensus::{Consensus, Standing};
use crate::fault::Fault;
use crate::membership::{Change, Step, View, next};

/// Pause before something that is waited for is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What is kept of the caller's time for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(300);
/// How long a logged command of a change may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(3);

impl Service {
    /// Here if this node leads, else at the leader's.
    pub(super) async fn change_members(
        &self,
        request: wire::MembersRequest,
        limit: Duration,
    ) -> Result<wire::MembersAnswer, Status> {
        let Some(leader) = self.api.consensus.leader_elsewhere() else { return self.members_here(request, limit).await };
        match self.ask_leader(leader, Call::Members(request), limit).await {
            Word::Said(Kind::Members(answer)) => Ok(answer),
            Word::Said(_) => Err(Status::unavailable("the leader's answer is of another version")),
            Word::No(status) => Err(status),
            // Each step is safe to ask for again.
            Word::Unknown(why) => Err(Status::unavailable(why)),
        }
    }

    /// At the leader, or refused.
    pub(super) async fn members_here(
        &self,
        request: wire::MembersRequest,
        limit: Duration,
    ) -> Result<wire::MembersAnswer, Status> {
        self.ready()?;
        self.same_cluster(&request.cluster)?;
        let change = asked(request.change)?;
        if !self.api.consensus.leads() {
            return Err(Status::unavailable("this node does not lead at the moment; ask again"));
        }
        let Ok(_turn) = self.changing.try_lock() else {
            return Ok(self.said(false, "another change of the members is under way"));
        };
        let actor: String = request.actor.chars().take(treelease_proto::convert::TEXT_MAX).collect();
        tracing::info!(?change, actor, "a change of the members");
        let until = Instant::now() + limit.min(super::CALL_LIMIT).saturating_sub(WAY_BACK);
        loop {
            let newcomer = match &change {
                Change::Add { addr, .. } => self.api.former.newcomer(addr).await,
                Change::Remove { .. } => Err("nobody was asked".into()),
            };
            let step = next(&self.view(), &change, &newcomer);
            let why = match step {
                Step::Refuse(refusal) => return Ok(self.refused(&refusal)),
                Step::Done(said) => return Ok(self.said(true, said)),
                Step::Wait(why) => why,
                step => match timeout_at(until, self.step(&change, step)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(why)) => why,
                    Err(_) => return Ok(self.said(false, "a step of it is not agreed upon yet")),
                },
            };
            if !self.api.consensus.leads() {
                return Err(Status::unavailable(format!("this node does not lead any more ({why}); ask again")));
            }
            if Instant::now() + LOOK_AGAIN >= until {
                return Ok(self.said(false, why));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn view(&self) -> View {
        let consensus = &self.api.consensus;
        let (used, ttl_min) = {
            let state = consensus.state();
            let used = if consensus.faults().has(Fault::ReuseIds) { Default::default() } else { state.node_ids().clone() };
            (used, state.limits().0)
        };
        View {
            own: consensus.node(),
            cluster: self.cluster().clone(),
            members: consensus.members(),
            used,
            live: consensus.live(),
            behind: consensus.behind(),
            ttl_min,
            // Any number of several nodes needs the same.
            ttl_of_several: consensus.least_ttl(2),
        }
    }

    async fn step(&self, change: &Change, step: Step) -> Result<(), String> {
        let consensus = &self.api.consensus;
        let (Change::Add { node, .. } | Change::Remove { node }) = *change;
        tracing::info!(node, ?step, "a step of a change of the members");
        match step {
            Step::Finish => consensus.finish_change().await,
            Step::RaiseTtl(ttl) => self.raise_ttl(ttl).await,
            Step::AddLearner(member) => consensus.add_learner(node, member).await,
            Step::Move(member) => consensus.move_member(node, member).await,
            Step::Promote => consensus.promote(node).await,
            Step::HandOver if consensus.is_handing_over() => Err("the leadership is being given to another node".into()),
            Step::HandOver => match hand_over(consensus.clone()).await {
                Ok(heir) => Err(format!("node {heir} leads now")),
                Err(why) => {
                    // Who would go on without it was asked for longer than it takes to be counted as silent.
                    match next(&self.view(), change, &Err(String::new())) {
                        Step::HandOver => {
                            tracing::warn!("nobody took the leadership ({why}); this node is removed while it leads");
                            consensus.drop_member(node).await
                        }
                        _ => Err(why),
                    }
                }
            },
            Step::Drop => consensus.drop_member(node).await,
            Step::Refuse(_) | Step::Wait(_) | Step::Done(_) => Ok(()),
        }
    }

    async fn raise_ttl(&self, ttl_min: Ttl) -> Result<(), String> {
        let command = Command::RaiseTtl { ttl_min };
        let done = self.api.consensus.propose_own(command, self.api.clock.wall(), COMMAND_LIMIT).await;
        done.map(drop).map_err(|e| e.to_string())
    }

    fn said(&self, done: bool, said: impl Into<String>) -> wire::MembersAnswer {
        wire::MembersAnswer { done, said: said.into(), refused: None, cluster: self.cluster().to_string() }
    }

    fn refused(&self, refusal: &Refusal) -> wire::MembersAnswer {
        let refused = wire::Refused { code: refusal.code.as_str().into(), message: refusal.message.clone(), holder: None };
        wire::MembersAnswer { refused: Some(refused), ..self.said(false, "") }
    }

    /// The nodes as `status` shows them.
    pub(super) fn node_statuses(&self, standing: &Standing) -> Vec<treelease_proto::tree::NodeStatus> {
        use treelease_proto::tree::{NodeRole, NodeStatus};
        let consensus = &self.api.consensus;
        let (members, live, behind) = (consensus.members(), consensus.live(), consensus.behind());
        let leads = standing.leader == Some(consensus.node());
        let of = |config: Option<&std::collections::BTreeSet<u64>>, id: &u64| config.is_some_and(|ids| ids.contains(id));
        let role = |id: &u64| match (of(members.configs.first(), id), of(members.configs.last(), id)) {
            (true, true) => NodeRole::Voter,
            (false, true) => NodeRole::Joining,
            (true, false) => NodeRole::Leaving,
            (false, false) => NodeRole::Learner,
        };
        let status = |(id, member): (&u64, &crate::store::identity::Member)| NodeStatus {
            id: *id,
            addr: member.addr.clone(),
            role: role(id),
            reached: leads.then(|| live.contains(id)),
            behind: behind.get(id).copied().filter(|_| leads && *id != consensus.node()),
        };
        members.nodes.iter().map(status).collect()
    }
}

/// On a task of its own: it takes longer than many a caller's call, and who begins it anew while an heir stands for election takes
/// the votes from it; so would a caller who asks again and again keep the cluster without a leader.
async fn hand_over(consensus: Arc<Consensus>) -> Result<u64, String> {
    let giving = tokio::spawn(async move { consensus.hand_over().await });
    giving.await.unwrap_or_else(|e| Err(format!("the task of giving the leadership away ended: {e}")))
}

fn asked(change: Option<Asked>) -> Result<Change, Status> {
    match change {
        Some(Asked::Add(add)) if add.node == 0 => Err(Status::invalid_argument("add.node: node numbers begin at 1")),
        Some(Asked::Add(add)) => {
            let port =
                add.addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
            match port {
                Some(port) if port > 0 && add.addr.len() <= ADDRESS_MAX => Ok(Change::Add { node: add.node, addr: add.addr }),
                _ => Err(Status::invalid_argument("add.addr: write it as HOST:PORT, as the other nodes reach it")),
            }
        }
        Some(Asked::Remove(remove)) => Ok(Change::Remove { node: remove.node }),
        None => Err(Status::invalid_argument("change: it is missing, or of another version")),
    }
}

/// Longest address that is taken, in bytes: the longest name of a host, and a port.
const ADDRESS_MAX: usize = 253 + 6;
