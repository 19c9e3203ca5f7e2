//! What the replicated state answers to a command.

use serde::{Deserialize, Serialize};

use crate::epoch::{Epoch, RunStart};
use crate::id::{RootId, SessionId, TreeId};
use crate::refusal::Refusal;
use crate::time::Ttl;
use crate::tree::{End, Holder};

/// What the state answers to a command. A refused or ignored command leaves it as it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// It is so now.
    Done,
    /// It named something that is not current any more.
    Ignored {
        /// What was not.
        why: String,
    },
    /// No.
    Refused(Refusal),
    /// A session lives.
    Opened {
        /// Its id.
        session: SessionId,
        /// Which run of the daemon: 1, and one more with each resume.
        incarnation: u64,
        /// Its time to live.
        ttl: Ttl,
        /// Whether it is an old session that goes on.
        resumed: bool,
    },
    /// The lease is yours. It opens no gate: only a renewal sent later that lists the pair does (I4).
    Granted(Grant),
    /// You are in the queue.
    Queued {
        /// 1: next.
        place: u32,
        /// Who has it now.
        holder: Option<Holder>,
    },
    /// The tree is registered (or was, by the same request).
    TreeAdded {
        /// Its id.
        tree: TreeId,
        /// Its root, where one was named.
        root: Option<RootId>,
    },
}

/// A lease as its holder is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Which tree.
    pub tree: TreeId,
    /// Which grant.
    pub epoch: Epoch,
    /// Where its run began.
    pub run_start: RunStart,
    /// The live root: the gate opens there and nowhere else (I8).
    pub root: Option<RootId>,
    /// How the lease before it ended.
    pub last_end: End,
}

/// One lease in a renewal's answer.
pub type HeldPair = Grant;
