//! What can be typed: the commands, the flags that every command has, and the values that flags take.
//!
//! The help texts are the reference: `client/CLI.md` is made from them (tests/cli_reference.rs).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use treelease_client::words::time::parse_duration;

use crate::commands;

/// One writer per tree on shared storage
///
/// A tree is guarded by a filesystem that lets exactly one side write to it; the others read. Begin with `treelease up` in
/// the directory that you want to guard, and look with `treelease status`.
#[derive(Parser, Debug)]
#[command(name = "treelease", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// This side's configuration file
    #[arg(long, global = true, value_name = "FILE", env = "TREELEASE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// The name of this side
    #[arg(long, global = true, value_name = "NAME", env = "TREELEASE_SIDE", hide_env_values = true)]
    pub side: Option<String>,
    /// The servers, separated by commas
    #[arg(long, global = true, value_name = "URL,…", env = "TREELEASE_ENDPOINTS", value_delimiter = ',', hide_env_values = true)]
    pub endpoints: Vec<String>,
    /// Where identity, secret, logs and the embedded server lie
    #[arg(long, global = true, value_name = "DIR", env = "TREELEASE_STATE", hide_env_values = true)]
    pub state_dir: Option<PathBuf>,
    /// Where the daemon's socket and state file lie
    #[arg(long, global = true, value_name = "DIR", env = "TREELEASE_RUNTIME", hide_env_values = true)]
    pub runtime_dir: Option<PathBuf>,
    /// Limit of one call to a server [default: 5s]
    #[arg(long, global = true, value_name = "DUR", value_parser = parse_duration)]
    pub request_timeout: Option<Duration>,
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub output: Output,
    /// Colours on the terminal
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// Say nothing but results and failures
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more, with traces on stderr; again for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Never ask anything
    #[arg(long, global = true)]
    pub no_input: bool,
}

/// How results are written.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For people with wide terminals
    Wide,
    /// For scripts: the keys are fixed
    Json,
}

/// When to use colours.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Only shows what a command would do.
#[derive(Args, Debug, Clone, Copy)]
pub struct DryRun {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// How long to wait for another side.
#[derive(Args, Debug, Clone, Copy)]
pub struct WaitArgs {
    /// How long to wait for another side to let go; `0` does not wait [default: 5m]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, env = "TREELEASE_WAIT", hide_env_values = true)]
    pub wait: Option<Duration>,
    /// Do not wait
    #[arg(short = 'n', long)]
    pub no_wait: bool,
}

/// How long anything waits that is not told otherwise.
pub const WAIT: Duration = Duration::from_secs(5 * 60);

impl WaitArgs {
    /// The limit: zero means not to wait.
    pub fn limit(self) -> Duration {
        if self.no_wait { Duration::ZERO } else { self.wait.unwrap_or(WAIT) }
    }
}

/// The commands, one file each.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)] // each is documented where it stands
pub enum Command {
    Up(commands::up::UpArgs),
    Down(commands::down::DownArgs),
    Mount(commands::mount::MountArgs),
    Umount(commands::umount::UmountArgs),
    Run(commands::run::RunArgs),
    Acquire(commands::acquire::AcquireArgs),
    Release(commands::release::ReleaseArgs),
    Handoff(commands::handoff::HandoffArgs),
    Wait(commands::wait::WaitForArgs),
    Status(commands::status::StatusArgs),
    Watch(commands::watch::WatchArgs),
    History(commands::history::HistoryArgs),
    Holds(commands::holds::HoldsArgs),
    Writers(commands::writers::WritersArgs),
    Tree(commands::tree::TreeArgs),
    Cluster(commands::cluster::ClusterArgs),
    Break(commands::break_lease::BreakArgs),
    Fence(commands::fence::FenceArgs),
    Follow(commands::following::FollowArgs),
    Side(commands::side::SideArgs),
    Logs(commands::logs::LogsArgs),
    Config(commands::config::ConfigArgs),
    Completion(commands::completion::CompletionArgs),
    Version(commands::version::VersionArgs),
    Help(commands::help::HelpArgs),
    #[command(hide = true)]
    Join(commands::later::LaterArgs),
    #[command(hide = true)]
    Serve(commands::later::LaterArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_belongs_to_it() {
        let cli = Cli::try_parse_from(["treelease", "run", "-n", "--tree", "dev", "--", "ls", "-o", "json"]).unwrap();
        assert_eq!(cli.global.output, Output::Text);
        assert!(Cli::try_parse_from(["treelease", "run", "--tree", "dev"]).is_err(), "there has to be a command");
    }

    #[test]
    fn not_to_wait_wins_over_a_limit() {
        let limit = |no_wait, wait| WaitArgs { no_wait, wait }.limit();
        assert_eq!(limit(false, None), WAIT);
        assert_eq!(limit(true, Some(WAIT)), Duration::ZERO);
    }

    #[test]
    fn a_break_without_a_question_names_the_epoch() {
        assert!(Cli::try_parse_from(["treelease", "break", "dev", "--reason", "x", "--yes"]).is_err());
        assert!(Cli::try_parse_from(["treelease", "break", "dev", "--reason", "x", "--yes", "--epoch", "4"]).is_ok());
        assert!(Cli::try_parse_from(["treelease", "break", "dev", "--reason", ""]).is_err(), "a reason says something");
    }
}
