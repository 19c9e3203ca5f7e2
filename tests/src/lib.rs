//! What tests across crates and processes are made of.
//!
//! | what | where |
//! |---|---|
//! | real processes: servers and sides over one directory, killed and unmounted when the test ends | [`hosts`] |
//! | a network of hosts, what can befall them, and what must be true afterwards | [`ends`] |
//! | one program in a guarded tree and in a bare directory | [`twin`] |
//! | a stand-in for tools that keep a SQLite database in the tree | [`ledger`] |
//! | a disk whose power can be cut | [`disk`] |
//! | a simulated world of clocks, leaders, networks and sides around the pure cores, from one seed | [`world`] |
//! | a simulated world of three real nodes over a simulated network, from one seed | [`sim`] |
//! | many runs in one test | [`seeds`] |
//! | measurements, started by `tests/bench` | [`bench`] |
//!
//! `hosts`, `ends` and `ledger` know nothing of how treelease works inside: stories speak to it as a person does, by `CLI.md`.
//! `world` drives the cores themselves, `sim` the servers and the client's calls too.

pub mod bench;
pub mod disk;
pub mod ends;
pub mod hosts;
pub mod ledger;
pub mod seeds;
pub mod sim;
pub mod twin;
pub mod world;
