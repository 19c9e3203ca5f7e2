//! The commands: one file each, with its arguments (whose doc comments are the help) and one function.

pub mod acquire;
pub mod break_lease;
pub mod cluster;
pub mod completion;
pub mod config;
pub mod down;
pub mod fence;
pub mod following;
pub mod handoff;
pub mod help;
pub mod history;
pub mod holds;
pub mod later;
pub mod logs;
pub mod mount;
pub mod reference;
pub mod release;
pub mod run;
pub mod side;
pub mod status;
pub mod status_text;
pub mod taking;
pub mod tree;
pub mod umount;
pub mod up;
pub mod up_parts;
pub mod version;
pub mod wait;
pub mod watch;
pub mod writers;

use treelease_client::error::Failure;
use treelease_client::local::Progress;
use treelease_client::local::wire::Finished;

use crate::cli::Command;
use crate::ctx::Ctx;
use crate::waiting::Waiting;

/// Carries a command out; its exit code.
pub async fn dispatch(ctx: &Ctx, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Up(args) => up::run(ctx, args).await,
        Command::Down(args) => down::run(ctx, args).await,
        Command::Mount(args) => mount::run(ctx, args).await,
        Command::Umount(args) => umount::run(ctx, args).await,
        Command::Run(args) => run::run(ctx, args).await,
        Command::Acquire(args) => acquire::run(ctx, args).await,
        Command::Release(args) => release::run(ctx, args).await,
        Command::Handoff(args) => handoff::run(ctx, args).await,
        Command::Wait(args) => wait::run(ctx, args).await,
        Command::Status(args) => status::run(ctx, args).await,
        Command::Watch(args) => watch::run(ctx, args).await,
        Command::History(args) => history::run(ctx, args).await,
        Command::Holds(args) => holds::run(ctx, args).await,
        Command::Writers(args) => writers::run(ctx, args).await,
        Command::Tree(args) => tree::run(ctx, args).await,
        Command::Cluster(args) => cluster::run(ctx, args).await,
        Command::Break(args) => break_lease::run(ctx, args).await,
        Command::Fence(args) => fence::run(ctx, args).await,
        Command::Follow(args) => following::run(ctx, args).await,
        Command::Side(args) => side::run(ctx, args).await,
        Command::Logs(args) => logs::run(ctx, args).await,
        Command::Config(args) => config::run(ctx, args),
        Command::Completion(args) => completion::run(ctx, args),
        Command::Version(args) => version::run(ctx, args).await,
        Command::Help(args) => help::run(ctx, args),
        Command::Join(_) => later::refuse("join", "sides on other machines need TLS identities"),
        Command::Serve(_) => later::refuse("serve", "servers that other machines reach need TLS identities"),
    }
}

/// Follows a handoff to its end, with words for the person who waits.
pub async fn follow(ctx: &Ctx, mut progress: Progress) -> Result<Finished, Failure> {
    let mut waiting = Waiting::without_limit(&ctx.ui);
    loop {
        // `step` may be dropped half-way: it only waits for the next message.
        let step = tokio::select! {
            step = progress.step() => step,
            () = tokio::time::sleep_until(waiting.next()) => {
                waiting.speak();
                continue;
            }
        };
        match step {
            Ok(Some(step)) => waiting.about(&step),
            Ok(None) => break,
            Err(failure) => {
                waiting.end("");
                return Err(failure);
            }
        }
    }
    waiting.end("");
    progress.finish(|_| {}).await
}

/// The end of it: the daemon's words, or ours where it has none; in JSON an object with both.
pub fn tell(ctx: &Ctx, done: Finished, else_say: impl FnOnce() -> String) {
    let message = if done.message.is_empty() { else_say() } else { done.message };
    if ctx.ui.json {
        ctx.ui.object(&serde_json::json!({"schema": 1, "message": message, "notes": done.notes}));
        return;
    }
    ctx.ui.say(sentence(&message));
    done.notes.iter().for_each(|note| ctx.ui.say(sentence(note)));
}

/// With a capital and a full stop.
pub fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}
