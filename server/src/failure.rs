//! What ends a node, or keeps it from starting: a sentence for a person and the exit code of CLI.md.
//!
//! Promises: whoever finds that the node can not go on says so once, through [`FailStop`], and the process ends with the
//! code of the first word. A storage error is final (I7: after a write whose fate is unknown, nothing that this node says
//! about its disk can be trusted until it has read it again). It does not know who listens.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use treelease_proto::refusal::Code;

/// Why a node does not start, or ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind; it names the exit code.
    pub code: Code,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// The data directory can not be used as it is (exit code 74).
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(Code::Storage, message)
    }
    /// The configuration is wrong (exit code 78).
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::Config, message)
    }
    /// Something can not be made here (exit code 73).
    pub fn cannot_create(message: impl Into<String>) -> Self {
        Self::new(Code::CannotCreate, message)
    }
    /// A fault of ours (exit code 70).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

/// What everything here returns that can keep a node from running.
pub type Result<T> = std::result::Result<T, Failure>;

/// Where a part says that the node can not go on. The first word counts.
#[derive(Clone)]
pub struct FailStop(Arc<watch::Sender<Option<Failure>>>);

impl FailStop {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
    /// The node can not go on.
    pub fn report(&self, failure: Failure) {
        tracing::error!(code = %failure.code, "{failure}");
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
    /// What has failed, if anything has.
    pub fn failed(&self) -> Option<Failure> {
        self.0.borrow().clone()
    }
    /// Resolves when something has failed.
    pub async fn wait(&self) -> Failure {
        let mut seen = self.0.subscribe();
        match seen.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().expect("wait_for returned because it is some"),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Default for FailStop {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FailStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FailStop").field(&*self.0.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_failure_is_the_one_that_counts() {
        let stop = FailStop::new();
        stop.report(Failure::storage("the disk is gone"));
        stop.report(Failure::internal("and so am I"));
        assert_eq!(stop.wait().await.code, Code::Storage);
    }
}
