//! One Rust file as a row of words: comments and literals blanked, inline tests apart.
//!
//! # Promises
//!
//! Every byte of the blanked text keeps its place and every line its number, so that what is found can be pointed at.
//!
//! # Does not know
//!
//! Which names are allowed where: [`super`].

use std::collections::BTreeSet;

/// What a pure core must not name, and why.
const IMPURE: [(&str, &str); 13] = [
    ("Instant", "a clock: `now: BootTime` is an argument"),
    ("SystemTime", "a clock: the wall time comes with the command"),
    ("SideClock", "a clock: `now: BootTime` is an argument"),
    ("ServerClock", "a clock: `now: BootTime` is an argument"),
    ("HashMap", "its order differs from run to run: use a BTreeMap"),
    ("HashSet", "its order differs from run to run: use a BTreeSet"),
    ("async", "a core does not wait"),
    ("tokio", "a core does not wait"),
    ("rand", "randomness: ids come with the command"),
    ("new_v4", "randomness: ids come with the command"),
    ("wire", "the cores never see protobuf"),
    ("prost", "the cores never see protobuf"),
    ("rustix", "a system call"),
];

/// Paths of `std` that a pure core must not name.
const IMPURE_STD: [&str; 6] = ["fs", "net", "process", "thread", "env", "io"];

/// One Rust file.
pub struct Source {
    /// From the top of the repository, with `/`.
    pub path: String,
    pub text: String,
    /// `text` with comments and literals blanked, line for line; without the `#[cfg(test)] mod` at its end.
    code: String,
    /// Whether the whole file is test code.
    pub is_test: bool,
    /// Where the inline tests begin in `text`.
    tests_from: usize,
}

impl Source {
    pub fn of(path: &str, text: &str) -> Source {
        let blanked = blank(text);
        let tests_from = inline_tests_begin(&blanked).unwrap_or(text.len());
        let is_test = path.starts_with("tests/")
            || path.ends_with("/tests.rs")
            || path.split('/').rev().skip(1).any(|part| part == "tests" || part == "benches");
        Source { path: path.into(), code: blanked[..tests_from].into(), text: text.into(), is_test, tests_from }
    }

    /// The part of the text that is test code.
    pub fn test_text(&self) -> &str {
        if self.is_test { &self.text } else { &self.text[self.tests_from..] }
    }

    pub fn lies_in(&self, homes: &[&str]) -> bool {
        homes.iter().any(|home| self.path == *home || self.path.strip_prefix(home).is_some_and(|rest| rest.starts_with('/')))
            || homes.iter().any(|home| !home.ends_with(".rs") && self.path == format!("{home}.rs"))
    }

    pub fn has_header(&self) -> bool {
        let mut lines = self.text.lines().skip_while(|l| l.trim().is_empty() || l.starts_with("#!"));
        lines.next().is_some_and(|l| l.starts_with("//! ") && l.len() > 10)
    }

    /// Lines (from 1) of the code that have this word.
    pub fn lines_with(&self, word: &str) -> Vec<usize> {
        self.code.lines().enumerate().filter(|(_, line)| has_word(line, word)).map(|(n, _)| n + 1).collect()
    }

    /// The same, without those where the word is the last part of the path `ours`.
    pub fn lines_with_but(&self, word: &str, ours: &str) -> Vec<usize> {
        self.code.lines().enumerate().filter(|(_, line)| has_word(&line.replace(ours, ""), word)).map(|(n, _)| n + 1).collect()
    }

    /// Lines that name one of `types` of `tonic::transport`, by path or by `use`, or one of the generated `modules`.
    pub fn lines_with_grpc(&self, types: &[&str], modules: &[&str]) -> Vec<usize> {
        let mut lines: BTreeSet<usize> = modules.iter().flat_map(|m| self.lines_with(m)).collect();
        let mut at = 0;
        for statement in self.code.split_inclusive([';', '{', '}'].as_slice()) {
            let names_path = types.iter().any(|t| statement.contains(&format!("transport::{t}")));
            if names_path && has_word(statement, "tonic") {
                lines.insert(self.line_of(at, statement));
            }
            at += statement.len();
        }
        let mut from = 0;
        while let Some(start) = self.code[from..].find("use tonic").map(|n| n + from) {
            let end = self.code[start..].find(';').map_or(self.code.len(), |n| start + n);
            let import = &self.code[start..end];
            if has_word(import, "transport") && types.iter().any(|t| has_word(import, t)) {
                lines.insert(self.line_of(start, import));
            }
            from = end;
        }
        lines.into_iter().collect()
    }

    fn line_of(&self, at: usize, statement: &str) -> usize {
        let lead = statement.len() - statement.trim_start().len();
        self.code[..at + lead].matches('\n').count() + 1
    }

    pub fn impurities(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (word, why) in IMPURE {
            wrong.extend(self.lines_with(word).iter().map(|line| format!("{}:{line}: names {word}, {why}", self.path)));
        }
        for (n, line) in self.code.lines().enumerate() {
            for module in IMPURE_STD {
                if line.split("std::").skip(1).any(|rest| has_word(rest.split([':', ';', ' ', ',']).next().unwrap_or(""), module))
                {
                    wrong.push(format!("{}:{}: names std::{module}: a core does no IO", self.path, n + 1));
                }
            }
        }
        wrong
    }

    pub fn leftovers(&self) -> Vec<String> {
        // Put together here, so that this file does not find itself.
        let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|m| m.concat());
        let calls = [["to", "do!"], ["un", "implemented!"], ["#[ig", "nore"]].map(|m| m.concat());
        let blanked = blank(&self.text);
        let mut wrong = Vec::new();
        for (n, (line, code)) in self.text.lines().zip(blanked.lines()).enumerate() {
            let found = marks.iter().find(|m| has_word(line, m)).or_else(|| calls.iter().find(|c| code.contains(c.as_str())));
            wrong.extend(found.map(|what| format!("{}:{}: {what}", self.path, n + 1)));
        }
        wrong
    }
}

/// Whether `word` stands in `text` with nothing of a word on either side.
pub fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part_of_word) && !text[at + word.len()..].starts_with(part_of_word))
}

/// Where `#[cfg(test)]` is followed by a module with a body.
fn inline_tests_begin(blanked: &str) -> Option<usize> {
    blanked.match_indices("#[cfg(test)]").map(|(at, mark)| (at, blanked[at + mark.len()..].trim_start())).find_map(
        |(at, rest)| {
            let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
            let body = rest.strip_prefix("mod ")?;
            let open = body.find('{')?;
            (!body[..open].contains(';')).then_some(at)
        },
    )
}

/// The text with comments and literals turned into spaces, so that every byte keeps its place and every line its number.
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes[i..].starts_with(b"//") => i + bytes[i..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - i),
            b'/' if bytes[i..].starts_with(b"/*") => end_of_block_comment(bytes, i),
            b'"' => end_of_string(bytes, i + 1),
            b'r' if !continues_word(bytes, i) => match end_of_raw_string(bytes, i) {
                Some(end) => end,
                None => i,
            },
            b'\'' => end_of_char(text, i).unwrap_or(i),
            _ => i,
        };
        if end == i {
            i += 1;
            continue;
        }
        out[i..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        i = end;
    }
    String::from_utf8(out).expect("whole literals and comments were blanked, so every character is whole or gone")
}

fn continues_word(bytes: &[u8], i: usize) -> bool {
    i > 0
        && (bytes[i - 1] == b'_' || bytes[i - 1].is_ascii_alphanumeric())
        && !(bytes[i - 1] == b'b' && (i < 2 || !continues_word(bytes, i - 1)))
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start + 2, 1);
    while i < bytes.len() && depth > 0 {
        match () {
            () if bytes[i..].starts_with(b"/*") => (i, depth) = (i + 2, depth + 1),
            () if bytes[i..].starts_with(b"*/") => (i, depth) = (i + 2, depth - 1),
            () => i += 1,
        }
    }
    i
}

fn end_of_string(bytes: &[u8], mut i: usize) -> usize {
    while i < bytes.len() && bytes[i] != b'"' {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

fn end_of_raw_string(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|b| **b == b'#').count();
    let open = start + 1 + hashes;
    (bytes.get(open) == Some(&b'"')).then(|| {
        let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
        let at = bytes[open + 1..].windows(close.len()).position(|w| w == close);
        at.map_or(bytes.len(), |n| open + 1 + n + close.len())
    })
}

/// The end of a character literal; none if the quote begins a lifetime.
fn end_of_char(text: &str, start: usize) -> Option<usize> {
    let mut chars = text[start + 1..].char_indices();
    match chars.next()?.1 {
        '\\' => text[start + 3..].find('\'').map(|n| start + 3 + n + 1),
        _ => chars.next().filter(|(_, c)| *c == '\'').map(|(n, _)| start + 1 + n + 1),
    }
}
