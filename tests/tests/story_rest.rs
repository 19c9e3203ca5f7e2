//! At rest and active (DESIGN 3): what has nothing unconfirmed needs no fence, and a burst of writes costs one word to the server.

use std::time::Duration;

use treelease_tests::hosts::{Server, Side, Timer, World, quick, wait_for};

const LONG: Duration = Duration::from_secs(10);
const EROFS: i32 = nix::errno::Errno::EROFS as i32;

fn write(side: &Side, name: &str) -> Result<(), i32> {
    std::fs::write(side.at("dev").join(name), "x").map_err(|e| e.raw_os_error().unwrap_or(0))
}

fn at_rest(side: &Side) -> bool {
    side.tree_status("dev")["at_rest"] == true
}

/// Two sides without the marker's lock: here nothing but a person ends a fence (with it: `story_witness`).
fn without_the_lock(world: &World) -> (Server, Side, Side) {
    let server = world.server();
    let (a, b) = (world.side("workstation", &server).fault("no_lock"), world.side("pod", &server).fault("no_lock"));
    world.tree(&a, "dev", &quick(&["fence=manual"]));
    a.mount("dev", &world.lower("dev"));
    b.mount("dev", &world.lower("dev"));
    (server, a, b)
}

#[test]
fn a_holder_killed_at_rest_needs_no_fence() {
    let world = World::new();
    let (_server, a, b) = without_the_lock(&world);
    a.ok(&["acquire", "dev"]);
    write(&a, "one").unwrap();
    wait_for(LONG, "it is at rest", || at_rest(&b));
    a.kill_daemon();
    // TTL and grace, and nobody vouches for anything.
    b.ok(&["acquire", "dev", "--wait", "15s"]);
    assert_eq!(std::fs::read(b.at("dev").join("one")).unwrap(), b"x");
    assert_eq!(b.tree_status("dev")["last_end"], "unclean");
}

#[test]
fn control_a_holder_killed_while_it_writes_is_waited_for_until_somebody_vouches() {
    let world = World::new();
    let (_server, a, b) = without_the_lock(&world);
    a.ok(&["acquire", "dev"]);
    write(&a, "one").unwrap();
    assert!(!at_rest(&b), "less than a second ago");
    a.kill_daemon();
    wait_for(LONG, "it waits for a fence", || b.tree_status("dev")["state"] == "fencing");
    b.run(&["acquire", "dev", "-n"]).refused(75, &["fence confirm"]);
    let epoch = b.tree_status("dev")["ended_epoch"].as_u64().unwrap().to_string();
    b.ok(&["fence", "confirm", "dev", "--epoch", &epoch, "--reason", "the story killed it"]);
    b.ok(&["acquire", "dev", "--wait", "5s"]);
}

#[test]
fn the_first_write_after_rest_goes_on_by_itself_and_rest_comes_again() {
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&["fence=manual"]));
    a.ok(&["acquire", "dev"]);
    for round in 0..3 {
        wait_for(LONG, "it is at rest", || at_rest(&b));
        write(&a, &format!("file-{round}")).unwrap();
        wait_for(LONG, "it is active", || !at_rest(&b));
        assert!(world.lower("dev").join(format!("file-{round}")).exists());
    }
    // A tree at rest is handed over like any other.
    wait_for(LONG, "it is at rest", || at_rest(&b));
    b.ok(&["acquire", "dev", "--ask", "--wait", "10s"]);
    assert_eq!(write(&a, "late"), Err(EROFS));
    assert_eq!(b.tree_status("dev")["last_end"], "clean");
}

/// At rest (a second without a mutation, everything flushed, the server told) the next mutation, page-cache writes too, waits for
/// one round trip; with no server to be reached it waits until the deadline, then it is EROFS.
#[test]
fn at_rest_with_the_server_away_the_first_write_waits_for_its_word_and_stops_at_the_deadline() {
    let world = World::new();
    let (mut server, a, b) = world.two_hosts(&quick(&["fence=manual"]));
    a.ok(&["acquire", "dev"]);
    write(&a, "one").unwrap();
    wait_for(LONG, "it is at rest", || at_rest(&b));
    server.kill();
    let waited = Timer::start();
    assert_eq!(write(&a, "two"), Err(EROFS));
    assert!(waited.elapsed() < Duration::from_secs(6), "{:?}", waited.elapsed());
    assert!(!world.lower("dev").join("two").exists(), "nothing was written that the server does not know of");
    server.restart();
    wait_for(LONG, "it writes again", || write(&a, "three").is_ok());
}

/// `rest` and `active` as the server has told whoever watches, in order.
fn words(events: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(events).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let kinds = events.filter_map(|event| event["event"].as_str().map(str::to_owned));
    kinds.filter(|kind| kind == "rest" || kind == "active").collect()
}

/// Ends a watch.
struct Watch(std::process::Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_burst_of_writes_by_many_programs_is_one_word_to_the_server() {
    const BURSTS: usize = 4;
    const PROGRAMS: usize = 8;
    const WRITES: usize = 25;
    let world = World::new();
    let (_server, a, b) = world.two_hosts(&quick(&["fence=manual"]));
    a.ok(&["acquire", "dev"]);
    let events = world.path("events");
    let told = std::fs::File::create(&events).unwrap();
    let _watch = Watch(b.treelease(&["watch", "dev", "-o", "json"]).stdout(told).spawn().unwrap());
    let mut written = 0;
    // What is said before the watch hears counts for nothing: a burst is over when its `rest` is heard.
    while words(&events).iter().filter(|word| *word == "active").count() < BURSTS {
        let rests = || words(&events).iter().filter(|word| *word == "rest").count();
        let before = rests();
        wait_for(LONG, "it is at rest", || at_rest(&b));
        let together = std::sync::Barrier::new(PROGRAMS);
        std::thread::scope(|threads| {
            for program in 0..PROGRAMS {
                let (a, together) = (&a, &together);
                threads.spawn(move || {
                    together.wait();
                    (0..WRITES).for_each(|n| write(a, &format!("{program}-{n}")).unwrap());
                });
            }
        });
        written += PROGRAMS * WRITES;
        wait_for(LONG * 3, "and again", || rests() > before);
        assert!(written < 50 * PROGRAMS * WRITES, "the watch hears nothing");
    }
    let words = words(&events);
    println!("{written} writes: {words:?}");
    // However slow the machine is: whoever writes after a rest says so once, for all.
    assert!(words.windows(2).all(|pair| pair[0] != pair[1]), "{words:?}");
}
