//! The command `treelease`: parse, dispatch, print what went wrong, exit.
//!
//! Everything about this side goes through its daemon; inspection and administration go to the server. One [`Failure`] ends
//! a command: its sentence, a blank line, its hints, and the exit code of its [`Code`]. No panic reaches the user as one: the
//! hook below turns it into a sentence and 70.

// A failure ends a command: it is made once, and its size costs nothing.
#![allow(clippy::result_large_err)]

mod cli;
mod commands;
mod ctx;
mod job;
mod table;
mod ui;
mod waiting;
mod which;

use std::process::ExitCode;

use clap::Parser;
use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;

use crate::ctx::Ctx;
use crate::ui::Ui;

/// How many threads carry the calls: a command waits for one or two things at a time.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    forget_empty_variables();
    let args: Vec<_> = std::env::args_os().collect();
    std::panic::set_hook(Box::new(|info| {
        Ui::early(&std::env::args_os().collect::<Vec<_>>()).fail(
            &Failure::new(Code::Internal, format!("this is a bug in treelease: {info}"))
                .hint("please report it with the command that you typed and the output of `treelease version`"),
        );
        std::process::exit(i32::from(Code::Internal.exit()));
    }));
    let cli = match cli::Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&args, &error),
    };
    let ctx = Ctx::new(cli.global);
    start_log(ctx.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ctx.ui.fail(&Failure::new(Code::Internal, format!("cannot start the runtime: {error}")));
            return ExitCode::from(Code::Internal.exit());
        }
    };
    let outcome = runtime.block_on(commands::dispatch(&ctx, cli.command));
    // A call that hangs on a dead mount must not keep the command from ending.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            ctx.ui.fail(&failure);
            failure.exit().into()
        }
    }
}

/// An empty variable says nothing; clap would take it for a value.
fn forget_empty_variables() {
    let empty = |(name, value): &(std::ffi::OsString, std::ffi::OsString)| {
        value.is_empty() && name.as_encoded_bytes().starts_with(b"TREELEASE_")
    };
    for (name, _) in std::env::vars_os().filter(empty).collect::<Vec<_>>() {
        // SAFETY: the first thing that main does: no other thread runs yet.
        unsafe { std::env::remove_var(name) };
    }
}

/// Help and version go to stdout with 0; a mistake in the command line is told as every other failure is, with 2.
fn usage(args: &[std::ffi::OsString], error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let ui = Ui::early(args);
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        _ if ui.json => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or("wrong usage").trim_start_matches("error: ").to_owned();
            ui.fail(&Failure::new(Code::Usage, first).hint("treelease help"));
        }
        _ => {
            let _ = error.print();
        }
    }
    ExitCode::from(Code::Usage.exit())
}

/// Traces for who looks for a fault: `TREELEASE_LOG`, else warnings, more with each `-v`. Always on stderr.
fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TREELEASE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("error,treelease={default},treelease_client={default}")));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).try_init();
}
