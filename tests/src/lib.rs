//! What tests across crates and processes are made of.
//!
//! | what | where |
//! |---|---|
//! | real processes: servers and sides over one directory, killed and unmounted when the test ends | [`hosts`] |
//! | a network of hosts, what can befall them, and what must be true afterwards | [`ends`] |
//! | a stand-in for tools that keep a SQLite database in the tree | [`ledger`] |
//!
//! Nothing here knows how treelease works inside: stories speak to it as a person does, by `CLI.md`.

pub mod ends;
pub mod hosts;
pub mod ledger;
