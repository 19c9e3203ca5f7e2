//! The benchmark's harness still works: every row comes out, with a number in it. What the numbers are is not looked at.

use std::process::Command;

/// How each row begins.
const ROWS: [&str; 27] = [
    "random read 4 KiB",
    "the same, the file read before",
    "random write 4 KiB",
    "sequential write 1 MiB",
    "sequential read 1 MiB",
    "SQLite, WAL",
    "SQLite, rollback journal",
    "git clone",
    "git status",
    "find and stat",
    "tar -x",
    "rm -rf",
    "2 mounts, held and at rest",
    "the same, its lease server gone",
    "`treelease handoff TREE --to SIDE`",
    "`treelease run --ask -- true` on the other side",
    "`treelease run -- true`, the side holds the lease",
    "`treelease run -- true`, the lease is free",
    "acquire and release, 3 clients in line for one tree",
    "renewals, 3 clients",
    "renewals, 20 sessions, each at one of the nodes",
    "renewals, 20 sessions, all at the leader's node",
    "renewals, 20 sessions, each every 3 s",
    "treelease | 1 s",
    "10 |",
    "40 |",
    "acquire and release, 2 clients, a tree each",
];

#[test]
fn every_row_of_the_benchmark_comes_out() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    // Without the gate alone, which `cargo bench` builds for itself.
    bench
        .args([
            "--only",
            "guard,idle,handover,run,server,sessions,ends,trees,stores",
            "--quick",
            "--rounds",
            "1",
            "--rivals",
            "",
            "--nodes",
            "1",
            "--backing",
        ])
        .arg(place.path());
    bench.env("TREELEASE_TEST_DIR", place.path());
    // It ends by itself, or the test runner ends it: a busy machine may take a while.
    let output = bench.output().unwrap();
    let (tables, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{tables}\n{said}", output.status);
    for row in ROWS {
        let line = tables.lines().find(|line| line.starts_with(&format!("| {row}")));
        let line = line.unwrap_or_else(|| panic!("no row `{row}`\n{tables}\n{said}"));
        let numbers = line.split('|').skip(2).filter(|cell| cell.trim().starts_with(|c: char| c.is_ascii_digit()));
        assert!(numbers.count() >= 2, "`{line}` has no numbers");
    }
    assert!(!tables.contains("not measured"), "{tables}");
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "it leaves {left:?} behind");
}
