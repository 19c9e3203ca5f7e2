//! The executable: arguments to configuration to a node, signals to its end, failures to exit codes (CLI.md).
//!
//! Promises: a failure is one sentence on stderr and the code that CLI.md names; SIGTERM and SIGINT end the node in order,
//! a second one at once; a storage error ends the process at once, without another word to any caller (I7).

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use treelease_proto::refusal::Code;
use treelease_server::config::{Config, Flags};
use treelease_server::failure::{Failure, Result};
use treelease_server::fencing::watchdog;
use treelease_server::node::{Node, STOP_LIMIT};

/// Room for what the ordered end does not count: the runtime's own end.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// What is logged if nothing else is said. openraft repeats itself at every heartbeat to a node that is away: which nodes are
/// reached is said by `consensus::network`, once, and what ends openraft by `consensus`.
const FILTER: &str = "info,openraft=off,sled=warn";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == watchdog::ARGUMENT) {
        return watchdog::main(args);
    }
    let flags = Flags::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TREELEASE_LOG").unwrap_or_else(|_| FILTER.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Failure::internal(format!("no runtime: {e}"))),
    };
    let result = runtime.block_on(run(flags));
    runtime.shutdown_timeout(LAST_MOMENT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

async fn run(flags: Flags) -> Result<()> {
    let config = Config::load(flags)?;
    let no_signals = |e: std::io::Error| Failure::internal(format!("no signal handler: {e}"));
    let mut term = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(no_signals)?;
    tracing::warn!("without TLS: a side's name is only claimed, and every caller{} is an operator", with_token(&config));
    let node = tokio::select! {
        node = Node::start(config) => node?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    tokio::select! {
        failure = node.failed() => {
            // What is in memory is not to be trusted any more: no ordered end.
            let code = fail_code(&failure);
            std::process::exit(i32::from(code));
        }
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    tokio::select! {
        () = node.stop() => {}
        () = tokio::time::sleep(STOP_LIMIT + LAST_MOMENT) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

fn with_token(config: &Config) -> &'static str {
    if config.token.is_some() { " with the token" } else { "" }
}

fn fail(failure: &Failure) -> ExitCode {
    ExitCode::from(fail_code(failure))
}

fn fail_code(failure: &Failure) -> u8 {
    eprintln!("treelease-server: {failure}");
    if failure.code == Code::Usage {
        eprintln!("try: treelease-server --node-id 1 --data-dir DIR --insecure");
    }
    failure.code.exit()
}
