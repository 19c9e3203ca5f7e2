//! Over which call renewals and commands go, and what becomes of them when it breaks.

use super::super::CallError;
use super::super::tests::{StaysOpen, command, fake_line, renewal, serve, servers};
use super::*;

/// Far above what a busy machine needs for an answer.
const MILLIS: u64 = 60_000;

#[tokio::test]
async fn renewals_to_one_server_go_over_one_call() {
    let fake = fake_line(StaysOpen::Yes);
    let servers = servers(vec![serve(&fake).await], MILLIS);
    for _ in 0..5 {
        assert_eq!(servers.renew(&renewal(), None).await.unwrap().number, 9);
    }
    // Whoever has a share of these servers, with another limit too, has a share of the call.
    servers.with_timeout(Duration::from_millis(MILLIS / 2)).renew(&renewal(), None).await.unwrap();
    assert_eq!((fake.calls(), fake.renewals()), ((1, 0), 6));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_call_or_has_no_room_for_it_is_asked_by_calls_of_their_own() {
    for code in [Code::Unimplemented, Code::ResourceExhausted] {
        let fake = fake_line(StaysOpen::No(code));
        let servers = servers(vec![serve(&fake).await], MILLIS);
        for _ in 0..3 {
            assert_eq!(servers.renew(&renewal(), None).await.unwrap().number, 9, "none of them fails");
        }
        assert_eq!((fake.calls(), fake.renewals()), ((1, 3), 3), "{code:?}");
    }
}

#[test]
fn a_connection_that_breaks_is_no_word_that_nothing_was_read_whatever_its_end_looks_like() {
    for code in [Code::Unimplemented, Code::ResourceExhausted] {
        let mut status = Status::new(code, "h2 protocol error");
        assert!(refused_unread(&status), "{code:?} as the server's own word");
        status.set_source(Arc::new(std::io::Error::other("http2 error")));
        assert!(!refused_unread(&status), "{code:?}");
    }
    assert!(!refused_unread(&Status::unavailable("no")));
}

#[tokio::test]
async fn a_call_that_is_refused_is_a_refusal_and_no_reason_for_another_one() {
    let fake = fake_line(StaysOpen::No(Code::Unauthenticated));
    let servers = servers(vec![serve(&fake).await], MILLIS);
    for n in 1..3 {
        assert!(matches!(servers.renew(&renewal(), None).await, Err(CallError::Refused(_))));
        assert_eq!((fake.calls(), fake.renewals()), ((n, 0), 0));
    }
}

#[tokio::test]
async fn a_call_that_breaks_is_opened_anew_and_nothing_is_sent_twice() {
    let fake = fake_line(StaysOpen::Breaks);
    let servers = servers(vec![serve(&fake).await], MILLIS);
    let mut answered = 0;
    for _ in 0..20 {
        match servers.renew(&renewal(), None).await {
            Ok(_) => answered += 1,
            Err(e) => assert!(matches!(e, CallError::Unreachable { .. }), "{e:?}"),
        }
    }
    // One that was put on a call which had just ended is lost, and the next one is not.
    assert!(answered >= 10, "{answered} of 20 were answered");
    assert_eq!((fake.calls(), fake.renewals()), ((answered, 0), answered));
}

#[tokio::test]
async fn a_server_that_is_silent_on_the_call_gets_calls_of_their_own() {
    let fake = fake_line(StaysOpen::Silent);
    let endpoint = serve(&fake).await;
    let impatient = servers(vec![endpoint], 500);
    let e = impatient.renew(&renewal(), None).await.unwrap_err();
    assert!(matches!(&e, CallError::Unreachable { last, .. } if last == "no answer in time"), "{e:?}");
    let patient = impatient.with_timeout(Duration::from_millis(MILLIS));
    assert_eq!(patient.renew(&renewal(), None).await.unwrap().number, 9);
    assert_eq!((fake.calls(), fake.renewals()), ((1, 1), 1));
}

#[tokio::test]
async fn a_renewal_that_fails_ends_nothing_and_takes_no_answer_of_another_one() {
    let fake = fake_line(StaysOpen::Noisy);
    let servers = servers(vec![serve(&fake).await], MILLIS);
    for n in 1..=6 {
        let renewed = servers.renew(&renewal(), None).await;
        match n % 2 {
            0 => assert!(is_no_quorum(&renewed), "{renewed:?}"),
            _ => assert_eq!(renewed.unwrap().number, 9),
        }
    }
    assert_eq!((fake.calls(), fake.renewals()), ((1, 0), 6));
}

fn is_no_quorum<T>(renewed: &Result<T, CallError>) -> bool {
    matches!(renewed, Err(CallError::Unreachable { last, .. }) if last == "no quorum")
}

#[tokio::test]
async fn commands_to_one_server_go_over_one_call_and_a_long_one_by_itself() {
    let fake = fake_line(StaysOpen::Yes);
    let servers = servers(vec![serve(&fake).await], MILLIS);
    for _ in 0..5 {
        servers.do_command("test", None, command()).await.unwrap();
    }
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 0), 5));
    let long = "x".repeat(super::super::ON_LINE_MAX);
    servers.do_command(&long, None, command()).await.unwrap();
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 1), 6));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_call_for_commands_gets_each_once_by_a_call_of_its_own() {
    for code in [Code::Unimplemented, Code::ResourceExhausted] {
        let fake = fake_line(StaysOpen::No(code));
        let servers = servers(vec![serve(&fake).await], MILLIS);
        for _ in 0..3 {
            servers.do_command("test", None, command()).await.unwrap();
        }
        assert_eq!((fake.command_calls(), fake.commands()), ((1, 3), 3), "{code:?}");
    }
}

#[tokio::test]
async fn a_call_for_commands_that_is_refused_is_a_refusal_and_nothing_was_sent() {
    let fake = fake_line(StaysOpen::No(Code::FailedPrecondition));
    let refused = servers(vec![serve(&fake).await], MILLIS).do_command("test", None, command()).await;
    assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 0), 0));
}

#[tokio::test]
async fn a_call_that_ends_with_a_no_leaves_open_what_became_of_the_commands_on_it() {
    let fake = fake_line(StaysOpen::Breaks);
    let e = servers(vec![serve(&fake).await], 700).do_command("test", None, command()).await.unwrap_err();
    assert!(matches!(&e, CallError::Unknown { last, .. } if last.contains("taken out")), "{e:?}");
    // It was asked again, each time over a new call.
    assert!(fake.command_calls().0 >= 2 && fake.command_calls().1 == 0, "{:?}", fake.command_calls());
}

#[tokio::test]
async fn a_server_that_is_silent_on_the_call_for_commands_gets_calls_of_their_own() {
    let fake = fake_line(StaysOpen::Silent);
    let impatient = servers(vec![serve(&fake).await], 500);
    let e = impatient.do_command("test", None, command()).await.unwrap_err();
    assert!(matches!(e, CallError::Unknown { .. }), "{e:?}");
    let patient = impatient.with_timeout(Duration::from_millis(MILLIS));
    patient.do_command("test", None, command()).await.unwrap();
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 1), 1));
}

#[tokio::test]
async fn a_question_that_has_no_room_on_the_call_goes_by_itself_and_the_call_goes_on() {
    let fake = fake_line(StaysOpen::Silent);
    let servers = servers(vec![serve(&fake).await], MILLIS);
    let crowd: Vec<_> = (0..Commands::MOST)
        .map(|_| {
            let servers = servers.clone();
            tokio::spawn(async move { servers.do_command("test", None, command()).await })
        })
        .collect();
    // Each has its place before its first wait.
    while fake.command_calls().0 == 0 {
        tokio::task::yield_now().await;
    }
    servers.do_command("one more", None, command()).await.unwrap();
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 1), 1));
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_question_whose_asker_has_gone_is_not_sent() {
    let fake = fake_line(StaysOpen::Yes);
    let endpoint = serve(&fake).await;
    let servers = servers(vec![endpoint], MILLIS);
    // It has its place on the call when it is dropped, and the call's own task has not run yet: there is one thread.
    let mut gone = Box::pin(servers.do_command("gone", None, command()));
    assert!(futures::poll!(&mut gone).is_pending());
    drop(gone);
    servers.do_command("stays", None, command()).await.unwrap();
    assert_eq!((fake.command_calls(), fake.commands()), ((1, 0), 1));
}
