//! Renewals over calls that stay open ([`super::talk`]): a side's own, and those that another node passes on to the leader.
//!
//! Promises: each renewal is what a call of its own would be ([`super::renew`]): confirmed after it arrived (I5). A node's stamp is looked
//! at with every message: one that was removed is turned away at once. A node that passes on is answered here or told
//! why not; nothing is passed on twice. The node's end ends the call.
//!
//! It does not know what a renewal means.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;
use treelease_proto::wire;

use super::Service;
use super::peers::turned_away;
use super::talk::Speaker;
use super::under_way::{self, Most};
use crate::limits::Seats;

/// Of a side: a daemon has at most five renewals under way, and one session.
const OF_A_SIDE: Most = Most { messages: 16, later: 16 };
/// Of a node: each message brings what lay in its queue. So many sessions as may wait do not end at once where all is well; each of
/// them looks again after every applied entry, some milliseconds for all.
const OF_A_NODE: Most = Most { messages: 256, later: 4_096 };

type Step = under_way::Step<wire::RenewalAnswered>;

/// A side.
pub(super) struct OfASide;

impl Speaker for OfASide {
    type Asked = wire::RenewalsAsked;
    type Answered = wire::RenewalsAnswered;
    type One = wire::RenewalAsked;
    type Said = wire::RenewalAnswered;
    const MOST: Most = OF_A_SIDE;
    const WHAT: &'static str = "renewals";
    const LASTS: bool = false;

    fn seats(service: &Service) -> &Arc<Seats> {
        &service.api.counts.renewal_streams
    }

    fn read(&mut self, _: &Service, message: Self::Asked) -> Result<Vec<wire::RenewalAsked>, Status> {
        Ok(message.asked)
    }

    fn begin(service: &Arc<Service>, asked: Vec<wire::RenewalAsked>, mut begun: impl FnMut(BoxFuture<'static, Step>)) {
        match service.api.consensus.leader_elsewhere() {
            None => begun(service.clone().renew_together(asked).boxed()),
            Some(_) => asked.into_iter().for_each(|one| begun(service.clone().renew_elsewhere(one).boxed())),
        }
    }

    fn say(&self, answered: Vec<wire::RenewalAnswered>) -> Self::Answered {
        wire::RenewalsAnswered { answered }
    }

    fn no_room(service: &Service, tag: u64) -> wire::RenewalAnswered {
        service.answered(tag, Err(too_many_wait(Self::MOST)))
    }
}

/// Another node.
#[derive(Default)]
pub(super) struct OfANode {
    /// For the answers, by what its last message said.
    stamp: Option<wire::Stamp>,
}

impl Speaker for OfANode {
    type Asked = wire::RenewalsForwarded;
    type Answered = wire::RenewalsReturned;
    type One = wire::RenewalAsked;
    type Said = wire::RenewalAnswered;
    const MOST: Most = OF_A_NODE;
    const WHAT: &'static str = "renewals";
    const LASTS: bool = false;

    fn seats(service: &Service) -> &Arc<Seats> {
        &service.api.counts.renewal_streams
    }

    fn read(&mut self, service: &Service, message: Self::Asked) -> Result<Vec<wire::RenewalAsked>, Status> {
        self.stamp = Some(service.api.consensus.let_in(message.stamp.as_ref()).map_err(turned_away)?);
        Ok(message.asked)
    }

    fn begin(service: &Arc<Service>, asked: Vec<wire::RenewalAsked>, mut begun: impl FnMut(BoxFuture<'static, Step>)) {
        begun(service.clone().renew_together(asked).boxed());
    }

    fn say(&self, answered: Vec<wire::RenewalAnswered>) -> Self::Answered {
        wire::RenewalsReturned { stamp: self.stamp.clone(), answered }
    }

    fn no_room(service: &Service, tag: u64) -> wire::RenewalAnswered {
        service.answered(tag, Err(too_many_wait(Self::MOST)))
    }
}

fn too_many_wait(most: Most) -> Status {
    Status::unavailable(format!("more than {} renewals wait for the outcome of expiries; ask again", most.later))
}
