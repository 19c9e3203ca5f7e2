//! `treelease wait`.

use std::time::Duration;

use clap::ValueEnum;
use treelease_client::config::Config;
use treelease_client::error::Failure;
use treelease_client::report::{Report, TreeReport};
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;
use treelease_client::words::time::format_duration;
use treelease_client::words::tree::StateName;

use crate::cli::WaitArgs;
use crate::ctx::{Ctx, about, by_signal, interrupted, no_tree, standing};
use crate::ui::now;
use crate::waiting::Waiting;
use crate::which;

/// How often the state is looked at: asking the daemon costs a few hundred microseconds.
const LOOK: Duration = Duration::from_millis(200);

/// Wait for a state of a tree
///
/// For scripts and init containers. At the limit it ends with 75.
#[derive(clap::Args, Debug)]
pub struct WaitForArgs {
    /// The tree [default: the one of the working directory]
    tree: Option<TreeName>,
    /// Which state
    #[arg(long, value_enum, default_value_t = Until::Free, value_name = "STATE")]
    until: Until,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What is waited for.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Nobody holds it
    Free,
    /// This side holds it
    Mine,
    /// Anybody holds it
    Held,
}

impl Until {
    fn word(self) -> &'static str {
        match self {
            Until::Free => "free",
            Until::Mine => "ours",
            Until::Held => "held",
        }
    }

    fn reached(self, tree: &TreeReport) -> bool {
        match self {
            Until::Free => tree.state == StateName::Free,
            Until::Mine => tree.state == StateName::Held && tree.mine,
            Until::Held => tree.state == StateName::Held,
        }
    }
}

/// Waits for it.
pub async fn run(ctx: &Ctx, args: WaitForArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let limit = args.wait.limit();
    let mut waiting = Waiting::new(&ctx.ui, limit);
    let end = tokio::time::Instant::now() + limit;
    let signal = interrupted();
    tokio::pin!(signal);
    loop {
        let seen = tokio::select! {
            seen = look(ctx, &config, args.tree.as_ref()) => seen,
            number = &mut signal => return Ok(by_signal(number)),
        };
        let failure = match seen {
            Ok(tree) if args.until.reached(&tree) => {
                waiting.end(&format!("\"{}\" is {}", tree.name, crate::ctx::state(&tree)));
                return Ok(0);
            }
            Ok(tree) => {
                waiting.about(&standing(&tree));
                let (name, word, limit) = (&tree.name, args.until.word(), format_duration(limit));
                Failure::new(Code::Limit, format!("\"{name}\" was not {word} within {limit}; {}.", standing(&tree)))
            }
            // The servers may be on their way up: for that, too, there is the limit.
            Err(failure) if failure.code == Code::Unreachable => {
                waiting.about(&failure.message);
                failure
            }
            Err(failure) => return Err(failure),
        };
        if tokio::time::Instant::now() >= end {
            waiting.end("");
            return Err(failure);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => waiting.speak(),
            number = &mut signal => return Ok(by_signal(number)),
        }
    }
}

async fn look(ctx: &Ctx, config: &Config, named: Option<&TreeName>) -> Result<TreeReport, Failure> {
    let name = which::named(named)?;
    let report = match ctx.running(config).await? {
        Some(mut daemon) => {
            let told = ctx.told(&mut daemon).await?;
            if !told.reachable {
                return Err(Failure::new(Code::Unreachable, "no lease server answers this side's daemon"));
            }
            told.report
        }
        None => {
            let status = about(&config.need_servers()?, name.as_slice()).await?;
            Report::new(&status, config.side().ok().as_ref(), now(), |_| None)
        }
    };
    let name = match name {
        Some(name) => name,
        None => which::only(&report.trees.iter().map(|t| t.name.clone()).collect::<Vec<_>>())?,
    };
    let known: Vec<String> = report.trees.iter().map(|t| t.name.clone()).collect();
    report.trees.into_iter().find(|t| t.name == name.as_str()).ok_or_else(|| no_tree(&name, known.into_iter()))
}
