//! Renewals over open calls, with three real processes: what a quorum has not confirmed is not acknowledged (I5), and one call of a
//! side survives what is done to the nodes behind it.

mod common;
#[path = "common/held.rs"]
mod held;
#[path = "common/http.rs"]
mod http;
#[path = "common/nodes.rs"]
mod nodes;
#[path = "common/renewing.rs"]
mod renewing;

use std::net::SocketAddr;
use std::time::Duration;

use common::{acquire, until};
use held::{Held, TTL, renew};
use nodes::{ALL, Nodes};
use renewing::{Renewing, of};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tonic::Code;
use treelease_proto::command::Answer;

/// A renewal that a node without a quorum shall not have to wait for.
const SOON: Duration = Duration::from_millis(700);

#[tokio::test]
async fn i5_a_minority_acknowledges_nothing_over_an_open_call_which_goes_on_with_the_quorum() {
    let mut nodes = Nodes::running().await;
    let held = Held::take(&nodes, 1, "dev").await;
    let leader = nodes.all_serve().await;
    let mut call = Renewing::to(&nodes.address(leader), None).await.unwrap();
    assert!(call.renew(of(&held.session, 1)).await.unwrap().alive);
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
    for id in &rest {
        nodes.signal(*id, Signal::STOP);
    }
    for number in 2..5 {
        let tag = call.ask(of(&held.session, number), SOON);
        let no = call.answer(tag).await.expect_err("acknowledged without a quorum");
        assert!(matches!(no.code(), Code::Unavailable | Code::DeadlineExceeded), "{no}");
    }
    rest.iter().for_each(|id| nodes.signal(*id, Signal::CONT));
    // Over the same call, whoever leads now. How long that took decides whether the session still lives.
    answers_again(&mut call, &held, 5).await;
}

#[tokio::test]
async fn i5_a_leader_that_was_stopped_past_an_expiry_acknowledges_no_renewal_of_an_open_call() {
    let mut nodes = Nodes::running().await;
    let held = Held::take(&nodes, 1, "dev").await;
    let old = nodes.all_serve().await;
    let rest: Vec<u64> = ALL.into_iter().filter(|id| *id != old).collect();
    let mut call = Renewing::to(&nodes.address(old), None).await.unwrap();
    assert!(call.renew(of(&held.session, 10)).await.unwrap().alive);
    nodes.signal(old, Signal::STOP);
    // They lie in its socket, and are the first that it reads when it wakes. Half of them would wait for company.
    let queued: Vec<u64> = (11..26)
        .map(|number| {
            let mut renewal = of(&held.session, number);
            renewal.can_wait = number % 2 == 0;
            call.ask(renewal, Duration::ZERO)
        })
        .collect();
    let leader = nodes.agree(&rest).await;
    let other = nodes.caller(leader).open("pod", Duration::from_secs(60)).await;
    assert!(matches!(nodes.caller(leader).command(acquire(&held.tree, &other)).await, Answer::Queued { .. }));
    let (asked, waiter) = (&nodes.caller(leader), &other);
    let granted = || async move { renew(asked, waiter, 1).await.is_ok_and(|answer| !answer.pairs.is_empty()) };
    until("the other side is granted", granted).await;
    nodes.signal(old, Signal::CONT);
    let mut left = queued.len();
    while left > 0 {
        // Its connection may have ended instead.
        let Ok(answered) = call.next().await else { break };
        for one in answered {
            left -= 1;
            if let Ok(answer) = renewing::said(one) {
                assert!(!answer.alive, "acknowledged though the other side holds the tree: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_call_of_a_side_to_a_follower_goes_on_under_the_next_leader() {
    let mut nodes = Nodes::new();
    let admin: Vec<_> = nodes::free_ports(3).into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    for id in ALL {
        let mut program = nodes.program(id);
        program.args(["--admin", &admin[id as usize - 1].to_string()]);
        nodes.start_as(id, program);
    }
    nodes.all_serve().await;
    let held = Held::take(&nodes, 1, "dev").await;
    let leader = nodes.all_serve().await;
    let asked = ALL.into_iter().find(|id| *id != leader).unwrap();
    let mut call = Renewing::to(&nodes.address(asked), None).await.unwrap();
    answers_again(&mut call, &held, 1).await;
    let streams = |id: u64| http::number(&http::get(admin[id as usize - 1], "/metrics").1, "treelease_renewal_streams");
    let (all, call_again) = (&nodes, Mutex::new(&mut call));
    until("the side's call, and one of its node to the leader", || async {
        // Whoever leads by now: a busy machine may have changed that.
        answers_again(&mut **call_again.lock().await, &held, 100).await;
        let leader = all.all_serve().await;
        leader == asked || (streams(asked), streams(leader)) == (1.0, 1.0)
    })
    .await;
    let leader = nodes.all_serve().await;
    if leader != asked {
        nodes.kill_9(leader);
    }
    answers_again(&mut call, &held, 1_000_000).await;
}

/// While a cluster is upgraded node by node, a newer one meets a leader that does not know open calls.
#[tokio::test]
async fn a_leader_of_before_is_sent_each_renewal_by_a_call_of_its_own() {
    let mut nodes = Nodes::new();
    for id in ALL {
        let mut program = nodes.program(id);
        program.env("TREELEASE_TEST_FAULT", "older_node");
        nodes.start_as(id, program);
    }
    nodes.all_serve().await;
    let mut held = Held::take(&nodes, 1, "dev").await;
    for id in ALL {
        let refused = Renewing::to(&nodes.address(id), None).await.err().expect("it is as one of before");
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    }
    held.stays(&nodes, &ALL).await;
    held.stays(&nodes, &ALL).await;
}

/// Callers of the leader may take all the room that there is for open calls: what other nodes pass on is answered all the same.
#[tokio::test]
async fn a_leader_without_room_for_open_calls_is_sent_each_renewal_by_a_call_of_its_own() {
    let mut nodes = Nodes::new();
    for id in ALL {
        let config = nodes.data(id).with_extension("toml");
        std::fs::write(&config, "[limits]\nconnections = 32\n").unwrap();
        let mut program = nodes.program(id);
        program.arg("--config").arg(config);
        nodes.start_as(id, program);
    }
    nodes.all_serve().await;
    let (mut full, mut connections) = (Vec::new(), Vec::new());
    // Whoever may lead by the time.
    for id in ALL {
        let connection = renewing::connection(&nodes.address(id));
        let refused = loop {
            match Renewing::over(&connection, None).await {
                Ok(call) => full.push(call),
                Err(refused) => break refused,
            }
            assert!(full.len() < 1_000, "it refuses none");
        };
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        connections.push(connection);
    }
    let mut held = Held::take(&nodes, 1, "dev").await;
    held.stays(&nodes, &ALL).await;
    held.stays(&nodes, &ALL).await;
}

/// The renewals of an open call are answered, after some that are not.
async fn answers_again(call: &mut Renewing, held: &Held, from: u64) {
    let (call, number) = (Mutex::new(call), std::cell::Cell::new(from));
    until("it is answered", || async {
        number.set(number.get() + 1);
        let mut call = call.lock().await;
        let tag = call.ask(of(&held.session, number.get()), TTL);
        match call.answer(tag).await {
            Ok(answer) => answer.alive || answer.why_not.contains("ended"),
            Err(no) => {
                assert!(matches!(no.code(), Code::Unavailable | Code::DeadlineExceeded), "{no}");
                false
            }
        }
    })
    .await;
}
