//! Names and ids as types that cannot be mixed up: parsed once where they come in, trusted from then on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a tree or a side, in bytes.
pub const NAME_MAX: usize = 63;

/// A name or an id that cannot be one, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {what}: {why}")]
pub struct BadId {
    /// What was expected: `tree name`, `session id` and so on.
    pub what: &'static str,
    /// The text as it came, shortened.
    pub given: String,
    /// What is wrong, and what would be right.
    pub why: &'static str,
}

impl BadId {
    fn new(what: &'static str, given: &str, why: &'static str) -> Self {
        Self { what, given: given.chars().take(80).collect(), why }
    }
}

fn check_name(what: &'static str, s: &str) -> Result<(), BadId> {
    let bad = |why| Err(BadId::new(what, s, why));
    if s.is_empty() {
        return bad("it is empty");
    }
    if s.len() > NAME_MAX {
        return bad("it is longer than 63 bytes");
    }
    if !s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return bad("use letters, digits, `-`, `_` and `.` only");
    }
    if !s.as_bytes()[0].is_ascii_alphanumeric() {
        return bad("it must begin with a letter or a digit");
    }
    Ok(())
}

fn check_uuid(what: &'static str, s: &str) -> Result<(), BadId> {
    match uuid::Uuid::try_parse(s) {
        Ok(id) if id.hyphenated().to_string() == s => Ok(()),
        _ => Err(BadId::new(what, s, "it is no UUID in lower case with hyphens")),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(s: &str) -> Result<Self, BadId> {
                let check: fn(&'static str, &str) -> Result<(), BadId> = $check;
                check($what, s).map(|()| Self(s.into()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(s: String) -> Result<Self, BadId> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// A new one, random. Never called in a pure core.
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4().hyphenated().to_string().into())
            }
        }
    };
}

text_id!(
    /// The name of a tree, as people type it: letters, digits, `-`, `_`, `.`, at most 63 bytes.
    TreeName, "tree name", check_name
);
text_id!(
    /// The name of a side: a place from which people and programs write.
    SideName, "side name", check_name
);
text_id!(
    /// A tree's id: never used again, whatever becomes of its name.
    TreeId, "tree id", check_uuid
);
text_id!(
    /// The id of a root: a place where a tree's files lie.
    RootId, "root id", check_uuid
);
text_id!(
    /// One run of a side's daemon, kept alive at the server.
    SessionId, "session id", check_uuid
);
text_id!(
    /// One set of server nodes; a restore makes a new id (I8).
    ClusterId, "cluster id", check_uuid
);
text_id!(
    /// Makes a retry of a command do nothing twice.
    RequestKey, "request key", check_uuid
);
text_id!(
    /// A local claim on the side's lease.
    HoldId, "hold id", check_uuid
);
random_id!(TreeId);
random_id!(RootId);
random_id!(SessionId);
random_id!(ClusterId);
random_id!(RequestKey);
random_id!(HoldId);

/// A node of the lease server. Never used again after it was removed (I7).
pub type NodeId = u64;

/// One kernel's run and the superblock that a lower root lies on there: two grants with equal places share every dirty page.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The kernel's boot id.
    pub boot: String,
    /// The device number of the lower root.
    pub superblock: u64,
}

/// What a marker's lock tells when it is free (DESIGN 3, the storage is a witness). Only kinds on which that was thought through are
/// here: on all others, and on one that is not known, a lock is no witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// A filesystem of this machine's kernel: the lock is free when the last thread of the process that had it is gone.
    Local,
}

impl LockKind {
    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            LockKind::Local => "local",
        }
    }
    /// The kind of that name; `None`: not one that this version knows as a witness.
    pub fn parse(s: &str) -> Option<LockKind> {
        (s == LockKind::Local.as_str()).then_some(LockKind::Local)
    }
}

/// The very lock that a guard has on a root's marker, found by the opened descriptor: two that are equal exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MarkerLock {
    /// What it tells.
    pub kind: LockKind,
    /// The kernel, and the superblock of the marker.
    pub place: Place,
    /// The marker's inode.
    pub inode: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_name_with_a_path_in_it_is_refused() {
        for bad in ["a/..", "..", "/", "", ".hidden", "-x", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<TreeName>().is_err(), "{bad:?}");
        }
        for good in ["dev", "a.b-c_d", "9", &"x".repeat(63)] {
            assert!(good.parse::<TreeName>().is_ok(), "{good:?}");
        }
    }
}
