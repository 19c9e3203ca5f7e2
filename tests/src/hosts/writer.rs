//! A program that writes all the time, until its first error: whoever is refused once is refused for good, so a test sees it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wait_for;

/// Until a write has gone through, on a machine that does ten things at once.
const SOON: Duration = Duration::from_secs(60);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(20);

/// Writes a growing number into a file.
pub struct Writer {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    thread: JoinHandle<Option<i32>>,
}

impl Writer {
    /// From now on.
    pub fn start(file: PathBuf) -> Self {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (file, stop, failed) = (file.clone(), stop.clone(), failed.clone());
            move || {
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    if let Err(e) = std::fs::write(&file, format!("{n:012}")) {
                        failed.store(true, Ordering::SeqCst);
                        return Some(e.raw_os_error().unwrap_or(0));
                    }
                    std::thread::sleep(PAUSE);
                }
                None
            }
        });
        Self { file, stop, failed, thread }
    }

    /// Whether a write was refused.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Something newer is written.
    pub fn goes_on(&self) {
        let written = || std::fs::read_to_string(&self.file).ok().filter(|text| !text.is_empty());
        let before = written();
        wait_for(SOON, "the writer goes on", || self.failed() || written() > before);
        assert!(!self.failed(), "a write was refused");
    }

    /// Ends it; the error of the write that was refused.
    pub fn end(self) -> Option<i32> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer")
    }

    /// Ends it, and no write was ever refused.
    pub fn ends_well(self) {
        self.goes_on();
        assert_eq!(self.end(), None, "no write was ever refused");
    }
}
