//! A journaled filesystem of our own to measure on.
//!
//! ext4 on a loop device with direct I/O over a file whose blocks are all written: what an ordinary disk with an ordinary
//! filesystem does, and the same on every machine. The machine's own filesystem may have no journal, and then what was deleted
//! lately makes creating slow, for every contender and at random.
//!
//! # Promises
//!
//! The loop device detaches itself when the filesystem is unmounted, so nothing is left, however the measurement ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::hosts::{World, holds_within};

/// How long those who have files open on it may take to end.
const UNMOUNT: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

/// A filesystem, or a directory on one.
pub struct Disk {
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes a filesystem of so many MiB and mounts it below the world. Needs root.
    pub fn on_loop_device(world: &World, mib: u64) -> anyhow::Result<Disk> {
        let image = world.path("disk.img");
        let mut file = File::create_new(&image).context("the file for the filesystem")?;
        let zeros = vec![0u8; MIB];
        for _ in 0..mib {
            // Written, not only reserved: else each first write to a block would change the outer filesystem, too.
            file.write_all(&zeros).context("room for the filesystem")?;
        }
        file.sync_all()?;
        let at = world.directory("disk");
        // Tables and journal now, not by a kernel thread while we measure.
        sh("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], &[&image])?;
        let device = sh("losetup", &["--direct-io=on", "--find", "--show"], &[&image])?;
        let device = PathBuf::from(device.trim());
        let mounted = sh("mount", &["-t", "ext4"], &[&device, &at]);
        // In use by the mount, it goes when that goes.
        sh("losetup", &["-d"], &[&device])?;
        mounted?;
        Ok(Disk { at, mounted: true })
    }

    /// A directory that is there. What is made in it stays within a directory of its own.
    pub fn existing(dir: &Path) -> anyhow::Result<Disk> {
        let at = tempfile::Builder::new().prefix("treelease-bench-").tempdir_in(dir)?.keep().canonicalize()?;
        Ok(Disk { at, mounted: false })
    }

    /// Its top.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A directory on it, made if it is not there.
    pub fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.at.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Everything that was written on it is on the disk: the next measurement does not pay for the last one.
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.at)?)?)
    }

    /// For the table's words.
    pub fn words(&self) -> String {
        if self.mounted {
            return "ext4 with a journal, default options, on a loop device with direct I/O over a written file".into();
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = table.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            Some((left.split(' ').nth(4)?, right.split(' ').next()?))
        });
        let nearest = mounts.filter(|(at, _)| self.at.starts_with(at)).max_by_key(|(at, _)| at.len());
        format!("a directory on {} (`--backing`)", nearest.map_or("an unknown filesystem", |(_, fstype)| fstype))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = if self.mounted {
            // A daemon whose mount was taken away ends a moment later, and has the disk open until then.
            holds_within(UNMOUNT, || Command::new("umount").arg(&self.at).output().is_ok_and(|out| out.status.success()))
        } else {
            std::fs::remove_dir_all(&self.at).is_ok()
        };
        if !gone {
            super::say(format!("{} could not be taken away", self.at.display()));
        }
    }
}

/// Runs a system program to its end; its output, or what it complained of.
fn sh(program: &str, flags: &[&str], paths: &[&Path]) -> anyhow::Result<String> {
    let output = Command::new(program).args(flags).args(paths).output();
    let output = output.with_context(|| format!("{program} is needed (packages e2fsprogs, mount, util-linux)"))?;
    if !output.status.success() {
        bail!(
            "{program} failed: {} (a loop device needs root; or use --backing DIR)",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
