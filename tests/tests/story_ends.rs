//! Ends that nobody planned: `down` under a writer that never stops, and `down` that cannot hand over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use treelease_tests::hosts::{World, quick, wait_for};

/// Until everything is as before, on a busy machine.
const BACK: Duration = Duration::from_secs(20);

#[test]
fn down_under_a_writer_that_never_stops_ends_clean_and_takes_nothing_again() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (workstation.at("dev").join("log"), stop.clone());
        let writer = std::thread::spawn(move || {
            let mut written = 0;
            while !stopped.load(Ordering::SeqCst) {
                written += u32::from(std::fs::write(&path, "x").is_ok());
            }
            written
        });
        wait_for(BACK, "the first write has taken the tree", || workstation.holds("dev"));
        let down = workstation.run(&["down"]);
        stop.store(true, Ordering::SeqCst);
        assert!(writer.join().unwrap() > 0);
        down.expect(0);
        let tree = pod.tree_status("dev");
        assert_eq!((&tree["state"], &tree["last_end"]), (&"free".into(), &"clean".into()), "round {round}: {tree}");
        let _ = std::fs::remove_file(workstation.at("dev").join("log"));
        workstation.mount("dev", &world.lower("dev"));
    }
}

#[test]
fn down_that_cannot_hand_over_is_no_success_and_says_which_tree() {
    let world = World::new();
    let (mut server, workstation, _pod) = world.two_hosts(&quick(&[]));
    workstation.ok(&["acquire", "dev"]);
    server.kill();
    let down = workstation.run(&["down", "--within", "2s"]);
    assert_eq!(down.code, 74, "{down}");
    down.refused(74, &["dev", "unclean"]);
}
