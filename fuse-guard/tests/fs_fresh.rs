//! Freshness (DESIGN 4, "The lease is a licence to cache"; 5): two guards over one directory, two kernels' caches, and random
//! histories. Needs /dev/fuse.
//!
//! The oracle is the directory below, which both mounts cover: what a side is shown right after it got the lease is compared with
//! what lies there, through every way by which its kernel may have kept something: attributes, names, names that were not there,
//! listings, data, symlinks, extended attributes, open files and directories, mapped pages.

mod fs_support;
#[path = "fs_fresh/history.rs"]
mod history;
#[path = "fs_fresh/side.rs"]
mod side;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_support::{Tree, eventually};
use history::{Change, F, History, Look, MAPPED, Place, Step, dir_below, history};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use side::{Cache, Side, Wrong};
use tempfile::TempDir;

/// Histories in the quick tier, and in the long one.
const QUICK: u32 = 150;
const LONG: u32 = 30_000;
/// Histories within which the control must have caught every cache.
const CONTROL: u32 = 400;

/// Two sides over one directory, which lies in memory where there is room for that: an fsync of each handover costs nothing then.
struct Scene {
    sides: [Side; 2],
    holder: usize,
    epoch: u64,
    run: u64,
    played: usize,
    /// Whether programs of both sides look at everything while the tree changes hands.
    busy: bool,
    _lower: TempDir,
}

impl Scene {
    fn new(keeps_caches: bool, busy: bool) -> Scene {
        let lower = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let side = || {
            let mut tree = Tree::over(lower.path());
            tree.keeps_caches = keeps_caches;
            Side::new(tree)
        };
        let sides = [side(), side()];
        sides[0].tree.hold(1, 1);
        Scene { sides, holder: 0, epoch: 1, run: 1, played: 0, busy, _lower: lower }
    }

    /// Plays one history in a directory of its own. What was wrong, and after which step.
    fn play(&mut self, history: &History) -> Vec<Wrong> {
        self.play_and_then(history, |_, _| {})
    }

    /// The same, with something to be done at its end, before its files go.
    fn play_and_then(&mut self, history: &History, then: impl FnOnce(&Scene, &str)) -> Vec<Wrong> {
        self.played += 1;
        let root = format!("h{}", self.played);
        let at = self.sides[self.holder].path(&root);
        fs::create_dir_all(at.join("d")).unwrap();
        for name in ["f", "d/f"] {
            fs::write(at.join(name), name).unwrap();
        }
        for name in ["m", "d/m"] {
            fs::write(at.join(name), vec![b'0'; MAPPED]).unwrap();
        }
        self.sides[1 - self.holder].warm(&root);
        let mut wrong = Vec::new();
        for (n, step) in history.steps.iter().enumerate() {
            let mut found = match *step {
                Step::Change(what) => {
                    self.sides[self.holder].change(&root, what);
                    Vec::new()
                }
                Step::Look { holder, at } => {
                    let who = if holder { self.holder } else { 1 - self.holder };
                    self.sides[who].look(&root, at, holder);
                    Vec::new()
                }
                Step::HandOver { waiter } => self.hand_over(&root, waiter, history.order ^ n as u64),
                Step::Again => {
                    self.epoch += 1;
                    let side = &self.sides[self.holder];
                    side.tree.release();
                    side.tree.hold(self.epoch, self.run);
                    // A program there that waits from now on has not waited through this grant.
                    self.sides[1 - self.holder].tree.elsewhere(self.epoch);
                    side.wrong(&root, history.order ^ n as u64)
                }
            };
            found.iter_mut().for_each(|wrong| wrong.what = format!("after step {n}, {step:?}: {}", wrong.what));
            wrong.append(&mut found);
        }
        then(self, &root);
        self.sides.iter_mut().for_each(Side::close);
        let _by_its_holder = fs::remove_dir_all(self.sides[self.holder].path(&root));
        wrong
    }

    fn hand_over(&mut self, root: &str, waiter: Option<Place>, order: u64) -> Vec<Wrong> {
        let (from, to) = (self.holder, 1 - self.holder);
        self.epoch += 1;
        (self.holder, self.run) = (to, self.epoch);
        let sides = &self.sides;
        let roots = [sides[0].path(root), sides[1].path(root)];
        let stop = AtomicBool::new(!self.busy);
        let mut wrong = Vec::new();
        std::thread::scope(|threads| {
            let end = Stop(&stop);
            for (n, root) in roots.iter().enumerate() {
                let stop = &stop;
                threads.spawn(move || look_around(root, order.wrapping_add(n as u64), stop));
            }
            sides[from].tree.release();
            let waits = waiter.map(|place| (place, sides[to].wait(root, place)));
            sides[to].tree.hold(self.epoch, self.epoch);
            if let Some((place, (waiter, size))) = waits {
                let found = waiter.join().unwrap();
                if size.is_some_and(|size| found != Ok(size)) {
                    let what = format!("who waited to append to {place:?} found {found:?}, it had {size:?}");
                    wrong.push(Wrong { cache: Cache::Waiter, what });
                }
            }
            drop(end);
        });
        wrong.extend(self.sides[to].wrong(root, order));
        self.sides[from].tree.elsewhere(self.epoch);
        if order & 4 == 0 {
            self.sides[from].warm(root);
        }
        wrong
    }

    /// The side without the lease sees everything in time; what it keeps open from before is its own matter.
    fn other_side_catches_up(&self, root: &str) {
        let kept = [Cache::OpenFiles, Cache::MappedPages, Cache::OpenDirectories];
        let side = &self.sides[1 - self.holder];
        eventually("the side without the lease sees what the holder has done", || {
            side.wrong(root, 7).iter().all(|wrong| kept.contains(&wrong.cache))
        });
    }
}

/// Ends those who look around, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Programs that look at everything by its name until they are told to stop.
fn look_around(root: &Path, seed: u64, stop: &AtomicBool) {
    let mut dice = seed | 1;
    while !stop.load(Ordering::SeqCst) {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = Place { dir: (dice >> 40) as u8 % 3, name: (dice >> 50) as u8 % 3 };
        match (dice >> 60) % 3 {
            0 => _ = fs::symlink_metadata(place.below(root)),
            1 => _ = fs::read(place.below(root)),
            _ => _ = fs::read_dir(dir_below(root, place.dir)).map(Iterator::count),
        }
    }
}

/// In the quick tier the same ones each time; in the long one others.
fn runner(cases: u32) -> TestRunner {
    let long = std::env::var_os("TREELEASE_LONG").is_some();
    let config = Config {
        cases: if long { cases * (LONG / QUICK) } else { cases },
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    match long {
        true => TestRunner::new(config),
        false => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    }
}

fn play_all(cases: u32, busy: bool) {
    let scene = RefCell::new(Scene::new(false, busy));
    let played = runner(cases).run(&history(), |history| {
        let wrong = scene.borrow_mut().play(&history);
        prop_assert!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    });
    played.unwrap_or_else(|why| panic!("{why}"));
}

/// After a handover nothing on the new holder's side, through any cache, is what was there before: attributes, names, names that
/// were not there, listings, data, symlinks, extended attributes, open files and directories, mapped pages.
#[test]
fn after_a_handover_no_read_returns_what_was_there_before() {
    play_all(QUICK, false);
}

/// A name of a file under which it was found no more, by a call that had waited for the lease, is not shown either: the kernel is told
/// to forget that one too.
#[test]
fn a_name_that_a_waiter_found_to_lead_elsewhere_is_not_shown_any_more() {
    let (from, to) = (Place { dir: 0, name: F }, Place { dir: 1, name: F });
    let steps = vec![
        Step::Change(Change::Rename { from, to }),
        // Its old name is believed still, and its new one has been seen.
        Step::Look { holder: false, at: Look::All },
        Step::HandOver { waiter: Some(to) },
    ];
    let wrong = Scene::new(false, false).play(&History { steps, order: 1 });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The same while programs of both sides look at everything all the time: answers that are under way when the tree changes hands
/// are not believed after it.
#[test]
fn after_a_handover_while_others_look_no_read_returns_what_was_there_before() {
    play_all(QUICK / 5, true);
}

/// Without the lease, what the other side has changed is seen in half a second and a little more, by whoever comes by a name.
#[test]
fn the_side_without_the_lease_catches_up() {
    let scene = RefCell::new(Scene::new(false, false));
    let played = runner(QUICK / 30).run(&history(), |mut history| {
        let mut scene = scene.borrow_mut();
        history.steps.push(Step::Look { holder: false, at: Look::All });
        // What is changed after the last handover, with the other side's caches full.
        let again: Vec<Step> = history.steps.iter().filter(|step| matches!(step, Step::Change(_))).copied().collect();
        history.steps.extend(again);
        let wrong = scene.play_and_then(&history, Scene::other_side_catches_up);
        prop_assert!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    });
    played.unwrap_or_else(|why| panic!("{why}"));
}

/// What the guard lets the kernel keep at present. A cache that is added to it belongs here: then the control shows that the
/// histories would catch it.
const KEPT: [Cache; 5] = [Cache::Names, Cache::Attributes, Cache::Data, Cache::OpenFiles, Cache::MappedPages];

/// Control: if the kernel is told nothing, it shows what was there before, and each cache is caught at it.
#[test]
fn control_without_the_invalidation_every_cache_shows_what_was_there_before() {
    let mut scene = Scene::new(true, false);
    let mut caught = BTreeSet::new();
    let mut runner = runner(1);
    for _ in 0..CONTROL {
        let history = history().new_tree(&mut runner).unwrap().current();
        caught.extend(scene.play(&history).into_iter().map(|wrong| wrong.cache));
        if KEPT.iter().all(|cache| caught.contains(cache)) {
            return;
        }
    }
    panic!("of {KEPT:?} only these were caught: {caught:?}");
}
