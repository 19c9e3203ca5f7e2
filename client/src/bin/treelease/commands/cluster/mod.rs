//! `treelease cluster`: the server's nodes, and their state as a file.

mod backup;
mod change;
mod status;

use treelease_client::error::Failure;

use crate::ctx::Ctx;

/// The server's nodes
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What can be done with them.
#[derive(clap::Subcommand, Debug)]
#[allow(missing_docs)] // each is documented where it stands
pub enum ClusterCommand {
    Status(status::StatusArgs),
    Add(change::AddArgs),
    Remove(change::RemoveArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
}

/// Does it.
pub async fn run(ctx: &Ctx, args: ClusterArgs) -> Result<u8, Failure> {
    match args.command {
        ClusterCommand::Status(args) => status::run(ctx, args).await,
        ClusterCommand::Add(args) => change::add(ctx, args).await,
        ClusterCommand::Remove(args) => change::remove(ctx, args).await,
        ClusterCommand::Backup(args) => backup::backup(ctx, args).await,
        ClusterCommand::Restore(args) => backup::restore(ctx, args).await,
    }
}
