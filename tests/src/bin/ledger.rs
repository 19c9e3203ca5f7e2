//! The stand-in tool as a command: `ledger add | claim | serve | check`. See `treelease_tests::ledger`.
//!
//! Exit codes: 0 done, 1 it failed (and nothing was acknowledged), 3 the claim is somebody else's.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use treelease_tests::ledger::{Failed, Journal, Ledger, acknowledge, check};

#[derive(Parser)]
#[command(about = "A stand-in for tools that keep a SQLite database in a tree (for tests)")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Adds rows, one transaction each, and acknowledges each in a file outside the tree.
    Add {
        db: PathBuf,
        ack: PathBuf,
        #[arg(long)]
        id: i64,
        /// So many rows, from --id upwards.
        #[arg(long, default_value_t = 1)]
        count: i64,
        #[arg(long, default_value = "wal")]
        journal: Journal,
    },
    /// Claims a name for somebody, if nobody has it.
    Claim {
        db: PathBuf,
        name: String,
        who: String,
        #[arg(long)]
        ack: PathBuf,
    },
    /// Keeps one connection open; reads `add N`, `read`, `quit` from stdin.
    Serve {
        db: PathBuf,
        ack: PathBuf,
        #[arg(long, default_value = "wal")]
        journal: Journal,
    },
    /// Compares the database with what was acknowledged.
    Check { db: PathBuf, acks: Vec<PathBuf> },
}

fn add(ledger: &mut Ledger, id: i64, ack: &Path) -> Result<(), Failed> {
    ledger.add(id)?;
    acknowledge(ack, &format!("add {id}"))
}

fn serve(db: &Path, ack: &Path, journal: Journal) -> Result<(), Failed> {
    let mut ledger = Ledger::open(db, journal)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["add", id] => match id.parse().map(|id| add(&mut ledger, id, ack)) {
                Ok(Ok(())) => format!("ok {id}"),
                Ok(Err(e)) => format!("error {e}"),
                Err(e) => format!("error {id}: {e}"),
            },
            ["read"] => ledger.count().map_or_else(|e| format!("error {e}"), |n| n.to_string()),
            ["quit"] => break,
            _ => format!("error `{line}`: say add N, read or quit"),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn go(what: What) -> Result<ExitCode, Failed> {
    match what {
        What::Add { db, ack, id, count, journal } => {
            let mut ledger = Ledger::open(&db, journal)?;
            for id in id..id + count {
                add(&mut ledger, id, &ack)?;
            }
        }
        What::Claim { db, name, who, ack } => {
            if let Err(by) = Ledger::open(&db, Journal::Wal)?.claim(&name, &who)? {
                eprintln!("ledger: {name} belongs to {by}");
                return Ok(ExitCode::from(3));
            }
            acknowledge(&ack, &format!("claim {name} {who}"))?;
        }
        What::Serve { db, ack, journal } => serve(&db, &ack, journal)?,
        What::Check { db, acks } => {
            let verdict = check(&db, &acks.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
            println!("{}", serde_json::to_string(&verdict).expect("numbers and texts"));
            if !verdict.is_sound() {
                return Ok(ExitCode::from(1));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    go(Args::parse().what).unwrap_or_else(|e| {
        eprintln!("ledger: {e}");
        ExitCode::from(1)
    })
}
