//! Commands of the contract that this version does not have: they say so, instead of being unknown.

use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;

/// Comes in a later version
#[derive(clap::Args, Debug)]
pub struct LaterArgs {
    /// Whatever it will take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<String>,
}

/// 78, with why and with what works today.
pub fn refuse(command: &str, why: &str) -> Result<u8, Failure> {
    Err(Failure::new(
        Code::Config,
        format!("`treelease {command}` comes in a later version: {why}, which this version does not have yet"),
    )
    .hint(
        "today: name the servers with `endpoints` in the configuration (`treelease help files`) and start them with --insecure",
    ))
}
