//! Two hosts, one directory, a database in it: nothing acknowledged is lost and nothing is claimed twice, under `run --ask` and
//! bare. With `mode=off` the same work shows damage, or these tests would prove nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use treelease_tests::hosts::{Done, Side, Timer, World, holds_within, quick};
use treelease_tests::ledger;

/// Rows of each side.
const ROWS: i64 = 12;
/// Claim races.
const RACES: usize = 20;
/// A bare tool is tried again for so long: on the side that does not hold the tree it is refused until the other one is idle.
const BARE: Duration = Duration::from_secs(60);

/// What both sides work on.
struct Work<'a> {
    world: &'a World,
    ack: PathBuf,
}

impl Work<'_> {
    fn new(world: &World) -> Work<'_> {
        Work { world, ack: world.path("acknowledged") }
    }

    fn ack(&self) -> &str {
        self.ack.to_str().unwrap()
    }

    /// After both sides are down: the raw tree, compared with what was acknowledged.
    fn verdict(&self) -> ledger::Verdict {
        let db = self.world.lower("dev").join("ledger.db");
        ledger::check(&db, &[&self.ack]).unwrap()
    }
}

fn both(workstation: &Side, pod: &Side, work: impl Fn(&Side, i64) + Sync) {
    std::thread::scope(|scope| {
        let one = scope.spawn(|| work(workstation, 1_000));
        let other = scope.spawn(|| work(pod, 2_000));
        one.join().unwrap();
        other.join().unwrap();
    });
}

fn under_the_lease(side: &Side, tool: &[&str]) -> Done {
    let ledger = treelease_tests::hosts::executable("ledger");
    let mut args = vec!["run", "--tree", "dev", "--ask", "--wait", "60s", "--", ledger.to_str().unwrap()];
    args.extend(tool);
    side.run(&args)
}

/// Runs a tool bare until it ends with one of these codes. Whatever else happens, it never dies by a signal (SIGBUS).
fn bare(side: &Side, tool: &[&str], good: &[i32]) -> Done {
    let mut last = None;
    let ended = holds_within(BARE, || {
        let done = side.tool("ledger", tool);
        assert!(!done.signalled(), "{done}");
        let good = good.contains(&done.code);
        last = Some(done);
        good
    });
    let last = last.unwrap();
    assert!(ended, "{} was refused for {BARE:?}:\n{last}", side.name());
    last
}

fn down(sides: [&Side; 2]) {
    for side in sides {
        side.ok(&["down"]);
    }
}

#[test]
fn under_run_ask_no_acknowledged_row_is_lost() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let work = Work::new(&world);
    both(&workstation, &pod, |side, from| {
        for id in from..from + ROWS {
            let done = under_the_lease(side, &["add", &side.file("dev", "ledger.db"), work.ack(), "--id", &id.to_string()]);
            assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done}");
        }
    });
    down([&workstation, &pod]);
    let verdict = work.verdict();
    verdict.must_be_sound();
    assert_eq!((verdict.rows, verdict.acknowledged), (2 * ROWS as u64, 2 * ROWS as u64));
}

#[test]
fn under_run_ask_each_of_twenty_claims_goes_to_one_side() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let work = Work::new(&world);
    both(&workstation, &pod, |side, _| {
        for race in 0..RACES {
            let db = side.file("dev", "ledger.db");
            let done = under_the_lease(side, &["claim", &db, &format!("task-{race}"), side.name(), "--ack", work.ack()]);
            assert!([0, 3].contains(&done.code), "{done}");
        }
    });
    down([&workstation, &pod]);
    let verdict = work.verdict();
    verdict.must_be_sound();
    assert_eq!(verdict.claims, RACES as u64, "each went to somebody");
}

#[test]
fn bare_tools_take_the_free_lease_and_lose_and_double_nothing() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let work = Work::new(&world);
    both(&workstation, &pod, |side, from| {
        let db = side.file("dev", "ledger.db");
        for race in 0..RACES {
            let id = (from + race as i64).to_string();
            if race % 4 == 0 {
                bare(side, &["add", &db, work.ack(), "--id", &id], &[0]);
            }
            bare(side, &["claim", &db, &format!("task-{race}"), side.name(), "--ack", work.ack()], &[0, 3]);
        }
    });
    down([&workstation, &pod]);
    let verdict = work.verdict();
    verdict.must_be_sound();
    assert_eq!((verdict.claims, verdict.acknowledged), (RACES as u64, RACES as u64 / 2));
}

/// The positive control of the three above: the same two mounts without the rule.
#[test]
fn with_mode_off_the_same_work_shows_damage() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&["mode=off"]));
    let work = Work::new(&world);
    let timer = Timer::start();
    both(&workstation, &pod, |side, from| {
        let db = side.file("dev", "ledger.db");
        for n in 0..200 {
            // A file that both write at once comes apart quickly; a tool that fails acknowledges nothing.
            side.tool("ledger", &["claim", &db, &format!("task-{n}"), side.name(), "--ack", work.ack()]);
            side.tool("ledger", &["add", &db, work.ack(), "--id", &(from + n).to_string()]);
            if timer.elapsed() > Duration::from_secs(10) {
                break;
            }
        }
    });
    down([&workstation, &pod]);
    let verdict = work.verdict();
    assert!(verdict.acknowledged + verdict.claims > 10, "it did work: {verdict:?}");
    assert!(!verdict.is_sound(), "without the lease nothing was lost: the tests beside prove nothing. {verdict:?}");
}

#[test]
fn an_editor_s_save_takes_the_free_lease_by_itself_and_is_refused_while_the_other_side_is_busy() {
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let save = |side: &Side, text: &str| -> std::io::Result<()> {
        let (temp, file) = (side.at("dev").join(".note.swp"), side.at("dev").join("note"));
        std::fs::write(&temp, text)?;
        std::fs::File::open(&temp)?.sync_all()?;
        std::fs::rename(temp, file)
    };
    save(&workstation, "one").unwrap();
    assert!(workstation.holds("dev") && !pod.holds("dev"));
    workstation.ok(&["acquire", "dev", "--note", "editing"]);
    let refused = save(&pod, "two").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EROFS as i32), "{refused}");
    assert_eq!(read(&pod.at("dev").join("note")), "one", "reading goes on");
    workstation.ok(&["release", "dev"]);
    // Until pod has heard that the tree is free, it remembers the refusal.
    assert!(holds_within(Duration::from_secs(5), || save(&pod, "two").is_ok()), "a free tree is not taken");
    assert!(pod.holds("dev"));
    assert_eq!(read(&workstation.at("dev").join("note")), "two");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
