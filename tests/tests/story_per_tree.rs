//! The right to write is per tree (I4): a broken lease ends by the next renewal, even if no event of it ever arrives, and the
//! side's other trees do not notice.

use std::time::Duration;

use treelease_tests::hosts::{Side, Timer, World, holds_within, quick, wait_for};

const EROFS: i32 = nix::errno::Errno::EROFS as i32;

fn write(side: &Side, tree: &str) -> Result<(), i32> {
    std::fs::write(side.at(tree).join("beat"), "x").map_err(|e| e.raw_os_error().unwrap_or(0))
}

#[test]
fn a_broken_tree_closes_by_the_next_renewal_while_its_events_are_held_back_and_the_other_stays_open() {
    let world = World::new();
    let server = world.server();
    // Renewals every TTL/5 = 0.8 s; the deadline alone would close it after 3.5 s at the earliest.
    let (a, b) = (world.side("a", &server).ttl("4s").fault("hold_back_events"), world.side("b", &server));
    for tree in ["one", "two"] {
        world.tree(&a, tree, &quick(&["first_write=refuse"]));
        a.mount(tree, &world.lower(tree));
        a.ok(&["acquire", tree]);
        wait_for(Duration::from_secs(5), "it may write", || write(&a, tree).is_ok());
    }
    let epoch = a.tree_status("one")["epoch"].as_u64().unwrap().to_string();
    b.ok(&["break", "one", "--epoch", &epoch, "--reason", "a story", "--yes"]);
    let broken = Timer::start();
    let closed = holds_within(Duration::from_millis(2500), || {
        assert_eq!(write(&a, "two"), Ok(()), "the other tree");
        write(&a, "one") == Err(EROFS)
    });
    assert!(closed, "still open {:?} after the break", broken.elapsed());
    let go_on = Timer::start();
    while go_on.elapsed() < Duration::from_secs(5) {
        assert_eq!(write(&a, "one"), Err(EROFS), "and it stays closed");
        assert_eq!(write(&a, "two"), Ok(()), "beyond the old deadline");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(a.tree_status("one")["state"], "held");
    assert!(a.holds("two"));
}

#[test]
fn a_break_of_another_epoch_is_refused_and_one_without_an_epoch_or_a_terminal_is_wrong_usage() {
    let world = World::new();
    let server = world.server();
    let a = world.side("a", &server);
    world.tree(&a, "dev", &quick(&[]));
    a.mount("dev", &world.lower("dev"));
    a.ok(&["acquire", "dev"]);
    let epoch = a.tree_status("dev")["epoch"].as_u64().unwrap();
    a.run(&["break", "dev", "--epoch", &(epoch + 1).to_string(), "--reason", "x", "--yes"]).refused(75, &["dev"]);
    a.run(&["break", "dev", "--reason", "x", "--yes"]).refused(2, &["--epoch"]);
    a.run(&["break", "dev", "--reason", "x"]).refused(2, &[]);
    assert!(a.holds("dev"));
}
