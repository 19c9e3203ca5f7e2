//! The pace of the agreement: who waits how long, and what follows from that for sessions.
//!
//! Promises: a time to live that [`Pace::least_ttl`] allows outlives every failover (I3). It decides nothing else.

use std::time::Duration;

use treelease_proto::time::Ttl;

use crate::store::kind;

/// Entries after which a snapshot is made, if nothing else is said.
const SNAPSHOT_AFTER: u64 = 5_000;
/// Entries below a snapshot that stay in the log, if nothing else is said.
const LOG_KEPT: u64 = 1_000;
/// How many times the worst failover a time to live must be: a renewal is then late by one election, never lost by one.
const FAILOVERS_IN_TTL: u32 = 3;

/// The pace of the agreement, and how much memory its log takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// How often a leader speaks.
    pub heartbeat: Duration,
    /// The least silence after which another one tries.
    pub election_min: Duration,
    /// The longest.
    pub election_max: Duration,
    /// Entries after which a snapshot is made, at least ([`super::compaction`]).
    pub snapshot_after: u64,
    /// Entries below a snapshot that stay in the log.
    pub log_kept: u64,
    /// Bytes of pages that the store may keep in memory.
    pub store_cache: u64,
}

impl Pace {
    /// How long it may take until another node leads: the followers wait out the old leader's lease, then their own time-out,
    /// and look at both every one and a half heartbeats (STACK 1.5).
    pub fn worst_failover(&self) -> Duration {
        2 * self.election_max + self.heartbeat + self.heartbeat / 2
    }

    /// The shortest time to live that a cluster of so many nodes takes.
    pub fn least_ttl(&self, nodes: usize) -> Ttl {
        let failovers = if nodes > 1 { FAILOVERS_IN_TTL * self.worst_failover() } else { Duration::ZERO };
        Ttl::new(failovers.clamp(Ttl::MIN.get(), Ttl::MAX.get()))
    }
}

impl Default for Pace {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            heartbeat: ms(200),
            election_min: ms(1000),
            election_max: ms(1500),
            snapshot_after: SNAPSHOT_AFTER,
            log_kept: LOG_KEPT,
            store_cache: kind::CACHE,
        }
    }
}
