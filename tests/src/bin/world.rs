//! Runs the simulated world of `treelease_tests::world` from a seed and prints one line per event.
//!
//!     cargo run -p treelease-tests --bin world -- --seed 7
//!     cargo run -p treelease-tests --bin world -- --seed 1 --runs 1000 --quiet
//!     cargo run -p treelease-tests --bin world -- --nodes --seed 1 --runs 100000 --quiet
//!
//! The last one is the bigger world of `treelease_tests::sim`, for hours.
//!
//! Exit codes: 0 everything that must hold held, 1 it did not.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use treelease_tests::world::plan::{Fault, Freezes, Options};
use treelease_tests::{sim, world};

#[derive(Parser)]
#[command(about = "A simulated world of clocks, leaders and sides, from one seed (for tests)")]
struct Args {
    /// The seed; of the first run, if there are several
    #[arg(long)]
    seed: u64,
    /// So many runs, with seeds from --seed upwards
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// The bigger world: real nodes over a simulated network
    #[arg(long)]
    nodes: bool,
    /// A rule that is left out; the two worlds have their own
    #[arg(long, default_value = "none")]
    fault: String,
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

/// A run of either world.
struct Ran {
    broken: Option<(Duration, String)>,
    counts: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
    again: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let one: Box<dyn Fn(u64) -> Ran> = match one(&args) {
        Ok(one) => one,
        Err(why) => {
            eprintln!("world: {why}");
            return ExitCode::from(2);
        }
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut broken = 0;
    for seed in args.seed..args.seed.saturating_add(args.runs) {
        let ran = one(seed);
        for line in &ran.trace {
            let _ = writeln!(out, "{line}");
        }
        for (what, n) in ran.counts {
            *counts.entry(what).or_default() += n;
        }
        if let Some((at, what)) = ran.broken {
            broken += 1;
            let _ = writeln!(out, "{:>12.6}  BROKEN: {what}\n              {}", at.as_secs_f64(), ran.again);
            // Whoever runs it for hours looks at what came so far.
            let _ = out.flush();
        }
    }
    for (what, n) in counts {
        let _ = writeln!(out, "{n:>12}  {what}");
    }
    let _ = writeln!(out, "{broken:>12}  of {} runs broke something that must hold", args.runs);
    let _ = out.flush();
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a seed is run.
fn one(args: &Args) -> Result<Box<dyn Fn(u64) -> Ran>, String> {
    let trace = !args.quiet;
    if args.nodes {
        let fault = sim::plan::Fault::parse(&args.fault)?;
        return Ok(Box::new(move |seed| {
            let options = sim::plan::Options { fault, trace, ..sim::plan::Options::of(seed) };
            let report = sim::run(options);
            Ran { broken: report.broken, counts: report.counts, trace: report.trace, again: sim::command(&options) }
        }));
    }
    let (fault, freezes, gates_only) = (Fault::parse(&args.fault)?, args.freezes, args.gates_only);
    Ok(Box::new(move |seed| {
        let options = Options { seed, fault, freezes, gates_only, trace };
        let report = world::run(options);
        Ran { broken: report.broken, counts: report.counts, trace: report.trace, again: world::command(&options) }
    }))
}
