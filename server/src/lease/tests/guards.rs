//! `enforce` is complete when every side that ever mounted the tree has confirmed it.

use super::*;

fn obeys(session: &SessionId, mode_no: u64) -> Command {
    Command::Obeys { tree: tree_id(1), session: session.clone(), mode_no }
}

fn missing(world: &World) -> Vec<String> {
    world.status().not_enforced_by().map(ToString::to_string).collect()
}

#[test]
fn enforce_is_complete_when_every_side_that_ever_mounted_the_tree_has_confirmed_it() {
    let mut world = World::new();
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    assert_eq!(world.run(obeys(&a, 0)), Answer::Done);
    assert_eq!(world.run(obeys(&b, 0)), Answer::Done);
    assert!(missing(&world).is_empty());
    world.set("mode", "observe");
    assert!(missing(&world).is_empty(), "nothing is to be enforced");
    assert_eq!(world.run(obeys(&a, 1)), Answer::Done);
    world.set("mode", "enforce");
    assert_eq!(missing(&world), ["a", "b"], "a word for the first `enforce` is none for this one");
    world.run(obeys(&a, 2));
    assert_eq!(missing(&world), ["b"]);
    assert!(world.events.is_empty());
    world.run(Command::CloseSession { session: b.clone() });
    assert_eq!(missing(&world), ["b"], "that it is away is no confirmation");
    let again = world.open("b", 3);
    world.run(obeys(&again, 2));
    assert!(missing(&world).is_empty());
    assert_eq!(world.kinds(), [EventKind::Policy], "that it is complete is told");
}

#[test]
fn a_confirmation_that_was_under_way_while_the_mode_changed_counts_for_the_old_one_alone() {
    let mut world = World::new();
    let a = world.open("a", 1);
    world.run(obeys(&a, 0));
    world.set("mode", "observe");
    world.set("mode", "enforce");
    assert!(matches!(world.run(obeys(&a, 0)), Answer::Ignored { .. }));
    assert_eq!(world.run(obeys(&a, 1)), Answer::Done);
    assert_eq!(missing(&world), ["a"]);
    assert_eq!(code(world.run(obeys(&a, 3))), Code::Usage, "nor can one come before the change");
    assert_eq!(world.run(obeys(&a, 2)), Answer::Done);
    world.set("grace", "1s");
    assert!(missing(&world).is_empty(), "another key is no change of the mode");
    let b = world.open("b", 2);
    world.run(obeys(&b, 1));
    assert_eq!(missing(&world), ["b"], "who is first heard of under an earlier mode has it mounted, and does not obey yet");
    let nobody = session_id(99);
    assert!(matches!(world.run(obeys(&nobody, 2)), Answer::Ignored { .. }));
}

/// A side that comes and goes under ever new names (a runner's, a renamed machine's) keeps nobody else out, and one that has not
/// confirmed is never forgotten.
#[test]
fn among_the_most_sides_that_are_kept_one_that_is_gone_and_obeys_makes_room() {
    use super::super::guards::GUARDS_MAX;
    let mut world = World::new();
    world.set("mode", "observe");
    for n in 0..GUARDS_MAX as u64 {
        let one = world.open(&format!("runner-{n}"), n + 1);
        assert_eq!(world.run(obeys(&one, 1)), Answer::Done);
        if n > 0 {
            world.run(Command::CloseSession { session: one });
        }
    }
    let more = world.open("more", 1_000);
    assert_eq!(world.run(obeys(&more, 1)), Answer::Done);
    world.set("mode", "enforce");
    let missing = missing(&world);
    assert_eq!(missing.len(), GUARDS_MAX);
    assert!(missing.iter().any(|side| side == "more") && missing.iter().any(|side| side == "runner-0"), "who is here is kept");
    let another = world.open("another", 1_001);
    assert_eq!(code(world.run(obeys(&another, 2))), Code::Limit, "of those that do not obey none is forgotten");
}

#[test]
fn a_side_that_is_gone_for_good_is_let_go_by_an_operator_and_named_again_if_it_comes_back() {
    let forget = |name: &str| Command::ForgetSide { side: side(name), reason: "scrapped".into() };
    let mut world = World::new();
    let other = world.add_tree(2, "other");
    let (a, b) = (world.open("a", 1), world.open("b", 2));
    for session in [&a, &b] {
        world.run(obeys(session, 0));
    }
    world.run(Command::Obeys { tree: other.clone(), session: b.clone(), mode_no: 0 });
    world.set("mode", "observe");
    world.set("mode", "enforce");
    world.run(obeys(&a, 2));
    assert_eq!(missing(&world), ["b"]);
    assert_eq!(code(world.run(forget("b"))), Code::Busy, "its daemon runs");
    world.run(Command::CloseSession { session: b });
    assert_eq!(code(world.run(forget("c"))), Code::NotFound);
    assert_eq!(world.run(forget("b")), Answer::Done);
    assert!(missing(&world).is_empty());
    // Of each tree that it had mounted; of the first that it is complete now, too.
    let about: Vec<(&str, Option<&str>)> =
        world.events.iter().map(|e| (e.name.as_str(), e.side.as_ref().map(|s| s.as_str()))).collect();
    assert_eq!(about, [("dev", Some("b")), ("dev", None), ("other", Some("b"))]);
    assert!(world.events[0].reason.contains("scrapped") && world.events[1].reason.contains("obeyed by every side"));
    assert_eq!(code(world.run(forget("b"))), Code::NotFound, "it is gone");
    let again = world.open("b", 3);
    world.run(obeys(&again, 1));
    assert_eq!(missing(&world), ["b"]);
}
