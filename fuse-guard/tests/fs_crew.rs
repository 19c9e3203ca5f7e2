//! How many threads serve: one while one process removes files, all else. Needs /dev/fuse.

mod fs_support;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fs_support::{Tree, eventually};

const FILES: usize = 200;

fn make(t: &Tree) {
    (0..FILES).for_each(|n| fs::write(t.at.join(format!("f{n}")), b"text").unwrap());
}

fn remove(t: &Tree) {
    (0..FILES).for_each(|n| fs::remove_file(t.at.join(format!("f{n}"))).unwrap());
}

/// Each removed file is a FORGET too, that nobody waits for: a thread that is woken for it costs more than it does.
#[test]
fn while_one_process_removes_files_the_threads_that_are_not_needed_rest() {
    let t = Tree::held();
    (0..FILES).for_each(|n| fs::write(t.at.join("one"), n.to_string()).unwrap());
    (0..FILES).for_each(|_| _ = fs::read(t.at.join("one")).unwrap());
    make(&t);
    assert_eq!(t.mount.rests(), 0, "nobody rests while files are made, written and read");
    // On a machine that has no time there may be more than a moment between two removals.
    let rested = (0..50).any(|_| {
        remove(&t);
        make(&t);
        t.mount.rests() > 0
    });
    assert!(rested, "no thread has rested");
}

#[test]
fn while_files_are_removed_others_are_answered_and_so_is_everybody_after_it() {
    let t = Tree::held();
    fs::create_dir(t.lower.join("others")).unwrap();
    (0..FILES).for_each(|n| fs::write(t.lower.join(format!("others/o{n}")), b"text").unwrap());
    let (over, looked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for part in 0..3 {
            let (t, over, looked) = (&t, &over, &looked);
            threads.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    for n in (part..FILES).step_by(3) {
                        assert_eq!(fs::read(t.at.join(format!("others/o{n}"))).unwrap(), b"text");
                        assert!(!t.at.join(format!("others/none{n}")).exists());
                        looked.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        for _ in 0..5 {
            make(&t);
            let before = looked.load(Ordering::SeqCst);
            remove(&t);
            eventually("the others go on", || looked.load(Ordering::SeqCst) > before);
        }
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!(fs::read_dir(&t.at).unwrap().count(), 1);
}
