//! `treelease tree`: the trees and their policy.

mod add;
mod list;
mod raise_epoch;
mod retire;
mod seal;
mod set;
mod show;
mod takeover;

use clap::Subcommand;
use treelease_client::error::Failure;
use treelease_client::words::policy::Policy;
use treelease_client::words::refusal::Code;

use crate::ctx::Ctx;

/// Trees: register, list, decide their policy
#[derive(clap::Args, Debug)]
pub struct TreeArgs {
    #[command(subcommand)]
    command: TreeCommand,
}

#[derive(Subcommand, Debug)]
enum TreeCommand {
    Add(add::AddArgs),
    Set(set::SetArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Seal(seal::SealArgs),
    Unseal(seal::UnsealArgs),
    Retire(retire::RetireArgs),
    Rm(retire::RmArgs),
    Takeover(takeover::TakeoverArgs),
    RaiseEpoch(raise_epoch::RaiseEpochArgs),
}

/// Carries it out.
pub async fn run(ctx: &Ctx, args: TreeArgs) -> Result<u8, Failure> {
    match args.command {
        TreeCommand::Add(args) => add::run(ctx, args).await,
        TreeCommand::Set(args) => set::run(ctx, args).await,
        TreeCommand::List(args) => list::run(ctx, args).await,
        TreeCommand::Show(args) => show::run(ctx, args).await,
        TreeCommand::Seal(args) => seal::seal(ctx, args).await,
        TreeCommand::Unseal(args) => seal::unseal(ctx, args).await,
        TreeCommand::Retire(args) => retire::retire(ctx, args).await,
        TreeCommand::Rm(args) => retire::remove(ctx, args).await,
        TreeCommand::Takeover(args) => takeover::run(ctx, args).await,
        TreeCommand::RaiseEpoch(args) => raise_epoch::run(ctx, args).await,
    }
}

/// `KEY=VALUE…`, each checked before anything is sent.
fn policy(words: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut check = Policy::default();
    let mut pairs = Vec::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Failure::new(Code::Usage, format!("`{word}` is no policy: write KEY=VALUE, as in mode=observe")));
        };
        check.set(key, value)?;
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_checked_before_it_is_sent() {
        let words = |list: &[&str]| policy(&list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["mode=observe", "sealed_read=a=b"]).unwrap()[1], ("sealed_read".into(), "a=b".into()));
        for bad in ["mode", "mode=loud", "nope=1", "idle=10"] {
            assert_eq!(words(&[bad]).unwrap_err().code, Code::Usage, "{bad}");
        }
    }
}
