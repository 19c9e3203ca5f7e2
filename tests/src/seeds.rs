//! Many runs in one test, each from its seed: on all processors, and a panic of the product's own is a result.
//!
//! It does not know what a run is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// So many in the quick tier, so many in the long one (`TREELEASE_LONG`).
pub fn many(quick: u64, long: u64) -> u64 {
    if std::env::var_os("TREELEASE_LONG").is_some() { long } else { quick }
}

/// Runs until `each` says no; on as many threads as there are processors.
pub fn on_all_processors<T: Copy + Sync>(runs: impl Iterator<Item = T>, each: impl Fn(T) -> bool + Sync) {
    let runs: Vec<T> = runs.collect();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed)
                    && let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if !each(*run) {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// An assertion of the product's own (debug builds look at I1 and I2 after every command) is to name its seed too.
pub fn attempt<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panicked| {
        let text = panicked.downcast_ref::<String>().cloned();
        text.or_else(|| panicked.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}
