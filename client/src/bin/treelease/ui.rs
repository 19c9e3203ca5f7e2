//! What a person or a script gets to see: data on stdout, all else on stderr.
//!
//! Failures are one sentence, a blank line, and `hint:` lines; with `-o json` one JSON object on stderr. People see ages, never
//! instants. Colours only on a terminal (`NO_COLOR`, `CLICOLOR_FORCE`, `--color` decide otherwise). A reader that closes its end
//! of a pipe ends nothing with a panic.

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;
use treelease_client::error::Failure;
use treelease_client::report::ErrorReport;
use treelease_client::words::time::WallTime;

use crate::cli::{Color, Global, Output};

/// Where and how to write.
#[derive(Debug, Clone)]
pub struct Ui {
    /// Results and failures are JSON.
    pub json: bool,
    /// More columns for people.
    pub wide: bool,
    quiet: bool,
    no_input: bool,
    colour_out: bool,
    colour_err: bool,
    /// Stderr is a terminal: the waiting line may be rewritten in place.
    pub live: bool,
}

impl Ui {
    /// As the flags and the environment say.
    pub fn new(global: &Global) -> Self {
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            json: global.output == Output::Json,
            wide: global.output == Output::Wide,
            quiet: global.quiet,
            no_input: global.no_input,
            colour_out: coloured(global.color, out),
            colour_err: coloured(global.color, err),
            live: err && std::env::var_os("TERM").is_none_or(|t| t != "dumb"),
        }
    }

    /// Before the command line is understood: only `-o json` is looked for, so that its mistakes are JSON too.
    pub fn early(args: &[OsString]) -> Self {
        let ours = || args.iter().skip(1).map(|a| a.to_string_lossy()).take_while(|a| a != "--");
        let pairs = ours().zip(ours().skip(1));
        let json = ours().any(|a| ["-ojson", "-o=json", "--output=json"].contains(&a.as_ref()))
            || pairs.into_iter().any(|(a, b)| (a == "-o" || a == "--output") && b == "json");
        let err = std::io::stderr().is_terminal();
        let colour_err = coloured(Color::Auto, err);
        Self { json, wide: false, quiet: false, no_input: true, colour_out: false, colour_err, live: false }
    }

    /// Data: to stdout, with a line end.
    pub fn data(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
        if written.is_err() {
            // The reader has gone (`treelease watch | head`): nobody is left to tell.
            std::process::exit(0);
        }
    }

    /// One JSON object on one line, to stdout.
    pub fn object(&self, value: &impl Serialize) {
        self.data(serde_json::to_string(value).expect("our objects have text keys"));
    }

    /// A sentence for a person, to stderr; not with `-q`, nor among JSON.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Something that the person should know although it went well.
    pub fn warn(&self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{} {}", self.paint_err("33", "warning:"), text.as_ref());
        }
    }

    /// What to type next.
    pub fn hint(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{} {}", self.paint_err("36", "hint:"), text.as_ref());
        }
    }

    /// What would be done, with `--dry-run`.
    pub fn would(&self, text: impl AsRef<str>) {
        let _ = writeln!(std::io::stderr().lock(), "Would {}. Nothing was changed.", text.as_ref());
    }

    /// Why the command ends without having done it.
    pub fn fail(&self, failure: &Failure) {
        let mut err = std::io::stderr().lock();
        if self.json {
            let _ =
                writeln!(err, "{}", serde_json::to_string(&ErrorReport::from(failure)).expect("strings and numbers are JSON"));
            return;
        }
        let _ = writeln!(err, "{}", failure.message.trim_end());
        if !failure.hints.is_empty() {
            let _ = writeln!(err);
        }
        for hint in &failure.hints {
            let _ = writeln!(err, "{} {hint}", self.paint_err("36", "hint:"));
        }
    }

    /// Asks for one line. Without a terminal, or with `--no-input`: `None`.
    pub fn ask(&self, question: &str) -> Option<String> {
        if self.no_input || !std::io::stdin().is_terminal() {
            return None;
        }
        let _ = write!(std::io::stderr().lock(), "{question} ");
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).ok()?;
        Some(line.trim().to_owned())
    }

    /// Coloured on stdout, if it takes colours. `code` is an SGR number.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour_out { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn paint_err(&self, code: &str, text: &str) -> String {
        if self.colour_err { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn coloured(wish: Color, terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
    match wish {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) => false,
        Color::Auto if set("CLICOLOR_FORCE") => true,
        Color::Auto => terminal && std::env::var_os("TERM").is_none_or(|t| t != "dumb"),
    }
}

/// How long, as people say it: the greatest unit and the next one.
pub fn span(d: Duration) -> String {
    let s = d.as_secs();
    let two = |a: u64, ua: &str, b: u64, ub: &str| if b == 0 { format!("{a} {ua}") } else { format!("{a} {ua} {b} {ub}") };
    match s {
        0 if d.as_millis() > 0 => format!("{} ms", d.as_millis()),
        0..=89 => format!("{s} s"),
        90..=5_399 => two(s / 60, "min", if s < 600 { s % 60 } else { 0 }, "s"),
        5_400..=172_799 => two(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

/// How long ago; `a moment` where clocks disagree or it has only just been.
pub fn age(at: WallTime, now: WallTime) -> String {
    if at == WallTime::UNKNOWN {
        return "an unknown time".into();
    }
    let d = Duration::try_from(now.0.duration_since(at.0)).unwrap_or_default();
    if d < Duration::from_secs(1) { "a moment".into() } else { span(Duration::from_secs(d.as_secs())) }
}

/// Wall time now, for ages only.
pub fn now() -> WallTime {
    use treelease_client::words::clock::{Clock, ServerClock};
    ServerClock::new().wall()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        let said = |s| span(Duration::from_secs(s));
        assert_eq!(
            [said(0), said(61), said(125), said(700), said(7_260), said(90_000), said(200_000)],
            ["0 s", "61 s", "2 min 5 s", "11 min", "2 h 1 min", "25 h", "2 d 7 h"]
        );
        assert_eq!(span(Duration::from_millis(250)), "250 ms");
    }

    #[test]
    fn json_is_wanted_only_by_our_own_flags_not_by_those_of_the_command_that_is_run() {
        let early = |args: &[&str]| Ui::early(&args.iter().map(OsString::from).collect::<Vec<_>>()).json;
        assert!(early(&["treelease", "status", "-o", "json"]));
        assert!(early(&["treelease", "--output=json", "status"]));
        assert!(!early(&["treelease", "run", "--", "kubectl", "-o", "json"]));
    }
}
