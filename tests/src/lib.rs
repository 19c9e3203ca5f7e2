//! What tests across crates and processes are made of.
//!
//! | what | where |
//! |---|---|
//! | real processes: servers and sides over one directory, killed and unmounted when the test ends | [`hosts`] |
//! | a stand-in for tools that keep a SQLite database in the tree | [`ledger`] |
//! | measurements, started by `tests/bench` | [`bench`] |
//!
//! Nothing here knows how treelease works inside: stories speak to it as a person does, by `CLI.md`.

pub mod bench;
pub mod hosts;
pub mod ledger;
