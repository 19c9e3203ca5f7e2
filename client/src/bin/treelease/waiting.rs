//! The words while a command waits for another side.
//!
//! Nothing for the first 400 ms: most waits are over by then. On a terminal one line is rewritten in place; elsewhere there is
//! one line at the start, one every 30 s and one at the end, and only if there was one at the start. It does not know what is
//! waited for: the daemon says that.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;
use treelease_client::words::time::format_duration;

use crate::table::printable;
use crate::ui::{Ui, span};

/// A wait shorter than this is not worth a word.
const FIRST_WORDS: Duration = Duration::from_millis(400);
/// How often a log gets to read that it still waits.
const AGAIN: Duration = Duration::from_secs(30);
/// How often the seconds on a terminal are counted on.
const TICK: Duration = Duration::from_millis(500);
/// Columns of a rewritten line where the terminal's width is unknown: a wrapped line could not be rewritten.
const COLUMNS: usize = 79;

/// One wait.
pub struct Waiting<'a> {
    ui: &'a Ui,
    begun: Instant,
    limit: Option<Duration>,
    message: String,
    next: Instant,
    spoke: bool,
}

impl<'a> Waiting<'a> {
    /// It begins now and ends at the latest after `limit`.
    pub fn new(ui: &'a Ui, limit: Duration) -> Self {
        Self { limit: Some(limit), ..Self::without_limit(ui) }
    }

    /// It begins now; the daemon knows its limits and tells them with each step.
    pub fn without_limit(ui: &'a Ui) -> Self {
        let begun = Instant::now();
        Self { ui, begun, limit: None, message: String::new(), next: begun + FIRST_WORDS, spoke: false }
    }

    /// What is waited for, as the daemon puts it: who holds the tree, since when, the place in the queue.
    pub fn about(&mut self, message: &str) {
        let message = printable(message);
        // On a terminal a change is shown at once; a log gets it with its next line.
        if self.ui.live && self.spoke && message != self.message {
            self.next = Instant::now();
        }
        self.message = message;
    }

    /// When [`Waiting::speak`] has something to say.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Says that it still waits, if it is time.
    pub fn speak(&mut self) {
        let now = Instant::now();
        if now < self.next || self.message.is_empty() {
            self.next = self.next.max(now + TICK.min(FIRST_WORDS));
            return;
        }
        let seconds = |d: Duration| span(Duration::from_secs(d.as_secs()));
        let gone = now - self.begun;
        if self.ui.live {
            let tail = match self.limit {
                Some(limit) => format!(" ({} left, ctrl-c ends it)", seconds(limit.saturating_sub(gone))),
                None => format!(" ({})", seconds(gone)),
            };
            let room = columns().saturating_sub(tail.chars().count());
            let line: String = self.message.chars().take(room).collect();
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{line}{tail}");
            self.next = now + TICK;
        } else {
            let how_long = if self.spoke { "Still waiting" } else { "Waiting" };
            let limit = self.limit.map(|limit| format!(", for at most {}", format_duration(limit))).unwrap_or_default();
            self.ui.say(format!("{how_long}{limit}: {}", self.message));
            self.next = now + AGAIN;
        }
        self.spoke = true;
    }

    /// The wait is over; `how` is said only if anything was said before.
    pub fn end(self, how: &str) {
        if !self.spoke {
            return;
        }
        if self.ui.live {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        if !how.is_empty() {
            self.ui.say(format!("{how} after {}.", span(self.begun.elapsed())));
        }
    }
}

fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(COLUMNS, |w| usize::from(w.ws_col).max(20)) - 1
}
