//! Places at which a test can stop the guard: between the gate's word and the system call, where a late write is born.
//!
//! Debug builds only. `TREELEASE_FAILPOINTS` names a directory; while a file with the place's name lies in it, whoever comes
//! to that place waits there.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// How often it is looked whether the file has gone.
const LOOK: Duration = Duration::from_millis(5);
/// A test that forgot its file must not keep a thread for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits while the test says so. Costs nothing in a release build.
pub fn here(place: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(dir) = DIR.get_or_init(|| std::env::var_os("TREELEASE_FAILPOINTS").map(PathBuf::from)) else { return };
    let (stop, reached) = (dir.join(place), dir.join(format!("{place}.reached")));
    let mut waited = Duration::ZERO;
    while stop.exists() && waited < LIMIT {
        let _told = std::fs::write(&reached, b"");
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
}
