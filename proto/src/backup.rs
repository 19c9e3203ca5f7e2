//! A backup of a cluster's state, as a file: a line that says what it is, a line about it, the state, and a digest of it all.
//!
//! *Promises:* [`open`] gives back what [`seal`] was given, or says in a sentence why the file is none: of another kind, of a later
//! version, cut short, or altered. *Does not know* what the state means: that is the server's.
//!
//! ```text
//! treelease backup 1
//! {"cluster":"…","revision":812,"at":"…","trees":3,…}
//! {…the state…}
//! sha256 0123…
//! ```

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::ClusterId;
use crate::time::WallTime;

/// The form that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Largest backup: what a server and a client have in memory of one at a time. A hundred thousand trees fit, and as much of their histories
/// as there is room for ([`About::history`]).
pub const BACKUP_MAX: usize = 256 << 20;
/// Longest piece of one on its way to a server, in bytes: it must fit into one record of the log.
pub const PIECE_MAX: usize = 32 << 10;
/// The first words of the first line.
const MAGIC: &str = "treelease backup ";
/// The first word of the last line.
const DIGEST: &str = "sha256 ";

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Whose state it is.
    pub cluster: ClusterId,
    /// Of that state.
    pub revision: u64,
    /// When it was made, by the server's wall clock.
    pub at: WallTime,
    /// How many trees are in it.
    pub trees: u64,
    /// The newest events of each tree that are in it, at most; none: all that there were. More would have made it larger than [`BACKUP_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<u64>,
    /// The server's version.
    pub version: String,
}

/// Why a file is no backup that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the sentences say it
pub enum BadBackup {
    #[error("it is no backup of a treelease cluster")]
    Foreign,
    #[error("it has format {0}, this version reads {FORMAT}: use the version that wrote it")]
    Later(String),
    #[error("it is cut short: its last line is missing")]
    Short,
    #[error("its checksum is wrong: it was altered or is damaged")]
    Altered,
    #[error("its second line cannot be read: {0}")]
    About(String),
    #[error("it has {0} bytes, at most {BACKUP_MAX} are taken")]
    Large(usize),
}

/// The file. `state` has no line break: it is JSON of one line.
pub fn seal(about: &About, state: &str) -> String {
    let about = serde_json::to_string(about).expect("plain fields always become JSON");
    let mut text = format!("{MAGIC}{FORMAT}\n{about}\n{state}\n");
    let digest = hex(&Sha256::digest(text.as_bytes()));
    text.push_str(&format!("{DIGEST}{digest}\n"));
    text
}

/// What it says about itself, and the state.
pub fn open(text: &str) -> Result<(About, &str), BadBackup> {
    if text.len() > BACKUP_MAX {
        return Err(BadBackup::Large(text.len()));
    }
    let (first, rest) = text.split_once('\n').ok_or(BadBackup::Foreign)?;
    match first.strip_prefix(MAGIC) {
        None => return Err(BadBackup::Foreign),
        Some(format) if format != FORMAT.to_string() => return Err(BadBackup::Later(format.chars().take(16).collect())),
        Some(_) => {}
    }
    let whole = text.strip_suffix('\n').ok_or(BadBackup::Short)?;
    let (body, last) = whole.rsplit_once('\n').ok_or(BadBackup::Short)?;
    let digest = last.strip_prefix(DIGEST).ok_or(BadBackup::Short)?;
    let covered = &text[..body.len() + 1];
    if digest != hex(&Sha256::digest(covered.as_bytes())) {
        return Err(BadBackup::Altered);
    }
    let (about, state) = rest[..covered.len() - first.len() - 2].split_once('\n').ok_or(BadBackup::Short)?;
    let about = serde_json::from_str(about).map_err(|e| BadBackup::About(e.to_string()))?;
    Ok((about, state))
}

/// Its pieces in order, each of [`PIECE_MAX`] bytes at most, cut between characters.
pub fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(PIECE_MAX);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, left) = rest.split_at(end);
        pieces.push(piece);
        rest = left;
    }
    pieces
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let version = "0.1.0".to_owned();
        About { cluster: ClusterId::random(), revision: 12, at: WallTime::UNKNOWN, trees: 1, history: None, version }
    }

    #[test]
    fn a_backup_says_how_much_of_the_histories_it_has_and_one_that_says_nothing_has_all() {
        for history in [None, Some(0), Some(64)] {
            let about = About { history, ..about() };
            let sealed = seal(&about, "{}");
            assert_eq!(open(&sealed).unwrap().0, about);
            assert_eq!(sealed.contains("history"), history.is_some(), "as earlier versions wrote it");
        }
    }

    #[test]
    fn a_backup_gives_back_what_was_put_into_it() {
        let about = about();
        let sealed = seal(&about, r#"{"trees":{"a":"é"}}"#);
        assert_eq!(open(&sealed), Ok((about, r#"{"trees":{"a":"é"}}"#)));
    }

    #[test]
    fn a_backup_that_is_cut_anywhere_or_altered_anywhere_is_refused() {
        let sealed = seal(&about(), r#"{"trees":{"a":"b"}}"#);
        for end in 0..sealed.len() {
            assert!(open(&sealed[..end]).is_err(), "cut at {end}");
        }
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] ^= 1;
            let altered = String::from_utf8(bytes).expect("plain letters, and one bit of one of them");
            assert!(open(&altered).is_err(), "altered at {at}");
        }
        assert!(open(&format!("{sealed}x")).is_err());
        assert_eq!(open(&sealed.replacen("backup 1", "backup 2", 1)), Err(BadBackup::Later("2".into())));
        assert_eq!(open("{}\n"), Err(BadBackup::Foreign));
    }

    #[test]
    fn its_pieces_are_short_and_make_it_whole_again() {
        let text = "aé".repeat(PIECE_MAX);
        let pieces = pieces(&text);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_MAX && !piece.is_empty()));
        assert_eq!(pieces.concat(), text);
    }
}
