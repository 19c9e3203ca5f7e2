//! A stand-in for tools that keep a SQLite database in the tree and tell others, outside it, what they have committed.
//!
//! It does what such tools do: switches WAL on at every open, one transaction per process, and acknowledges outside the database
//! (here: a line in a file outside the tree, synced) only after the commit returned. So an acknowledged row that is missing later
//! was lost by what lies below. It promises nothing else; it takes no lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

/// How long a connection waits for another one on the same kernel.
const BUSY: Duration = Duration::from_secs(5);
/// Rows have some weight, or the database stays in one page.
const PAYLOAD: [u8; 200] = [0x5a; 200];
/// How many missing rows are named.
const NAMED: usize = 20;

/// How the database keeps its transactions apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Write-ahead log.
    Wal,
    /// Rollback journal.
    Delete,
}

impl std::str::FromStr for Journal {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "wal" => Ok(Journal::Wal),
            "delete" => Ok(Journal::Delete),
            _ => Err(format!("`{s}` is no journal mode: wal or delete")),
        }
    }
}

/// A database error with the system's own error number, which tells EROFS from ESTALE.
#[derive(Debug)]
pub struct Failed {
    /// What SQLite says.
    pub text: String,
    /// `errno` of the last system call that failed in this connection; 0: none.
    pub errno: i32,
    /// SQLite's extended code; 0: none. 1032: the file is another one than when it was opened (`SQLITE_READONLY_DBMOVED`).
    pub sqlite: i32,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (errno {}, SQLite {})", self.text, self.errno, self.sqlite)
    }
}

impl From<std::io::Error> for Failed {
    fn from(e: std::io::Error) -> Self {
        Failed { text: e.to_string(), errno: e.raw_os_error().unwrap_or(0), sqlite: 0 }
    }
}

fn extended(e: &rusqlite::Error) -> i32 {
    e.sqlite_error().map_or(0, |e| e.extended_code)
}

/// An open ledger.
pub struct Ledger(Connection);

impl Ledger {
    /// Opens or creates it, as the seeds' tools do.
    pub fn open(path: &Path, journal: Journal) -> Result<Ledger, Failed> {
        let plain = |e: rusqlite::Error| Failed { errno: 0, sqlite: extended(&e), text: e.to_string() };
        let connection = Connection::open(path).map_err(plain)?;
        let this = Ledger(connection);
        let set_up = || {
            this.0.busy_timeout(BUSY)?;
            let mode = match journal {
                Journal::Wal => "WAL",
                Journal::Delete => "DELETE",
            };
            this.0.pragma_update(None, "journal_mode", mode)?;
            this.0.pragma_update(None, "synchronous", "FULL")?;
            this.0.execute_batch(
                "CREATE TABLE IF NOT EXISTS entry(id INTEGER PRIMARY KEY, payload BLOB NOT NULL);
                 CREATE TABLE IF NOT EXISTS claim(name TEXT NOT NULL, who TEXT NOT NULL);",
            )
        };
        set_up().map_err(|e| this.failed(&e))?;
        Ok(this)
    }

    fn failed(&self, e: &rusqlite::Error) -> Failed {
        // SAFETY: the handle is that of a live connection; the call only reads a number from it.
        let errno = unsafe { rusqlite::ffi::sqlite3_system_errno(self.0.handle()) };
        Failed { text: e.to_string(), errno, sqlite: extended(e) }
    }

    /// One transaction with one row.
    pub fn add(&mut self, id: i64) -> Result<(), Failed> {
        let insert = |c: &mut Connection| {
            let t = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            t.execute("INSERT INTO entry(id, payload) VALUES (?1, ?2)", params![id, PAYLOAD])?;
            t.commit()
        };
        let done = insert(&mut self.0);
        done.map_err(|e| self.failed(&e))
    }

    /// An exclusive claim: `Ok(Err(who))` if somebody has it already.
    pub fn claim(&mut self, name: &str, who: &str) -> Result<Result<(), String>, Failed> {
        let claim = |c: &mut Connection| {
            let t = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut taken = t.prepare("SELECT who FROM claim WHERE name = ?1")?;
            let by = taken.query_map([name], |row| row.get::<_, String>(0))?.next().transpose()?;
            drop(taken);
            if let Some(by) = by {
                return Ok(Err(by));
            }
            t.execute("INSERT INTO claim(name, who) VALUES (?1, ?2)", [name, who])?;
            t.commit().map(Ok)
        };
        let done = claim(&mut self.0);
        done.map_err(|e| self.failed(&e))
    }

    /// How many rows a reader sees.
    pub fn count(&self) -> Result<i64, Failed> {
        self.0.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).map_err(|e| self.failed(&e))
    }
}

/// Appends a line to a file outside the tree and syncs it: from now on others rely on it.
pub fn acknowledge(file: &Path, line: &str) -> Result<(), Failed> {
    let mut f: File = OpenOptions::new().create(true).append(true).open(file)?;
    f.write_all(format!("{line}\n").as_bytes())?;
    Ok(f.sync_all()?)
}

/// What a check found.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// `ok`, or what `integrity_check` says, or why the database cannot be read.
    pub integrity: String,
    /// Rows in the database.
    pub rows: u64,
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged rows that are not there.
    pub missing: u64,
    /// Some of them.
    pub missing_ids: Vec<i64>,
    /// Claims that were acknowledged.
    pub claims: u64,
    /// Acknowledged claims that are not there.
    pub claims_missing: u64,
    /// Names that were acknowledged to more than one.
    pub double_claims: u64,
}

impl Verdict {
    /// Whether nothing was lost or given twice.
    pub fn is_sound(&self) -> bool {
        self.integrity == "ok" && self.missing == 0 && self.claims_missing == 0 && self.double_claims == 0
    }

    /// Fails the test that runs, for good, unless nothing was lost.
    #[track_caller]
    pub fn must_be_sound(&self) {
        if !self.is_sound() {
            let test = std::thread::current().name().unwrap_or("a story").replace("::", "-");
            crate::hosts::violated(&test, &format!("{self:?}"));
        }
    }
}

/// Compares a database with what was acknowledged.
pub fn check(database: &Path, acknowledgements: &[&Path]) -> Result<Verdict, Failed> {
    let mut ids = BTreeSet::new();
    let mut claims: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in acknowledgements {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e.into()),
        };
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["add", id] => {
                    ids.extend(id.parse::<i64>().ok());
                }
                ["claim", name, who] => {
                    claims.entry(name.to_owned()).or_default().insert(who.to_owned());
                }
                _ => {
                    return Err(Failed {
                        text: format!("{}: not an acknowledgement: {line}", file.display()),
                        errno: 0,
                        sqlite: 0,
                    });
                }
            }
        }
    }
    let mut verdict = Verdict {
        acknowledged: ids.len() as u64,
        claims: claims.values().map(|w| w.len() as u64).sum(),
        double_claims: claims.values().filter(|who| who.len() > 1).count() as u64,
        ..Verdict::default()
    };
    if let Err(e) = compare(database, &ids, &claims, &mut verdict) {
        verdict.integrity = e.to_string();
        verdict.missing = verdict.missing.max(1);
    }
    Ok(verdict)
}

fn compare(
    database: &Path,
    ids: &BTreeSet<i64>,
    claims: &BTreeMap<String, BTreeSet<String>>,
    verdict: &mut Verdict,
) -> rusqlite::Result<()> {
    let c = Connection::open(database)?;
    c.busy_timeout(BUSY)?;
    verdict.integrity = c.query_row("PRAGMA integrity_check(3)", [], |row| row.get(0))?;
    let there: BTreeSet<i64> = c.prepare("SELECT id FROM entry")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    verdict.rows = there.len() as u64;
    let missing: Vec<i64> = ids.difference(&there).copied().collect();
    verdict.missing = missing.len() as u64;
    verdict.missing_ids = missing.into_iter().take(NAMED).collect();
    let mut claimed = c.prepare("SELECT count(*) FROM claim WHERE name = ?1 AND who = ?2")?;
    for (name, who) in claims.iter().flat_map(|(name, all)| all.iter().map(move |who| (name, who))) {
        let n: i64 = claimed.query_row([name, who], |row| row.get(0))?;
        verdict.claims_missing += u64::from(n == 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_and_is_there_is_sound_and_what_is_missing_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (db, ack) = (dir.path().join("l.db"), dir.path().join("ack"));
        for journal in [Journal::Wal, Journal::Delete] {
            let mut ledger = Ledger::open(&db, journal).unwrap();
            let id = ledger.count().unwrap() + 1;
            ledger.add(id).unwrap();
            acknowledge(&ack, &format!("add {id}")).unwrap();
        }
        let mut ledger = Ledger::open(&db, Journal::Wal).unwrap();
        assert_eq!(ledger.claim("x", "a").unwrap(), Ok(()));
        acknowledge(&ack, "claim x a").unwrap();
        assert_eq!(ledger.claim("x", "b").unwrap(), Err("a".into()));
        drop(ledger);
        let verdict = check(&db, &[&ack]).unwrap();
        assert!(verdict.is_sound() && verdict.rows == 2 && verdict.claims == 1, "{verdict:?}");
        acknowledge(&ack, "add 77").unwrap();
        acknowledge(&ack, "claim x b").unwrap();
        let verdict = check(&db, &[&ack]).unwrap();
        assert_eq!((verdict.missing, verdict.double_claims, verdict.claims_missing), (1, 1, 1), "{verdict:?}");
    }

    #[test]
    fn a_file_that_is_no_database_is_not_sound() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("l.db");
        std::fs::write(&db, vec![7; 4096]).unwrap();
        assert!(!check(&db, &[]).unwrap().is_sound());
    }
}
