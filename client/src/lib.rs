//! The client library: what the side daemon and the commands share. Nothing in here mounts or decides about leases.
//!
//! | what | where |
//! |---|---|
//! | the words (ids, time, commands, policy) | [`words`] |
//! | the side's file, directories and name, checked | [`config`] |
//! | what can fail, and the exit code of each | [`error`], [`exit`] |
//! | the session's life and I4's deadline, pure | [`session`] |
//! | calls to lease servers (the only module that names tonic's client for them) | [`rpc`] |
//! | calls to the side's daemon; starting daemon and embedded server | [`local`] |
//! | the JSON of the contract | [`report`] |
//! | I8's marker and stamps in a root | [`marker`] |
//! | which kernel and superblock a root lies on; the mount table | [`place`] |

// A failure carries what a person needs, the holder too; it is made once, at the end of a command, never in a loop.
#![allow(clippy::result_large_err)]

pub use treelease_proto as words;

pub mod config;
pub mod error;
pub mod exit;
pub mod local;
pub mod marker;
pub mod place;
pub mod report;
pub mod rpc;
pub mod session;
