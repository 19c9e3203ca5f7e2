//! The fencing token: the number of a grant. The only place that may make one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a grant of one tree: last + 1 with every grant, across restarts and restores (I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Before the first grant.
    pub const ZERO: Epoch = Epoch(0);

    /// As read from the wire, a marker's stamp or a command line.
    pub const fn from_raw(n: u64) -> Self {
        Self(n)
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Of the next grant.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The epoch at which a run began: an unbroken row of grants to one side on one kernel.
///
/// Equal run starts mean that nobody else had a turn between (I6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunStart(pub Epoch);

impl fmt::Display for RunStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
