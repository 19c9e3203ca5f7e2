//! SQLite, in both journals, with its memory-mapped reads, and from several processes.

use treelease_tests::twin::Twin;

fn works_with(journal: &str) {
    let twin = Twin::new();
    let said = twin.script(&format!(
        r#"
        sql() {{ sqlite3 -batch -cmd '.timeout 60000' -cmd 'PRAGMA mmap_size=67108864' db "$1"; }}
        sql 'PRAGMA journal_mode={journal}; CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT, text TEXT);'
        sql "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO t (who, text) SELECT 'first', hex(i * 7919) || printf('%.200c', 'x') FROM n;"
        for who in a b c; do
            ( for n in $(seq 12); do sql "BEGIN IMMEDIATE; INSERT INTO t (who, text) VALUES ('$who', $n); COMMIT;"; done ) > "out-$who" &
        done
        wait
        sql "BEGIN; DELETE FROM t WHERE id % 3 = 0; ROLLBACK;"
        sql "DELETE FROM t WHERE who = 'first' AND id % 5 = 0;"
        sql "PRAGMA wal_checkpoint(TRUNCATE);" > checkpoint
        sql "SELECT who, count(*), sum(length(text)) FROM t GROUP BY who ORDER BY who;"
        sql "VACUUM;"
        sql "PRAGMA integrity_check; SELECT count(*), sum(id) FROM t; PRAGMA mmap_size;"
        sort -u out-a out-b out-c
        "#
    ));
    assert!(said.contains("\nok\n") && said.contains("a|12|") && said.contains("67108864"), "{said}");
}

/// WAL: shared memory through mapped pages, checkpoints, several processes, 64 MiB of mapped reads.
#[test]
fn sqlite_in_wal_mode_keeps_every_row_of_every_process() {
    works_with("WAL");
}

/// The rollback journal, with the same.
#[test]
fn sqlite_with_its_rollback_journal_keeps_every_row_of_every_process() {
    works_with("DELETE");
}
