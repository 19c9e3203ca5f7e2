//! `treelease logs`.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use treelease_client::error::Failure;
use treelease_client::words::refusal::Code;

use crate::ctx::{Ctx, interrupted};

/// How often `-f` looks for more.
const LOOK: Duration = Duration::from_millis(300);
/// The most that is read of one log's end, in bytes: more does not help on a terminal.
const MOST: u64 = 4 * 1024 * 1024;

/// What the daemon and the embedded server have written to their logs
#[derive(clap::Args, Debug)]
pub struct LogsArgs {
    /// Go on as they grow, until ctrl-c
    #[arg(short, long)]
    follow: bool,
    /// How many lines of each, the last ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    lines: usize,
}

/// Shows them.
pub async fn run(ctx: &Ctx, args: LogsArgs) -> Result<u8, Failure> {
    let config = ctx.config()?;
    let dir = config.log_dir();
    let mut read: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let found = logs(&dir);
    if found.is_empty() && !args.follow {
        return Err(Failure::new(Code::NotFound, format!("there are no logs in {} yet", dir.display()))
            .hint("`treelease up` starts the daemon, which writes one"));
    }
    for path in &found {
        let (text, end) = from(path, None).map_err(|e| Failure::io(format!("cannot read {}", path.display()), &e))?;
        let lines: Vec<&str> = text.lines().collect();
        ctx.ui.data(format!("==> {} <==", path.display()));
        lines[lines.len().saturating_sub(args.lines)..].iter().for_each(|line| ctx.ui.data(plain(line)));
        read.insert(path.clone(), end);
    }
    if !args.follow {
        return Ok(0);
    }
    let signal = interrupted();
    tokio::pin!(signal);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut signal => return Ok(0),
        }
        for path in logs(&dir) {
            let at = read.get(&path).copied().unwrap_or(0);
            // A log that cannot be read at this moment is read at the next.
            let Ok((text, end)) = from(&path, Some(at)) else { continue };
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            text.lines().for_each(|line| ctx.ui.data(format!("{name}: {}", plain(line))));
            read.insert(path, end);
        }
    }
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "log")).collect();
    paths.sort();
    paths
}

/// Whole lines from an offset (or from near the end), and where the next one begins. A log that shrank begins anew.
fn from(path: &Path, at: Option<u64>) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let start = match at {
        Some(at) if at <= length => at,
        Some(_) => 0,
        None => length.saturating_sub(MOST),
    };
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    // At the first reading a last line without an end is shown too; while following it waits for its end.
    let shown = if at.is_none() { bytes.len() } else { whole };
    Ok((String::from_utf8_lossy(&bytes[..shown]).into_owned(), start + shown as u64))
}

/// A line without colours and other control sequences, whatever has been written to the log.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                // `ESC [ parameters letter`; any other escape is one character long.
                if chars.next() == Some('[') {
                    chars.by_ref().find(|c| c.is_ascii_alphabetic());
                }
            }
            '\t' => out.push(c),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_cannot_move_the_cursor() {
        assert_eq!(plain("\x1b[2m12:00\x1b[0m \x1b[31mERROR\x1b[0m\tx\x07y"), "12:00 ERROR\tx y");
    }

    #[test]
    fn following_a_log_gives_whole_lines_once_and_begins_anew_when_it_shrank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard.log");
        std::fs::write(&path, "one\ntwo\nhal").unwrap();
        let (text, at) = from(&path, Some(4)).unwrap();
        assert_eq!((text.as_str(), at), ("two\n", 8));
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(from(&path, Some(at)).unwrap(), ("new\n".into(), 4));
    }
}
