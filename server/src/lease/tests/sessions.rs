//! Sessions: one for each side, and how a restarted daemon goes on with its own.

use super::*;

fn resume(session: &SessionId, secret: &[u8]) -> OpenSession {
    let resume = Some(Resume { session: session.clone(), secret: secret.to_vec() });
    OpenSession { resume, new_secret_digest: digest(b"second"), ..open_of("a", session_id(50)) }
}

#[test]
fn a_second_daemon_is_told_who_has_the_side() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let refused = refusal(world.run(Command::OpenSession(open_of("a", session_id(2)))));
    assert_eq!((refused.code, refused.holder), (Code::Held, None));
    assert!(refused.message.starts_with("side a is in use by a-host since "), "{}", refused.message);
    world.expire(&a);
    world.open("a", 2);
}

#[test]
fn the_same_daemon_restarted_goes_on_with_session_and_leases() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    let answer = world.run(Command::OpenSession(resume(&a, b"a")));
    assert_eq!(answer, Answer::Opened { session: a.clone(), incarnation: 2, ttl: Ttl::new(TTL), resumed: true });
    assert_eq!(world.state.held_by(&a)[0].epoch, lease.epoch);
    let stale = world.run(Command::OpenSession(resume(&a, b"a")));
    assert_eq!(code(stale), Code::Held, "the old secret is used up");
    assert!(matches!(world.run(Command::OpenSession(resume(&a, b"second"))), Answer::Opened { incarnation: 3, .. }));
}

#[test]
fn a_wrong_proof_is_as_none() {
    let mut world = World::new();
    let a = world.open("a", 1);
    assert_eq!(code(world.run(Command::OpenSession(resume(&a, b"guess")))), Code::Held);
    assert_eq!(code(world.run(Command::OpenSession(resume(&session_id(7), b"a")))), Code::Held);
    assert_eq!(world.state.session(&a).unwrap().incarnation(), 1);
}

#[test]
fn i2_from_another_boot_even_the_secret_does_not_take_the_session_on() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let elsewhere = OpenSession { boot: "boot-moved".into(), ..resume(&a, b"a") };
    assert_eq!(code(world.run(Command::OpenSession(elsewhere))), Code::Held);
}

#[test]
fn a_resume_of_a_session_that_has_ended_opens_a_new_one() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.expire(&a);
    let answer = world.run(Command::OpenSession(resume(&a, b"a")));
    assert!(matches!(answer, Answer::Opened { resumed: false, incarnation: 1, session, .. } if session == session_id(50)));
}

#[test]
fn a_ttl_outside_the_limits_is_refused_and_they_are_named() {
    let mut world = World::new();
    for seconds in [1, 61] {
        let open = OpenSession { ttl: Ttl::new(Duration::from_secs(seconds)), ..open_of("a", session_id(1)) };
        let refused = refusal(world.run(Command::OpenSession(open)));
        assert_eq!(refused.code, Code::Config);
        assert!(refused.message.contains("2s to 1m"), "{}", refused.message);
    }
}

#[test]
fn a_session_that_holds_a_tree_is_not_closed() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    let lease = world.granted(&a);
    world.queued(&b);
    let close = |session: &SessionId| Command::CloseSession { session: session.clone() };
    assert_eq!(code(world.run(close(&a))), Code::Busy);
    assert_eq!(world.run(close(&b)), Answer::Done);
    assert_eq!(world.status().waiters.len(), 0, "its places in queues go with it");
    world.release(&lease);
    assert_eq!(world.run(close(&a)), Answer::Done);
    assert!(ignored(&world.run(close(&a))));
}

#[test]
fn the_id_of_a_living_session_is_not_taken_again() {
    let mut world = World::new();
    world.open("a", 1);
    assert_eq!(code(world.run(Command::OpenSession(open_of("b", session_id(1))))), Code::Usage);
}

#[test]
fn i3_a_lower_ttl_is_answered_at_once_and_waited_for_only_when_the_leader_has_waited_a_full_old_one() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lower = |world: &mut World, seconds: u64| {
        let resume = Some(Resume { session: session_id(1), secret: b"a".to_vec() });
        let ttl = Ttl::new(Duration::from_secs(seconds));
        world.run(Command::OpenSession(OpenSession { ttl, resume, ..open_of("a", session_id(9)) }))
    };
    let settle = |world: &mut World, incarnation, decided_under| {
        world.run(Command::SettleTtl { session: session_id(1), incarnation, decided_under })
    };
    let now = |world: &World| {
        let session = world.state.session(&session_id(1)).unwrap();
        (session.ttl().get().as_secs(), session.outlives().get().as_secs())
    };
    lower(&mut world, 5);
    assert_eq!(now(&world), (5, 15), "a renewal of before gives a right for 15 s");
    lower(&mut world, 8);
    assert_eq!(now(&world), (8, 15), "still");
    let (under, earlier) = (world.leadership(), Leadership(world.leadership().0 - 1));
    assert!(ignored(&settle(&mut world, 2, under)), "decided before it was lowered again");
    assert!(ignored(&settle(&mut world, 3, earlier)));
    assert_eq!(settle(&mut world, 3, under), Answer::Done);
    assert_eq!(now(&world), (8, 8));
    assert!(ignored(&settle(&mut world, 3, under)));
    lower(&mut world, 20);
    assert_eq!(now(&world), (20, 20), "a higher one counts at once");
    world.granted(&a);
}
