//! Which node numbers were used, and the shortest time to live.

use super::*;

fn raise(secs: u64) -> Command {
    Command::RaiseTtl { ttl_min: Ttl::new(Duration::from_secs(secs)) }
}

#[test]
fn i3_a_raised_limit_raises_living_sessions_and_is_never_lowered() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let timed = world.state.timed();
    assert_eq!(world.run(raise(20)), Answer::Done);
    assert_eq!(world.state.limits().0, Ttl::new(Duration::from_secs(20)));
    assert_eq!(world.state.session(&a).unwrap().ttl(), Ttl::new(Duration::from_secs(20)));
    assert_ne!(world.state.timed(), timed, "the leader's timers look at it again");
    assert!(matches!(world.run(raise(10)), Answer::Ignored { .. }));
    let short = OpenSession { ttl: Ttl::new(TTL), ..open_of("b", session_id(2)) };
    let refused = refusal(world.run(Command::OpenSession(short)));
    assert!(refused.message.contains("20s"), "{}", refused.message);
    // Never above what the cluster takes at most.
    assert_eq!(world.run(raise(10_000)), Answer::Done);
    assert_eq!(world.state.limits(), (Ttl::new(Duration::from_secs(60)), Ttl::new(Duration::from_secs(60))));
}

#[test]
fn i3_a_limit_raised_above_what_was_lowered_is_waited_for_whole_and_a_restart_below_it_goes_on() {
    let mut world = World::new();
    world.open("a", 1);
    let resume = |world: &mut World, seconds: u64| {
        let resume = Some(Resume { session: session_id(1), secret: b"a".to_vec() });
        let ttl = Ttl::new(Duration::from_secs(seconds));
        world.run(Command::OpenSession(OpenSession { ttl, resume, ..open_of("a", session_id(9)) }))
    };
    resume(&mut world, 5);
    assert_eq!(world.run(raise(20)), Answer::Done);
    let twenty = Ttl::new(Duration::from_secs(20));
    let session = world.state.session(&session_id(1)).unwrap();
    assert_eq!((session.ttl(), session.outlives()), (twenty, twenty), "what it is answered with it is waited for");
    let resumed = resume(&mut world, 5);
    assert!(matches!(resumed, Answer::Opened { ttl, resumed: true, .. } if ttl == twenty), "{resumed:?}");
}

#[test]
fn i7_a_nodes_number_is_remembered_after_the_node_has_gone_and_in_a_snapshot() {
    let mut world = World::new();
    world.state.note_nodes([1, 2, 3]);
    world.state.note_nodes([1, 2, 4]);
    let kept = serde_json::to_string(&world.state).unwrap();
    let read: State = serde_json::from_str(&kept).unwrap();
    assert_eq!(read.node_ids().iter().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
}
