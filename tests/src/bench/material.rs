//! What the workloads work with: a repository and an archive of small files, always the same ones.
//!
//! Contents, names and sizes come from a seed; sizes are spread as in source trees, many small ones and few large ones. Both lie
//! on the measured filesystem, bare, outside every place.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{Ground, Settings};

/// A stream of numbers that is the same every time (splitmix64).
pub struct Seeded(u64);

impl Seeded {
    /// From a seed.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// The next one, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }

    /// 0 to n - 1, each once, in no order.
    pub fn shuffled(&mut self, n: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..n).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at as u64 + 1) as usize);
        }
        all
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Of the file for random access.
    pub random_mib: usize,
    /// Writes into it.
    pub random_writes: usize,
    /// Of the file that is written and read from end to end.
    pub sequential_mib: usize,
    /// Transactions with a write-ahead log.
    pub wal: usize,
    /// Transactions with a rollback journal.
    pub rollback: usize,
    /// Files in the repository.
    pub repository: usize,
    /// Files in the archive.
    pub archive: usize,
    /// How often what only reads names is done, for one measurement.
    pub repeats: usize,
}

impl Sizes {
    /// For numbers, or for trying.
    pub fn new(settings: &Settings) -> Sizes {
        Sizes {
            random_mib: settings.size(128, 2),
            random_writes: settings.size(16_384, 256),
            sequential_mib: settings.size(256, 4),
            wal: settings.size(5_000, 20),
            rollback: settings.size(300, 5),
            repository: settings.size(4_000, 60),
            archive: settings.size(5_000, 80),
            repeats: settings.size(5, 2),
        }
    }
}

/// The repository and the archive.
pub struct Material {
    /// To clone from.
    pub repository: PathBuf,
    /// To unpack.
    pub archive: PathBuf,
    /// How much.
    pub sizes: Sizes,
}

impl Material {
    /// Makes them.
    pub fn new(settings: &Settings, ground: &Ground) -> anyhow::Result<Material> {
        let sizes = Sizes::new(settings);
        let top = ground.disk.directory("material")?;
        let (repository, small) = (top.join("repository"), top.join("small"));
        files(&repository, sizes.repository, 7)?;
        git(&repository, &["init", "-q", "-b", "main"])?;
        git(&repository, &["add", "."])?;
        git(&repository, &["commit", "-q", "-m", "everything"])?;
        files(&small, sizes.archive, 8)?;
        let archive = top.join("small.tar");
        let options = ["--sort=name", "--mtime=2024-01-01 00:00Z", "--owner=0", "--group=0", "--numeric-owner"];
        run(Command::new("tar").args(options).arg("-cf").arg(&archive).arg("-C").arg(&small).arg("."))?;
        std::fs::remove_dir_all(&small)?;
        Ok(Material { repository, archive, sizes })
    }
}

/// Runs git in a directory, with no settings of the user's.
pub fn git(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    run(git_command().arg("-C").arg(dir).args(args))
}

/// A git without the user's settings, with fixed dates.
pub fn git_command() -> Command {
    let mut command = Command::new("git");
    let date = "2024-01-01T00:00:00Z";
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    command.env("GIT_AUTHOR_NAME", "bench").env("GIT_AUTHOR_EMAIL", "bench@example.org").env("GIT_AUTHOR_DATE", date);
    command.env("GIT_COMMITTER_NAME", "bench").env("GIT_COMMITTER_EMAIL", "bench@example.org").env("GIT_COMMITTER_DATE", date);
    command
}

/// Runs a program to its end; an error says what it complained of.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} is needed"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Files in each directory that has some.
pub const FILES_PER_GROUP: usize = 20;
/// Files below each directory at the top.
pub const FILES_PER_PART: usize = 400;

/// So many files below a directory, about twenty in each of its directories.
fn files(top: &Path, count: usize, seed: u64) -> anyhow::Result<()> {
    const WORDS: [&str; 8] = ["lease", "tree", "side", "epoch", "grant", "holder", "gate", "fence"];
    let mut seeded = Seeded::new(seed);
    for n in 0..count {
        let dir = top.join(format!("part-{}", n / FILES_PER_PART)).join(format!("group-{}", n / FILES_PER_GROUP));
        if n % FILES_PER_GROUP == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        // Most below 2 KB, one in sixteen up to 32 KB.
        let size = 64 + seeded.below(if n % 16 == 0 { 32_000 } else { 2_000 }) as usize;
        let mut text = String::with_capacity(size + 32);
        while text.len() < size {
            text += WORDS[seeded.below(8) as usize];
            text += &format!(" {}\n", seeded.below(100_000));
        }
        std::fs::write(dir.join(format!("file-{n}.txt")), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_a_shuffle_has_each_once() {
        let (mut a, mut b) = (Seeded::new(3), Seeded::new(3));
        let shuffled = a.shuffled(1_000);
        assert_eq!(shuffled, b.shuffled(1_000));
        assert_ne!(shuffled, a.shuffled(1_000));
        let mut sorted = shuffled.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1_000) && !shuffled.is_sorted());
    }
}
