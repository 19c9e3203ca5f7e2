//! `treelease help`.

use clap::CommandFactory;
use treelease_client::error::Failure;
use treelease_client::exit::Exit;
use treelease_client::words::refusal::Code;

use crate::cli::Cli;
use crate::ctx::Ctx;

/// Help on a command, or on `environment`, `exit-codes`, `files`
#[derive(clap::Args, Debug)]
pub struct HelpArgs {
    /// A command, or one of the topics
    topic: Vec<String>,
}

/// Prints it.
pub fn run(ctx: &Ctx, args: HelpArgs) -> Result<u8, Failure> {
    let words: Vec<&str> = args.topic.iter().map(String::as_str).collect();
    match words[..] {
        ["environment"] => ctx.ui.data(ENVIRONMENT.trim()),
        ["files"] => ctx.ui.data(FILES.trim()),
        ["exit-codes"] => Exit::ALL.iter().for_each(|exit| ctx.ui.data(format!("{:>4}  {}", exit.code(), exit.meaning()))),
        ["reference"] => ctx.ui.data(super::reference::markdown().trim_end()),
        _ => ctx.ui.data(of(&words)?.trim_end()),
    }
    Ok(0)
}

fn of(path: &[&str]) -> Result<String, Failure> {
    let mut command = Cli::command();
    command.build();
    for word in path {
        let found = command.find_subcommand(word).cloned();
        command = found.ok_or_else(|| {
            Failure::new(Code::Usage, format!("there is no help on `{}`", path.join(" ")))
                .hint("the topics are environment, exit-codes and files; `treelease help` shows the commands")
        })?;
    }
    Ok(command.render_long_help().to_string())
}

const ENVIRONMENT: &str = "
Flags come first, then these variables, then the configuration file, then defaults.

  TREELEASE_CONFIG       this side's configuration file (--config)
  TREELEASE_SIDE         the name of this side (--side)
  TREELEASE_ENDPOINTS    the servers, separated by commas (--endpoints)
  TREELEASE_STATE        state directory (--state-dir)
  TREELEASE_RUNTIME      runtime directory (--runtime-dir)
  TREELEASE_TOKEN_FILE   the token that an embedded server asks for
  TREELEASE_TREE         the tree that is meant where no flag and no directory says so
  TREELEASE_WAIT         how long to wait for another side (--wait), 5m by default
  TREELEASE_LOG          filter of the traces on stderr: error, info, treelease=debug, …
  NO_COLOR               no colours; CLICOLOR_FORCE: colours also where there is no terminal

Commands that run under the lease get

  TREELEASE_HELD_TREE    the tree's name
  TREELEASE_EPOCH        the number of the grant
  TREELEASE_SIDE         the side that holds it
  TREELEASE_HOLD         the id of the hold
";

const FILES: &str = "
  $XDG_CONFIG_HOME/treelease/config.toml   this side's configuration; else ~/.config/treelease/config.toml, else
                                           /etc/treelease/config.toml
  $XDG_STATE_HOME/treelease/               identity, secret, logs and the embedded server, mode 0700; else
                                           ~/.local/state/treelease; on shared storage /var/tmp/treelease-UID instead
  $XDG_RUNTIME_DIR/treelease/socket        the daemon's socket; else below /run/user/UID or /tmp/treelease-UID
  $XDG_RUNTIME_DIR/treelease/status.json   what `treelease status -o json` says, with written_at
  ROOT/.treelease-tree                     the marker of a tree's root: never copy, move or remove it

A configuration file:

  side = \"workstation\"
  endpoints = [\"http://127.0.0.1:7420\"]
  ttl = \"15s\"
  token_file = \"token\"

  [[mount]]
  tree = \"dev\"
  lower = \"/mnt/nas/dev\"
  at = \"/mnt/nas/dev\"
";
