//! What is done in a directory: file contents, SQLite, git, small files.
//!
//! Writes are `write(2)` without sync, unless a row says so. "FUSE cache cold" means that the kernel has none of the file's
//! pages for this mount while the lower file's pages are in memory: the difference is what the FUSE filesystem costs, not the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use rustix::fs::{Advice, fadvise};

use super::goals::{Goal, Requests};
use super::material::{FILES_PER_GROUP, FILES_PER_PART, Material, Seeded, git, git_command, run};
use super::places::{Kind, Place};
use super::stats::Unit;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// The one who times: prepares the ground, does the work, and keeps how long it took.
pub trait Timed {
    /// Does the work in a place. Called once by each workload.
    fn time(&mut self, place: &Place, work: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()>;
}

/// One row of the table.
pub struct Workload {
    /// What is done.
    pub name: String,
    /// How the table shows it.
    pub unit: Unit,
    /// How much of it one measurement does: operations, bytes, or repeats.
    pub amount: f64,
    /// Prepares, and hands the work to the clock.
    pub act: fn(&Material, &Place, &mut dyn Timed) -> anyhow::Result<()>,
    /// What it is to reach through the guard.
    pub goal: Goal,
    /// It works with what the row before it has left.
    pub follows: bool,
}

impl Workload {
    /// Works with what the row before it has left.
    fn following(mut self) -> Workload {
        self.follows = true;
        self
    }

    /// With a goal of so many times the bare directory's time.
    fn within(mut self, bare: f64) -> Workload {
        self.goal.bare = Some(bare);
        self
    }

    /// With a goal of so many requests for each of `of` pieces.
    fn asking(mut self, most: f64, per: &'static str, of: usize) -> Workload {
        self.goal.requests = Some(Requests { most, per, of });
        self
    }

    /// What the table shows for a time in seconds.
    pub fn shown(&self, seconds: f64) -> f64 {
        match self.unit {
            Unit::PerSecond | Unit::Megabytes => self.amount / seconds,
            Unit::Time | Unit::Micros | Unit::Ratio => seconds / self.amount,
        }
    }
}

/// All of them, in an order in which each finds what the one before has left.
pub fn all(material: &Material) -> Vec<Workload> {
    use Unit::{Megabytes, PerSecond, Time};
    let s = material.sizes;
    let reads = s.random_mib * MIB / PAGE;
    let goal = Goal::default();
    let row = |name: String, unit, amount: usize, act| Workload { name, unit, amount: amount as f64, act, goal, follows: false };
    let directories = 1 + s.repository.div_ceil(FILES_PER_PART) + s.repository.div_ceil(FILES_PER_GROUP);
    vec![
        row(
            format!("random read 4 KiB, each page of {} MiB once, FUSE cache cold", s.random_mib),
            PerSecond,
            reads,
            random_read_cold,
        ),
        row("the same, the file read before and opened anew".into(), PerSecond, reads, random_read_again).within(1.15),
        row(format!("random write 4 KiB, {} writes", s.random_writes), PerSecond, s.random_writes, random_write)
            .within(4.5)
            .asking(1.0, "write", s.random_writes),
        row(
            format!("sequential write 1 MiB, a new file of {} MiB", s.sequential_mib),
            Megabytes,
            s.sequential_mib * MIB,
            write_whole,
        )
        .within(1.4),
        row("sequential read 1 MiB of it, FUSE cache cold".into(), Megabytes, s.sequential_mib * MIB, read_whole)
            .within(1.5)
            .following(),
        row(format!("SQLite, WAL, synchronous=NORMAL, {} transactions", s.wal), PerSecond, s.wal, sqlite_wal).within(3.1),
        row(
            format!("SQLite, rollback journal, synchronous=FULL, {} transactions", s.rollback),
            PerSecond,
            s.rollback,
            sqlite_rollback,
        )
        .within(1.3),
        row(format!("git clone --no-local, {} files", s.repository), Time, 1, git_clone).within(5.5),
        row(format!("git status, warm (one of {})", s.repeats), Time, s.repeats, git_status)
            .within(1.3)
            .asking(1.0, "directory", directories * s.repeats)
            .following(),
        row(format!("find and stat of the clone, warm (one of {})", s.repeats), Time, s.repeats, find_and_stat)
            .within(1.0)
            .asking(0.05, "file", s.repository * s.repeats)
            .following(),
        row(format!("tar -x of {} small files", s.archive), Time, 1, unpack).within(9.0).asking(12.0, "file", s.archive),
        row("rm -rf of them".into(), Time, 1, remove).within(5.5).following(),
    ]
}

/// Those with one of these words in their names, and before each the rows that it follows; with no word, all.
pub fn chosen(all: Vec<Workload>, words: &[String]) -> anyhow::Result<Vec<Workload>> {
    let mut kept: Vec<Workload> = Vec::new();
    for workload in all.into_iter().rev() {
        let needed = kept.last().is_some_and(|last| last.follows);
        if needed || words.is_empty() || words.iter().any(|word| workload.name.contains(word.as_str())) {
            kept.push(workload);
        }
    }
    if kept.is_empty() {
        anyhow::bail!("--rows: no workload has any of these words in its name: {}", words.join(", "));
    }
    kept.reverse();
    Ok(kept)
}

/// Makes what is there before the first round.
pub fn furnish(material: &Material, place: &Place) -> anyhow::Result<()> {
    write_file(&place.path("random"), material.sizes.random_mib)
}

fn random_read_cold(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    cool(place, "random")?;
    random_reads(material, place, timed)
}

fn random_read_again(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    read_file(&place.path("random"))?;
    random_reads(material, place, timed)
}

fn random_reads(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    let order = Seeded::new(1).shuffled((material.sizes.random_mib * MIB / PAGE) as u64);
    let mut page = [0u8; PAGE];
    timed.time(place, &mut || {
        let file = File::open(place.path("random"))?;
        // No reading ahead: one read of the program is one of the filesystem, if the page is not cached.
        fadvise(&file, 0, None, Advice::Random)?;
        order.iter().try_for_each(|at| file.read_exact_at(&mut page, at * PAGE as u64))?;
        Ok(())
    })
}

fn random_write(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    let mut order = Seeded::new(2).shuffled((material.sizes.random_mib * MIB / PAGE) as u64);
    order.truncate(material.sizes.random_writes);
    timed.time(place, &mut || {
        let file = File::options().write(true).open(place.path("random"))?;
        order.iter().try_for_each(|at| file.write_all_at(&[7u8; PAGE], at * PAGE as u64))?;
        Ok(())
    })
}

fn write_whole(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    gone(&place.path("sequential"))?;
    timed.time(place, &mut || write_file(&place.path("sequential"), material.sizes.sequential_mib))
}

fn read_whole(_material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    cool(place, "sequential")?;
    timed.time(place, &mut || read_file(&place.path("sequential")))
}

fn sqlite_wal(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    sqlite(place, timed, "WAL", "NORMAL", material.sizes.wal)
}

fn sqlite_rollback(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    sqlite(place, timed, "DELETE", "FULL", material.sizes.rollback)
}

fn sqlite(place: &Place, timed: &mut dyn Timed, journal: &str, synchronous: &str, transactions: usize) -> anyhow::Result<()> {
    for end in ["", "-wal", "-shm", "-journal"] {
        gone(&place.path(&format!("bench.db{end}")))?;
    }
    let db = Connection::open(place.path("bench.db"))?;
    db.pragma_update(None, "journal_mode", journal)?;
    db.pragma_update(None, "synchronous", synchronous)?;
    db.execute_batch("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")?;
    let text = "a line of a hundred bytes, as such tools keep them ".repeat(2);
    timed.time(place, &mut || {
        let mut insert = db.prepare_cached("INSERT INTO entry (text) VALUES (?1)")?;
        // Each insert outside a transaction is one.
        (0..transactions).try_for_each(|_| insert.execute([&text]).map(drop))?;
        Ok(())
    })
}

fn git_clone(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    gone(&place.path("clone"))?;
    timed.time(place, &mut || {
        run(git_command().args(["clone", "-q", "--no-local"]).arg(&material.repository).arg(place.path("clone")))
    })
}

fn git_status(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    let clone = place.path("clone");
    // Files as young as the index are compared by content at every status: let all be old, and write the index anew.
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    walk(&clone, &mut |entry| {
        if entry.file_type()?.is_file() && !entry.path().components().any(|part| part.as_os_str() == ".git") {
            File::open(entry.path())?.set_modified(old)?;
        }
        Ok(())
    })?;
    git(&clone, &["update-index", "-q", "--refresh"])?;
    git(&clone, &["status", "--porcelain"])?;
    timed.time(place, &mut || (0..material.sizes.repeats).try_for_each(|_| git(&clone, &["status", "--porcelain"])))
}

fn find_and_stat(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    let clone = place.path("clone");
    let mut stat = |entry: &std::fs::DirEntry| entry.metadata().map(drop);
    walk(&clone, &mut stat)?;
    timed.time(place, &mut || (0..material.sizes.repeats).try_for_each(|_| Ok(walk(&clone, &mut stat)?)))
}

fn unpack(material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    gone(&place.path("small"))?;
    std::fs::create_dir(place.path("small"))?;
    timed.time(place, &mut || {
        run(std::process::Command::new("tar").arg("-xf").arg(&material.archive).arg("-C").arg(place.path("small")))
    })
}

fn remove(_material: &Material, place: &Place, timed: &mut dyn Timed) -> anyhow::Result<()> {
    timed.time(place, &mut || run(std::process::Command::new("rm").arg("-rf").arg(place.path("small"))))
}

/// No pages of the file in this mount's cache; the lower file's stay. For the bare directory both are one: they stay.
fn cool(place: &Place, name: &str) -> anyhow::Result<()> {
    if place.kind == Kind::Bare {
        return read_file(&place.path(name));
    }
    let file = File::open(place.path(name))?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn write_file(path: &Path, mib: usize) -> anyhow::Result<()> {
    let block = vec![5u8; MIB];
    let file = File::create(path)?;
    (0..mib).try_for_each(|n| file.write_all_at(&block, (n * MIB) as u64))?;
    Ok(())
}

fn read_file(path: &Path) -> anyhow::Result<()> {
    let mut block = vec![0u8; MIB];
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        match file.read_at(&mut block, at)? {
            0 => return Ok(()),
            n => at += n as u64,
        }
    }
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&std::fs::DirEntry) -> std::io::Result<()>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        visit(&entry)?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), visit)?;
        }
    }
    Ok(())
}

fn gone(path: &Path) -> std::io::Result<()> {
    let result = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    result.or_else(|why| if why.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(why) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(words: &[&str]) -> anyhow::Result<Vec<String>> {
        let row = |name: &str, follows| Workload {
            name: name.into(),
            unit: Unit::Time,
            amount: 1.0,
            act: remove,
            goal: Goal::default(),
            follows,
        };
        let all = vec![row("write it", false), row("read it", true), row("read it again", true), row("unpack", false)];
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(chosen(all, &words)?.into_iter().map(|row| row.name).collect())
    }

    #[test]
    fn a_row_that_is_chosen_brings_those_along_that_it_works_with() {
        assert_eq!(rows(&[]).unwrap().len(), 4);
        assert_eq!(rows(&["again"]).unwrap(), ["write it", "read it", "read it again"]);
        assert_eq!(rows(&["write", "unpack"]).unwrap(), ["write it", "unpack"]);
        assert!(rows(&["nothing"]).unwrap_err().to_string().contains("nothing"));
    }
}
