//! The reference of all commands, from their help texts: `client/CLI.md` is this, and a test compares the two.

use clap::{Command, CommandFactory};
use treelease_client::exit::Exit;

use crate::cli::Cli;

/// Columns of the help texts in the reference: the same on every machine.
const WIDTH: usize = 100;

/// All of it.
pub fn markdown() -> String {
    let mut command = Cli::command().term_width(WIDTH).disable_version_flag(true);
    command.build();
    let mut out = String::from(
        "# The commands of treelease\n\n\
         Made from the help texts by `treelease help reference`. Do not edit: change the texts, then run\n\
         `UPDATE=1 cargo test -p treelease-client --test cli_reference`.\n",
    );
    section(&mut out, &mut command, "treelease");
    out.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for exit in Exit::ALL {
        out.push_str(&format!("| {} | {} |\n", exit.code(), exit.meaning()));
    }
    out
}

fn section(out: &mut String, command: &mut Command, path: &str) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    // What every command takes stands once, with `treelease` itself.
    let own = match lines.iter().position(|l| *l == "Global options:") {
        Some(at) if path != "treelease" => &lines[..at],
        _ => &lines[..],
    };
    out.push_str(&format!("\n## `{path}`\n\n```text\n{}\n```\n", own.join("\n").trim()));
    let names: Vec<String> = command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            section(out, sub, &format!("{path} {name}"));
        }
    }
}
