//! The side daemon: one session, the local socket, and guarded mounts.
//!
//! ```text
//! main → daemon → fuse → fs → gate (pure)
//!               │           → lower
//!               ├→ handoff (pure)
//!               ├→ gate (sets the standing)
//!               └→ treelease_client::{session (pure), rpc, local}
//! ```
//!
//! `gate` decides whether an operation may proceed, `handoff` in which steps a lease is given up, `daemon::tree` what this
//! side wants with one tree; everything else carries out what they say. `SEMANTICS.md` tells what programs see.

pub mod daemon;
pub mod failpoint;
pub mod fs;
pub mod fuse;
pub mod gate;
pub mod handoff;
pub mod lower;
pub mod sync;
