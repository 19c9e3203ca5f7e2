//! Which file is to be confirmed next, who waits, and whether the gate closes: pure, time and bytes in.
//!
//! What was written to a file is kept in *parts*, in the order of writing: what came before a call began is in other parts than
//! what came after. So a call that returns confirms the parts that it found, and nothing that was written while it ran.
//!
//! # Promises
//!
//! - A call for what was written begins at the latest when half of `dirty_max` has passed, as long as one of [`CALLS`] is free: the
//!   other half is the storage's. None is free: the oldest is next, and when that has waited for `dirty_max` nothing more is let in.
//! - Unconfirmed and let in are together at most [`UNCONFIRMED_MAX`] bytes.
//! - Nothing that was acknowledged is taken for confirmed before a call that began after it has returned.
//!
//! # Does not know
//!
//! Files, threads, the lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use treelease_client::words::time::BootTime;

/// The most bytes that may be unconfirmed: whoever would write more waits.
pub const UNCONFIRMED_MAX: u64 = 64 << 20;
/// With so many bytes that no call is under way for, one begins before it is due: a storage that keeps up makes nobody wait.
pub const PRESSURE: u64 = UNCONFIRMED_MAX / 4;
/// The most files with something unconfirmed: whoever would write to one more waits.
pub const FILES_MAX: usize = 16_384;
/// Calls under way at the same time. Fewer than the threads that serve the kernel: on some filesystems whoever writes to a file that
/// is being synced waits in the kernel, and readers are to be served all the same.
pub const CALLS: usize = 3;
/// Of these, for one file: one that hangs does not keep what came after it from beginning, nor all calls.
const CALLS_PER_FILE: usize = 2;
/// Parts of one file: where there are so many, a mark ends before the last of them.
const PARTS_MAX: u64 = 8;
/// The shortest `dirty_max` that is obeyed.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// Some bytes of one file, written one after the other.
#[derive(Debug)]
struct Part {
    bytes: u64,
    /// When the first of them was.
    since: BootTime,
    /// A call that covers it has begun.
    begun: bool,
    /// Nothing is added any more.
    closed: bool,
}

/// What is unconfirmed of one file.
#[derive(Debug)]
struct File {
    /// Another one for each entry that ever was.
    birth: u64,
    /// Parts confirmed so far.
    confirmed: u64,
    parts: VecDeque<Part>,
    calls: usize,
}

/// How far a file had been written at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    birth: u64,
    upto: u64,
}

/// A call under way.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    no: u64,
    file: u64,
    mark: Mark,
}

/// What is unconfirmed in one tree.
#[derive(Debug)]
pub struct Plan {
    dirty_max: Duration,
    files: BTreeMap<u64, File>,
    /// The oldest part of each file that no call has begun for.
    waiting: BTreeSet<(BootTime, u64)>,
    unconfirmed: u64,
    unbegun: u64,
    let_in: u64,
    births: u64,
    /// Calls under way, with when they began.
    calls: BTreeMap<u64, BootTime>,
    last_call: u64,
    last_return: Option<BootTime>,
}

impl Plan {
    /// Nothing is unconfirmed.
    pub fn new(dirty_max: Duration) -> Self {
        Plan {
            dirty_max: dirty_max.max(SHORTEST),
            files: BTreeMap::new(),
            waiting: BTreeSet::new(),
            unconfirmed: 0,
            unbegun: 0,
            let_in: 0,
            births: 0,
            calls: BTreeMap::new(),
            last_call: 0,
            last_return: None,
        }
    }

    /// Another `dirty_max` from now on. Whether it is another.
    pub fn set_dirty_max(&mut self, dirty_max: Duration) -> bool {
        let dirty_max = dirty_max.max(SHORTEST);
        std::mem::replace(&mut self.dirty_max, dirty_max) != dirty_max
    }

    // ---- writers ----

    /// Whether so many bytes may be written now; they count from now on, until [`Plan::came_out`].
    pub fn let_in(&mut self, bytes: u64, now: BootTime) -> bool {
        let used = self.unconfirmed + self.let_in;
        let fits = used == 0 || used + bytes <= UNCONFIRMED_MAX;
        let goes = fits && self.files.len() < FILES_MAX && !self.is_behind(now);
        if goes {
            self.let_in += bytes;
        }
        goes
    }

    /// A write that was let in has ended, well or badly.
    pub fn came_out(&mut self, bytes: u64) {
        self.let_in = self.let_in.saturating_sub(bytes);
    }

    /// Whether something waits for its call longer than it may be unconfirmed.
    fn is_behind(&self, now: BootTime) -> bool {
        self.waiting.first().is_some_and(|(since, _)| now.since(*since) > self.dirty_max)
    }

    /// Bytes of a file were written, and are about to be acknowledged. True: whoever looks for work is to look again.
    pub fn wrote(&mut self, file: u64, bytes: u64, now: BootTime) -> bool {
        let births = &mut self.births;
        let entry = self.files.entry(file).or_insert_with(|| {
            *births += 1;
            File { birth: *births, confirmed: 0, parts: VecDeque::new(), calls: 0 }
        });
        let first = self.waiting.is_empty();
        match entry.parts.back_mut() {
            Some(part) if !part.closed => part.bytes += bytes,
            _ => {
                if entry.parts.iter().all(|part| part.begun) {
                    self.waiting.insert((now, file));
                }
                entry.parts.push_back(Part { bytes, since: now, begun: false, closed: false });
            }
        }
        self.unconfirmed += bytes;
        let light = self.unbegun <= PRESSURE;
        self.unbegun += bytes;
        first || (light && self.unbegun > PRESSURE)
    }

    // ---- calls ----

    /// The file that a call is to begin for now. `at_once`: whatever its age.
    pub fn next(&self, now: BootTime, at_once: bool) -> Option<u64> {
        let at_once = at_once || self.unbegun > PRESSURE;
        let due = |since: BootTime| at_once || now.since(since) >= self.dirty_max / 2;
        let mut oldest = self.waiting.iter().take_while(|(since, _)| due(*since)).map(|(_, file)| *file);
        oldest.find(|file| self.files.get(file).is_some_and(|f| f.calls < CALLS_PER_FILE))
    }

    /// When the next one is due, as far as is known.
    pub fn due_at(&self) -> Option<BootTime> {
        self.waiting.first().map(|(since, _)| since.after(self.dirty_max / 2))
    }

    /// A call begins: it covers all that was written to the file by now.
    pub fn begin(&mut self, file: u64, now: BootTime) -> Option<Ticket> {
        let entry = self.files.get_mut(&file)?;
        let mut oldest = None;
        for part in entry.parts.iter_mut().filter(|part| !part.begun) {
            (part.begun, part.closed) = (true, true);
            self.unbegun -= part.bytes;
            oldest = oldest.or(Some(part.since));
        }
        oldest.iter().for_each(|since| _ = self.waiting.remove(&(*since, file)));
        entry.calls += 1;
        self.last_call += 1;
        self.calls.insert(self.last_call, now);
        let mark = Mark { birth: entry.birth, upto: entry.confirmed + entry.parts.len() as u64 };
        Some(Ticket { no: self.last_call, file, mark })
    }

    /// It has returned, well or badly: what it covered is on the storage, or lost, and in this machine's memory no more.
    pub fn end(&mut self, ticket: &Ticket, now: BootTime) {
        self.calls.remove(&ticket.no);
        if let Some(entry) = self.files.get_mut(&ticket.file).filter(|f| f.birth == ticket.mark.birth) {
            entry.calls = entry.calls.saturating_sub(1);
        }
        self.confirmed(ticket.file, ticket.mark, now);
    }

    /// How far a file has been written by now, for a call that somebody else makes.
    pub fn mark(&mut self, file: u64) -> Option<Mark> {
        let entry = self.files.get_mut(&file)?;
        let mut upto = entry.confirmed + entry.parts.len() as u64;
        match entry.parts.back_mut() {
            Some(last) if !last.closed && upto - entry.confirmed < PARTS_MAX => last.closed = true,
            Some(last) if !last.closed => upto -= 1,
            _ => {}
        }
        Some(Mark { birth: entry.birth, upto })
    }

    /// What had been written by that mark is confirmed.
    pub fn confirmed(&mut self, file: u64, mark: Mark, now: BootTime) {
        self.last_return = self.last_return.max(Some(now));
        let Some(entry) = self.files.get_mut(&file).filter(|f| f.birth == mark.birth) else { return };
        let oldest = |entry: &File| entry.parts.iter().find(|part| !part.begun).map(|part| part.since);
        let before = oldest(entry);
        while entry.confirmed < mark.upto {
            let Some(part) = entry.parts.pop_front() else { break };
            entry.confirmed += 1;
            self.unconfirmed -= part.bytes;
            if !part.begun {
                self.unbegun -= part.bytes;
            }
        }
        let after = oldest(entry);
        if before != after {
            before.iter().for_each(|since| _ = self.waiting.remove(&(*since, file)));
            after.iter().for_each(|since| _ = self.waiting.insert((*since, file)));
        }
        if entry.parts.is_empty() && entry.calls == 0 {
            self.files.remove(&file);
        }
    }

    /// The file is gone: there is nothing to confirm.
    pub fn forget(&mut self, file: u64) {
        let Some(entry) = self.files.remove(&file) else { return };
        self.waiting.retain(|(_, of)| *of != file);
        for part in entry.parts {
            self.unconfirmed -= part.bytes;
            self.unbegun -= if part.begun { 0 } else { part.bytes };
        }
    }

    /// Nothing is unconfirmed any more as far as this lease goes. Calls under way go on, and confirm nothing.
    pub fn clear(&mut self) {
        self.files.clear();
        self.waiting.clear();
        (self.unconfirmed, self.unbegun) = (0, 0);
    }

    // ---- reports ----

    /// Whether a file is in the account.
    pub fn has(&self, file: u64) -> bool {
        self.files.contains_key(&file)
    }

    /// Bytes unconfirmed, and for how long the oldest has been.
    pub fn unconfirmed(&self, now: BootTime) -> (u64, Duration) {
        let oldest = self.files.values().filter_map(|file| file.parts.front()).map(|part| now.since(part.since)).max();
        (self.unconfirmed, oldest.unwrap_or_default())
    }

    /// When no call at all has returned for `patience`, if none returns until then: the gate closes. None: no call is under way.
    pub fn silent_at(&self, patience: Duration) -> Option<BootTime> {
        let began = self.calls.values().min()?;
        Some((*began).max(self.last_return.unwrap_or(*began)).after(patience))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
