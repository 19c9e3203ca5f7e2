//! What the gate alone costs: `cargo bench -p treelease-guard`, whose lines become a table.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::table::Table;

/// The goal, in nanoseconds: an admitted operation, from gate to gate.
const GOAL: f64 = 100.0;
/// How a line that has the goal begins.
const JUDGED: &str = "an admitted write, from gate to gate";

/// Runs it, and returns the table.
pub fn measure() -> anyhow::Result<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ lies in the workspace")?;
    let mut cargo = Command::new("cargo");
    let output = cargo.args(["bench", "-q", "-p", "treelease-guard", "--bench", "gate"]).current_dir(top).output()?;
    ensure!(output.status.success(), "cargo bench: {}", String::from_utf8_lossy(&output.stderr).trim());
    table(&String::from_utf8_lossy(&output.stdout))
}

/// Lines of `what  12.3 ns  0 allocations`.
fn table(said: &str) -> anyhow::Result<String> {
    let mut table = Table::new(["the gate", "time, the best of many batches", "allocations", "goal"]);
    for line in said.lines().filter(|line| line.contains(" ns ")) {
        let (rest, allocations) = line.trim_end().rsplit_once(" ns ").context("allocations")?;
        let (what, time) = rest.trim_end().rsplit_once("  ").context("a time")?;
        let nanos: f64 = time.trim().parse().with_context(|| format!("`{line}`"))?;
        let allocations = allocations.trim().trim_end_matches(" allocations");
        let what = what.trim();
        let goal = match what == JUDGED {
            true if nanos < GOAL && allocations == "0" => format!("{GOAL} ns, none: met"),
            true => format!("{GOAL} ns, none: **behind**"),
            false => String::new(),
        };
        table.row([what.to_owned(), format!("{nanos} ns"), allocations.to_owned(), goal]);
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gates_lines_become_rows_and_an_allocation_is_a_miss() {
        let line = |nanos: f64, n: u64| format!("{JUDGED:<60} {nanos:>7.1} ns {n} allocations\n");
        let said = table(&(line(81.25, 0) + "other words\n" + &line(81.25, 1) + &line(123.0, 0))).unwrap();
        let rows: Vec<&str> = said.lines().skip(2).collect();
        assert_eq!(rows[0], format!("| {JUDGED} | 81.2 ns | 0 | 100 ns, none: met |"));
        assert!(rows[1].ends_with("| 1 | 100 ns, none: **behind** |") && rows[2].ends_with("**behind** |"), "{said}");
    }
}
