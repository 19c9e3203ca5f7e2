//! pjdfstest and fsx: nothing fails through the guard that does not fail on the directory below, for root and for an ordinary user
//! whose guard has no capability. `tests/run` installs both; `./tests/run -- --test story_conformance` runs them alone.
//!
//! Each case is compared, never the sums. As root pjdfstest becomes other users by itself, so that those tests see a mount for many
//! users; as an ordinary user it leaves those cases out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use treelease_tests::hosts::{User, finish_within, installed};
use treelease_tests::twin::Twin;

/// Generous: fsx makes a thousand calls a second and more where nothing else runs, and a few hundred on two loaded cores.
const LIMIT: Duration = Duration::from_secs(580);
const LONG_LIMIT: Duration = Duration::from_secs(3600);

/// What pjdfstest cannot try through the guard, and can below: a file's most links are as many as the storage has, which FUSE does
/// not tell.
const UNTRIED: [&str; 1] = ["link::link_count_max"];

const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.012
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Every kind of call that it knows, mapped reads and writes too.
const FSX: &str = "
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 0.05
fdatasync = 0.05
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

/// What each case said.
type Cases = BTreeMap<String, String>;

/// A tool that `tests/run` has installed, as a user who may not look into our target directory.
fn command(twin: &Twin, user: Option<User>, tool: &str) -> Command {
    let Some(user) = user else { return Command::new(installed(tool)) };
    let lent = twin.world.path(tool);
    std::fs::copy(installed(tool), &lent).expect("room for a copy");
    user.command(lent)
}

/// What each case of pjdfstest said in a directory: `ok`, `skipped` or `FAILED`.
fn pjdfstest(twin: &Twin, user: Option<User>, place: &Path) -> (Cases, String) {
    let config = twin.world.path("pjdfstest.toml");
    std::fs::write(&config, PJDFSTEST).expect("a written configuration");
    let mut command = command(twin, user, "pjdfstest");
    command.arg("-c").arg(config).arg("-p").arg(place).env("NO_COLOR", "1").current_dir(twin.world.dir());
    let done = finish_within(LIMIT, command);
    let cases = done.stdout.lines().filter_map(|line| {
        let (name, said) = line.trim_end().rsplit_once(' ')?;
        matches!(said, "ok" | "skipped" | "FAILED").then(|| (name.trim().to_owned(), said.to_owned()))
    });
    (cases.collect(), done.to_string())
}

/// A short path to a place: names of sockets have room for a hundred bytes.
fn short(twin: &Twin, name: &str, place: &Path) -> PathBuf {
    let short = twin.world.path(name);
    std::os::unix::fs::symlink(place, &short).expect("a link in our own");
    short
}

/// The cases that pass below and not through the guard.
fn worse<'a>(through: &'a Cases, below: &Cases) -> Vec<&'a str> {
    let untried = |name: &str, said: &str| said == "skipped" && UNTRIED.contains(&name);
    let worse = through.iter().filter(|(name, said)| *said != "ok" && below[*name] == "ok" && !untried(name, said));
    worse.map(|(name, _)| name.as_str()).collect()
}

#[test]
fn control_a_case_that_fails_or_is_left_out_through_the_guard_alone_is_found() {
    let cases = |all: [&str; 4]| -> Cases {
        let names = ["chmod::one", "link::link_count_max", "open::two", "rename::three"];
        names.into_iter().zip(all).map(|(name, said)| (name.to_owned(), said.to_owned())).collect()
    };
    let below = cases(["ok", "ok", "FAILED", "ok"]);
    assert_eq!(worse(&cases(["FAILED", "skipped", "FAILED", "skipped"]), &below), ["chmod::one", "rename::three"]);
    assert!(worse(&cases(["ok", "skipped", "FAILED", "ok"]), &below).is_empty());
}

/// Compares both places. `least`: how many cases must have passed for it to prove something.
fn compare(twin: &Twin, user: Option<User>, least: usize) {
    let (below, _) = pjdfstest(twin, user, &short(twin, "b", &twin.bare()));
    let (through, said) = pjdfstest(twin, user, &short(twin, "g", &twin.guarded()));
    let passed = through.values().filter(|said| *said == "ok").count();
    assert!(passed >= least, "only {passed} cases passed\n{said}");
    assert_eq!(through.keys().collect::<Vec<_>>(), below.keys().collect::<Vec<_>>(), "all cases came to their end");
    let worse = worse(&through, &below);
    assert!(worse.is_empty(), "not as below: {worse:?}\n{said}");
}

/// The holder sees the lower filesystem: every case of pjdfstest that passes on the directory below passes through the guard, as
/// root on a mount for many users.
#[test]
fn pjdfstest_as_root_fails_nowhere_where_the_directory_below_does_not() {
    let twin = Twin::new();
    compare(&twin, None, 360);
}

/// The same for an ordinary user whose guard has no capability and was mounted by fusermount3.
#[test]
fn pjdfstest_as_an_ordinary_user_fails_nowhere_where_the_directory_below_does_not() {
    let user = User::ordinary();
    let twin = Twin::of(user);
    compare(&twin, Some(user), 100);
}

/// What fsx says of so many random calls on one file, from a seed. It compares each byte and size that it reads itself.
fn fsx(twin: &Twin, user: Option<User>, seed: u64, calls: u64) {
    let config = twin.world.path("fsx.toml");
    std::fs::write(&config, FSX).expect("a written configuration");
    let mut command = command(twin, user, "fsx");
    let (seed, calls) = (seed.to_string(), calls.to_string());
    command.arg("-f").arg(config).args(["-S", &seed, "-N", &calls]).arg("-P").arg(twin.world.dir());
    command.arg(twin.guarded().join(format!("fsx-{seed}"))).current_dir(twin.world.dir());
    let limit = if long() { LONG_LIMIT } else { LIMIT };
    finish_within(limit, command).expect(0);
}

fn long() -> bool {
    std::env::var_os("TREELEASE_LONG").is_some()
}

/// Reads, writes, mapped reads and writes, truncations, allocations, holes and copies, in any order, find every byte as it was
/// written last (fsx: two seeds in the quick tier, a million calls on four in the long one).
#[test]
fn fsx_finds_every_byte_as_it_was_written() {
    let twin = Twin::new();
    let (seeds, calls) = if long() { (4, 1_000_000) } else { (2, QUICK_CALLS) };
    std::thread::scope(|threads| {
        for seed in 1..=seeds {
            threads.spawn({
                let twin = &twin;
                move || fsx(twin, None, seed, calls)
            });
        }
    });
}

/// A minute of a debug build where nothing else runs, and all that it takes to see each pair of calls many times.
const QUICK_CALLS: u64 = 100_000;

/// The same for an ordinary user's guard.
#[test]
fn fsx_as_an_ordinary_user_finds_every_byte_as_it_was_written() {
    let user = User::ordinary();
    let twin = Twin::of(user);
    fsx(&twin, Some(user), 3, if long() { 1_000_000 } else { 4_000 });
}

/// Control: what a guard would do that loses a write is done to the file below, and noticed.
#[test]
fn control_fsx_notices_a_byte_that_changes_behind_its_back() {
    let twin = Twin::new();
    let config = twin.world.path("fsx.toml");
    std::fs::write(&config, FSX).expect("a written configuration");
    let file = twin.guarded().join("spoiled");
    let mut command = Command::new(installed("fsx"));
    command.arg("-f").arg(config).args(["-S", "1", "-N", "100000000"]).arg("-P").arg(twin.world.dir()).arg(&file);
    let spoil = std::thread::spawn({
        let file = twin.world.lower("dev").join("spoiled");
        move || {
            use std::os::unix::fs::FileExt;
            treelease_tests::hosts::wait_for(LIMIT, "fsx writes", || file.metadata().is_ok_and(|meta| meta.len() > 4096));
            // Until it is noticed: what is written over at once is none.
            while file.exists() && !file.with_extension("done").exists() {
                if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&file) {
                    let _gone = file.write_all_at(&[0xa5; 4096], 0);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    command.current_dir(twin.world.dir());
    let done = finish_within(LIMIT, command);
    std::fs::write(twin.world.lower("dev").join("spoiled.done"), b"").expect("our own directory");
    spoil.join().expect("the spoiler");
    assert_ne!(done.code, 0, "{done}");
}
