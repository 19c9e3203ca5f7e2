//! What the guard's memory is for: one node for each file that the kernel knows, and no more of them afterwards. Needs /dev/fuse.

mod fs_support;

use std::fs;
use std::path::Path;

use fs_support::{Tree, eventually};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Memory per node at most.
const MOST: usize = 1536;
/// Files in one directory.
const IN_ONE: usize = 1000;

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// This process's memory, in which guard and programs live together.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn file(below: &Path, n: usize) -> std::path::PathBuf {
    below.join(format!("d{}/file-{n}", n / IN_ONE))
}

/// A file that the kernel knows costs the guard one descriptor and less than 1.5 KiB of memory, until the kernel forgets it.
#[test]
fn a_file_that_the_kernel_knows_costs_little_memory_until_it_is_forgotten() {
    let files = if std::env::var_os("TREELEASE_LONG").is_some() { 1_000_000 } else { 40_000 };
    // As many descriptors as there may be, where they may be raised; else as many as there are.
    let most = number("/proc/sys/fs/nr_open").unwrap_or(1 << 20);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let may = if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() { most } else { hard };
    let storage = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    (0..files / IN_ONE).for_each(|n| fs::create_dir(storage.path().join(format!("d{n}"))).unwrap());
    (0..files).for_each(|n| fs::write(file(storage.path(), n), b"").unwrap());
    let t = Tree::over(storage.path());
    t.hold(1, 1);
    let before = resident();
    let mut most = (0, 0);
    for n in 0..files {
        fs::metadata(file(&t.at, n)).unwrap();
        if n % (files / 20) == 0 || n + 1 == files {
            most = most.max((t.mount.known().0, resident().saturating_sub(before)));
        }
    }
    let (known, memory) = most;
    let per_file = memory / known;
    eprintln!("{files} files, {known} known, {} MiB: {per_file} bytes for each", memory >> 20);
    assert!(known as u64 > (may / 2).min(files as u64 / 2), "{known} of {files} with {may} descriptors");
    assert!(per_file < MOST, "{per_file} bytes for each of {known}");
    (0..files).for_each(|n| fs::remove_file(file(&t.at, n)).unwrap());
    eventually("they are forgotten", || t.mount.known().0 <= files / IN_ONE + 1);
}
