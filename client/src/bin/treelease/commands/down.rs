//! `treelease down`.

use std::time::Duration;

use treelease_client::config::Config;
use treelease_client::error::Failure;
use treelease_client::local::start;
use treelease_client::words::time::parse_duration;
use treelease_client::words::tree::SessionStatus;

use super::sentence;
use super::up_parts::{daemon_process, gone};
use crate::cli::DryRun;
use crate::ctx::Ctx;

/// How long handing over and unmounting may take if nobody says otherwise.
const WITHIN: Duration = Duration::from_secs(20);

/// Hand over, unmount, stop the daemon
///
/// Says which paths are unguarded now. An embedded server is stopped too, unless another side has a session there.
#[derive(clap::Args, Debug)]
pub struct DownArgs {
    /// Stop the embedded server although other sides use it
    #[arg(long)]
    server: bool,
    /// How long it may take [default: 20s]; what is not handed over by then ends unclean
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    within: Option<Duration>,
    #[command(flatten)]
    dry: DryRun,
}

/// Ends all of it.
pub async fn run(ctx: &Ctx, args: DownArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let daemon = ctx.running(&config).await?;
    if args.dry.dry_run {
        ctx.ui.would(if daemon.is_some() { "hand over, unmount and stop the daemon" } else { "find no daemon to stop" });
        return Ok(0);
    }
    match daemon {
        Some(mut daemon) => {
            let process = daemon_process(&mut daemon).await;
            let progress = daemon.down(args.within.unwrap_or(WITHIN)).await?;
            let done = super::follow(ctx, progress).await?;
            gone(process.as_ref()).await;
            super::tell(ctx, done, || "the daemon has ended".into());
        }
        None => ctx.ui.say("No daemon runs for this side."),
    }
    end_server(ctx, &config, args.server).await?;
    Ok(0)
}

async fn end_server(ctx: &Ctx, config: &Config, anyway: bool) -> Result<(), Failure> {
    if start::server_pid(config).is_none() {
        return Ok(());
    }
    let others = match config.servers()?.filter(|_| !config.has_endpoints()) {
        Some(servers) => servers.status().await.map(|status| other_sides(config, status.sessions)),
        None => Ok(Vec::new()),
    };
    match others {
        Ok(others) if others.is_empty() => {}
        Ok(others) if anyway => ctx.ui.warn(format!("these sides lose their server: {}", others.join(", "))),
        Ok(others) => {
            ctx.ui.say(format!("The embedded server goes on: {} has a session there.", others.join(", ")));
            ctx.ui.hint("stop it too with `treelease down --server`");
            return Ok(());
        }
        Err(_) if anyway => {}
        Err(error) => {
            ctx.ui.warn(sentence(&format!("the embedded server goes on, since it does not say who uses it ({error})")));
            ctx.ui.hint("stop it with `treelease down --server`");
            return Ok(());
        }
    }
    if start::stop_server(config).await? {
        ctx.ui.say("The embedded server has ended.");
    }
    Ok(())
}

/// The sessions of sides other than this one: `SIDE (host HOST)`.
fn other_sides(config: &Config, sessions: Vec<SessionStatus>) -> Vec<String> {
    let ours = config.side().ok();
    let others = sessions.into_iter().filter(|s| Some(&s.side) != ours.as_ref());
    others.map(|s| if s.host.is_empty() { s.side.to_string() } else { format!("{} (host {})", s.side, s.host) }).collect()
}
