//! What treelease costs, measured beside what it competes with: the bare directory and bindfs, and etcd.
//!
//! | what | where |
//! |---|---|
//! | medians, ratios, numbers as people read them; pure | [`stats`] |
//! | tables, and their place in `tests/BENCHMARKS.md`; pure | [`table`] |
//! | the words about the machine and the build | [`machine`] |
//! | a journaled filesystem of our own on a loop device | [`disk`] |
//! | one directory three times: bare, through bindfs, through the guard | [`places`] |
//! | FUSE requests, counted by the kernel | [`requests`] |
//! | what is done in those directories | [`workloads`], [`material`] |
//! | what each row is to reach; pure | [`goals`] |
//! | the measurements | [`guard`], [`gate`], [`idle`], [`handover`], [`run`], [`server`] and what is below it |
//!
//! # Promises
//!
//! Rounds are interleaved: what is compared is measured within the same seconds, in another order in each round, and a ratio is
//! taken within a round. Nothing is left out: a table has the median and both ends. What is prepared for a measurement is done
//! outside its time, and dirty pages of the one before are on the disk before it begins.
//!
//! # Does not know
//!
//! Whether a change may go in: a missed goal is said in the table, and fails nothing.

pub mod disk;
pub mod gate;
pub mod goals;
pub mod guard;
pub mod handover;
pub mod idle;
pub mod machine;
pub mod material;
pub mod places;
pub mod requests;
pub mod run;
pub mod server;
pub mod stats;
pub mod table;
pub mod workloads;

use std::path::PathBuf;

use crate::hosts::World;
use disk::Disk;

/// What is compared with, beside the bare directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rival {
    /// A FUSE filesystem that shows a directory somewhere else, in C on libfuse.
    Bindfs,
    /// The lock of another Raft server.
    Etcd,
}

impl Rival {
    /// The program that must be installed for it.
    pub fn program(self) -> &'static str {
        match self {
            Rival::Bindfs => "bindfs",
            Rival::Etcd => "etcd",
        }
    }
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Measured rounds.
    pub rounds: usize,
    /// Beside what.
    pub rivals: Vec<Rival>,
    /// Small sizes: for trying the harness, not for numbers.
    pub quick: bool,
    /// Lease servers of how many nodes.
    pub nodes: Vec<usize>,
    /// Only the guard's rows with one of these words in their names; empty: all.
    pub rows: Vec<String>,
    /// What of the lease server.
    pub tasks: Vec<server::Part>,
    /// An existing directory to work in, instead of a filesystem of our own.
    pub backing: Option<PathBuf>,
}

impl Settings {
    /// Whether to measure beside this one.
    pub fn beside(&self, rival: Rival) -> bool {
        self.rivals.contains(&rival)
    }

    /// Where it is measured with one number of nodes only: the three of a usual cluster, else the most that were asked for.
    pub fn most_nodes(&self) -> usize {
        if self.nodes.contains(&3) { 3 } else { self.nodes.iter().copied().max().unwrap_or(1) }
    }

    /// One size for numbers and one for trying.
    pub fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Where all of it happens; nothing of it is left afterwards.
pub struct Ground {
    // Unmounted before the world's directory is removed: fields are dropped in this order.
    /// The filesystem to work on.
    pub disk: Disk,
    /// The directory below which everything lies.
    pub world: World,
}

impl Ground {
    /// Makes the filesystem.
    pub fn new(settings: &Settings) -> anyhow::Result<Ground> {
        let world = World::new();
        let disk = match &settings.backing {
            Some(dir) => Disk::existing(dir)?,
            None => Disk::on_loop_device(&world, settings.size(4096, 768) as u64)?,
        };
        Ok(Ground { disk, world })
    }
}

/// Talk, beside the tables.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("bench: {text}");
}
