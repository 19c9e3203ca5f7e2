//! A writer that never gives up, as a command: `scribe TREE SIDE NOTES ACKNOWLEDGEMENTS SEED`. See `treelease_tests::ends::scribe`.

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Writes lines into a tree until its standard input ends (for tests)")]
struct Args {
    tree: PathBuf,
    side: String,
    notes: PathBuf,
    acknowledgements: PathBuf,
    seed: u64,
    /// Pause now and then for long enough that the tree comes to rest.
    #[arg(long)]
    rests: bool,
}

fn main() -> std::io::Result<()> {
    let Args { tree, side, notes, acknowledgements, seed, rests } = Args::parse();
    treelease_tests::ends::scribe::run(&tree, &side, &notes, &acknowledgements, seed, rests)
}
