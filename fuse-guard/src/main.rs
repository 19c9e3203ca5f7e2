//! `treelease-guard`: the side daemon in the foreground. People never need to start it: `treelease` does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use treelease_client::config::{Config, Env, Overrides};
use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;
use treelease_guard::daemon::Daemon;

/// The side daemon of treelease: one session, the local socket, guarded mounts
///
/// Ready when its socket answers (also told by sd_notify). On SIGTERM it hands over, flushes and unmounts.
#[derive(Parser, Debug)]
#[command(name = "treelease-guard", version)]
struct Args {
    /// The side's configuration file
    #[arg(long, env = "TREELEASE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This side's name
    #[arg(long, env = "TREELEASE_SIDE", value_name = "NAME")]
    side: Option<String>,
    /// Lease servers, comma separated
    #[arg(long, env = "TREELEASE_ENDPOINTS", value_name = "URL,…", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The token that an embedded server asks for
    #[arg(long, env = "TREELEASE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// State directory
    #[arg(long, env = "TREELEASE_STATE", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Runtime directory
    #[arg(long, env = "TREELEASE_RUNTIME", value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("TREELEASE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("treelease-guard: {failure}");
            for hint in &failure.hints {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(failure.code.exit())
        }
    }
}

/// Blocks of memory from this size on are the kernel's own pages, which count only once they are touched.
#[cfg(target_env = "gnu")]
const OWN_PAGES: nix::libc::c_int = 1 << 20;

/// Each serving thread has room for the largest request, 16 MiB of which it touches next to nothing. glibc would take them from its heap
/// once it has seen one of that size freed, and fill them with zeros: 20 mounts had 480 MiB in memory.
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; it sets a number of the allocator, before there is another thread.
    let _kept = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_PAGES) };
}

fn run(args: Args) -> Result<(), Failure> {
    keep_memory_small();
    let overrides = Overrides {
        config: args.config,
        side: args.side,
        endpoints: args.endpoints,
        token_file: args.token_file,
        state_dir: args.state_dir,
        runtime_dir: args.runtime_dir,
        ..Overrides::default()
    };
    let config = Config::load(&overrides, &Env::from_process())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Code::Internal, format!("cannot start: {e}")))?;
    let ended = runtime.block_on(async { Daemon::new(config)?.run().await });
    // A call on the lower filesystem that never returns must not keep the process.
    runtime.shutdown_background();
    ended
}
