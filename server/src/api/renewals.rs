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
use super::talk::{self, Speaker};
use crate::limits::Seats;

/// Messages of a side that are worked on at the same time: a daemon has at most five renewals under way.
const OF_A_SIDE_MAX: usize = 16;
/// Messages of a node: each brings what lay in its queue.
const OF_A_NODE_MAX: usize = 256;

type Step = talk::Step<wire::RenewalAnswered>;

/// A side.
pub(super) struct OfASide;

impl Speaker for OfASide {
    type Asked = wire::RenewalsAsked;
    type Answered = wire::RenewalsAnswered;
    type One = wire::RenewalAsked;
    type Said = wire::RenewalAnswered;
    const MOST: usize = OF_A_SIDE_MAX;
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
    const MOST: usize = OF_A_NODE_MAX;
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
}
