//! Words to wire and back, one file per family of messages.
//!
//! It promises two things. What is encoded here can be decoded here, whatever the word held: free texts are cut to their
//! limit on the way out, because an entry of the log that was accepted and cannot be read again would stop a node for good.
//! And nothing that comes in becomes a word unchecked: ids are parsed, texts and lists are bounded, and what is wrong is
//! named by its field ([`BadMessage`]). It knows no rule of the lease: a well-formed command may still be refused.

mod answer;
mod command;
mod event;
mod fence;
mod policy;
mod proposal;
mod status;
mod tree;

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod bad_bytes;
#[cfg(test)]
mod damage;

use std::str::FromStr;

use crate::id::BadId;
use crate::wire;

pub use policy::{pairs_from_wire, pairs_to_wire};

/// Longest free text (note, reason, host, actor), in characters: a person reads it on one screen.
pub const TEXT_MAX: usize = 500;
/// Longest sentence of an answer or an event, in characters: it may quote several free texts.
pub const SENTENCE_MAX: usize = 4_000;
/// Longest path, and longest value of a policy key, in bytes: the kernel's PATH_MAX.
pub const PATH_MAX: usize = 4_096;
/// Most files that a surrender may name: more tell a person nothing.
pub const FILES_MAX: usize = 64;
/// Most policy pairs in one command: several times the keys that there are.
pub const PAIRS_MAX: usize = 64;
/// Longest resume secret, in bytes: twice what a daemon makes.
pub const SECRET_MAX: usize = 64;
/// A SHA-256 digest, in bytes.
pub const DIGEST_LEN: usize = 32;
/// Most proposals in one entry: four times what the proposer puts into one.
pub const BATCH_MAX: usize = 1_024;
/// Most roots, waiters, trees or sessions in a status: above every limit of the state.
pub const LIST_MAX: usize = 200_000;

/// A message that cannot be a word, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad message: `{field}`: {why}")]
pub struct BadMessage {
    /// Which field, as the `.proto` files name it.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl BadMessage {
    pub(crate) fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self { field, why: why.into() }
    }
}

type Out<T> = Result<T, BadMessage>;

/// The first `max` characters.
fn cut(s: &str, max: usize) -> String {
    match s.char_indices().nth(max) {
        Some((at, _)) => s[..at].to_owned(),
        None => s.to_owned(),
    }
}

/// A free text on its way out.
fn say(s: &str) -> String {
    cut(s, TEXT_MAX)
}

/// A free text on its way in.
fn text(field: &'static str, s: String) -> Out<String> {
    at_most(field, s, TEXT_MAX)
}

/// A sentence of the server's, on its way in.
fn sentence(field: &'static str, s: String) -> Out<String> {
    at_most(field, s, SENTENCE_MAX)
}

fn at_most(field: &'static str, s: String, max: usize) -> Out<String> {
    // Bytes first: counting characters of a giant text would be work for nothing.
    if s.len() > max && s.chars().nth(max).is_some() {
        return Err(BadMessage::new(field, format!("it is longer than {max} characters; shorten it")));
    }
    Ok(s)
}

/// The longest beginning of a path that fits, in whole characters.
fn say_path(s: &str) -> String {
    let mut end = s.len().min(PATH_MAX);
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    s[..end].to_owned()
}

fn path(field: &'static str, s: String) -> Out<String> {
    if s.len() > PATH_MAX {
        return Err(BadMessage::new(field, format!("it is longer than {PATH_MAX} bytes")));
    }
    Ok(s)
}

fn id<T: FromStr<Err = BadId>>(field: &'static str, s: &str) -> Out<T> {
    s.parse().map_err(|e: BadId| BadMessage::new(field, e.to_string()))
}

/// An id that may be missing: the empty text.
fn optional_id<T: FromStr<Err = BadId>>(field: &'static str, s: &str) -> Out<Option<T>> {
    if s.is_empty() { Ok(None) } else { id(field, s).map(Some) }
}

/// The wire's form of an id that may be missing.
fn or_empty<T: ToString>(id: Option<&T>) -> String {
    id.map(T::to_string).unwrap_or_default()
}

fn present<T>(field: &'static str, v: Option<T>) -> Out<T> {
    v.ok_or_else(|| BadMessage::new(field, "it is missing"))
}

fn few<T>(field: &'static str, list: Vec<T>, max: usize) -> Out<Vec<T>> {
    if list.len() > max {
        return Err(BadMessage::new(field, format!("it has {} entries; at most {max} are taken", list.len())));
    }
    Ok(list)
}

/// Each entry of a bounded list as a word.
fn each<W, T: TryFrom<W, Error = BadMessage>>(field: &'static str, list: Vec<W>) -> Out<Vec<T>> {
    few(field, list, LIST_MAX)?.into_iter().map(T::try_from).collect()
}

fn ttl(ms: u64) -> crate::time::Ttl {
    crate::time::Ttl::new(std::time::Duration::from_millis(ms))
}

fn end(field: &'static str, s: &str) -> Out<crate::tree::End> {
    match s {
        "" => Ok(crate::tree::End::None),
        _ => crate::tree::End::parse(s).ok_or_else(|| BadMessage::new(field, "use one of clean, unclean, none")),
    }
}

impl From<&crate::id::Place> for wire::Place {
    fn from(p: &crate::id::Place) -> Self {
        Self { boot: say(&p.boot), superblock: p.superblock }
    }
}

impl From<&crate::id::MarkerLock> for wire::MarkerLock {
    fn from(m: &crate::id::MarkerLock) -> Self {
        Self { kind: m.kind.as_str().into(), place: Some((&m.place).into()), inode: m.inode }
    }
}

/// A kind that this version does not know tells nothing: as if the lock were not there.
fn marker_lock(m: Option<wire::MarkerLock>) -> Out<Option<crate::id::MarkerLock>> {
    let Some(m) = m else { return Ok(None) };
    let Some(kind) = crate::id::LockKind::parse(&m.kind) else { return Ok(None) };
    let place = present("marker.place", m.place)?.try_into()?;
    Ok(Some(crate::id::MarkerLock { kind, place, inode: m.inode }))
}

impl TryFrom<wire::Place> for crate::id::Place {
    type Error = BadMessage;
    fn try_from(p: wire::Place) -> Out<Self> {
        Ok(Self { boot: text("place.boot", p.boot)?, superblock: p.superblock })
    }
}
