//! What a lock service can be asked, whichever it is.

use std::future::Future;
use std::time::Duration;

/// A lock service, with its nodes as processes. Nodes are numbered from 0.
pub trait Service: Send + Sync {
    /// One client with a session of its own.
    type Caller: Caller;

    /// In tables.
    fn name(&self) -> &'static str;
    /// How many nodes it has.
    fn nodes(&self) -> usize;
    /// A new client with a new session that lives so long without a renewal, connected to the node.
    fn caller(&self, node: usize, ttl: Duration) -> impl Future<Output = anyhow::Result<Self::Caller>> + Send;
    /// Makes trees of these names, where they have to be made; with this grace, where there is any.
    fn trees(&self, names: &[String], grace: Duration) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// The node that leads, if all that are asked name the same one and have a quorum.
    fn leader(&self) -> impl Future<Output = Option<usize>> + Send;
    /// kill -9.
    fn kill(&mut self, node: usize);
    /// Starts one that was killed.
    fn start_again(&mut self, node: usize) -> anyhow::Result<()>;
    /// Of the nodes that run.
    fn processes(&self) -> Vec<u32>;
}

/// A client.
pub trait Caller: Send + 'static {
    /// Speaks to another node from now on, with the same session.
    fn at(&mut self, node: usize);
    /// Before it waits in a line for this tree: whatever it needs to learn of its turn.
    fn follow(&mut self, tree: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Takes the lease of a tree; answers when it is held.
    fn acquire(&mut self, tree: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Says that nothing of it is unconfirmed, where that can be said.
    fn rest(&mut self, tree: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Gives it back.
    fn release(&mut self, tree: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Proves that the session lives.
    fn renew(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}
