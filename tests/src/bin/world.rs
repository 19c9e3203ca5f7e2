//! Runs the simulated world of `treelease_tests::world` from a seed and prints one line per event.
//!
//!     cargo run -p treelease-tests --bin world -- --seed 7
//!     cargo run -p treelease-tests --bin world -- --seed 1 --runs 1000 --quiet
//!
//! Exit codes: 0 everything that must hold held, 1 it did not.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use treelease_tests::world::plan::{Fault, Freezes, Options};
use treelease_tests::world::{command, run};

#[derive(Parser)]
#[command(about = "A simulated world of clocks, leaders and sides, from one seed (for tests)")]
struct Args {
    /// The seed; of the first run, if there are several
    #[arg(long)]
    seed: u64,
    /// So many runs, with seeds from --seed upwards
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// A rule that is left out
    #[arg(long, default_value = "none", value_parser = Fault::parse)]
    fault: Fault,
    /// Pauses of virtual machines that no clock shows: none, short, long [default: as the seed says, none or short]
    #[arg(long, value_parser = Freezes::parse)]
    freezes: Option<Freezes>,
    /// Look at the gates alone, not at the rules on the way to them
    #[arg(long)]
    gates_only: bool,
    /// No line per event, only what came of it
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut broken = 0;
    for seed in args.seed..args.seed.saturating_add(args.runs) {
        let options = Options { seed, fault: args.fault, freezes: args.freezes, gates_only: args.gates_only, trace: !args.quiet };
        let report = run(options);
        for line in &report.trace {
            let _ = writeln!(out, "{line}");
        }
        for (what, n) in report.counts {
            *counts.entry(what).or_default() += n;
        }
        if let Some((at, what)) = report.broken {
            broken += 1;
            let _ = writeln!(out, "{:>12.6}  BROKEN: {what}\n              {}", at.as_secs_f64(), command(&options));
        }
    }
    for (what, n) in counts {
        let _ = writeln!(out, "{n:>12}  {what}");
    }
    let _ = writeln!(out, "{broken:>12}  of {} runs broke something that must hold", args.runs);
    let _ = out.flush();
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
