//! Admission: may this operation on this tree proceed now?
//!
//! [`admit`] decides: pure, total, without allocation. [`Gate`] is its shell: it publishes the [`Standing`], counts the
//! [permits](Permit) in flight, and keeps the operations that [wait](waiters) for a first write's lease.
//!
//! # Promises
//!
//! - I4: nothing is admitted after the standing's deadline, by the clock of that moment; nobody needs to tell the gate.
//! - Admitting costs no allocation, no lock and nothing that threads share but what they only read ([`permits`] says how).
//! - I6: a handle opened below `stale_below` never writes again. *Why:* that number only grows ([`Gate::publish`] takes the
//!   maximum), and it is compared before anything else.
//! - After [`Gate::publish`] and a [`Gate::drain`] that said yes, no system call admitted under the old standing is in flight
//!   (the argument stands in [`permits`]).
//!
//! # Does not know
//!
//! Files, descriptors, FUSE; who else holds the tree and why.

pub mod carriers;
pub mod hooks;
mod lanes;
mod op;
pub mod permits;
mod published;
mod standing;
pub mod waiters;

#[cfg(test)]
mod tests;

pub use hooks::{Hooks, LateWrite, Refused};
pub use op::Op;
pub use permits::{Admission, Counts, Gate, Permit};
pub use standing::{Opened, Outcome, Right, Standing, in_time};
pub use waiters::Turn;

use treelease_client::words::policy::{Mode, OnClose};
use treelease_client::words::time::BootTime;

/// The gate's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may proceed.
    Admit,
    /// It may wait for the lease.
    Wait,
    /// EROFS: this side does not hold the lease.
    ReadOnly,
    /// ESTALE: another side has had a turn since the handle was opened.
    Stale,
}

/// Admits or refuses one operation under the policy's mode.
pub fn admit(standing: &Standing, op: Op, handle: Option<Opened>, now: BootTime) -> Verdict {
    match standing.mode {
        Mode::Enforce => judge(standing, op, handle, now),
        Mode::Off | Mode::Observe => Verdict::Admit,
    }
}

/// What `enforce` says to an operation; in `observe` this is recorded and not obeyed.
pub fn judge(standing: &Standing, op: Op, handle: Option<Opened>, now: BootTime) -> Verdict {
    if !op.needs_the_lease() {
        return Verdict::Admit;
    }
    // I6, before the right is looked at: stale is for ever, whoever holds the tree now.
    if handle.is_some_and(|opened| opened.epoch < standing.stale_below) {
        return Verdict::Stale;
    }
    match standing.right {
        Right::Write { until } if in_time(until, now) => Verdict::Admit,
        // Our time is up, whatever the server thinks. Nothing waits for a server that is away.
        Right::Write { .. } => Verdict::ReadOnly,
        Right::Opening { until } if in_time(until, now) => match op {
            // Pages of a node that was not replaced belong to this run; refusing them would be silent loss.
            Op::PageWrite | Op::AccessWrite => Verdict::Admit,
            _ => Verdict::Wait,
        },
        Right::Closing { until } if in_time(until, now) => match (op, standing.on_close) {
            (Op::PageWrite, _) => Verdict::Admit,
            (Op::AccessWrite | Op::IndexLock, _) | (_, OnClose::Refuse) => Verdict::ReadOnly,
            (_, OnClose::Wait) => Verdict::Wait,
        },
        // A page-cache write waits as well: its refusal would be silent.
        Right::Resting { until } if in_time(until, now) => match op {
            Op::AccessWrite => Verdict::Admit,
            _ => Verdict::Wait,
        },
        Right::Opening { .. } | Right::Closing { .. } | Right::Resting { .. } => Verdict::ReadOnly,
        Right::Read => match op {
            // A page-cache write holds page locks, and its inode has no lease to come back to: never waits.
            Op::PageWrite => Verdict::ReadOnly,
            // An editor that asks may be told yes where its save would take the free tree by itself.
            Op::AccessWrite if standing.free && standing.may_wait => Verdict::Admit,
            Op::AccessWrite => Verdict::ReadOnly,
            Op::IndexLock if !standing.free => Verdict::ReadOnly,
            _ if standing.may_wait => Verdict::Wait,
            _ => Verdict::ReadOnly,
        },
    }
}
