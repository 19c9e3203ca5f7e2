//! The executable: arguments to configuration to a node, signals to its end, failures to exit codes (CLI.md).
//!
//! Promises: a failure is one sentence on stderr and the code that CLI.md names; SIGTERM and SIGINT end the node in order,
//! a second one at once; SIGHUP reads the configuration again; a storage error ends the process at once, without another word to
//! any caller (I7).

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use treelease_proto::refusal::Code;
use treelease_server::config::{Config, Flags};
use treelease_server::failure::{Failure, Result};
use treelease_server::fencing::watchdog;
use treelease_server::memory;
use treelease_server::node::{Node, STOP_LIMIT};

/// Room for what the ordered end does not count: the runtime's own end.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Descriptors that are not connections: the log and its snapshots, the listeners, fence agents, other nodes.
const OWN_DESCRIPTORS: u64 = 256;

/// What is logged if nothing else is said. openraft repeats itself at every heartbeat to a node that is away: which nodes are
/// reached is said by `consensus::network`, once, and what ends openraft by `consensus`.
const FILTER: &str = "info,openraft=off,sled=warn";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == watchdog::ARGUMENT) {
        return watchdog::main(args);
    }
    memory::settle();
    let flags = Flags::parse();
    let (filter, log) = tracing_subscriber::reload::Layer::new(filter_of(flags.log.as_deref()));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    let log = move |text: Option<&str>| {
        if let Err(e) = log.reload(filter_of(text)) {
            tracing::warn!("the log's filter did not change: {e}");
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Failure::internal(format!("no runtime: {e}"))),
    };
    let result = runtime.block_on(run(flags, &log));
    runtime.shutdown_timeout(LAST_MOMENT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn filter_of(text: Option<&str>) -> EnvFilter {
    // What cannot be read was refused with the configuration, or comes from the environment and is not worth an end.
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| FILTER.into())
}

async fn run(flags: Flags, log: &dyn Fn(Option<&str>)) -> Result<()> {
    let config = Config::load(flags.clone())?;
    log(config.log.as_deref());
    make_room(&config);
    let no_signals = |e: std::io::Error| Failure::internal(format!("no signal handler: {e}"));
    let mut term = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hup = signal(SignalKind::hangup()).map_err(no_signals)?;
    tracing::warn!("without TLS: a side's name is only claimed, and every caller{} is an operator", with_token(&config));
    let mut node = tokio::select! {
        node = Node::start(config) => node?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            failure = node.failed() => {
                // What is in memory is not to be trusted any more: no ordered end.
                let code = fail_code(&failure);
                std::process::exit(i32::from(code));
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {}
        }
        reload(&flags, &mut node, log);
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

/// SIGHUP: what may change is taken, or nothing at all.
fn reload(flags: &Flags, node: &mut Node, log: &dyn Fn(Option<&str>)) {
    let taken = Config::load(flags.clone()).and_then(|config| {
        let filter = config.log.clone();
        make_room(&config);
        node.reload(config).map(|()| filter)
    });
    match taken {
        Ok(filter) => {
            log(filter.as_deref());
            tracing::info!("the configuration was read again");
        }
        Err(failure) => tracing::error!("the configuration was read again and is not taken: {failure}; what was, stays"),
    }
}

/// Descriptors for all connections that may come, so that a crowd of them takes none from the log and its snapshots.
fn make_room(config: &Config) {
    let wanted = config.limits.connections as u64 + OWN_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    // If that is not allowed, the warning says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    let has = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if has >= wanted {
        return;
    }
    tracing::warn!(
        "this process may have {has} files and connections open, and `connections` in [limits] with what the log needs is {wanted}: \
         raise the first (`ulimit -n`, LimitNOFILE=) or lower the second"
    );
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
