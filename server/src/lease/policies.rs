//! Policies that many trees have, kept once.
//!
//! Promises: sharing shows nowhere, neither in equality nor in what is written down. It decides nothing.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use treelease_proto::policy::Policy;

/// Policies that a new one is compared with: owners have a few, whatever the number of their trees.
const KNOWN_MAX: usize = 32;

/// A tree's policy, which may be other trees', too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Shared(Arc<Policy>);

impl From<Policy> for Shared {
    fn from(policy: Policy) -> Self {
        Self(Arc::new(policy))
    }
}

impl Deref for Shared {
    type Target = Policy;
    fn deref(&self) -> &Policy {
        &self.0
    }
}

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Policy::deserialize(deserializer).map(Self::from)
    }
}

/// Those that were seen last. It is no part of the state: two that differ only here are equal.
#[derive(Debug, Clone, Default)]
pub(super) struct Policies(Vec<Shared>);

impl Policies {
    /// The same policy, and the same memory if it was seen lately.
    pub(super) fn one(&mut self, policy: Shared) -> Shared {
        if let Some(known) = self.0.iter().find(|known| **known == policy) {
            return known.clone();
        }
        if self.0.len() >= KNOWN_MAX {
            self.0.remove(0);
        }
        self.0.push(policy.clone());
        policy
    }
}

impl PartialEq for Policies {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Policies {}

impl Hash for Policies {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
