//! `./tests/bench`: measures what treelease costs, beside what it competes with, and writes the tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use treelease_tests::bench::table::replace_section;
use treelease_tests::bench::{Ground, Rival, Settings, gate, guard, handover, idle, machine, run, say, server};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// The guard beside the bare directory
    Guard,
    /// The gate alone, by `cargo bench`
    Gate,
    /// A daemon with twenty mounts while nobody does anything
    Idle,
    /// An idle tree that goes from one side to the other
    Handover,
    /// `treelease run -- true`
    Run,
    /// The lease server
    Server,
    /// A thousand sessions that are kept alive
    Sessions,
    /// Holders that die at rest
    Ends,
    /// Up to a hundred thousand trees
    Trees,
    /// sled beside redb
    Stores,
}

/// Measures what treelease costs, beside the bare directory, bindfs and etcd
///
/// The tables go to stdout. Needs root, for a filesystem on a loop device.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// Measured rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// What is measured
    #[arg(long, value_delimiter = ',', default_value = "guard,gate,idle,handover,run,server,sessions,ends,trees,stores")]
    only: Vec<Section>,
    /// Beside what; the empty string for none [default: those that are installed]
    #[arg(long, value_delimiter = ',')]
    rivals: Option<Vec<String>>,
    /// Small sizes, for trying this program
    #[arg(long)]
    quick: bool,
    /// Lease servers of how many nodes
    #[arg(long, value_delimiter = ',', default_value = "1,3", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Vec<u8>,
    /// Of the guard's workloads those with one of these words in their names, and what they work with [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// What of the lease server, by `--only server`
    #[arg(long, value_delimiter = ',', default_value = "own-trees,one-tree,renewals,kills")]
    tasks: Vec<server::Part>,
    /// Work in this directory instead of on a filesystem made for it
    #[arg(long, value_name = "DIR")]
    backing: Option<PathBuf>,
    /// Write the tables into tests/BENCHMARKS.md, too
    #[arg(long)]
    write: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.write && (args.quick || cfg!(debug_assertions)) {
        bail!("--write: neither small sizes nor a debug build give numbers worth keeping");
    }
    if args.write && !args.rows.is_empty() {
        bail!("--write: the table would lose the rows that --rows leaves out");
    }
    let settings = Settings {
        rounds: args.rounds.into(),
        rivals: rivals(args.rivals)?,
        quick: args.quick,
        nodes: args.nodes.into_iter().map(usize::from).collect(),
        rows: args.rows,
        tasks: args.tasks,
        backing: args.backing,
    };
    let ground = Ground::new(&settings)?;
    for section in Section::value_variants() {
        let name = section.to_possible_value().context("none is hidden")?.get_name().to_owned();
        if !args.only.contains(section) {
            continue;
        }
        let words = machine::words(&settings, &ground.disk);
        let tables = match section {
            Section::Guard => guard::measure(&settings, &ground)?,
            Section::Gate => gate::measure()?,
            Section::Idle => idle::measure(&settings, &ground)?,
            Section::Handover => handover::measure(&settings, &ground)?,
            Section::Run => run::measure(&settings, &ground)?,
            Section::Server => server::measure(&settings, &ground)?,
            Section::Sessions => server::sessions::measure(&settings, &ground)?,
            Section::Ends => server::ends::measure(&settings, &ground)?,
            Section::Trees => server::many::measure(&settings, &ground)?,
            Section::Stores => server::stores::measure(&settings, &ground)?,
        };
        let text = format!("{words}\n\n{tables}");
        println!("## {name}\n\n{text}");
        if args.write {
            write(&name, &text)?;
        }
    }
    Ok(())
}

fn rivals(named: Option<Vec<String>>) -> anyhow::Result<Vec<Rival>> {
    let all = [Rival::Bindfs, Rival::Etcd];
    let Some(named) = named else {
        let (there, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|rival| machine::has(rival.program()));
        missing.iter().for_each(|rival| say(format!("{} is not installed: not measured beside it", rival.program())));
        return Ok(there);
    };
    let mut rivals = Vec::new();
    for name in named.iter().filter(|name| !name.is_empty()) {
        let rival = all.into_iter().find(|rival| rival.program() == name);
        let rival = rival.with_context(|| format!("--rivals: `{name}` is not known; bindfs and etcd are"))?;
        if !machine::has(rival.program()) {
            bail!("--rivals: {name} is not installed (packages bindfs; etcd-server, etcd-client)");
        }
        rivals.push(rival);
    }
    Ok(rivals)
}

fn write(section: &str, text: &str) -> anyhow::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("BENCHMARKS.md");
    let old = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let new = replace_section(&old, section, text).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    std::fs::write(&file, new).with_context(|| file.display().to_string())
}
