//! Each kind of end by itself: what befalls the holder, a node or the network between them; who can go on while it lasts, in a
//! bounded time; and that, when it is over, every promise was kept (`treelease_tests::ends::verdict`).
//!
//! Three nodes and two sides, each real processes on a host of its own. The sides write lines and rows all the time.

use std::time::Duration;

use treelease_tests::ends::fault::host_of_side;
use treelease_tests::ends::plan::{Fault, Node};
use treelease_tests::ends::scene::{SOON, Scene, Setting};
use treelease_tests::ends::work::{Habit, TREE};
use treelease_tests::hosts::{Pace, Signal, signal, wait_for};

/// Until a side has the tree while a fault lasts: time to live, grace, elections, connections that must be given up, and a machine
/// that does ten things at once.
const GOES_ON: Duration = Duration::from_secs(90);
/// How often a thing is tried that a busy machine may spoil.
const TRIES: u32 = 5;
/// The holder.
const FIRST: usize = 0;
/// The other side.
const OTHER: usize = 1;

/// A scene in which the first side holds the tree and writes.
fn held(setting: Setting, habit: Habit) -> Scene {
    let mut scene = Scene::new(setting);
    scene.work(FIRST, habit);
    holds(&mut scene);
    scene
}

/// The first side gets the tree, and writes.
fn holds(scene: &mut Scene) {
    scene.goes_on(FIRST, GOES_ON);
    let before = written(scene, FIRST);
    wait_for(SOON, "the holder writes", || written(scene, FIRST) > before);
}

fn written(scene: &Scene, side: usize) -> usize {
    scene.writes().iter().filter(|write| write.side == side).count()
}

/// While each of these lasts, one after the other, both sides go on.
fn both_go_on_during(name: &str, faults: impl Fn(usize) -> Vec<Fault>) {
    let mut scene = held(Setting::quick(name), Habit::Busy);
    scene.work(OTHER, Habit::Busy);
    for n in 0..faults(1).len() {
        let leader = scene.wait_leader();
        let befallen = scene.inflict(faults(leader)[n]);
        scene.goes_on(OTHER, GOES_ON);
        scene.goes_on(FIRST, GOES_ON);
        scene.heal(&befallen);
    }
    scene.heal_all();
    scene.conclude();
}

#[test]
fn a_killed_daemon_ends_its_lease_and_the_other_side_goes_on() {
    let mut scene = held(Setting::quick("a_killed_daemon_ends"), Habit::Lines);
    scene.inflict(Fault::KillDaemon(FIRST));
    scene.work(OTHER, Habit::Busy);
    scene.goes_on(OTHER, GOES_ON);
    scene.heal_all();
    scene.conclude();
}

#[test]
fn a_stopped_daemon_ends_its_lease_and_its_gate_is_shut_when_it_wakes() {
    let mut scene = held(Setting::quick("a_stopped_daemon_ends"), Habit::Busy);
    scene.inflict(Fault::StopDaemon(FIRST));
    scene.work(OTHER, Habit::Busy);
    scene.goes_on(OTHER, GOES_ON);
    let before = written(&scene, OTHER);
    wait_for(SOON, "the other side writes", || written(&scene, OTHER) > before);
    scene.heal_all();
    scene.conclude();
}

#[test]
fn by_default_the_other_side_of_a_stopped_daemon_waits_and_is_told_so_until_somebody_vouches() {
    let setting = Setting { policy: vec!["fence=manual"], ..Setting::quick("by_default_the_other_side_of_a_stopped") };
    let mut scene = held(setting, Habit::Busy);
    // A scribe that a busy machine keeps from writing lets the tree come to rest: then no fence is needed, and it is tried again.
    let active = (0..TRIES).any(|_| {
        holds(&mut scene);
        let befallen = scene.inflict(Fault::StopDaemon(FIRST));
        wait_for(SOON, "the lease ends", || ["fencing", "free"].iter().any(|state| scene.tree()["state"] == *state));
        let active = scene.tree()["state"] == "fencing";
        if !active {
            scene.heal(&befallen);
        }
        active
    });
    assert!(active, "it waits for a fence");
    scene.side(OTHER).run(&["acquire", TREE, "-n"]).refused(75, &["fence confirm"]);
    scene.tell("the wait is shown");
    scene.vouch();
    scene.work(OTHER, Habit::Busy);
    scene.goes_on(OTHER, GOES_ON);
    scene.heal_all();
    scene.conclude();
}

#[test]
fn a_killed_command_drops_its_hold_and_the_other_side_goes_on() {
    let mut scene = held(Setting::quick("a_killed_command"), Habit::Busy);
    let mut run = scene.side(FIRST).treelease(&["run", "--tree", TREE, "--ask", "--", "sleep", "600"]).spawn().unwrap();
    let holds = |scene: &Scene| scene.side(FIRST).run(&["holds", TREE, "-o", "json"]).stdout.contains("sleep 600");
    wait_for(SOON, "the command holds the tree", || holds(&scene));
    signal(run.id(), Signal::KILL);
    run.wait().unwrap();
    wait_for(SOON, "its hold is dropped", || !holds(&scene));
    scene.work(OTHER, Habit::Busy);
    scene.goes_on(OTHER, GOES_ON);
    scene.conclude();
}

#[test]
fn with_any_one_node_killed_both_sides_go_on() {
    both_go_on_during("with_any_one_node_killed", |_| vec![Fault::KillNode(Node::Leader), Fault::KillNode(Node::Follower)]);
}

#[test]
fn with_two_nodes_killed_writes_stop_at_the_deadline_and_nothing_is_granted() {
    let mut scene = held(Setting::quick("with_two_nodes_killed"), Habit::Busy);
    scene.work(OTHER, Habit::Busy);
    let befallen = scene.inflict(Fault::KillTwoNodes);
    let mut last = (0, 0);
    let mut still = 0;
    wait_for(SOON, "no side writes", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = (written(&scene, FIRST), written(&scene, OTHER));
        still = if now == last { still + 1 } else { 0 };
        last = now;
        still > 6
    });
    scene.heal(&befallen);
    scene.heal_all();
    scene.conclude();
}

#[test]
fn a_leader_that_stands_still_past_every_limit_is_replaced_and_says_nothing_when_it_wakes() {
    both_go_on_during("a_leader_that_stands_still", |_| vec![Fault::StopNode(Node::Leader)]);
}

#[test]
fn with_a_side_and_the_leader_apart_each_way_or_both_both_sides_go_on() {
    both_go_on_during("with_a_side_and_the_leader_apart", |leader| {
        let (side, leader) = (host_of_side(FIRST), leader - 1);
        vec![Fault::OneWay(side, leader), Fault::OneWay(leader, side), Fault::Apart(side, leader)]
    });
}

#[test]
fn with_the_leader_and_a_follower_apart_each_way_or_both_both_sides_go_on() {
    both_go_on_during("with_the_leader_and_a_follower_apart", |leader| {
        let (leader, follower) = (leader - 1, leader % 3);
        vec![Fault::OneWay(leader, follower), Fault::OneWay(follower, leader), Fault::Apart(leader, follower)]
    });
}

#[test]
fn with_the_leader_alone_both_sides_go_on() {
    both_go_on_during("with_the_leader_alone", |_| vec![Fault::LeaderAlone]);
}

#[test]
fn a_holder_that_is_cut_off_stops_writing_and_the_other_side_goes_on() {
    let mut scene = held(Setting::quick("a_holder_that_is_cut_off"), Habit::Busy);
    scene.work(OTHER, Habit::Busy);
    for fault in [Fault::Deaf(host_of_side(FIRST)), Fault::Mute(host_of_side(FIRST)), Fault::Alone(host_of_side(FIRST))] {
        holds(&mut scene);
        let befallen = scene.inflict(fault);
        scene.goes_on(OTHER, GOES_ON);
        scene.heal(&befallen);
    }
    scene.heal_all();
    scene.conclude();
}

#[test]
fn control_a_gate_held_open_on_a_holder_that_is_cut_off_is_seen_by_the_checks() {
    let mut scene = held(Setting { fault: Some("gate_open"), ..Setting::quick("control_a_gate_held_open") }, Habit::Lines);
    scene.inflict(Fault::Alone(host_of_side(FIRST)));
    scene.work(OTHER, Habit::Busy);
    scene.goes_on(OTHER, GOES_ON);
    let seen = |what: &str| scene.broken().0.iter().any(|broken| broken.starts_with(what));
    wait_for(SOON, "two gates are seen to admit", || seen("within: "));
    wait_for(SOON, "acknowledged lines are lost", || seen("acknowledged lines are gone: "));
}

#[test]
fn with_a_full_disk_on_any_one_node_both_sides_go_on_and_nothing_acknowledged_is_lost() {
    let setting = Setting { small_disks: true, ..Setting::quick("with_a_full_disk") };
    let mut scene = held(setting, Habit::Busy);
    scene.work(OTHER, Habit::Busy);
    let mut filled = Vec::new();
    for node in [Node::Follower, Node::Leader] {
        scene.wait_leader();
        let befallen = scene.inflict(Fault::FullDisk(node));
        scene.goes_on(OTHER, GOES_ON);
        scene.goes_on(FIRST, GOES_ON);
        // Its log stands in blocks that it has already, when it has been restarted: then it may go on for long.
        if !filled.contains(&befallen.nodes()) {
            scene.wait_ended(&befallen);
        }
        filled.push(befallen.nodes());
        scene.goes_on(OTHER, GOES_ON);
        scene.heal(&befallen);
    }
    scene.heal_all();
    scene.conclude();
}

#[test]
fn a_holder_keeps_its_lease_through_a_rolling_restart() {
    let setting = Setting { ttl: "15s", pace: Pace::default(), ..Setting::quick("a_rolling_restart") };
    let mut scene = held(setting, Habit::Lines);
    let epoch = scene.tree()["epoch"].clone();
    for node in 1..=3 {
        scene.restart(node);
        let before = written(&scene, FIRST);
        wait_for(SOON, "the holder writes", || written(&scene, FIRST) > before);
    }
    assert_eq!(scene.tree()["epoch"], epoch, "it is the same lease");
    scene.work(OTHER, Habit::Busy);
    scene.conclude();
}
