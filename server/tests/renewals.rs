//! Renewals over one call that stays open: each of them is what a call of its own would be, and the call has limits.

#[path = "common/alone.rs"]
mod alone;
mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/renewing.rs"]
mod renewing;

use std::time::Duration;

use alone::{metric, node, tokens};
use common::{Caller, until};
use renewing::{Renewing, connection, of, said};
use tonic::Code;
use treelease_proto::id::{ClusterId, SessionId};
use treelease_proto::wire;
use treelease_server::config::Config;
use treelease_server::limits::Limits;

/// Nothing ends by itself.
const TTL: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn each_renewal_of_an_open_call_is_answered_or_fails_by_itself_and_is_counted() {
    let (_dir, _, node) = node(|config| config).await;
    let caller = Caller::new(node.address());
    let (session, tree) = (caller.open("workstation", TTL).await, caller.add_tree("dev").await);
    let grant = caller.acquire(&tree, &session).await;
    let mut call = Renewing::to(node.address(), None).await.unwrap();
    let first = call.renew(of(&session, 1)).await.unwrap();
    assert!(first.alive && first.pairs.len() == 1 && first.pairs[0].epoch == grant.epoch.get());
    assert_eq!(first.cluster, node.cluster().as_str());
    let gone = call.renew(of(&SessionId::random(), 1)).await.unwrap();
    assert!(!gone.alive && gone.pairs.is_empty());
    let other_run = wire::RenewRequest { incarnation: 2, ..of(&session, 2) };
    assert!(!call.renew(other_run).await.unwrap().alive);

    let name = "treelease_failed_calls_total{code=\"failed_precondition\"}";
    assert_eq!(metric(&node, name).await, 0.0);
    let stranger = wire::RenewRequest { cluster: ClusterId::random().to_string(), ..of(&session, 3) };
    assert_eq!(call.renew(stranger.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(metric(&node, name).await, 1.0);
    let nobody = wire::RenewRequest { session: "../x".into(), ..of(&session, 4) };
    assert_eq!(call.renew(nobody).await.unwrap_err().code(), Code::InvalidArgument);

    // Several in one message, and one of them is none.
    let one = |tag, renewal| wire::RenewalAsked { tag, limit_ms: 0, renewal };
    call.say(vec![one(100, Some(of(&session, 5))), one(101, None), one(102, Some(stranger)), one(103, Some(of(&session, 6)))]);
    let mut all = Vec::new();
    while all.len() < 4 {
        all.extend(call.next().await.unwrap());
    }
    all.sort_by_key(|one| one.tag);
    let codes: Vec<Code> = all.into_iter().map(|one| said(one).map_or_else(|no| no.code(), |_| Code::Ok)).collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, Code::FailedPrecondition, Code::Ok]);

    // Two machines: it ends, for both, and the call does not.
    let nonce = call.renew(of(&session, 7)).await.unwrap().nonce;
    assert!(call.renew(wire::RenewRequest { nonce, ..of(&session, 8) }).await.unwrap().alive);
    let copy = call.renew(wire::RenewRequest { nonce: first.nonce, ..of(&session, 9) }).await.unwrap();
    assert!(!copy.alive && copy.why_not.contains("cloned"), "{copy:?}");
    assert!(!call.renew(of(&session, 10)).await.unwrap().alive);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_its_side_has_given_up_is_not_acknowledged_over_an_open_call_either() {
    let (_dir, _, node) = node(|config| config).await;
    let session = Caller::new(node.address()).open("workstation", Duration::from_secs(2)).await;
    let mut call = Renewing::to(node.address(), None).await.unwrap();
    assert!(call.renew(of(&session, 10)).await.unwrap().alive);
    let call = tokio::sync::Mutex::new(call);
    // Until a full time to live has passed since number 10 came.
    until("it is given up", || async {
        let late = call.lock().await.renew(of(&session, 1)).await.unwrap();
        assert!(late.alive || late.why_not.contains("ended"), "{late:?}");
        late.given_up && late.pairs.is_empty() || !late.alive
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_much_ends_the_call_and_not_the_connection() {
    let (_dir, _, node) = node(|config| config).await;
    let session = Caller::new(node.address()).open("workstation", TTL).await;
    let client = connection(node.address());
    let mut stays = Renewing::over(&client, None).await.unwrap();
    let many = |count: usize, text: usize| {
        let renewal = Some(wire::RenewRequest { cluster: "x".repeat(text), ..of(&session, 1) });
        vec![wire::RenewalAsked { tag: 1, limit_ms: 0, renewal }; count]
    };
    for (asked, code) in [(many(257, 0), Code::InvalidArgument), (many(2, 40_000), Code::OutOfRange)] {
        let mut call = Renewing::over(&client, None).await.unwrap();
        call.say(asked);
        assert_eq!(call.next().await.unwrap_err().code(), code);
    }
    assert!(metric(&node, "treelease_failed_calls_total{code=\"out_of_range\"}").await >= 1.0);
    assert!(stays.renew(of(&session, 2)).await.unwrap().alive);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_calls_beyond_the_limit_are_refused_and_there_is_room_again_when_one_ends() {
    let (_dir, _, node) = node(|config| Config { limits: Limits { connections: 3, ..Limits::default() }, ..config }).await;
    let session = Caller::new(node.address()).open("workstation", TTL).await;
    let client = connection(node.address());
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(Renewing::over(&client, None).await.unwrap());
    }
    assert_eq!(metric(&node, "treelease_renewal_streams").await, 3.0);
    let refused = Renewing::over(&client, None).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // By calls of their own renewals go on.
    assert!(client.clone().renew(of(&session, 1)).await.unwrap().into_inner().alive);
    calls.pop();
    until("there is room again", || async { Renewing::over(&client, None).await.is_ok() }).await;
    drop(calls);
    until("and nothing is left of them", || async { metric(&node, "treelease_renewal_streams").await == 0.0 }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_taken_out_opens_no_call_that_is_open_already() {
    let (_dir, config, mut node) = node(|config| tokens(config, ["old", "new"])).await;
    let caller = Caller::new(node.address()).with_token("old");
    let session = caller.open("workstation", TTL).await;
    assert_eq!(Renewing::to(node.address(), None).await.err().unwrap().code(), Code::Unauthenticated);
    let mut old = Renewing::to(node.address(), Some("old")).await.unwrap();
    let mut new = Renewing::to(node.address(), Some("new")).await.unwrap();
    assert!(old.renew(of(&session, 1)).await.unwrap().alive);
    node.reload(tokens(config, ["new", "newer"])).unwrap();
    old.ask(of(&session, 2), Duration::ZERO);
    assert_eq!(old.next().await.unwrap_err().code(), Code::Unauthenticated);
    assert!(metric(&node, "treelease_failed_calls_total{code=\"unauthenticated\"}").await >= 2.0);
    assert!(new.renew(of(&session, 3)).await.unwrap().alive, "the other one goes on");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_end_ends_an_open_call_and_does_not_wait_for_it() {
    let (_dir, _, node) = node(|config| config).await;
    let session = Caller::new(node.address()).open("workstation", TTL).await;
    let mut call = Renewing::to(node.address(), None).await.unwrap();
    assert!(call.renew(of(&session, 1)).await.unwrap().alive);
    let stopped = tokio::spawn(node.stop());
    assert_eq!(call.next().await.unwrap_err().code(), Code::Unavailable);
    stopped.await.unwrap();
}
