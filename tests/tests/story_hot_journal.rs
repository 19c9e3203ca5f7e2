//! I6: a transaction that began before another side's turn leaves no journal that undoes that turn.
//!
//! SQLite puts back what it finds in a journal, whoever left it there. A transaction that had read before the other side's turn and
//! made its journal after it was refused its own writes, and the next opener undid the other side's acknowledged commit.

use treelease_tests::hosts::{World, quick};
use treelease_tests::ledger::{self, Journal, Ledger, Verdict};

/// What became of the old transaction (SQLite's extended code), and of what the other side had acknowledged.
fn story(fault: Option<&str>) -> (i32, Verdict) {
    let world = World::new();
    let server = world.server();
    let (a, mut b) = (world.side("workstation", &server), world.side("pod", &server));
    if let Some(fault) = fault {
        b = b.fault(fault);
    }
    world.tree(&a, "dev", &quick(&["fence=none", "idle=200ms"]));
    a.mount("dev", &world.lower("dev"));
    b.mount("dev", &world.lower("dev"));
    b.ok(&["acquire", "dev"]);
    let (at, ack) = (b.at("dev").join("ledger.db"), world.path("ack"));
    Ledger::open(&at, Journal::Delete).unwrap().add(1).unwrap();
    let old = rusqlite::Connection::open(&at).unwrap();
    old.execute_batch("BEGIN").unwrap();
    let rows: i64 = old.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
    b.ok(&["release", "dev", "--now"]);
    // The kernel remembers for half a second what has this name: so SQLite's own look, whether it was replaced, says no.
    std::fs::metadata(&at).unwrap();
    let mut theirs = Ledger::open(&a.at("dev").join("ledger.db"), Journal::Delete).unwrap();
    theirs.add(2).unwrap();
    ledger::acknowledge(&ack, "add 2").unwrap();
    drop(theirs);
    // This waits for the other side to be idle, and is granted.
    let late = old.execute("INSERT INTO entry(id, payload) VALUES (3, x'00')", []).and_then(|_| old.execute_batch("COMMIT"));
    let code = late.expect_err("it began before the other's turn").sqlite_error().map_or(0, |e| e.extended_code);
    drop(old);
    b.run(&["release", "dev", "--now"]);
    (code, ledger::check(&world.lower("dev").join("ledger.db"), &[&ack]).unwrap())
}

#[test]
fn i6_a_transaction_from_before_the_others_turn_leaves_no_journal_that_undoes_it() {
    let (_, verdict) = story(None);
    verdict.must_be_sound();
}

#[test]
fn control_without_the_rule_the_journal_of_an_old_transaction_undoes_the_others_commit() {
    // A machine that is slow at that moment lets SQLite see for itself that the file was replaced.
    let lost = (0..6).any(|_| {
        let (code, verdict) = story(Some("no_lock_check"));
        eprintln!("SQLite {code}: {verdict:?}");
        verdict.missing == 1
    });
    assert!(lost, "the other side's commit is undone");
}
