//! `treelease run`.
//!
//! Takes a hold, starts the command in its own process group, and lets the hold go with it. When the daemon says that the lease
//! was lost (by the local clock at the deadline), or when the daemon itself is gone, the group is ended: what it writes is
//! refused already, and a command that goes on would only fail later and worse. Nothing is ever written to stdout here, and
//! nothing to stderr unless it had to wait.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use futures::StreamExt;
use treelease_client::error::Failure;
use treelease_client::exit::Exit;
use treelease_client::local::LocalClient;
use treelease_client::local::wire::HeldNow;
use treelease_client::local::wire::hold_answer::Kind;
use treelease_client::report::HoldsReport;
use treelease_client::words::id::TreeName;
use treelease_client::words::refusal::Code;

use super::taking::{self, After, Taken};
use crate::cli::WaitArgs;
use crate::ctx::{Ctx, by_signal};
use crate::job::{Job, NotStarted, Passed, become_it, not_started};

/// The longest command line that `holds` and waiting people get to see, in characters.
const COMMAND_SHOWN: usize = 200;

/// Run a command under the lease
///
/// The command runs in its own process group with the terminal. It ends with the command's own exit code, 128+N if a signal
/// ended it, and 79 if the lease was lost meanwhile. Inside a command that holds the tree already it does not wait for itself.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// The tree [default: the one of the working directory]
    #[arg(long, value_name = "NAME")]
    tree: Option<TreeName>,
    #[command(flatten)]
    wait: WaitArgs,
    /// Ask the holder to hand over, even if it is busy
    #[arg(long)]
    ask: bool,
    /// On a consistent private copy, without the lease (comes in a later version)
    #[arg(long, hide = true)]
    read: bool,
    /// The database to copy, with `--read`
    #[arg(long, hide = true, value_name = "PATH")]
    db: Vec<PathBuf>,
    /// Exit code to use instead of 75 when the lease cannot be had
    #[arg(short = 'E', long, value_name = "N")]
    conflict_exit_code: Option<u8>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs it.
pub async fn run(ctx: &Ctx, args: RunArgs) -> Result<u8, Failure> {
    let conflict = args.conflict_exit_code;
    match under_lease(ctx, args).await {
        Err(failure) if failure.exit() == Exit::NotNow => {
            ctx.ui.fail(&failure);
            Ok(conflict.unwrap_or(Exit::NotNow.code()))
        }
        other => other,
    }
}

async fn under_lease(ctx: &Ctx, args: RunArgs) -> Result<u8, Failure> {
    if args.read || !args.db.is_empty() {
        return Err(Failure::new(Code::Config, "`run --read` comes in a later version, with the shims")
            .hint("read-only commands run without `treelease run`, on the guarded mount"));
    }
    let config = ctx.config()?;
    let mut daemon = ctx.daemon(&config).await?;
    let tree = ctx.tree_here(args.tree.as_ref(), &mut daemon).await?;
    if held_by_our_caller(&tree, &mut daemon).await {
        let error = become_it(command(&args.command, None));
        return Ok(could_not(ctx, &args.command[0], &error));
    }
    let mut request = taking::request(&tree, "run", args.wait.limit(), args.ask);
    request.command = shown(&args.command);
    let signals = Passed::before().map_err(|e| Failure::io("cannot receive signals", &e))?;
    let (held, mut after) = match taking::take(ctx, &mut daemon, &tree, request).await? {
        Taken::Held(held, after) => (held, after),
        Taken::Interrupted(n) => return Ok(by_signal(n)),
    };
    let job = match Job::start(command(&args.command, Some(&held)), signals) {
        Ok(job) => job,
        Err(error) => return Ok(could_not(ctx, &args.command[0], &error)),
    };
    let why = std::cell::RefCell::new(String::new());
    // The stream lives until the command and what it left have ended: without a mount the daemon waits for that before it hands over.
    let (ended, lost) = job.wait(lost(&mut after, &why)).await?;
    drop(after);
    if !lost {
        return Ok(ended.exit());
    }
    Err(Failure::new(
        Code::Lost,
        format!("the lease on \"{tree}\" was lost while `{}` ran: {}", shown(&args.command), why.borrow()),
    )
    .hint("what it wrote after that was refused; see `treelease history`, then run it again"))
}

/// Resolves when the lease is gone. The hold lives as long as this stream.
async fn lost(after: &mut After, why: &std::cell::RefCell<String>) {
    loop {
        let reason = match after.next().await {
            Some(Ok(Kind::Lost(lost))) => lost.reason,
            Some(Ok(_)) => continue,
            Some(Err(failure)) => failure.message,
            None => "the side daemon has ended".into(),
        };
        why.replace(reason);
        return;
    }
}

/// Whether this command runs inside another one that holds this very tree, and that hold still lives.
async fn held_by_our_caller(tree: &TreeName, daemon: &mut LocalClient) -> bool {
    let inside = std::env::var("TREELEASE_HELD_TREE").is_ok_and(|held| held == tree.as_str());
    let Some(hold) = std::env::var("TREELEASE_HOLD").ok().filter(|_| inside) else { return false };
    let Ok(text) = daemon.holds(tree.as_str()).await else { return false };
    serde_json::from_str::<HoldsReport>(&text).is_ok_and(|report| report.holds.iter().any(|h| h.id == hold))
}

fn command(words: &[OsString], held: Option<&HeldNow>) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    if let Some(held) = held {
        command
            .env("TREELEASE_HELD_TREE", &held.tree_name)
            .env("TREELEASE_EPOCH", held.epoch.to_string())
            .env("TREELEASE_SIDE", &held.side)
            .env("TREELEASE_HOLD", &held.hold);
    }
    command
}

fn shown(words: &[OsString]) -> String {
    let all = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    all.chars().take(COMMAND_SHOWN).collect()
}

/// 126 or 127, as shells do.
fn could_not(ctx: &Ctx, word: &OsString, error: &std::io::Error) -> u8 {
    let (kind, message) = not_started(word, error);
    let exit = match kind {
        NotStarted::NotFound => Exit::NoCommand,
        NotStarted::CannotRun => Exit::CannotRun,
    };
    let code = if exit == Exit::NoCommand { Code::NotFound } else { Code::Denied };
    ctx.ui.fail(&Failure::new(code, message));
    exit.code()
}
