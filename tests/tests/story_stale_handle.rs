//! A process with an open SQLite connection loses the lease, another side commits 150 transactions, the lease comes back, and the
//! old process goes on. Without the rule (I6) it writes over the 150, silently; with it, it hears ESTALE.

use treelease_tests::hosts::{Done, Side, World, executable, quick};
use treelease_tests::ledger;

/// The other side's transactions.
const COMMITS: u64 = 150;
const ESTALE: i32 = nix::errno::Errno::ESTALE as i32;

struct Told {
    /// What the old connection answered to each of its writes after the turn.
    answers: Vec<String>,
    /// A new connection of the same side afterwards.
    new: Done,
    verdict: ledger::Verdict,
}

fn story(journal: &str, fault: Option<&str>) -> Told {
    let world = World::new();
    let server = world.server();
    let (mut workstation, pod) = (world.side("workstation", &server), world.side("pod", &server));
    if let Some(fault) = fault {
        workstation = workstation.fault(fault);
    }
    world.tree(&workstation, "dev", &quick(&[]));
    for side in [&workstation, &pod] {
        side.mount("dev", &world.lower("dev"));
    }
    let ack = world.path("acknowledged");
    let db = |side: &Side| side.file("dev", "ledger.db");

    let mut old = workstation.serve(&db(&workstation), &ack, journal);
    for id in 1..=5 {
        assert_eq!(old.ask(&format!("add {id}")), format!("ok {id}"));
    }
    // Two turns of the other side: the first one's end removes the log that the old connection has open, so that the second
    // one is invisible to it but for the rule.
    let (tool, pods) = (executable("ledger"), db(&pod));
    let mut answers = Vec::new();
    for (first, count) in [("900", "1"), ("1000", "150")] {
        let run = ["run", "--tree", "dev", "--ask", "--wait", "30s", "--", tool.to_str().unwrap()];
        let add = ["add", &pods, ack.to_str().unwrap(), "--id", first, "--count", count, "--journal", journal];
        pod.ok(&[&run[..], &add].concat());
        workstation.ok(&["run", "--tree", "dev", "--ask", "--wait", "30s", "--", "true"]);
        assert!(workstation.holds("dev"));
        answers.push(old.ask(&format!("add {}", 6 + answers.len())));
    }
    answers.extend((8..=12).map(|id| old.ask(&format!("add {id}"))));
    // Its close may checkpoint what it believes to be the log.
    old.quit();
    let new =
        workstation.tool("ledger", &["add", &db(&workstation), ack.to_str().unwrap(), "--id", "5000", "--journal", journal]);
    for side in [&workstation, &pod] {
        side.ok(&["down"]);
    }
    Told { answers, new, verdict: ledger::check(&world.lower("dev").join("ledger.db"), &[&ack]).unwrap() }
}

fn nothing_lost_and_the_old_handle_is_stale(journal: &str) {
    let told = story(journal, None);
    for answer in &told.answers {
        assert!(answer.starts_with("error"), "the old connection wrote: {:?}", told.answers);
    }
    // With a rollback journal SQLite looks first whether the file by that name is still its own, and it is not: the replaced
    // file has another inode number. Else it hears ESTALE from its write.
    let stale = |a: &String| a.contains(&format!("errno {ESTALE},")) || a.contains("SQLite 1032");
    assert!(told.answers.iter().any(stale), "none says ESTALE: {:?}", told.answers);
    assert_eq!(told.new.code, 0, "a new connection works\n{}", told.new);
    told.verdict.must_be_sound();
    assert_eq!(told.verdict.rows, 5 + 1 + COMMITS + 1);
}

#[test]
fn an_old_connection_is_stale_and_loses_nothing_with_a_rollback_journal() {
    nothing_lost_and_the_old_handle_is_stale("delete");
}

#[test]
fn an_old_connection_is_stale_and_loses_nothing_with_a_write_ahead_log() {
    nothing_lost_and_the_old_handle_is_stale("wal");
}

/// The positive control: with handles that never get stale, the same story loses rows.
#[test]
fn without_the_rule_the_old_connection_destroys_the_other_side_s_commits() {
    let told = story("wal", Some("no_stale"));
    assert!(!told.verdict.is_sound(), "nothing was lost without the rule: {:?}, {:?}", told.answers, told.verdict);
}

#[test]
fn a_handle_that_stays_open_over_another_side_s_turn_says_estale_and_one_without_a_turn_goes_on() {
    use std::io::Write;
    let world = World::new();
    let (_server, workstation, pod) = world.two_hosts(&quick(&[]));
    let mut file = std::fs::File::create(workstation.at("dev").join("log")).unwrap();
    file.write_all(b"one\n").unwrap();
    // Given back and taken again, with nobody between: the same run.
    workstation.ok(&["release", "dev"]);
    workstation.ok(&["run", "--tree", "dev", "--", "true"]);
    file.write_all(b"two\n").unwrap();
    pod.ok(&["run", "--tree", "dev", "--ask", "--wait", "30s", "--", "true"]);
    let without = file.write_all(b"three\n").unwrap_err().raw_os_error();
    assert_eq!(without, Some(ESTALE), "another side has had a turn since the open");
    workstation.ok(&["run", "--tree", "dev", "--ask", "--wait", "30s", "--", "true"]);
    assert_eq!(file.write_all(b"four\n").unwrap_err().raw_os_error(), Some(ESTALE));
    let mut again = std::fs::File::options().append(true).open(workstation.at("dev").join("log")).unwrap();
    again.write_all(b"five\n").unwrap();
    assert_eq!(std::fs::read_to_string(world.lower("dev").join("log")).unwrap(), "one\ntwo\nfive\n");
}
