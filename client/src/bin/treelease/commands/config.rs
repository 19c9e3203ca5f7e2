//! `treelease config`.

use clap::Subcommand;
use serde_json::json;
use treelease_client::config::{Config, Origin};
use treelease_client::error::Failure;
use treelease_client::words::time::format_duration;

use crate::ctx::Ctx;

/// This side's configuration: where it is, what it says, whether it is right
#[derive(clap::Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// The file that is read, or would be written
    Path,
    /// Every value that is in force
    Show {
        /// Also where each comes from
        #[arg(long)]
        origin: bool,
    },
    /// Read it and say whether it is right (78 if not)
    Check,
}

/// Shows it.
pub fn run(ctx: &Ctx, args: ConfigArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    match args.command {
        ConfigCommand::Path => ctx.ui.data(config.file.as_ref().unwrap_or(&config.write_to).display().to_string()),
        ConfigCommand::Show { origin } => show(ctx, &config, origin),
        ConfigCommand::Check => {
            config.side()?;
            match &config.file {
                Some(file) => ctx.ui.say(format!("{} is right.", file.display())),
                None => ctx.ui.say("There is no configuration file; the defaults are right."),
            }
            config.notes.iter().for_each(|note| ctx.ui.warn(note));
        }
    }
    Ok(0)
}

fn show(ctx: &Ctx, config: &Config, with_origin: bool) {
    let side = config.side().map(|s| s.to_string()).ok();
    let endpoints: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
    let token = config.token_file.as_ref().map(|p| p.display().to_string());
    let (state, runtime) = (config.state_dir.display().to_string(), config.runtime_dir.display().to_string());
    let origin = |key: &str| match config.origins.get(key) {
        Some(Origin::Given) => "flag or variable",
        Some(Origin::File) => "file",
        Some(Origin::Default) | None => "default",
    };
    if ctx.ui.json {
        let mounts: Vec<_> = config.mounts.iter().map(|m| json!({"tree": m.tree, "lower": m.lower, "at": m.at})).collect();
        let origins: serde_json::Map<_, _> = config.origins.keys().map(|k| ((*k).to_owned(), json!(origin(k)))).collect();
        ctx.ui.object(&json!({"schema": 1, "file": config.file, "side": side, "endpoints": endpoints,
            "ttl": format_duration(config.ttl.get()), "token_file": token, "state_dir": state, "runtime_dir": runtime,
            "mounts": mounts, "origins": origins}));
        return;
    }
    let quoted = |text: &str| json!(text).to_string();
    let line = |key: &str, value: String| {
        let tail = if with_origin { format!("    # {}", origin(key)) } else { String::new() };
        ctx.ui.data(format!("{key} = {value}{tail}"));
    };
    match side {
        Some(side) => line("side", quoted(&side)),
        None => ctx.ui.data("# side: none, and no host name to take it from"),
    }
    line("endpoints", json!(endpoints).to_string());
    line("ttl", quoted(&format_duration(config.ttl.get())));
    if let Some(token) = token {
        line("token_file", quoted(&token));
    }
    // Not keys of the file: flags and variables only.
    let comment = |key: &str, value: String| {
        let tail = if with_origin { format!(" ({})", origin(key)) } else { String::new() };
        ctx.ui.data(format!("# {key}: {value}{tail}"));
    };
    comment("state_dir", state);
    comment("runtime_dir", runtime);
    for mount in &config.mounts {
        let path = |p: &std::path::Path| quoted(&p.display().to_string());
        ctx.ui.data(format!(
            "\n[[mount]]\ntree = {}\nlower = {}\nat = {}",
            quoted(mount.tree.as_str()),
            path(&mount.lower),
            path(&mount.at)
        ));
    }
}
