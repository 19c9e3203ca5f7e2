//! A node of the treelease server: who may write to which tree, agreed upon, on disk, and told to those who ask.
//!
//! ```text
//! main ─▶ node ─▶ api ─────────────▶ consensus ─▶ lease (pure)
//!           │                           │
//!           ├──▶ leader ─▶ expiry, fencing
//!           │                           └──────▶ store
//!           ├──▶ admin ─▶ consensus
//!                  └─────▶ consensus
//! ```
//!
//! | part | is |
//! |---|---|
//! | [`lease`] | the replicated state: commands in, answers and events out; no IO, no clock |
//! | [`expiry`] | the leader's timers, volatile |
//! | [`consensus`] | openraft around the state: proposing, confirming leadership, snapshots |
//! | [`store`] | log, vote, snapshots and identity on disk |
//! | [`formation`] | how empty nodes become one cluster, or join one |
//! | [`membership`] | which step comes next when a node is added, moved or removed; pure |
//! | [`leader`] | what this node does while it leads |
//! | [`fencing`] | fence agents: when they are run, and how |
//! | [`api`] | the gRPC service |
//! | [`admin`] | health and metrics over HTTP |
//! | [`telemetry`] | what this node counts |
//! | [`node`] | one node, wired together and taken down in order |
//! | [`config`] | flags and file to one checked value |
//! | [`limits`] | how much callers may take |
//! | [`reload`] | what of it may change while the node runs |
//! | [`memory`] | what this process's allocator keeps |
//! | [`readiness`] | whether this node can serve |
//! | [`failure`] | what ends a node, with its exit code |
//! | [`surroundings`] | what a node stands on: this machine, or a simulated world |
//! | [`fault`] | rules that a test leaves out |

pub mod admin;
pub mod api;
pub mod config;
pub mod consensus;
pub mod expiry;
pub mod failure;
pub mod fault;
pub mod fencing;
pub mod formation;
pub mod leader;
pub mod lease;
pub mod limits;
pub mod membership;
pub mod memory;
pub mod node;
pub mod readiness;
pub mod reload;
pub mod store;
pub mod surroundings;
pub mod telemetry;
