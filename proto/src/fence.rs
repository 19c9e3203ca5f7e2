//! Fence agents: what one is asked to do, which attempt that is, and how it ended.

use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::id::{SideName, TreeId};

/// Names an attempt of a fence agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptRef {
    /// On which tree.
    pub tree: TreeId,
    /// Against whom.
    pub side: SideName,
    /// Whose unclean end.
    pub epoch: Epoch,
    /// From 1; both verbs are counted.
    pub number: u32,
}

/// What an agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Make sure that nothing of the side's writes reaches the storage any more.
    Fence,
    /// Give it its access back.
    Unfence,
}

impl Verb {
    /// As an agent reads it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Fence => "fence",
            Verb::Unfence => "unfence",
        }
    }
    /// The verb of that name.
    pub fn parse(s: &str) -> Option<Verb> {
        [Verb::Fence, Verb::Unfence].into_iter().find(|v| v.as_str() == s)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it was to do.
    Succeeded,
    /// It certainly did nothing.
    Untouched,
    /// It did not succeed, and may have done something.
    Failed,
}

impl Outcome {
    /// On the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Untouched => "untouched",
            Outcome::Failed => "failed",
        }
    }
    /// The outcome of that name.
    pub fn parse(s: &str) -> Option<Outcome> {
        [Outcome::Succeeded, Outcome::Untouched, Outcome::Failed].into_iter().find(|o| o.as_str() == s)
    }
}
