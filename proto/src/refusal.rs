//! Why the answer is no: data, shown to people and put into JSON. The world is fine; nothing changed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tree::Holder;

/// The kinds of refusal and failure, with the exit code of each (CLI.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the contract's
pub enum Code {
    Held,
    Declined,
    Busy,
    Limit,
    EpochMoved,
    NotFound,
    Unreachable,
    OutcomeUnknown,
    Lost,
    Denied,
    Config,
    CannotCreate,
    Storage,
    Usage,
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 15] = [
        Code::Held,
        Code::Declined,
        Code::Busy,
        Code::Limit,
        Code::EpochMoved,
        Code::NotFound,
        Code::Unreachable,
        Code::OutcomeUnknown,
        Code::Lost,
        Code::Denied,
        Code::Config,
        Code::CannotCreate,
        Code::Storage,
        Code::Usage,
        Code::Internal,
    ];

    /// As in the JSON of errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Held => "held",
            Code::Declined => "declined",
            Code::Busy => "busy",
            Code::Limit => "limit",
            Code::EpochMoved => "epoch_moved",
            Code::NotFound => "not_found",
            Code::Unreachable => "unreachable",
            Code::OutcomeUnknown => "outcome_unknown",
            Code::Lost => "lost",
            Code::Denied => "denied",
            Code::Config => "config",
            Code::CannotCreate => "cannot_create",
            Code::Storage => "storage",
            Code::Usage => "usage",
            Code::Internal => "internal",
        }
    }

    /// The code of that name.
    pub fn parse(s: &str) -> Option<Code> {
        Self::ALL.into_iter().find(|c| c.as_str() == s)
    }

    /// The exit code of a command that ends with this.
    pub const fn exit(self) -> u8 {
        match self {
            Code::Usage => 2,
            Code::NotFound => 66,
            Code::Unreachable | Code::OutcomeUnknown => 69,
            Code::Internal => 70,
            Code::CannotCreate => 73,
            Code::Storage => 74,
            Code::Held | Code::Declined | Code::Busy | Code::Limit | Code::EpochMoved => 75,
            Code::Denied => 77,
            Code::Config => 78,
            Code::Lost => 79,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer is no, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which kind.
    pub code: Code,
    /// One sentence for a person: the thing, and what is wrong with it.
    pub message: String,
    /// Who holds the tree, where that is why.
    pub holder: Option<Holder>,
}

impl Refusal {
    /// A refusal without a holder.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), holder: None }
    }
    /// The same, naming the holder.
    #[must_use]
    pub fn held_by(mut self, holder: Holder) -> Self {
        self.holder = Some(holder);
        self
    }
}
