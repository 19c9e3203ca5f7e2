//! What the connections to the other nodes cost, and for how long they are kept.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use treelease_proto::id::ClusterId;

use super::super::peers;
use super::*;
use crate::store::identity::Formation;

/// Of node 1, with these members; and how many connections were begun.
fn network(members: &[(NodeId, &str)]) -> (Network, Arc<Peers>, Arc<AtomicUsize>) {
    let formation = Formation { cluster: ClusterId::random(), members: named(members) };
    let peers = Arc::new(peers::tests::peers(1, Some(formation)));
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    let dial = Dial::new(move |endpoint| {
        count.fetch_add(1, Ordering::SeqCst);
        endpoint.connect_lazy()
    });
    (Network::new(peers.clone(), None, Duration::from_millis(1), dial), peers, dialled)
}

fn named(members: &[(NodeId, &str)]) -> BTreeMap<NodeId, Member> {
    members.iter().map(|(id, addr)| (*id, Member { addr: (*addr).into(), disk: format!("disk-{id}") })).collect()
}

fn kept(network: &Network) -> BTreeSet<String> {
    network.channels().keys().map(|(addr, _)| addr.clone()).collect()
}

fn ask(network: &Network, addr: &str) {
    for lane in [Lane::Agreement, Lane::Calls] {
        network.client(addr, lane).unwrap();
    }
}

#[tokio::test]
async fn connections_are_kept_for_members_and_let_go_with_them() {
    let (network, peers, dialled) = network(&[(1, "one:1"), (2, "two:1"), (3, "three:1")]);
    (0..3).for_each(|_| ["two:1", "three:1"].iter().for_each(|addr| ask(&network, addr)));
    assert_eq!(dialled.load(Ordering::SeqCst), 4, "two for each address, once");
    network.away().insert(3, "it is off".into());
    // The third is replaced by a fourth, the second moves.
    peers.members_are(named(&[(1, "one:1"), (2, "two:2"), (4, "four:1")]), &BTreeSet::new());
    network.members_changed();
    assert_eq!(kept(&network), BTreeSet::new());
    assert!(network.away().is_empty());
    ask(&network, "four:1");
    assert_eq!(kept(&network), BTreeSet::from(["four:1".into()]));
}

#[tokio::test]
async fn who_is_no_member_is_asked_over_a_connection_that_is_not_kept() {
    let (network, _, _) = network(&[(1, "one:1"), (2, "two:1")]);
    for n in 0..100 {
        ask(&network, &format!("stranger:{}", n + 1));
    }
    assert_eq!(kept(&network), BTreeSet::new());
}
