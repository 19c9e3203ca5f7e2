//! A program that writes for as long as it may: one line after the other into one file of a tree, whatever refuses it.
//!
//! It never asks who holds the tree and takes no lease itself; it goes on across refusals, with the handle that it has while the
//! answer is EROFS, with a new one else. Both sides' scribes write to one file, each line at the file's end as their `fstat` says it
//! (not O_APPEND: the end must be known, or a line lands on another one). It keeps, outside the tree:
//!
//! - *notes*: start, end and epoch of every write that succeeded ([`super::gates::Success`]);
//! - *acknowledgements*: the line, after its `fsync` said 0. An acknowledged line that is missing later was lost.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::random::Random;

/// The file in the tree.
pub const LINES: &str = "lines";
/// Every line is as long, with its end.
pub const LINE: usize = 32;
/// Refusals of one handle after which a new one is tried.
const PATIENCE: u32 = 10;

/// Now, by the clock that all sides share.
pub fn now() -> u64 {
    let time = nix::time::ClockId::CLOCK_MONOTONIC_RAW.now().expect("the kernel has it");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// A line.
pub fn line(side: &str, number: u64) -> String {
    format!("{:<width$}\n", format!("{side} {number:010}"), width = LINE - 1)
}

/// The epoch under which this side holds the tree by its guard's word; none if it does not.
fn epoch(tree: &Path) -> Option<u64> {
    let text = std::fs::read(tree.join(".treelease/status.json")).ok()?;
    let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
    (status["mine"] == true).then(|| status["epoch"].as_u64()).flatten()
}

/// Writes until its standard input ends; with pauses in which the tree may come to rest, or without.
pub fn run(tree: &Path, side: &str, notes: &Path, acknowledgements: &Path, seed: u64, rests: bool) -> std::io::Result<()> {
    static STOP: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _end = std::io::stdin().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::SeqCst);
    });
    let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
    let (mut notes, acknowledgements, mut random) = (append(notes)?, append(acknowledgements)?, Random::new(seed));
    let mut open: Option<(File, u32)> = None;
    let mut number = 0;
    while !STOP.load(Ordering::SeqCst) {
        let pause = if rests && random.below(25) == 0 { 1000 + random.below(1500) } else { 20 + random.below(100) };
        std::thread::sleep(Duration::from_millis(pause));
        let handle = match open.take() {
            Some(handle) => Ok(handle),
            // Truncating or creating anew would lose what others wrote.
            None => OpenOptions::new().write(true).create(true).truncate(false).open(tree.join(LINES)).map(|f| (f, 0)),
        };
        let Ok((file, refused)) = handle else { continue };
        number += 1;
        let text = line(side, number);
        let before = epoch(tree);
        let start = now();
        let written = file.metadata().and_then(|m| file.write_all_at(text.as_bytes(), m.len()));
        let end = now();
        match written {
            Ok(()) => {
                let under = before.filter(|b| epoch(tree) == Some(*b)).map_or_else(|| "-".to_owned(), |e| e.to_string());
                notes.write_all(format!("{start} {end} {under}\n").as_bytes())?;
                if file.sync_all().is_ok() {
                    (&acknowledgements).write_all(text.as_bytes())?;
                    acknowledgements.sync_data()?;
                    open = Some((file, 0));
                }
            }
            Err(e) if e.raw_os_error() == Some(Errno::EROFS as i32) && refused < PATIENCE => open = Some((file, refused + 1)),
            Err(_) => {}
        }
    }
    Ok(())
}
