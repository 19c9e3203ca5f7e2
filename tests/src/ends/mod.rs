//! Three nodes and two sides, each on a host of its own; what can befall them; and what must be true whatever befell.
//!
//! | what | where |
//! |---|---|
//! | hosts, and cuts between them that have a direction | [`net`] |
//! | what will befall, from a seed | [`plan`] |
//! | the hosts with all that runs on them | [`scene`] |
//! | doing it to them, and healing it | [`fault`] |
//! | programs that write for as long as they may | [`work`], [`scribe`] |
//! | two gates that admitted at once, from when writes succeeded | [`gates`] |
//! | everything that must be true afterwards | [`verdict`] |
//!
//! # Promises
//!
//! What [`verdict`] calls broken is broken, however slow the machine was: it names no duration, only orders of events on one clock,
//! and what was acknowledged. Durations are limits of waiting, far above what is usual, and their excess is a failure of another kind.
//!
//! # Does not know
//!
//! A second kernel: all hosts share one, and so the lower filesystem's cache. Who waits in the mount of a stopped daemon cannot be
//! looked at: nothing here reads another process's memory, command line or environment, nor touches a mount itself.

pub mod fault;
pub mod gates;
pub mod net;
pub mod plan;
pub mod random;
pub mod scene;
pub mod scribe;
pub mod verdict;
pub mod work;
