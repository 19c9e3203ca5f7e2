//! `treelease completion`.

use clap::{CommandFactory, ValueEnum};
use treelease_client::error::Failure;

use crate::cli::Cli;
use crate::ctx::Ctx;

/// Completion for a shell, to be read by it
///
/// For bash: `source <(treelease completion bash)` in ~/.bashrc.
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

/// The shells that we know.
#[derive(ValueEnum, Debug, Clone, Copy)]
enum Shell {
    /// Bash
    Bash,
    /// Zsh
    Zsh,
    /// Fish
    Fish,
}

/// Prints it.
pub fn run(ctx: &Ctx, args: CompletionArgs) -> Result<u8, Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "treelease", &mut script);
    ctx.ui.data(String::from_utf8_lossy(&script).trim_end());
    Ok(0)
}
