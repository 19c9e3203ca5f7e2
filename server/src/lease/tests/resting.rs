//! At rest and active: what a holder says about its unconfirmed writes.

use super::*;

#[test]
fn a_grant_begins_active_and_the_last_word_counts() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    assert!(!world.status().at_rest);
    assert_eq!(world.run(Command::Rest { lease: lease.clone(), number: 1 }), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Rest]);
    assert!(world.status().at_rest);
    assert_eq!(world.run(Command::Active { lease, number: 2, marker: None }), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Active]);
    assert!(!world.status().at_rest);
}

#[test]
fn a_rest_that_comes_late_does_not_undo_the_active_after_it() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    world.run(Command::Active { lease: lease.clone(), number: 5, marker: None });
    assert!(ignored(&world.run(Command::Rest { lease: lease.clone(), number: 4 })));
    assert!(ignored(&world.run(Command::Rest { lease, number: 5 })));
    assert!(!world.status().at_rest);
}

#[test]
fn a_rest_of_an_earlier_grant_is_ignored() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let old = world.granted(&a);
    world.release(&old);
    world.granted(&a);
    assert!(ignored(&world.run(Command::Rest { lease: old, number: 99 })));
    assert!(!world.status().at_rest, "a grant begins active");
}
