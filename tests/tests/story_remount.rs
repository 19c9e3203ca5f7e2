//! A killed guard comes back to its path, and in between nobody reaches the raw tree (DESIGN 4): the new mount goes beneath the
//! dead one before that is taken away.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use treelease_tests::hosts::{Server, Side, World, finish, quick, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// What a program saw that opens and appends to a path as fast as it can.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Appends that were acknowledged.
    acknowledged: AtomicUsize,
    /// Opens that failed.
    refused: AtomicUsize,
    /// Opens that reached the raw tree.
    raw: AtomicUsize,
}

struct Hammer {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

impl Hammer {
    /// Two threads: the filesystem behind each opened file is asked of the file itself.
    fn start(dir: &Path, raw: u64) -> Hammer {
        let seen = Arc::new(Seen::default());
        let threads = (0..2)
            .map(|n| {
                let (seen, path) = (seen.clone(), dir.join(format!("log-{n}")));
                std::thread::spawn(move || {
                    while !seen.stop.load(Ordering::Relaxed) {
                        let Ok(mut file) = OpenOptions::new().append(true).create(true).open(&path) else {
                            seen.refused.fetch_add(1, Ordering::Relaxed);
                            continue;
                        };
                        if file.metadata().is_ok_and(|meta| meta.dev() == raw) {
                            seen.raw.fetch_add(1, Ordering::Relaxed);
                        }
                        if file.write_all(b"x").is_ok() {
                            seen.acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        Hammer { seen, threads }
    }

    fn raw(&self) -> usize {
        self.seen.raw.load(Ordering::Relaxed)
    }

    fn acknowledged(&self) -> usize {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }

    fn stop(mut self) -> Arc<Seen> {
        self.seen.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        self.seen.clone()
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

/// A side that guards the tree over its own directory; also that directory's device as it was before.
fn over_itself(world: &World, fault: &str) -> (Server, Side, PathBuf, u64) {
    let server = world.server();
    let side = world.side("workstation", &server).fault(fault);
    world.tree(&side, "dev", &quick(&["fence=none"]));
    let lower = world.lower("dev");
    let raw = std::fs::metadata(&lower).unwrap().dev();
    let mut config = std::fs::read_to_string(side.config()).unwrap();
    config += &format!("[[mount]]\ntree = \"dev\"\nlower = {lower:?}\n");
    std::fs::write(side.config(), config).unwrap();
    // Nothing of the registration is to be inside when the guard covers it.
    side.ok(&["up"]);
    assert_ne!(std::fs::metadata(&lower).unwrap().dev(), raw, "it is covered");
    (server, side, lower, raw)
}

fn mounts_at(path: &Path) -> usize {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path)).count()
}

/// When the guard is killed the path answers ENOTCONN until it is back, and never the raw tree: the new mount is put beneath the
/// dead one before that is taken away. Kernels before 6.5, and a guard that may not mount by itself (fusermount3), take the dead
/// one away first; whoever came in between is found and named, and then nothing is mounted.
#[test]
fn a_path_that_is_hammered_while_its_guard_is_killed_and_comes_back_never_shows_the_raw_tree() {
    let world = World::new();
    let (_server, side, lower, raw) = over_itself(&world, "");
    side.ok(&["acquire", "dev", "--wait", "20s"]);
    let hammer = Hammer::start(&lower, raw);
    for round in 0..8 {
        let before = hammer.acknowledged();
        wait_for(LONG, "appends go through", || hammer.acknowledged() > before + 10);
        side.kill_daemon();
        if round % 2 == 1 {
            // Killed once more while it comes back, wherever it is then.
            let mut starting =
                side.treelease(&["up"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            wait_for(LONG, "it comes back", || side.daemon().is_some() || starting.try_wait().unwrap().is_some());
            if side.daemon().is_some() {
                side.kill_daemon();
            }
            let _ended = starting.wait();
        }
        wait_for(LONG, "it is back", || finish(side.treelease(&["up"])).code == 0);
    }
    let before = hammer.acknowledged();
    wait_for(LONG, "appends go through", || hammer.acknowledged() > before + 10);
    let seen = hammer.stop();
    assert_eq!(seen.raw.load(Ordering::Relaxed), 0, "opens that reached the raw tree");
    assert!(seen.refused.load(Ordering::Relaxed) > 0, "the guard was away at times");
    side.ok(&["release", "dev", "--now"]);
    side.ok(&["down"]);
    assert_eq!(mounts_at(&lower), 0, "nothing dead is left beneath");
    let stored: u64 = (0..2).map(|n| std::fs::metadata(lower.join(format!("log-{n}"))).unwrap().len()).sum();
    assert!(stored >= seen.acknowledged.load(Ordering::Relaxed) as u64, "{stored} stored");
}

#[test]
fn control_if_the_dead_mount_goes_first_programs_reach_the_raw_tree() {
    let world = World::new();
    let (_server, side, lower, raw) = over_itself(&world, "clear_first");
    let hammer = Hammer::start(&lower, raw);
    for _ in 0..40 {
        side.kill_daemon();
        // Who reached the raw tree may be found inside: then it is not mounted at all.
        let _said = finish(side.treelease(&["up", "--force"]));
        if hammer.raw() > 0 {
            return;
        }
    }
    panic!("nobody reached the raw tree in 40 restarts");
}

#[test]
fn a_guard_that_comes_back_after_its_session_has_ended_takes_the_free_tree_for_the_first_write() {
    let world = World::new();
    let (server, side, lower, raw) = over_itself(&world, "");
    let other = world.side("pod", &server);
    side.ok(&["acquire", "dev", "--wait", "20s"]);
    let hammer = Hammer::start(&lower, raw);
    wait_for(LONG, "appends go through", || hammer.acknowledged() > 10);
    side.kill_daemon();
    wait_for(LONG, "its lease and session are over", || other.tree_status("dev")["state"] == "free");
    side.ok(&["up"]);
    let before = hammer.acknowledged();
    wait_for(LONG, "appends go through", || hammer.acknowledged() > before + 10);
    assert_eq!(hammer.stop().raw.load(Ordering::Relaxed), 0);
}

#[test]
fn an_up_that_fails_leaves_what_the_daemon_has_restored_over_a_dead_mount() {
    let world = World::new();
    let (_server, side, lower, raw) = over_itself(&world, "");
    side.kill_daemon();
    assert_eq!(mounts_at(&lower), 1, "a dead mount covers it");
    // Another directory cannot be guarded: somebody writes in it.
    let other = world.directory("other");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(other.join("f")).unwrap();
    let mut tail = side.command("sleep").arg("600").stdout(file.try_clone().unwrap()).spawn().unwrap();
    side.run(&["up", other.to_str().unwrap()]).expect(75);
    assert_eq!(mounts_at(&lower), 1);
    assert_ne!(std::fs::metadata(&lower).unwrap().dev(), raw, "the raw tree is covered");
    tail.kill().unwrap();
    tail.wait().unwrap();
}
