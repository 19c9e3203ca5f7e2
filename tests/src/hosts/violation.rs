//! What must never happen has happened: the one way in which a story says so.
//!
//! A test that fails because something was slow may pass at the next try. A broken promise may not: two gates that admitted at
//! once, an acknowledged row that is gone, a late write, an epoch that went back. So besides failing the test, it is written to a
//! file in `violations/` of the target directory, and `tests/run` fails while there is one, whatever a second try said.

use std::io::Write;
use std::path::PathBuf;

use super::executable;

/// The directory of such files.
pub fn directory() -> PathBuf {
    let built = executable("treelease-server");
    let target = built.ancestors().nth(2).expect("executables lie in TARGET/PROFILE");
    target.join("violations")
}

/// Fails the test for good: what was broken, and what is known about it.
pub fn violated(test: &str, what: &str) -> ! {
    let dir = directory();
    let file = dir.join(format!("{test}-{}", std::process::id()));
    let written = std::fs::create_dir_all(&dir).and_then(|()| {
        let mut file = std::fs::File::options().create(true).append(true).open(&file)?;
        writeln!(file, "{what}")
    });
    if let Err(e) = written {
        eprintln!("{}: {e}", file.display());
    }
    panic!("{test}: a promise is broken (kept in {}):\n{what}", file.display());
}
